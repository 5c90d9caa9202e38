"""Comparing runs: gaps instead of guesses, one clear error, nothing imported that is not needed."""

import csv
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from unlearn.compare import main
from unlearn.core.files import write_json
from unlearn.core.records import Record
from unlearn.report.comparison import aligned, compared, differences, pareto, tradeoff_charts
from unlearn.report.read_run import read_run

BOTH = ("target", "unlearned", "retrained")


def record(metric: str, subject: str, value: float, split: str, **more) -> Record:
    more = {"direction": "lower"} | more
    return Record(
        evaluator=more.pop("evaluator", "e"), metric=metric, subject=subject, value=value, split=split, **more
    )


def figures(share: float, bits: float, category: str = "3", base: float = 2.0) -> list[Record]:
    about = {"category": category}
    found = [
        record("sample_share", s, v, "forget", about=about, unit="share")
        for s, v in zip(BOTH, (0.1, share, 0.0), strict=True)
    ]
    found += [record("bits_per_dim", s, v, "retain") for s, v in zip(BOTH, (base, bits, base), strict=True)]
    return [*found, record("cost_seconds", "unlearned", 12.0, "", evaluator="cost", unit="s")]


def write_run(
    folder: Path, records: list[Record], data: str = "digits", forget: str = "3", status: str = "done", **recipe
) -> Path:
    folder.mkdir(parents=True)
    rows = [one.to_dict() for one in records]
    write_json(folder / "metrics.json", {"schema": 1, "recipe": folder.parent.name, "status": status, "records": rows})
    tree = {
        "model": {"name": "glow"},
        "data": {"name": data, "forget": {"label": [forget]}},
        "forget": {"name": "taming"},
    } | recipe
    (folder / "recipe.yaml").write_text(yaml.safe_dump(tree))
    return folder


@pytest.fixture
def runs(tmp_path):
    """A good run, a worse one of another method, one on other data, and one with other figures."""
    return [
        write_run(tmp_path / "good" / "1", figures(0.01, 2.1)),
        write_run(tmp_path / "worse" / "1", figures(0.02, 2.5), forget="3", **{"retain": {"weight": 2}}),
        write_run(tmp_path / "mnist" / "1", figures(0.01, 1.0, base=0.9), data="mnist"),
        write_run(tmp_path / "language" / "1", [record("truth_ratio", "unlearned", 0.5, "forget")], data="tofu"),
    ]


def entries(runs):
    return compared([read_run(run) for run in runs])


def test_command_writes_table_page_and_csv(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    assert main([*map(str, runs), "--output", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "1.0 % ← 10.0 % (0.0 %)" in out and "–" in out and "truth_ratio forget" in out
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert "4 runs side by side" in page and page.count("<svg") == 2 and "Not drawn" in page and "4 language" in page
    with (tmp_path / "out" / "comparison.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 7 + 1 and rows[1]["value"] == "0.01" and rows[1]["subject"] == "unlearned"
    assert rows[0]["about"] == "category 3" and rows[0]["low"] == ""


def test_what_a_run_did_not_measure_is_a_gap(runs):
    lines = {(line.label, line.where): line for section in aligned(entries(runs)).values() for line in section}
    assert [cell is None for cell in lines["truth ratio", "forget"].cells] == [True, True, True, False]
    assert [cell is None for cell in lines["sample share", "forget"].cells] == [False, False, False, True]


def test_two_entries_of_one_evaluator_are_two_lines(tmp_path):
    both = [
        record("bits_per_dim", "unlearned", bits, "retain", evaluator=key) for key, bits in (("a", 1.0), ("b", 2.0))
    ]
    lines = aligned(entries([write_run(tmp_path / "two" / "1", both)]))["Kept"]
    assert [(line.label.rpartition(" ")[2], line.first.value("unlearned")) for line in lines] == [
        ("(a)", 1),
        ("(b)", 2),
    ]


def test_best_only_among_equals(runs):
    """With the same data the first run is best; beside a run on other data none is; equal figures have no best."""

    def best(chosen):
        return next(line.best for line in aligned(entries(chosen))["Kept"])

    assert best(runs[:2]) == {0} and best(runs[:3]) == set() and best([runs[0], runs[0]]) == set()


def test_forget_figures_align_whatever_is_forgotten(tmp_path):
    runs = [write_run(tmp_path / digit / "1", figures(0.01, 2.0, digit), forget=digit) for digit in "35"]
    assert [line.where for line in aligned(entries(runs))["Forgetting"]] == ["forget"]
    (panel,), left = tradeoff_charts(entries(runs))
    assert left == [] and "what each run forgets" in panel.caption


def test_runs_share_a_picture_only_with_the_same_data_and_figures(runs):
    drawn, left = tradeoff_charts(entries(runs))
    assert [len(panel.legend) for panel in drawn] == [2, 1] and [entry.number for entry in left] == [4]
    assert drawn[0].title.startswith("digits") and drawn[1].title.startswith("mnist")


def test_other_targets_are_compared_by_change(tmp_path):
    """Targets of 2 and 3 bits, unlearned 2.5 and 3.5: both changed by .5, so both points lie at the same place."""
    runs = [write_run(tmp_path / f"t{base}" / "1", figures(0.01, base + 0.5, base=base)) for base in (2.0, 3.0)]
    (panel,), _ = tradeoff_charts(entries(runs))
    assert "change from the target" in panel.caption
    places = {(mark.x, mark.y) for mark in panel.chart.marks if not mark.faint}
    assert len(places) == 1 and [mark.label for mark in panel.chart.marks if mark.label] == ["1, 2"]


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ([(1, 1), (2, 2)], [0]),
        ([(1, 2), (2, 1), (2, 2)], [0, 1]),
        ([(1, 1), (1, 1)], [0, 1]),
        ([(1, 2), (1, 1)], [1]),
        ([], []),
    ],
)
def test_pareto(points, front):
    assert pareto(points) == front


def test_differences_of_the_recipes(runs):
    assert differences(entries(runs[:2])) == [("retain.weight", ["–", "2"])]
    assert ("data.name", ["digits", "mnist"]) in differences(entries(runs[::2]))
    assert differences(entries(runs[:1])) == []


def test_runs_of_one_recipe_are_told_apart_by_folder(tmp_path):
    runs = [write_run(tmp_path / "r" / name, figures(0.01, 2.0)) for name in ("a", "b")]
    assert [entry.label for entry in entries(runs)] == ["r a", "r b"]


@pytest.mark.parametrize("fault", ["missing", "empty", "corrupt", "unfinished"])
def test_unusable_run_is_one_message_and_code_2(tmp_path, runs, capsys, fault):
    folder = tmp_path / "broken" / "1"
    if fault == "empty":
        folder.mkdir(parents=True)
    elif fault != "missing":
        write_run(folder, figures(0.01, 2.0), status="running" if fault == "unfinished" else "done")
    if fault == "corrupt":
        (folder / "metrics.json").write_text("{")
    assert main([str(runs[0]), str(folder), "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert str(folder) in error and error.startswith("error: ") and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_full_disk_names_what_could_not_be_written(tmp_path, runs, capsys, monkeypatch):
    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert main([str(runs[0]), "--output", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert f"could not be written into {tmp_path / 'out'} (OSError: [Errno 28] No space" in error
    assert error.count("\n") == 1 and "--output" in error


ASK = """
import runpy, sys
sys.argv = ["command", "--help"]
try:
    runpy.run_module({!r}, run_name="__main__")
except SystemExit:
    pass
sys.exit("torch" in sys.modules)
"""


def test_help_imports_no_torch():
    """The control: the same question about a module that does import torch says yes."""

    def ask(module: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", ASK.format(module)], capture_output=True, text=True, check=False)

    quick = ask("unlearn.compare")
    assert quick.returncode == 0 and "--output" in quick.stdout
    assert ask("unlearn.core.randomness").returncode == 1
