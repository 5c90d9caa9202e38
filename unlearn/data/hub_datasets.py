"""Data sets of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from unlearn.core.errors import RecipeError


def hub_rows(repository: str, config: str, split: str, instead: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows of a data set with their places; the first time needs the network, later the cache answers.

    Args:
        repository: the hub id.
        config: the part of the data set.
        split: the split of that part.
        instead: what to type where the hub cannot be had.

    Raises:
        RecipeError: the package ``datasets`` is missing, or the hub cannot be reached.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise RecipeError(
            f'{repository} is read with the package datasets. Type: pip install "unlearnkit[language]", or {instead}'
        ) from error
    try:
        rows = load_dataset(repository, config, split=split)
    except Exception as error:  # the hub's client raises many kinds: no network, no such set, no access, no space
        cause = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}"
        raise RecipeError(f"{repository} ({config}, {split}) cannot be had from the hub: {cause}. {instead}") from error
    for number, row in enumerate(rows):
        yield f"{repository}/{config}/{split}, row {number}", dict(row)
