"""Studies: what is run, kept, resumed and shown, with figures derived by hand."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.toys import ROOT
from unlearn.config import listing, packaged
from unlearn.core.errors import RecipeError
from unlearn.core.files import write_json
from unlearn.core.records import Record
from unlearn.report.read_run import read_run
from unlearn.study.__main__ import HELP, main
from unlearn.study.execution import Part, parts
from unlearn.study.spec import Column, read_study
from unlearn.study.study_table import cell, cell_text, write_block

SMALL = str(ROOT / "tests" / "toys" / "recipes" / "small.yaml")
SHORT = ["optim.steps=2", "pretrain.retrained=false", "pretrain.optim.steps=2", "evaluate.bits_per_dim.items=20"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder with a cache of its own; the processes that a study starts find this checkout."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNLEARN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


def write_study(folder: Path, **changes: object) -> str:
    """Write a study of two combinations, and return its path."""
    tree = {
        "about": {"title": "Two ways to combine"},
        "recipe": SMALL,
        "overrides": SHORT,
        "runs": {"Sum": None, "PC Grad": {"settings": ["combine=pcgrad"]}},
        "seeds": [0],
        "columns": {"bits": {"metric": "bits_per_dim", "split": "forget"}, "time": {"metric": "cost_seconds"}},
    } | changes
    (folder / "two.yaml").write_text(yaml.safe_dump({k: v for k, v in tree.items() if v is not None}, sort_keys=False))
    return "two.yaml"


def record(value: float, subject: str = "unlearned", **more: object) -> Record:
    return Record(evaluator="e", metric="bits_per_dim", subject=subject, value=value, split="forget", **more)  # type: ignore[arg-type]


def finish(part: Part, records: list[Record], status: str = "done", gates: list[str] | None = None) -> None:
    """Leave what a run leaves."""
    part.folder.mkdir(parents=True)
    facts = {"schema": 1, "recipe": "r", "status": "done", "records": [one.to_dict() for one in records]}
    write_json(part.folder / "metrics.json", facts | {"failed_gates": gates or []})
    (part.folder / "recipe.yaml").write_text(yaml.safe_dump({"model": "glow", "data": "digits", "seed": part.seed}))
    write_json(part.folder / "run.json", {"status": status, "hash": part.hash})


def test_a_study_runs_what_is_missing_and_shows_what_failed(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The run with an absurd rate ends by itself; the other is whole, and is not run again."""
    study = write_study(place, runs={"Sum": {}, "too fast": {"settings": ["optim.lr=1e20"]}})
    assert main([study]) == 1
    out = capsys.readouterr().out
    assert "| Sum | " in out and "| too fast | – | – | failed |" in out
    assert "too fast, seed 0: failed: Step 1: the loss of" in out
    folder = place / "runs" / "studies" / "two"
    assert {"table.md", "table.csv", "comparison.html", "comparison.csv"} <= {path.name for path in folder.iterdir()}
    (run,) = (folder / "sum").glob("seed-0-*/")
    assert read_run(run).status == "done"
    with (folder / "table.csv").open(newline="") as file:
        rows = {row["run"]: row for row in csv.DictReader(file)}
    assert float(rows["Sum"]["bits"]) == next(
        r.value for r in read_run(run).records if r.metric == "bits_per_dim" and r.subject == "unlearned"
    )
    before = (run / "run.json").stat().st_mtime_ns
    assert main([study, "runs=[Sum]"]) == 0 and "Sum, seed 0: done before" in capsys.readouterr().out
    assert (run / "run.json").stat().st_mtime_ns == before
    assert main([study, "--show"]) == 0
    done, failed = capsys.readouterr().out.splitlines()
    assert done.startswith("done ") and failed.startswith("failed ") and "resume=" in failed


def test_other_settings_are_other_runs(place: Path) -> None:
    study = write_study(place)
    first, again = parts(read_study(study, [])), parts(read_study(study, ["optim.lr=5e-4"]))
    assert {part.folder for part in first}.isdisjoint(part.folder for part in again)
    finish(first[0], [record(1.0)])
    assert [part.state for part in parts(read_study(study, []))] == ["done", "not run"]
    assert [part.state for part in parts(read_study(study, ["optim.lr=5e-4"]))] == ["not run", "not run"]


def test_means_and_intervals_over_seeds(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Unlearned 1, 2, 3 and retrained 2, 2, 2: mean 2, distance (1 + 0 + 1) / 3; t(.975, 2) / sqrt(3) = 2.4841.

    The standard deviation of (1, 2, 3) is 1, so the half-width is 2.4841; that of (1, 0, 1) is sqrt(1/3), so the
    interval of 2/3 is -+ 1.4342, cut at 0. The signed differences (-1, 0, 1) have the mean 0.
    """
    m = {"metric": "bits_per_dim", "split": "forget"}
    columns = {"m": m, "far": m | {"minus": "retrained", "absolute": True}, "signed": m | {"minus": "retrained"}}
    study = write_study(place, seeds=[0, 1, 2], runs={"Sum": {}}, columns=columns, references=["retrained", "target"])
    for part, value in zip(parts(read_study(study, [])), (1.0, 2.0, 3.0), strict=True):
        finish(part, [record(value, direction="lower"), record(2.0, "retrained", direction="lower")])
    assert main([study, "--table"]) == 0
    out = capsys.readouterr().out
    assert "|  | m ↓ | far → 0 | signed → 0 |" in out
    assert "| Sum | 2.000 (−0.484 to 4.484) | 0.667 (0.000 to 2.101) | 0.000 (−2.484 to 2.484) |" in out
    assert "| retrained | 2.000 (2.000 to 2.000) | 0.000 (0.000 to 0.000) |" in out and "| target | – | – | – |" in out
    assert "over seeds 0, 1, 2" in out and (place / "runs/studies/two/sum/report.html").is_file()


def test_one_seed_keeps_its_interval_over_items(place: Path) -> None:
    study = read_study(write_study(place, runs={"Sum": {}}), [])
    (part,) = parts(study)
    finish(part, [record(0.5, ci95=(0.4, 0.6), unit="share"), record(0.25, "retrained", unit="share")])
    run = read_run(part.folder)
    assert cell_text(cell(Column(metric="bits_per_dim"), [run])) == "50.0 % (40.0 to 60.0 %)"
    assert cell_text(cell(Column(metric="bits_per_dim", minus="retrained"), [run])) == "25.0 %"
    assert (
        cell_text(cell(Column(metric="bits_per_dim", minus="clean"), [run]))
        == "–"
        == cell_text(cell(Column(metric="n"), [run]))
    )


def test_best_first_and_references_only_where_runs_agree(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Lower is better, so 1 comes before 3; targets of 5 and 6 are no one figure."""
    study = write_study(place, references=["target"], columns={"m": {"metric": "bits_per_dim"}}, order="m")
    for part, value in zip(parts(read_study(study, [])), (3.0, 1.0), strict=True):
        finish(part, [record(value, direction="lower"), record(value + 4, "target")])
    assert main([study, "--table"]) == 0
    lines = [line.split(" | ")[0] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert lines[1:] == ["| target", "| PC Grad", "| Sum"]
    assert "| target | – |" in (place / "runs/studies/two/table.md").read_text()
    assert main([study, "--table", "runs=[Sum]"]) == 0 and "| target | 7.000 |" in capsys.readouterr().out


def test_a_missed_gate_is_shown_and_unfinished_runs_go_on(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = write_study(place)
    one, two = parts(read_study(study, []))
    finish(one, [record(1.0)], gates=["gate.low missed: too high."])
    finish(two, [record(1.0)], status="running")
    assert [one.state, two.state] == ["gate missed", "unfinished"]
    assert one.finished and not two.finished and two.command() == [f"resume={two.folder}"]
    assert main([study, "--table"]) == 3
    out = capsys.readouterr().out
    assert "gate.low missed: too high." in out and "| unfinished |" in out


def test_a_column_that_nothing_fills_is_named(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of some of the runs: the others may measure what a column shows, so that it is not refused at once."""
    columns = {"typo": {"metric": "bits_per_din"}, "wrong": {"metric": "bits_per_dim", "about": {"score": "x"}}}
    study = write_study(place, columns=columns)
    finish(parts(read_study(study, ["runs=[Sum]"]))[0], [record(1.0)])
    assert main([study, "--table", "runs=[Sum]"]) == 0
    error = capsys.readouterr().err
    assert "column 'typo'" in error and "Did you mean: bits_per_dim?" in error
    assert "bits_per_dim was measured for: unlearned, forget" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["language_method"], "Did you mean: language_methods"),
        (["none.yaml"], "there is no study file"),
        (["two.yaml", "--shw"], "Did you mean: --show"),
        (["two.yaml", "runs=[Summ]"], "Did you mean: Sum"),
        (["two.yaml", "runs=[]"], "runs is empty; name at least one. Allowed: "),
        (["two.yaml", "order=bit"], "Did you mean: bits"),
        (["two.yaml", "seed=1"], "write seeds="),
        (["two.yaml", "seeds=[0,0]"], "different numbers"),
        (["two.yaml", "optim.lrr=1"], "Did you mean: lr"),
        (["two.yaml", "--write"], "--write has no value"),
        (["two.yaml", "--write", "doc.md"], "there is no file doc.md"),
        (["two.yaml", "--show", "--table"], "--show writes nothing"),
        (["seeds=[0]"], "unlearn.study STUDY key=value"),
    ],
)
def test_mistakes_stop_with_the_remedy(
    place: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    write_study(place)
    assert main(arguments) == 2 and message in capsys.readouterr().err
    assert not (place / "runs").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colums": {}}, "Did you mean: columns"),
        ({"columns": {"a": {"metrc": "m"}}}, "Did you mean: metric"),
        ({"columns": {"a": {"metric": "m", "minus": "retraind"}}}, "Did you mean: retrained"),
        ({"columns": None}, "columns is empty"),
        ({"overrides": ["seed=7"]}, "overrides takes no seed="),
        (
            {"columns": {"a": {"metric": "bits_per_din"}}},
            "which no entry of evaluate gives. Did you mean: bits_per_dim",
        ),
        ({"columns": {"a": {"metric": "fid", "evaluator": "costs"}}}, "an entry of no run. Did you mean: cost"),
        ({"columns": {"a": {"metric": "bits_per_dim", "evaluator": "cost"}}}, "columns.a.metric is 'bits_per_dim'"),
        ({"references": ["targt"]}, "Did you mean: target"),
        ({"runs": {"a b": {}, "a_b": {}}}, "would share a folder"),
        ({"recipe": None}, "has no recipe"),
        ({"runs": {"one": {"recipe": "quickstrat"}}}, "Did you mean: quickstart"),
        ({"runs": {"one": {"recipe": "quickstrat"}, "two": {"recipe": "npp"}}}, "two: there is no recipe 'npp'"),
        ({"overrides": ["output=here"]}, "leave output out"),
    ],
)
def test_wrong_files_stop_with_the_remedy(place: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message.replace("(", "\\(")):
        parts(read_study(write_study(place, **changes), []))


def test_a_document_gets_the_table_between_its_markers(place: Path) -> None:
    document, study = place / "doc.md", write_study(place, runs={"Sum": {}})
    finish(parts(read_study(study, []))[0], [record(1.0)])
    document.write_text("before\n<!-- table: two -->\nold\n<!-- end -->\nafter\n<!-- table: x -->\nx\n<!-- end -->\n")
    for _ in range(2):  # the second time, what is written is replaced by the same
        assert main([study, "--table", "--write", "doc.md"]) == 0
        text = document.read_text()
        assert text.startswith("before\n<!-- table: two -->\n|  | bits") and "old" not in text
        assert (
            text.endswith("\n<!-- end -->\nafter\n<!-- table: x -->\nx\n<!-- end -->\n") and text.count("| Sum |") == 1
        )
    with pytest.raises(RecipeError, match="0 blocks of other"):
        write_block(document, "other", "")


def test_recipes_lie_beside_the_study(place: Path) -> None:
    (place / "sub").mkdir()
    (place / "sub" / "own.yaml").write_text(f"base: {SMALL}\n")
    write_study(place / "sub", recipe="own.yaml")
    assert parts(read_study("sub/two.yaml", []))[0].member.recipe == str(Path("sub/own.yaml"))


def test_the_lists_show_every_study() -> None:
    assert packaged.names("study") == [
        "diffusion_class",
        "diffusion_guards",
        "diffusion_methods",
        "diffusion_one_step",
        "gan_ablation",
        "gan_class",
        "gan_identities",
        "language_methods",
        "language_surgery",
        "restor",
    ]
    for text in (listing.study_list(), listing.listing()):
        assert all(name in text and read_study(name, []).spec.about.title in text for name in packaged.names("study"))


@pytest.mark.parametrize("name", packaged.names("study"))
def test_packaged_studies_load(name: str) -> None:
    study = read_study(name, [])
    assert len({part.folder for part in parts(study)}) == len(study.runs) * len(study.spec.seeds)


def test_help_and_the_list_import_nothing_slow(capsys: pytest.CaptureFixture[str]) -> None:
    """The control: reading a study does import omegaconf."""
    assert main(["--help"]) == 0 and capsys.readouterr().out == HELP and max(map(len, HELP.splitlines())) <= 120
    code = "import json, sys, unlearn.study.__main__ as s; s.main(sys.argv[1:]); print(json.dumps(list(sys.modules)))"

    def modules(*arguments: str) -> set[str]:
        done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
        return set(json.loads(done.stdout.splitlines()[-1]))

    slow = {"torch", "omegaconf", "numpy", "rich"}
    assert not modules("--help") & slow and not modules() & slow and "omegaconf" in modules("language_methodz")
