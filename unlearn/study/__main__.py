"""Runs a study and makes its table: python -m unlearn.study STUDY [key=value ...]."""

from __future__ import annotations

import shlex
import signal
import sys
import time
from collections.abc import Sequence
from os.path import expanduser
from pathlib import Path
from typing import TYPE_CHECKING

from unlearn.config.arguments import Arguments, sort
from unlearn.core.errors import GateFailed, RecipeError, UnlearnError
from unlearn.core.shown import one_line, printable

if TYPE_CHECKING:
    from unlearn.study.execution import Part

HELP = """\
usage: python -m unlearn.study STUDY|FILE.yaml [key=value ...] [--show | --table] [--write DOCUMENT.md]

  python -m unlearn.study                                          list the studies
  python -m unlearn.study language_surgery                         run what is not finished, then make the table
  python -m unlearn.study language_surgery optim.steps=20 seeds=[0] runs=[sum,gru]

  --show   list what would be run, and what is done; --table   make the table of what is done, run nothing
  --write FILE   put the table into a document too, between <!-- table: STUDY --> and <!-- end -->
  seeds=[0,1,2], runs=[NAME,...], order=COLUMN and output=DIR are the study's own (default runs/studies/<study>);
  any other setting goes to every run. A finished run is kept while its recipe stays the same.
exit codes: 0 done, 1 a run failed, 2 study, recipe or data error, 3 a gate failed, 130 interrupted (state saved)
"""
FLAGS = ("--show", "--table", "--help", "-h")


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the arguments say and return the exit code."""
    if argv is None:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends a study as Ctrl-C does
    try:
        return _answer(sort(list(sys.argv[1:] if argv is None else argv), FLAGS, ("--write",)))
    except UnlearnError as error:
        print(printable(str(error)), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"{error}. What was done is kept; type the same command to go on.", file=sys.stderr)
        return 1


def _answer(arguments: Arguments) -> int:
    name, settings, flags = arguments
    if flags.keys() & {"--help", "-h"}:
        print(HELP, end="")
        return 0
    if name is None and (settings or flags):
        raise RecipeError("no study is named; write python -m unlearn.study STUDY key=value.")
    if name is None:
        from unlearn.config.listing import study_list

        print(study_list())
        return 0
    if {"--show", "--table"} <= flags.keys() or {"--show", "--write"} <= flags.keys():
        raise RecipeError("--show writes nothing; leave out --table and --write.")
    return _work(name, settings, flags)


def _work(name: str, settings: list[str], flags: dict[str, str]) -> int:
    from unlearn.study.execution import START, parts
    from unlearn.study.spec import read_study
    from unlearn.study.study_table import block
    from unlearn.study.summary import sum_up

    study = read_study(name, settings)
    document = Path(expanduser(flags["--write"])) if "--write" in flags else None
    if document is not None:
        block(document, study.name)
    found = parts(study)
    if "--show" in flags:
        for part in found:
            what = str(part.folder) if part.finished else shlex.join([*START, *part.command()])
            print(printable(f"{part.state:<12} {part.row}, seed {part.seed}: {what}"))
        return 0
    failed = {} if "--table" in flags else run_all(found)
    sum_up(study, found, failed, document)
    states = [part.state for part in found]
    if failed or "failed" in states:
        return 1
    return GateFailed.exit_code if "gate missed" in states else 0


def run_all(found: Sequence[Part]) -> dict[Path, str]:
    """Run every unfinished part, one after the other; return folder -> reason for those that failed."""
    from unlearn.study.execution import carry_out

    failed = {}
    for index, part in enumerate(found, start=1):
        where = one_line(f"[{index}/{len(found)}] {part.row}, seed {part.seed}")
        if part.finished:
            print(f"{where}: {part.state} before", flush=True)
            continue
        print(f"{where}: running, see {part.log}", flush=True)
        began = time.monotonic()
        if why := carry_out(part):
            failed[part.folder] = why
        state = f"failed: {one_line(why)}" if why else part.state
        print(f"{where}: {state} ({time.monotonic() - began:.0f} s)", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
