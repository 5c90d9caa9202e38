"""The outcome of a run's steps on disk: the model and the facts about the run, written before anything is measured."""

import hashlib
import shlex
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from unlearn.config.schema import Recipe
from unlearn.core.commands import resume_command
from unlearn.core.errors import RecipeError, some
from unlearn.core.files import file_hash
from unlearn.core.randomness import Randomness
from unlearn.evaluators.base import RunFacts
from unlearn.experiment.inputs import RunInputs
from unlearn.experiment.model_store import StoredModel
from unlearn.experiment.parts import parts_of
from unlearn.experiment.read_back import check_read_back
from unlearn.experiment.run_dir import RunDir
from unlearn.models.base import Wrapper
from unlearn.objectives.base import AuxiliaryNetwork
from unlearn.training.checkpoint import load_checkpoint, restoring, save_checkpoint
from unlearn.training.fit import device_for

FACTS = Path("checkpoints") / "outcome.ckpt"
"""File of the facts in a run directory; it is written last, so ``model/`` is complete where it exists."""
MODEL = "model"
"""Folder of the unlearned model in a run directory."""
CARD = "README.md"
"""The model's card, which is written when the model was measured."""


@dataclass(frozen=True)
class Outcome:
    """The result of a run's steps.

    Args:
        model: the unlearned model.
        facts: what evaluators may report about the run.
        seconds: wall time by stage: ``unlearning`` and ``selection``.
    """

    model: Wrapper
    facts: RunFacts
    seconds: dict[str, float]


def write_outcome(outcome: Outcome, recipe: Recipe, inputs: RunInputs, folder: Path) -> None:
    """Write ``model/`` and the facts into a run directory, and hold the model against what was written.

    Raises:
        ReadBackFailed: the folder does not hold what is in memory.
    """
    part = folder / f".{MODEL}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    outcome.model.save_pretrained(part)
    shutil.rmtree(folder / MODEL, ignore_errors=True)
    part.replace(folder / MODEL)
    check_read_back(outcome.model, recipe.model, folder / MODEL, inputs.splits["retain"], device_for(recipe.trainer))
    facts = {name: getattr(outcome.facts, name) for name in STORED_FACTS}
    networks = {name: network.state_dict() for name, network in outcome.facts.networks.items()}
    state = {"facts": facts, "networks": networks, "seconds": outcome.seconds, "files": _files(folder)}
    (folder / FACTS).parent.mkdir(exist_ok=True)
    save_checkpoint(folder / FACTS, state)


STORED_FACTS = ("steps", "seconds", "target_seconds", "target_origin", "peak_memory", "state")
"""Fields of RunFacts that are stored as they are."""


def read_outcome(recipe: Recipe, inputs: RunInputs, folder: Path, seed: int) -> Outcome | None:
    """Return the outcome that a run directory holds, None where its steps have not ended or ``model/`` is gone.

    Raises:
        RecipeError: it cannot be read, or ``model/`` was changed since the run wrote it.
    """
    if not (folder / FACTS).is_file() or not (folder / MODEL).is_dir():
        return None
    stored = load_checkpoint(folder / FACTS)
    _refuse_changed(folder, stored)
    model = recipe.model.load(folder / MODEL)
    model.check_fits(inputs.splits["forget"].dataset.info)
    with restoring(folder / FACTS):
        networks = dict(_networks(recipe, inputs, stored["networks"], seed))
        facts = RunFacts(**{name: stored["facts"][name] for name in STORED_FACTS}, networks=networks)
        numbers = (facts.steps, facts.seconds, facts.target_seconds or 0.0, facts.peak_memory)
        if not all(isinstance(number, int | float) for number in numbers):
            raise TypeError("a number of its facts is none")
        seconds = {stage: float(stored["seconds"][stage]) for stage in stored["seconds"]}
        return Outcome(model, replace(facts, state={term: dict(kept) for term, kept in facts.state.items()}), seconds)


def refuse_changed(folder: Path, whole: Path) -> None:
    """Raise a RecipeError where the steps of a run have not ended, or its ``model/`` may have changed since they did.

    Args:
        folder: run directory of one seed.
        whole: the run directory that is resumed, which may hold several of them.
    """
    place = folder / MODEL
    if not place.is_dir():
        raise RecipeError(f"There is no {place}: its steps have not ended, or it is gone. {_remake(whole)}")
    if (folder / FACTS).is_file():
        _refuse_changed(folder, load_checkpoint(folder / FACTS))
    elif RunDir(folder).status().get("status") == "done":  # the user may have put something of theirs there
        raise RecipeError(
            f"{folder / FACTS} is gone, which tells whether {place} is what the run made. {_as_it_is(folder)}; or, to "
            f"make it again, move {place} away and type: {resume_command(whole)}"
        )
    else:
        raise RecipeError(f"The steps of {folder} have not ended. {_remake(whole)}")


def is_whole(folder: Path, recipe: Recipe) -> bool:
    """Return whether a finished run still has what it was run for: models and figures, of every part."""
    parts = [(folder / name, part) for name, part in parts_of(recipe).items()]
    made = all(is_whole(*part) for part in parts) if parts else (folder / MODEL).is_dir()
    return made and (folder / "metrics.json").is_file()


def result_before(folder: Path, recipe: Recipe, whole: Path) -> StoredModel | None:
    """Return the model that the request before made, from which this one begins; None for the first one.

    Args:
        folder: run directory of this request, which lies beside that of the one before.
        recipe: of this request.
        whole: the run directory that is resumed if the model is not there.

    Raises:
        RecipeError: the steps of the request before have not ended, or its model was changed since they did.
    """
    requests = recipe.requests
    if requests is None or not requests.before:
        return None
    before = folder.parent / replace(requests, at=len(requests.before)).folder
    refuse_changed(before, whole)
    key = hashlib.sha256(str(sorted(_files(before).items())).encode()).hexdigest()[:16]
    return StoredModel(partial(recipe.model.load, before / MODEL), "request", key=key, folder=before / MODEL)


def _remake(whole: Path) -> str:
    return f"Type: {resume_command(whole)}"


def _as_it_is(folder: Path) -> str:
    place, recipe = shlex.quote(str(folder / MODEL)), shlex.quote(str(folder / "recipe.yaml"))
    return (
        f"Put it back, or measure it as it is: python -m unlearn.evaluate model={place} target=FOLDER recipe={recipe} "
        "output=FOLDER"
    )


def _refuse_changed(folder: Path, stored: Mapping[str, Any]) -> None:
    with restoring(folder / FACTS):
        written, found = dict(stored["files"]), _files(folder)
    changed = sorted(name for name in written.keys() | found.keys() if written.get(name) != found.get(name))
    if changed:
        raise RecipeError(
            f"{folder / MODEL} was changed since the run wrote it ({some(changed)}), so it is not what the run made. "
            f"{_as_it_is(folder)}"
        )


def _files(folder: Path) -> dict[str, str]:
    """Return a hash of every file of ``model/`` by its path in it, without its card and hidden files."""
    found = {}
    for path in (folder / MODEL).rglob("*"):
        place = path.relative_to(folder / MODEL)
        if path.is_file() and place.as_posix() != CARD and not any(part.startswith(".") for part in place.parts):
            found[place.as_posix()] = file_hash(path)
    return found


def _networks(
    recipe: Recipe, inputs: RunInputs, stored: dict[str, dict[str, Any]], seed: int
) -> Iterator[tuple[str, nn.Module]]:
    """Yield the networks that the run kept besides the model, built anew by the terms that bring them."""
    terms = [(group, name, term) for group in ("forget", "retain") for name, term in getattr(recipe, group).items()]
    for group, name, term in terms if stored else ():
        stream = Randomness(seed, "companion").child(f"{group}/{name}")
        brought: AuxiliaryNetwork | None = term.auxiliary(inputs.target.shared(), inputs.target.shared, group, stream)
        if brought is not None and brought.name in stored:
            network = brought.build()
            network.load_state_dict(stored[brought.name])
            yield brought.name, network.eval()
