"""The folder of a new run: a name of its own, or the one that ``output`` gives."""

import re
import shlex
import time
from os.path import expanduser, normpath
from pathlib import Path

from unlearn.config.schema import Recipe
from unlearn.core.distributed import gather_objects, rank
from unlearn.core.errors import RecipeError
from unlearn.experiment.run_dir import RunDir

LOCK = ".lock"
"""The first file that a run makes in its folder."""
BEFORE_RUN_JSON = {LOCK, "command.txt", "environment.json", "recipe.yaml"}
"""Files that a run writes before ``run.json``."""


def new_folder(recipe: Recipe) -> Path:
    """Return the folder for a new run, the same on every rank; ``output`` may name an empty one.

    Raises:
        RecipeError: ``output`` holds something already.
    """
    return gather_objects(_new_folder(recipe) if rank() == 0 else Path())[0]  # one rank looks: looking leaves traces


def _new_folder(recipe: Recipe) -> Path:
    if recipe.output is not None:
        folder = Path(normpath(expanduser(recipe.output)))  # a part before .. need not be there
        if folder.is_file() or (folder.is_dir() and not _is_unused(folder)):
            raise RecipeError(
                f"output={recipe.output} is not an empty folder. Type another one, or "
                f"{shlex.quote(f'resume={recipe.output}')} to go on with the run in it."
            )
        _refuse_inside_models(folder, recipe)
        _probe(folder)
    else:
        stamp = time.strftime("%Y%m%d-%H%M%S")
        folder = Path("runs") / recipe.name / f"{stamp}-{recipe.hash[:6]}"
        number = 1
        while folder.exists():
            number += 1
            folder = folder.with_name(f"{stamp}-{recipe.hash[:6]}-{number}")
        _refuse_inside_models(folder, recipe)
    return folder


def _refuse_inside_models(folder: Path, recipe: Recipe) -> None:
    """Refuse a folder inside of a given model's: its files would count as the model's, which changed then."""
    for key in ("pretrained", "retrained"):
        path = getattr(recipe.model, key)
        if path is not None and folder.resolve().is_relative_to(Path(expanduser(path)).resolve()):
            raise RecipeError(f"The run's folder {folder} lies in model.{key}={path}. Type output=FOLDER elsewhere.")


def _is_unused(folder: Path) -> bool:
    """Return whether a folder is empty, or holds only what a run writes before its ``run.json``: it was killed then.

    Without a lock the files are the user's own, a recipe beside its output for example.
    """
    left = {path.name for path in folder.iterdir() if not re.fullmatch(r"\..*\.part", path.name)}
    return not left or (LOCK in left and left <= BEFORE_RUN_JSON and not RunDir(folder).is_held())


def _probe(folder: Path) -> None:
    """Refuse a folder that cannot be made, by making it and removing it again."""
    missing = [path for path in (folder, *folder.absolute().parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".probe").touch()
        (folder / ".probe").unlink()
        for path in missing:
            path.rmdir()
    except OSError as error:
        raise RecipeError(f"output={folder} cannot be made ({error.strerror}). Type another folder.") from error
