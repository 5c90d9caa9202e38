"""Measure what is there, without training: python -m unlearn.evaluate RUN | model=FOLDER target=FOLDER recipe=NAME."""

import signal
import sys
from collections.abc import Sequence
from os.path import expanduser
from pathlib import Path

from unlearn.config.arguments import sort, take
from unlearn.core.commands import exit_code, import_from_here
from unlearn.core.errors import RecipeError

HELP = """\
usage: python -m unlearn.evaluate RUN [evaluate.NAME={...}] [gate.NAME={...}]
       python -m unlearn.evaluate model=FOLDER target=FOLDER [retrained=FOLDER] recipe=NAME|FILE.yaml [key=value ...]

  python -m unlearn.evaluate runs/quickstart/20260101-120000-abcdef                         measure everything again
  python -m unlearn.evaluate runs/quickstart/20260101-120000-abcdef evaluate.relearning={}  add an attack
  python -m unlearn.evaluate model=theirs target=base recipe=language/npo_factbook          judge anybody's model

The first measures a finished run: the figures join its own, and its report is made anew (of one of several seeds, the
report over all as well). A run whose model/ was changed since is refused. The second measures a model
folder that anything made, with a recipe's data and evaluators, and makes a run directory of its own (output=DIR);
teacher=FOLDER and clean=FOLDER name further models that evaluators compare with.
exit codes: 0 done, 1 an evaluator failed, 2 recipe or data error, 3 a gate failed, 130 interrupted
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the arguments say and return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if argv is None:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the work as Ctrl-C does
    return exit_code(lambda: _answer(arguments))


def _answer(arguments: Sequence[str]) -> None:
    """Print the help, or measure a run or a model folder."""
    run, settings, flags = sort(arguments, ("--help", "-h"))
    if flags or not arguments:
        print(HELP, end="")
        return
    import_from_here()
    from unlearn.experiment.remeasure import SUBJECT_KEYS, measure_folders, remeasure

    own, others = take(settings, ("recipe", *SUBJECT_KEYS))
    if run is not None:
        if own:
            raise RecipeError(f"{next(iter(own))}= does not go with a run directory, which brings its own recipe.")
        folder = Path(expanduser(run))
        if not folder.is_dir():
            raise RecipeError(f"there is no run directory {run}.")
        remeasure(folder, others)
        return
    recipe = own.pop("recipe", None)
    if recipe is None:
        raise RecipeError("no recipe is given, which names data and evaluators; write recipe=NAME.")
    measure_folders(own, recipe, others, ["python", "-m", "unlearn.evaluate", *arguments])


if __name__ == "__main__":
    sys.exit(main())
