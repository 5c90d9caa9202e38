"""The command line: `python -m unlearn.run recipe=NAME key=value ...`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from os.path import expanduser
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from unlearn.config.arguments import sort, take
from unlearn.core.commands import exit_code, import_from_here, is_first_rank
from unlearn.core.errors import RecipeError
from unlearn.core.shown import printable

if TYPE_CHECKING:
    from unlearn.config.schema import Recipe

HELP = """\
usage: python -m unlearn.run [recipe=]NAME|FILE.yaml [key=value ...] [--show | --check]

  python -m unlearn.run                                            list the recipes
  python -m unlearn.run recipe=quickstart                          run one
  python -m unlearn.run recipe=quickstart data.forget.label=5 --show
  python -m unlearn.run resume=auto                                resume the newest unfinished run

  --show   print the resolved recipe, each value with its origin; --check   take a step, call every evaluator
  seed=[0,1,2] runs each seed; output=DIR names the run directory (default runs/<recipe>/...)
  resume=DIR resumes that run (other evaluate.* and gate.* may be given); recipe=NAME resume=auto the newest run of the
  same recipe, or starts one
exit codes: 0 done, 1 failed, 2 recipe or data error, 3 a gate failed, 130 interrupted (state saved)
"""

FLAGS = ("--show", "--check", "--help", "--version", "-h")
_RESUMED = "UNLEARN_RESUMED_FOLDER"
"""Environment variable with the folder that rank 0 resumes, for the ranks that it starts."""


class _Request(NamedTuple):
    recipe: str | None
    resume: str | None
    settings: list[str]
    flags: set[str]


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the arguments say and return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if argv is None:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends a run as Ctrl-C does, whatever it is doing
    return exit_code(lambda: _answer(_read(arguments), arguments))


def _read(arguments: list[str]) -> _Request:
    name, settings, flags = sort(arguments, FLAGS)
    if {"--show", "--check"} <= flags.keys():
        raise RecipeError("--show and --check are both given; take one.")
    own, settings = take(settings, ("recipe", "resume"))
    if name and "recipe" in own:
        raise RecipeError(f"{name!r} is no setting; write key=value, such as optim.lr=1e-4.")
    return _Request(name or own.get("recipe"), own.get("resume"), settings, set(flags))


def _answer(request: _Request, arguments: list[str]) -> None:
    if request.flags & {"--help", "-h"}:
        print(HELP, end="")
    elif "--version" in request.flags:
        from unlearn.core.version import __version__

        print(__version__)
    elif not arguments:
        from unlearn.config.listing import listing

        print(listing())
    elif request.recipe is None:
        _resume(request)
    else:
        _work(request.recipe, request, arguments)


def _work(name: str, request: _Request, arguments: list[str]) -> None:
    from unlearn.config.recipe import load

    if request.resume not in (None, "auto"):
        raise RecipeError(
            f"a run brings its own recipe: write resume={request.resume} alone, or recipe=... resume=auto."
        )
    import_from_here()
    recipe = load(name, request.settings)
    if "--show" in request.flags:
        from unlearn.config.yaml_io import dump

        print(dump(recipe.tree, recipe.origins), end="")
        return
    from unlearn.experiment import runner

    if "--check" in request.flags:
        print(printable(runner.check(recipe, resumes=request.resume == "auto")))
        return
    folder = _folder_to_resume(request, recipe)
    if folder is not None:
        runner.resume(folder)
    else:
        runner.run(recipe, command=["python", "-m", "unlearn.run", *arguments])


def _folder_to_resume(request: _Request, recipe: Recipe) -> Path | None:
    """Return the run that ``recipe=NAME resume=auto`` resumes, None to start one; all ranks agree."""
    if request.resume is None:
        return None
    folder = _newest_unfinished(recipe)
    if folder is None and is_first_rank():
        print(f"no unfinished run of {recipe.name}: starting one", flush=True)
    return folder


def _newest_unfinished(recipe: Recipe | None) -> Path | None:
    """Return the newest unfinished run, of the recipe if one is given; the ranks that rank 0 starts take its choice."""
    if not is_first_rank() and _RESUMED in os.environ:
        return Path(os.environ[_RESUMED]) if os.environ[_RESUMED] else None
    from unlearn.experiment.runner import find_unfinished

    folder = find_unfinished(recipe)
    os.environ[_RESUMED] = str(folder or "")
    if folder and is_first_rank():
        print(f"resuming {folder}", flush=True)
    return folder


def _resume(request: _Request) -> None:
    """Resume a run by its folder, or the newest unfinished one."""
    if request.resume is None:
        raise RecipeError("no recipe is given; write recipe=NAME. The list of recipes: python -m unlearn.run")
    if request.flags:
        raise RecipeError(f"{', '.join(sorted(request.flags))} needs a recipe; write recipe=NAME.")
    own, settings = take(request.settings, ("output",))
    if "output" in own and Path(own["output"]).absolute() != Path(request.resume).absolute():
        raise RecipeError(f"output={own['output']}: a resumed run keeps its folder; write resume={request.resume}.")
    folder = _newest_unfinished(None) if request.resume == "auto" else Path(expanduser(request.resume))
    if folder is None:
        raise RecipeError("there is no unfinished run under runs/. Start one: python -m unlearn.run recipe=NAME")
    if not folder.is_dir():
        raise RecipeError(f"there is no run directory {request.resume}; resume=auto takes the newest unfinished run.")
    from unlearn.experiment import runner

    runner.resume(folder, settings)


if __name__ == "__main__":
    sys.exit(main())
