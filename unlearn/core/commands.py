"""What every command line does around its work: exit codes, and what is said of an error."""

import errno
import os
import shlex
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from unlearn.core.boundary import components
from unlearn.core.errors import RecipeError, UnlearnError, is_of_the_machine
from unlearn.core.shown import printable


def exit_code(work: Callable[[], object]) -> int:
    """Do the work of a command and return its exit code; an error of ours is one message, a defect a traceback."""
    try:
        with components():
            work()
        if sys.stdout is not None:  # it was closed by the shell
            sys.stdout.flush()
        return 0
    except UnlearnError as error:
        if is_first_rank():
            print(printable(str(error)), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, e.g. head, had enough; nothing more may be written at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):  # only a name that was typed can be so
            print(printable(f"{error}. Type another name."), file=sys.stderr)
            return RecipeError.exit_code
        if not is_of_the_machine(error):
            traceback.print_exc()
        elif is_first_rank():
            print(f"{error}. What was saved stays; a run that had begun goes on by resume=auto.", file=sys.stderr)
        return 1
    except Exception:
        traceback.print_exc()
        return 1


def resume_command(folder: Path) -> str:
    """Return what resumes a run, as it is typed."""
    return shlex.join(["python", "-m", "unlearn.run", f"resume={folder}"])


def is_first_rank() -> bool:
    """Return whether this process prints: the other ranks have LOCAL_RANK (or RANK) above 0."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))


def import_from_here() -> None:
    """Find modules in the working directory, however the command was started: ``python -m`` does, a script does not."""
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
