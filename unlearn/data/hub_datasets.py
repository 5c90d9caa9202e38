"""Datasets on the Hugging Face hub."""

from collections.abc import Iterator
from typing import Any

from unlearn.core.boundary import reading
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
    with reading(f"{repository} ({config}, {split}) of the hub", instead):  # no network, no such set, no access
        rows = [dict(row) for row in load_dataset(repository, config, split=split)]
    for number, row in enumerate(rows):
        yield f"{repository}/{config}/{split}, row {number}", row
