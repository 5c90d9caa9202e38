"""The boundary to what others made: what a library raises while it is read is the file's fault, in one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unlearn.core.errors import RecipeError, UnlearnError, is_of_the_machine

PACKAGE = Path(__file__).parents[1]
"""Where the code of this package lies."""


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
        raise RecipeError(f"{what} cannot be read ({described(error)}). {remedy}".rstrip()) from error


def described(error: BaseException) -> str:
    """Return an error as a message quotes it: its kind and the first line of what it says, shortened."""
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    printable = said.encode("utf-8", "backslashreplace").decode()
    kind = type(error).__name__
    return f"{kind}: {printable[:300].rstrip('.')}" if printable else kind


DEFECTS = (AttributeError, NameError, TypeError, LookupError, AssertionError, ArithmeticError)
"""What Python raises where code is wrong."""


def _is_ours(error: BaseException) -> bool:
    """Return whether an error is a defect of this package."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    at_our_line = trace is not None and Path(trace.tb_frame.f_code.co_filename).is_relative_to(PACKAGE)
    return at_our_line and isinstance(error, DEFECTS)
