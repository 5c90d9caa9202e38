"""Several seeds: means and Student's t intervals in closed form."""

import json
import math
from pathlib import Path

import pytest
import yaml

from unlearn.core.errors import RecipeError
from unlearn.core.files import write_json
from unlearn.core.records import Record
from unlearn.experiment.part_summary import OVER_SEEDS, summarise, write_summary
from unlearn.report.read_run import read_run


def record(value: float, metric: str = "bits", seed: int = 0, **more) -> Record:
    return Record(
        evaluator="e", metric=metric, subject=more.pop("subject", "unlearned"), value=value, seed=seed, **more
    )


def write_seed(folder: Path, seed: int, records: list[Record], status: str = "done") -> Path:
    folder.mkdir(parents=True)
    rows = [one.to_dict() for one in records]
    facts = {"schema": 1, "recipe": "r", "hash": "h", "status": status, "seconds": {"unlearning": 2.0}, "records": rows}
    write_json(folder / "metrics.json", facts)
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"model": "glow", "seed": seed}))
    return folder


def test_same_figures_meet_and_others_stay_apart():
    seeds = [
        [
            record(value, seed=seed),
            record(9.0, split="test"),
            record(5.0, about={"category": "3"}),
            record(7.0, subject="target"),
        ]
        for seed, value in enumerate((0.0, 1.0, 2.0))
    ]
    seeds[0].append(record(4.0, "only_once", unit="s", direction="lower"))
    mean, *others = summarise(seeds)
    assert (mean.value, mean.n, mean.seed) == (1.0, 3, OVER_SEEDS)
    assert [(one.value, one.n) for one in others] == [(9.0, 3), (5.0, 3), (7.0, 3), (4.0, 1)]
    assert others[-1].ci95 is None and (others[-1].unit, others[-1].direction) == ("s", "lower")


def test_undefined_values_are_left_out_and_counted():
    mean, never = summarise([[record(value), record(math.nan, "never")] for value in (1.0, math.nan, 3.0)])
    assert (mean.value, mean.n) == (2.0, 2)
    assert math.isnan(never.value) and never.n == 0 and never.ci95 is None


def test_yes_or_no_has_no_t_interval():
    assert summarise([[record(value, "reached")] for value in (1.0, 1.0, 0.0)])[0].ci95 is None


def test_summary_on_disk(tmp_path):
    seeds = [
        write_seed(tmp_path / f"seed-{seed}", seed, [record(float(seed), seed=seed), record(math.nan, "odd")])
        for seed in (4, 7)
    ]
    records = write_summary(tmp_path, seeds)
    facts = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=pytest.fail)
    assert (facts["seeds"], facts["part_folders"], facts["seconds"]) == (
        [4, 7],
        ["seed-4", "seed-7"],
        {"unlearning": 4.0},
    )
    assert (facts["recipe"], facts["status"]) == ("r", "done") and (tmp_path / "report.html").is_file()
    run = read_run(tmp_path)
    assert run.records[0] == records[0] and [seed.path.name for seed in run.seeds] == ["seed-4", "seed-7"]


def test_one_unfinished_seed_leaves_the_summary_unfinished(tmp_path):
    seeds = [
        write_seed(tmp_path / f"seed-{seed}", seed, [record(1.0)], status)
        for seed, status in enumerate(("done", "stopped"))
    ]
    write_summary(tmp_path, seeds)
    assert read_run(tmp_path).status == "stopped"


def test_missing_seed_is_an_error(tmp_path):
    with pytest.raises(RecipeError, match="not a folder"):
        write_summary(tmp_path, [tmp_path / "seed-0"])
    assert not (tmp_path / "metrics.json").exists()
