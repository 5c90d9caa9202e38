"""Every evaluator, called as small as it can be: what ``--check`` tries of the measuring."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from unlearn.config.schema import Recipe
from unlearn.core.errors import RecipeError, UnlearnError
from unlearn.core.randomness import Randomness
from unlearn.evaluators.subjects import OneAtATime
from unlearn.experiment.evaluation import measured
from unlearn.experiment.inputs import RunInputs
from unlearn.experiment.model_store import StoredModel
from unlearn.experiment.outcome import Outcome
from unlearn.training.fit import device_for

LARGE = 8e6
"""Weights of a model from which on an untrained one is tried once, whatever it stands for."""
SECONDS = 8.0
"""Time of computing for all evaluators together; those that are left then are not tried."""


@dataclass
class Trial:
    """What a dry run has tried.

    Attributes:
        tried: in words, or the keys of evaluators.
        not_tried: the same -> the reason.
    """

    tried: list[str] = field(default_factory=list)
    not_tried: dict[str, str] = field(default_factory=dict)

    def leave_out(self, names: Iterable[str], reason: str) -> None:
        """Note what is not tried, and why."""
        self.not_tried |= dict.fromkeys(names, reason)

    def lines(self) -> list[str]:
        """Return the verdict: sound where everything was tried, and otherwise what was and what was not."""
        if not self.not_tried:
            return [f"tried     {', '.join(self.tried)}", "The recipe is sound."]
        reasons: dict[str, list[str]] = {}
        for name, reason in self.not_tried.items():
            reasons.setdefault(reason, []).append(name)
        return [
            *(f"not tried: {', '.join(names)} ({reason})" for reason, names in reasons.items()),
            f"Nothing is wrong with what was tried: {', '.join(['data and settings', *self.tried])}. "
            f"Not tried: {', '.join(self.not_tried)}.",
        ]


def _stands_in(stored: StoredModel, target: StoredModel) -> bool:
    """Return whether a model only takes the place of one that is not trained yet, and would show what the target does.

    That is the target itself, or another untrained model of its configuration, where that is large.
    """
    if stored is target or stored.origin != "untrained" or target.origin != "untrained":
        return stored is target
    return sum(parameter.numel() for parameter in stored.shared().parameters()) > LARGE


def try_evaluators(recipe: Recipe, inputs: RunInputs, outcome: Outcome, trial: Trial) -> None:
    """Call every evaluator of a recipe on a few items of each split, as small as its settings allow.

    Raises:
        RecipeError: an evaluator refuses; the message begins with its key.
    """
    asked = {subject for evaluator in recipe.evaluate.values() for subject in evaluator.subjects}
    others = {
        subject: stored.shared
        for subject, stored in inputs.models.items()
        if subject in {"target", *asked} or not _stands_in(stored, inputs.target)
    }
    models: dict[str, Callable[[], Any]] = {
        "target": others.pop("target"),
        "unlearned": lambda: outcome.model,
        **others,
    }
    device, seed = device_for(recipe.trainer), recipe.seeds[0]
    subjects, randomness = OneAtATime(models, device), Randomness(seed, "evaluate")
    cache: dict[Any, Any] = {}
    began = time.thread_time()  # a busy machine changes no answer
    try:
        for name, evaluator in recipe.evaluate.items():
            key = f"evaluate.{name}"
            if lacking := [subject for subject in evaluator.subjects if subject not in models]:
                trial.leave_out([key], f"it compares with the {lacking[0]} model, which is not tried")
                continue
            if time.thread_time() - began > SECONDS:
                trial.leave_out([key], f"the others took {SECONDS:g} s")
                continue
            try:
                small = {name: evaluator.smallest()}
            except ValueError as error:  # of a user's own class
                trial.leave_out([key], f"its smallest settings are not valid: {error}")
                continue
            splits = {split: items.few(evaluator.tried_on) for split, items in inputs.splits.items()}
            try:
                measured(small, subjects, splits, randomness, device, outcome.facts, seed, cache)
            except ModuleNotFoundError as error:
                trial.leave_out([key], f"the package {error.name} is not installed")
            except UnlearnError as error:
                said = str(error)
                raise RecipeError(said if said.startswith(key) else f"{key}: {said}") from error
            except Exception as error:
                error.add_note(f"{key} raised this when it was tried on {evaluator.tried_on} items.")
                raise
            else:
                trial.tried.append(key)
    finally:
        subjects.release()
