"""Datasets on the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from unlearn.core.errors import RecipeError


def hub_rows(repository: str, config: str, split: str, instead: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, row) pairs of a dataset. The first call needs the network, later ones use the cache.

    Args:
        repository: the hub id.
        config: configuration of the dataset.
        split: its split.
        instead: what to type if the hub cannot be reached.

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
        raise RecipeError(
            f"{repository} ({config}, {split}) cannot be loaded from the hub: {cause}. {instead}"
        ) from error
    for number, row in enumerate(rows):
        yield f"{repository}/{config}/{split}, row {number}", dict(row)
