"""Two entries of one evaluator are two figures, over seeds too."""

from typing import Any

import pytest
import torch

from tests.toys.scripted import value
from unlearn.core.randomness import Randomness
from unlearn.core.records import Record, find
from unlearn.data.base import Selection
from unlearn.data.digits import Digits
from unlearn.data.splits import make_splits
from unlearn.evaluators.base import EvaluationResult
from unlearn.evaluators.likelihood.bits_per_dim import BitsPerDim
from unlearn.experiment.evaluation import measured
from unlearn.experiment.part_summary import summarise
from unlearn.models.flow.config import GlowConfig

EVALUATE = {"a": BitsPerDim(draws=1, items=8), "b": BitsPerDim(draws=3, items=8)}


def records(seed: int, evaluate: Any) -> list[Record]:
    return findings(seed, evaluate).records


def findings(seed: int, evaluate: Any) -> EvaluationResult:
    digits = Digits().load()
    splits = make_splits(digits, Digits(forget=Selection(label=["3"])), Randomness(0))
    model = GlowConfig(scales=1, depth=1, width=4).build(digits.info, Randomness(seed)).eval()
    with torch.no_grad():
        model.initialise(digits.batch(splits["retain"].ids[:64]), Randomness(seed))
    models = {"target": model, "unlearned": model}
    return measured(evaluate, models, splits, Randomness(seed, "evaluate"), torch.device("cpu"), seed=seed)


def test_two_seeds_and_two_entries_give_two_figures_of_two_values() -> None:
    """Each summary is the mean of its own entry's two values, and not of all four."""
    by_seed = [records(seed, EVALUATE) for seed in (0, 1)]
    summary = [r for r in summarise(by_seed) if r.subject == "unlearned" and r.split == "forget"]
    assert {(r.evaluator, r.metric, r.n) for r in summary} == {("a", "bits_per_dim", 2), ("b", "bits_per_dim", 2)}
    for name in EVALUATE:
        both = [value(found, "bits_per_dim", evaluator=name, subject="unlearned", split="forget") for found in by_seed]
        assert value(summary, "bits_per_dim", evaluator=name) == pytest.approx(sum(both) / 2)


def test_a_figure_is_found_by_the_entry() -> None:
    found = records(0, EVALUATE)
    a, b = (find(found, "bits_per_dim", split="forget", evaluator=name) for name in EVALUATE)
    assert a is not None and b is not None and a.value != b.value
    assert find(found, "bits_per_dim", split="forget") == a
    assert find(found, "bits_per_dim", evaluator="c") is None


def test_an_entry_by_the_registered_name_is_recorded_under_it() -> None:
    assert {r.evaluator for r in records(0, {"bits_per_dim": BitsPerDim(items=8)})} == {"bits_per_dim"}


def test_pictures_and_item_rows_carry_the_entry() -> None:
    """No file is written twice; an entry under the registered name keeps the plain file name."""
    found = findings(0, {"bits_per_dim": BitsPerDim(draws=1, items=8), **EVALUATE})
    assert [picture.name for picture in found.pictures] == ["likelihood", "likelihood_a", "likelihood_b"]
    assert [picture.title.endswith("(a)") for picture in found.pictures] == [False, True, False]
    rows = {name: [row for row in found.items if row["evaluator"] == name] for name in ("bits_per_dim", *EVALUATE)}
    assert len({len(of_entry) for of_entry in rows.values()}) == 1 and rows["a"]
    assert [row["value"] for row in rows["a"]] != [row["value"] for row in rows["b"]]


def test_the_key_of_a_picture_makes_a_file_name() -> None:
    (picture,) = findings(0, {"my.probes:Bits": BitsPerDim(draws=1, items=8)}).pictures
    assert picture.name == "likelihood_my.probes_Bits"
