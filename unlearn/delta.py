"""Save what a run changed as one small file, and apply it to a model: python -m unlearn.delta save | apply."""

import argparse
import hashlib
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialized
from torch import Tensor, nn

from unlearn.config.registry import is_registered, names, resolve
from unlearn.core.commands import import_from_here
from unlearn.core.errors import RecipeError, UnlearnError, some
from unlearn.core.files import write_bytes
from unlearn.core.shown import printable
from unlearn.experiment.memory_estimate import gib
from unlearn.experiment.model_store import folder_of
from unlearn.experiment.run_dir import RunDir
from unlearn.models.base import ModelConfig, Wrapper, not_finite

HEADER = "unlearn_delta"
"""Key of the file's metadata that holds the ``DeltaHeader``, as JSON."""

EPILOG = """\
A delta holds, for each tensor that the run changed, the unlearned value less the target's, in single precision, as
safetensors. A guard around the model, and a key beside it, are not weights, and are not in it.
It may be applied to another base than its own with the same tensors (a fine-tuned copy of the target, say).
exit codes: 0 done, 1 failed, 2 a file or folder is wrong; nothing is written then
"""


@dataclass(frozen=True)
class DeltaHeader:
    """The model and the run that a delta belongs to.

    Attributes:
        model: name of the model in recipes.
        family: flow, gan, diffusion or language.
        base: hash of the weights that the differences were taken from (``fingerprint``).
        recipe: what was run.
        hash: of that recipe.
    """

    model: str
    family: str
    base: str
    recipe: str
    hash: str


def save(run: Path, file: Path, base: Path | None = None) -> str:
    """Write what a finished run changed into a new file, and return a line about it.

    Args:
        run: run directory of one seed.
        file: where to.
        base: folder of the target; by default it is found as the run found it.

    Raises:
        RecipeError: the run is not finished, its target is not found, it changed no weight, or other tensors are there.
    """
    status = RunDir(run).status()
    if status.get("status") != "done" or not (run / "model").is_dir():
        raise RecipeError(f"{run} holds no finished run with a model/. Give the run directory of one seed.")
    if file.exists():
        raise RecipeError(f"{file} is there already. Give another name.")
    if not file.absolute().parent.is_dir():
        raise RecipeError(f"{file}: there is no folder {file.parent}. Make it first.")
    recipe = RunDir(run).recipe()
    config = recipe.model
    before = config.load(base or folder_of(recipe, status.get("works_on", {}).get("target model")))
    after = config.wrapper.from_pretrained(run / "model")
    target, unlearned = weights(before), weights(after)
    misfits = _misfits(unlearned, target, "its target")
    if before.beside_weights() != after.beside_weights():
        misfits += f" its target has {before.beside_weights()}, it has {after.beside_weights()}."
    if misfits:
        raise RecipeError(f"{run}/model is more than other weights: {misfits} Keep the folder itself.")
    changed = {name: unlearned[name] - value for name, value in target.items() if (unlearned[name] != value).any()}
    if broken := not_finite(changed):
        raise RecipeError(f"{run}/model differs from its target by values that are not finite, in {some(broken)}.")
    if not changed:
        raise RecipeError(f"{run}/model has the weights of its target (a guard changes none), so there is no delta.")
    header = DeltaHeader(
        model=str(recipe.tree["model"]["name"]),
        family=config.wrapper.family,
        base=fingerprint(target),
        recipe=recipe.name,
        hash=recipe.hash,
    )
    write_bytes(file, serialized(changed, {"format": "pt", HEADER: json.dumps(asdict(header))}))
    size, whole = file.stat().st_size, sum(value.nbytes for value in unlearned.values())
    return f"{file}: {len(changed)} of {len(target)} tensors changed; {gib(size)}, where the model has {gib(whole)}"


def apply(file: Path, base: str, out: Path, model: str | None = None) -> list[str]:
    """Write a model with a delta applied into a new folder, and return lines about it.

    Args:
        file: that ``save`` wrote.
        base: folder of a model (or its hub id, where the backend has a hub) of the same family and the same tensors.
        out: where to: a folder that is not there, or empty.
        model: dotted path of the model's class, where it is the user's own: a file alone does not have it imported.

    Raises:
        RecipeError: the file is no delta, or the model is of another family, lacks tensors or has others of that name.
    """
    header, differences = read(file)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RecipeError(f"{out} is there already. Give a new folder.")
    wrapper = _model(header, base, model)
    own = weights(wrapper)
    if misfits := _misfits(differences, own, base, all_of=False):
        raise RecipeError(f"{file} does not fit {base}: {misfits}")
    same = fingerprint(own) == header.base
    with torch.no_grad():
        for name, difference in differences.items():
            own[name] += difference
    if wrong := not_finite(own):
        raise RecipeError(
            f"{base} with the differences of {file} is not finite, in {some(wrong)}. Save the delta anew."
        )
    place = out.resolve()  # of a link, and of a name such as "."
    part = place.with_name(f".{place.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        wrapper.save_pretrained(part)
        part.replace(place)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    note = [] if same else [f"{base} is not the base that the delta was made of; the differences were added to it."]
    return [*note, f"{out}: {len(differences)} tensors changed by {header.recipe}"]


def read(file: Path) -> tuple[DeltaHeader, dict[str, Tensor]]:
    """Return what a delta belongs to, and its differences by name. Raises RecipeError where the file is none."""
    try:
        with safe_open(file, "pt") as content:
            header = DeltaHeader(**json.loads((content.metadata() or {})[HEADER]))
            found = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118, it is no mapping
        if wrong := [name for name, value in vars(header).items() if not isinstance(value, str)]:
            raise TypeError(f"{wrong[0]} is no text")
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise RecipeError(
            f"{file} is no delta ({type(error).__name__}: {error}). Give a file of: python -m unlearn.delta save"
        ) from error
    if wrong := [name for name, value in found.items() if not value.is_floating_point()]:
        raise RecipeError(f"{file} holds differences that are no floats, in {some(wrong)}. Save the delta anew.")
    if wrong := not_finite(found):
        raise RecipeError(f"{file} holds differences that are not finite, in {some(wrong)}. Save the delta anew.")
    return header, found


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Return all stored tensors by name, in single precision and on the CPU; one that has several names once.

    They are the model's own: what is changed in them is changed in it.
    """
    model.float().cpu()
    found: dict[int, tuple[str, Tensor]] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        found.setdefault(id(value), (name, value.data))
    return dict(found.values())


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Return a hash of names, shapes, types and values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _misfits(given: Mapping[str, Tensor], own: Mapping[str, Tensor], whose: str, all_of: bool = True) -> str:
    """Return in words how tensors differ from those of a model in names and shapes; empty where they fit."""
    lacking = [name for name in given if name not in own]
    beyond = [name for name in own if name not in given] if all_of else []
    others = [
        f"{name} is {tuple(value.shape)} where {whose} has {tuple(own[name].shape)}"
        for name, value in given.items()
        if name in own and value.shape != own[name].shape
    ]
    found = {f"{whose} lacks": lacking, f"it lacks, of {whose},": beyond, "shapes differ:": others}
    return " ".join(f"{what} {_some(entries)}." for what, entries in found.items() if entries)


def _some(entries: Sequence[str], most: int = 5) -> str:
    more = f" and {len(entries) - most} more" if len(entries) > most else ""
    return ", ".join(entries[:most]) + more


def _model(header: DeltaHeader, base: str, model: str | None) -> Wrapper:
    """Read the model that a delta is applied to. Raises RecipeError where it is of another family, or none."""
    if not is_registered("model", header.model) and header.model != model:
        raise RecipeError(
            f"The delta is of a model of the class {header.model}, which is not imported because a file says so. "
            f"If you know it, add --model {header.model}"
        )
    config: ModelConfig = resolve("model", header.model)(pretrained=base)
    folder = config.fetch(base)
    try:
        return config.load(folder)
    except RecipeError as error:
        other = _family(folder)
        what = f"a {other} model" if other else f"no {header.family} model ({error})"
        raise RecipeError(
            f"The delta is of a {header.family} model, and {base} holds {what}. Give the folder of a {header.family} "
            "model."
        ) from error


def _family(folder: Path) -> str | None:
    """Return the family of the model in a folder, None where no backend reads it."""
    for name in names("model"):
        with suppress(RecipeError):
            wrapper = resolve("model", name).wrapper
            wrapper.from_pretrained(folder)
            return str(wrapper.family)
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser("python -m unlearn.delta", description=__doc__, epilog=EPILOG)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    actions = parser.add_subparsers(dest="action", required=True, metavar="save | apply")
    saves = actions.add_parser("save", help="write what a run changed into a file")
    saves.add_argument("run", type=Path, metavar="RUN", help="run directory of one seed")
    saves.add_argument("file", type=Path, metavar="FILE", help="e.g. fewer_threes.safetensors; a new file")
    saves.add_argument("--base", type=Path, metavar="FOLDER", help="the run's target (default: found by the recipe)")
    applies = actions.add_parser("apply", help="write a model with a delta applied")
    applies.add_argument("file", type=Path, metavar="FILE", help="that save wrote")
    applies.add_argument("base", metavar="MODEL", help="folder of a model of the same family, or its hub id")
    applies.add_argument("out", type=Path, metavar="OUT", help="a new folder")
    applies.add_argument("--model", metavar="CLASS", help="dotted path of the model's class, if it is your own")
    chosen = parser.parse_args(arguments)
    import_from_here()
    try:
        if chosen.action == "save":
            print(printable(save(chosen.run, chosen.file, chosen.base)))
        else:
            print(printable("\n".join(apply(chosen.file, chosen.base, chosen.out, chosen.model))))
    except (UnlearnError, OSError) as error:
        print(printable(str(error)), file=sys.stderr)
        return error.exit_code if isinstance(error, UnlearnError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
