"""Texts that models wrote: shown, cut, marked, and never markup; language figures in words."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from unlearn.core.errors import RecipeError
from unlearn.core.files import write_json
from unlearn.core.records import Record, TextTable
from unlearn.evaluators.base import EvaluationResult
from unlearn.experiment.part_summary import write_summary
from unlearn.experiment.run_dir import RunDir
from unlearn.report.card import write_model_card
from unlearn.report.formatting import figure
from unlearn.report.labels import about_text, phrase
from unlearn.report.page import build_report
from unlearn.report.read_run import read_run
from unlearn.report.table import measurements, metrics_table
from unlearn.report.texts import LONGEST, shortened, text_tables
from unlearn.report.verdict import judge

EVIL = '<script>alert("x")</script> | *b* `c`'
ROWS = [
    ["forget", "Where?", "In Rome.", "in rome", "elsewhere", "x" * 400],
    ["forget", EVIL, "a", EVIL, "", "a"],
    ["retain", "Who?", "she", "she", "she", "he"],
]
COLUMNS = ["", "question", "true answer", "target", "unlearned", "retrained"]


def with_table(folder: Path, **changes: Any) -> Path:
    """Add a table of texts to a run directory."""
    table = {"name": "answers", "title": "Answers", "caption": "Said.", "columns": COLUMNS, "rows": ROWS}
    write_json(folder / "samples" / "answers.json", table | {"truth": "true answer"} | changes)
    facts = read_run(folder).facts
    records = [record.to_dict() for record in read_run(folder).records]
    write_json(folder / "metrics.json", {**facts, "records": records, "text_tables": ["answers"]})
    return folder


def test_report_and_card_show_the_texts(make_run):
    run = with_table(make_run())
    page = build_report(run).read_text()
    table = page[page.index('<section id="texts">') :].partition("</section>")[0]
    assert "✓ in rome" in table and "elsewhere" in table and "✓ elsewhere" not in table
    assert table.count('scope="rowgroup"') == 2 and table.count("<tr>") == 1 + 2 + 3
    assert "x" * LONGEST + " …" in table and f'title="{"x" * 400}"' in table  # whole on hovering
    assert "<script" not in page and "&lt;script&gt;" in table
    card = write_model_card(run).read_text()
    assert "| Where? | In Rome. | ✓ in rome | elsewhere |" in card and "### retain" in card
    assert "<script" not in card and "\\| \\*b\\* \\`c\\`" in card
    lines = card[card.index("### forget") :].splitlines()
    assert lines[2].count("|") == 6 and lines[3] == "|---|---|---|---|---|"
    assert all(line.replace("\\|", "").count("|") == 6 for line in lines[4:6])


def test_no_texts_no_section(make_run):
    page = build_report(make_run()).read_text()
    assert 'id="texts"' not in page and "#texts" not in page


@pytest.mark.parametrize("changes", [{"rows": [["too", "few"]]}, {"columns": []}, {"rows": 3}])
def test_broken_texts_are_one_clear_error(make_run, changes):
    with pytest.raises(RecipeError, match=r"answers\.json cannot be used.*leave this run out"):
        build_report(with_table(make_run(), **changes))


def test_texts_outside_the_run_are_left_out(make_run, tmp_path):
    run = with_table(make_run())
    assert len(read_run(run).text_tables) == 1  # the control
    (run / "samples" / "answers.json").rename(tmp_path / "answers.json")
    assert read_run(run).text_tables == []
    (run / "samples" / "answers.json").symlink_to(tmp_path / "answers.json")
    assert read_run(run).text_tables == []


def test_seeds_show_the_first_ones_texts(make_run, tmp_path):
    seeds = [with_table(make_run(f"all/seed-{seed}", seed=seed)) for seed in (0, 1)]
    write_summary(tmp_path / "all", seeds)
    assert len(read_run(tmp_path / "all").text_tables) == 1
    assert "From seed-0." in (tmp_path / "all" / "report.html").read_text()


def test_what_is_written_is_read(tmp_path):
    table = TextTable("answers", "Answers", "Said.", COLUMNS, ROWS, "true answer")
    (tmp_path / "recipe.yaml").write_text("model: llama\n")
    RunDir(tmp_path).write_findings(EvaluationResult(text_tables=[table]), {"status": "done"})
    assert read_run(tmp_path).text_tables == [table]
    first = text_tables(read_run(tmp_path))[0]["groups"][0]["rows"]
    assert [value["same"] for value in first[0]] == [False, False, True, False, False]  # capitals and dots aside
    assert [value["same"] for value in first[1]] == [False, False, False, False, True]


def test_what_could_not_be_measured_is_said_and_shown(tmp_path, make_run, capsys):
    """On the terminal and in the log, in the report, the card, and once in the report of several seeds."""
    note = "text_membership: the data have no holdout."
    (tmp_path / "recipe.yaml").write_text("model: llama\n")
    RunDir(tmp_path).write_findings(EvaluationResult(notes=[note]), {"status": "done"})
    assert note in capsys.readouterr().err and note in (tmp_path / "log.txt").read_text()
    assert read_run(tmp_path).notes == [note]
    assert note in build_report(tmp_path).read_text().partition('<section id="limits">')[2].partition("</section>")[0]
    assert note.replace("_", "\\_") in write_model_card(tmp_path).read_text()
    seeds = [make_run(f"all/seed-{seed}", seed=seed, notes=[note]) for seed in (0, 1)]
    write_summary(tmp_path / "all", seeds)
    assert (tmp_path / "all" / "report.html").read_text().count(note) == 1
    assert read_run(make_run("plain")).notes == []


def test_long_texts_are_shortened():
    assert shortened("a b", 5) == "a b" and shortened("one two", 4) == "one …"


def record(metric: str, subject: str, value: float, split: str = "forget", **more: Any) -> Record:
    return Record(evaluator="e", metric=metric, subject=subject, value=value, split=split, unit="share", **more)


def attack(name: str, budget: str, unlearned: float, retrained: float, **about: str) -> list[Record]:
    said = {"score": "exact_memorization", "budget": budget, **about}
    values = {"target": 1.0, "unlearned": unlearned, "retrained": retrained}
    label = {"quantization": "attack by rounding the weights"}.get(name, "")
    return [record(f"attack_{name}", s, v, about=said, direction="retrained", label=label) for s, v in values.items()]


def test_the_strongest_attack_is_named(make_run):
    """Relearned items were just taught and 0 steps are no attack, so rounding's .5 - .3 counts and not .9 - .1."""
    attacks = [
        *attack("relearning", "4 items, 0 steps", 0.9, 0.1, category="others"),
        *attack("relearning", "4 items, 9 steps", 0.9, 0.1, category="relearned"),
        *attack("relearning", "4 items, 9 steps", 0.4, 0.3, category="others"),
        *attack("quantization", "4 bit", 0.5, 0.3),
    ]
    sentences = judge(read_run(make_run(records=attacks))).sentences
    wanted = "The strongest attack that was run, by rounding the weights (4 bit), finds an exact memorization of 50.0 %"
    assert f"{wanted} (retrained without it: 30.0 %)." in sentences
    none = judge(read_run(make_run("none", records=attacks[:6]))).sentences
    assert not any("strongest" in sentence for sentence in none)


def test_memorization_is_the_headline_and_the_wrong_way_is_said(make_run):
    """A p-value is no headline; from .9 to 1 is away from the retrained model's .4, from .9 to .5 towards it."""

    def first(unlearned: float) -> str:
        values = {"target": 0.9, "unlearned": unlearned, "retrained": 0.4}
        found = [record("forget_quality", "unlearned", 1e-9, direction="higher")]
        found += [record("exact_memorization", s, v, direction="retrained") for s, v in values.items()]
        return judge(read_run(make_run(str(unlearned), records=found))).sentences[0]

    assert first(1.0) == (
        "Exact memorization on the forget data rose from 90.0 % to 100.0 % (retrained without it: 40.0 %). "
        "That is the wrong way."
    )
    assert first(0.5).endswith("(retrained without it: 40.0 %).")


def test_language_figures_in_words():
    about = {"score": "min_k_plus_plus", "budget": "4 bit", "category": "others", "concept": "x"}
    assert about_text(about) == "Min-K++ · 4 bit · other items · concept x"
    assert figure(200.0, "", "steps") == "200" and figure(5.0, "", "steps") == "5" and figure(5.0) == "5.000"
    asked = record("attack_relearning", "unlearned", math.nan, about={"budget": "4 items, 9 steps"})
    assert phrase(asked) == "attack relearning on the forget data (4 items, 9 steps)"
    assert phrase(replace(asked, label="attack by relearning")).startswith("attack by relearning on")


def test_the_terminal_shows_an_attacks_first_score():
    found = attack("paraphrase", "all", 0.5, 0.3)
    found += [record("attack_paraphrase", "unlearned", 0.2, about={"score": "extraction_strength", "budget": "all"})]
    table = metrics_table(found)
    assert list(table.columns[1].cells) == ["all", "+ 1 more"] and len(measurements(found)) == 2


def test_restoration_is_the_headline_of_a_corrupted_model(make_run):
    """The corrupted model is the target, and the clean one is what it is held against."""
    found = [record("exact_memorization", s, 0.5, direction="lower") for s in ("target", "unlearned")]
    for subject, value in {"unlearned": 0.25, "clean": 1.0, "corrupted": 0.0}.items():
        found.append(
            Record(
                evaluator="restor", metric="restoration_ratio", subject=subject, value=value, split="probe",
                about={"score": "match"}, direction="higher",
            )
        )  # fmt: skip
    assert judge(read_run(make_run(records=found, recipe_gate=None))).sentences[0] == (
        "Restoration ratio on the facts that were contradicted (in the generated answer) rose from 0.000 to 0.250 "
        "(the clean model: 1.000)."
    )
