"""Unlearning in generative models: one engine for flows, GANs, diffusion and language models."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearn.core.version import __version__

if TYPE_CHECKING:
    from unlearn.api import Result, unlearn

__all__ = ["Result", "__version__", "unlearn"]

if not (Path(__file__).parent / "models" / "__init__.py").is_file():  # checkout without links
    __path__.append(str(Path(__file__).resolve().parent.parent))


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    """Load the Python entry only when it is asked for, so that the command line starts fast."""
    if name in {"Result", "unlearn"}:
        from unlearn import api

        return getattr(api, name)
    raise AttributeError(f"module 'unlearn' has no attribute {name!r}")
