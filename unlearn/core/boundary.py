"""The boundary to what others made: files that libraries read, and the components of a user."""

import os
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TypeVar

from unlearn.core.errors import RecipeError, UnlearnError, is_of_the_machine, said

PACKAGE = Path(__file__).parents[1]
"""Where the code of this package lies."""
_LIBRARIES = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))

T = TypeVar("T")


@contextmanager
def reading(what: object, remedy: str = "") -> Iterator[None]:
    """Turn whatever a library raises in the body into a RecipeError; a defect of this package stays what it is.

    Libraries raise every kind of error for a broken file (``SafetensorError``, ``BadZipFile``, an ``AttributeError``
    for JSON that is no object). A defect of this package is what Python raises for wrong code (an attribute, a name,
    a type, a key that is not there) at one of the package's own lines. Keep the body to the calls that read.
    Errors of this package (``UnlearnError``) pass, and so do those of the machine: no space, no memory, no permission.

    Args:
        what: is read, as the subject of the sentence: a path, or words such as ``FOLDER as a language model``.
        remedy: a sentence that says what to type; it ends the message.

    Raises:
        RecipeError: ``WHAT cannot be read (KIND: MESSAGE). REMEDY``.
    """
    try:
        yield
    except UnlearnError:
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, MemoryError) or is_of_the_machine(error) or _is_ours(error):
            raise
        if isinstance(error, FileNotFoundError) and isinstance(what, Path) and not what.exists():
            raise RecipeError(f"{what} is missing. {remedy}".rstrip()) from error
        raise RecipeError(f"{what} cannot be read ({described(error)}). {remedy}".rstrip()) from error


def described(error: BaseException) -> str:
    """Return an error as a message quotes it: its kind and the first line of what it says, shortened."""
    line = next((line.strip() for line in said(error).splitlines() if line.strip()), "")
    printable = line.encode("utf-8", "backslashreplace").decode()
    kind = type(error).__name__
    return f"{kind}: {printable[:300].rstrip('.')}" if printable else kind


@contextmanager
def components() -> Iterator[None]:
    """Turn what would end the program, or a loop, without a word into a sentence that names the component.

    Other errors of a component stay as they are, with their traceback.

    Raises:
        RecipeError: the component called exit.
        UnlearnError: it raised StopIteration, or what is no Exception, such as asyncio's CancelledError.
    """
    try:
        yield
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # Lightning turns a Ctrl-C into an exit
            raise
        raise RecipeError(f"{_who_raised(error)} {exited(error)}") from error
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        # within a generator Python turns a StopIteration into a RuntimeError
        inner = error.__cause__ if isinstance(error, RuntimeError) else error
        if isinstance(inner, StopIteration):
            why = "raised StopIteration, which ends a loop without a word (an iterator ran out)"
            raise UnlearnError(f"{_who_raised(inner)} {why}. Let it raise another error.") from error
        if isinstance(error, Exception):
            raise
        raise UnlearnError(f"{_who_raised(error)} raised {described(error)}, so the run ended.") from error


@contextmanager
def staying() -> Iterator[None]:
    """Go back to the working directory, wherever a component went in the body: paths of a run may be relative."""
    here = None
    with suppress(FileNotFoundError):  # it was deleted, and the run's paths lead elsewhere
        here = os.getcwd()
    try:
        yield
    finally:
        if here is not None:
            with suppress(OSError):  # deleted meanwhile; what the body raised says more
                os.chdir(here)


def exited(error: SystemExit) -> str:
    """Return what is said of a component that called exit, after its name."""
    return f"ended the program (SystemExit: {said(error.code)}). Let it raise an error that says why instead."


def promised(found: T, kind: type, who: str) -> T:
    """Return what a component returned. Raises RecipeError, with the component's name, where it is of another kind."""
    if not isinstance(found, kind):
        what = "nothing (None)" if found is None else f"a {type(found).__name__}"
        raise RecipeError(f"{who} returned {what}; it must return a {kind.__name__}.")
    return found


def named(key: str, component: object) -> str:
    """Return a component as messages name it: its key in the recipe, and its class."""
    return f"{key} ({type(component).__module__}.{type(component).__qualname__})"


def _who_raised(error: BaseException) -> str:
    """Return the component that raised an error: the first function after ours that is of no library."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    ours = [number for number, frame in enumerate(frames) if Path(frame.f_code.co_filename).is_relative_to(PACKAGE)]
    theirs = frames[ours[-1] + 1 :] if ours else frames
    found = next((frame for frame in theirs if not _is_library(frame)), frames[-1])
    return f"{found.f_globals.get('__name__', found.f_code.co_filename)}.{found.f_code.co_qualname}"


def _is_library(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(("<", *_LIBRARIES))


DEFECTS = (AttributeError, NameError, TypeError, LookupError, AssertionError, ArithmeticError)
"""What Python raises where code is wrong."""


def _is_ours(error: BaseException) -> bool:
    """Return whether an error is a defect of this package."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    at_our_line = trace is not None and Path(trace.tb_frame.f_code.co_filename).is_relative_to(PACKAGE)
    return at_our_line and isinstance(error, DEFECTS)
