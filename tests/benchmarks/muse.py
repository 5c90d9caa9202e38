"""MUSE's criteria in batches against one item at a time, for each family: the same scores, in a fraction of the time.

Times are of the processor, in one thread.
"""

import time
from collections.abc import Callable
from dataclasses import replace

import torch

from tests.toys.scripted import evaluation_of
from unlearn.config.recipe import load
from unlearn.core.records import Record
from unlearn.evaluators.base import EvaluationResult, Evaluator
from unlearn.evaluators.muse.presence import ImagePresence
from unlearn.evaluators.muse.privacy import ImagePrivacy
from unlearn.evaluators.muse.reconstruction import ImageMemorization
from unlearn.evaluators.text.membership import TextMembership
from unlearn.evaluators.text.muse import MuseMetrics
from unlearn.experiment.inputs import RunInputs, gather_inputs

ITEMS, TEXTS = 24, 96
"""Items per split: few, as one at a time is slow; texts are many to a batch."""

FAMILIES: dict[str, tuple[Evaluator, ...]] = {
    "flow/category_digits": (
        ImageMemorization(items=ITEMS, shown=0),
        ImagePrivacy(items=ITEMS),
        ImagePresence(samples=ITEMS),
    ),
    "gan/guide_digits": (
        ImageMemorization(items=ITEMS, shown=0),
        ImagePrivacy(items=ITEMS),
        ImagePresence(samples=ITEMS),
    ),
    "diffusion/uce_digits": (
        ImageMemorization(items=ITEMS, shown=0),
        ImagePrivacy(items=ITEMS),
        ImagePresence(samples=ITEMS),
    ),
    "language/npo_factbook": (MuseMetrics(items=TEXTS), TextMembership(items=TEXTS, gradient_items=0)),
}


def main() -> None:
    """Print, per family, the seconds of all criteria both ways and their ratio (goal: 5)."""
    torch.set_num_threads(1)
    for recipe, evaluators in FAMILIES.items():
        inputs = inputs_of(recipe)
        measured(inputs, evaluators, lambda one: one)  # what is loaded at the first call is not counted
        whole, batched = measured(inputs, evaluators, lambda one: one)
        single, alone = measured(inputs, evaluators, lambda one: replace(one, batch_size=1))
        apart = max(abs(a.value - b.value) for a, b in zip(whole, single, strict=True))
        print(f"MUSE's criteria, {recipe}, {evaluators[0].items} items a split, in batches against one by one")
        print(
            f"  {batched:.2f} s against {alone:.2f} s: {alone / batched:.1f} x (goal 5); largest difference {apart:.1g}"
        )


def inputs_of(name: str) -> RunInputs:
    """Return splits and models of a recipe whose models ship."""
    recipe = load(name, [])
    return gather_inputs(recipe, 0, None, recipe.model.data_as_read(recipe.data.load()))


def measured(
    inputs: RunInputs, evaluators: tuple[Evaluator, ...], change: Callable[[Evaluator], Evaluator]
) -> tuple[list[Record], float]:
    """Return the records of evaluators on the target, and processor seconds."""
    evaluation = evaluation_of({"target": inputs.target.shared().eval()}, inputs.splits)
    found, began = EvaluationResult(), time.process_time()
    with torch.no_grad():
        for evaluator in evaluators:
            found.records.extend(change(evaluator)(evaluation).records)
    return found.records, time.process_time() - began
