"""Loads a data source, and checks that it is as the engine takes it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from unlearn.core.boundary import named, promised, staying
from unlearn.core.errors import RecipeError
from unlearn.data.base import Dataset, Source
from unlearn.data.corrupted_images import CorruptedImages


def load_data(source: Source) -> Dataset:
    """Return the items of a data source.

    Raises:
        RecipeError: something is missing or wrong, or the source does not return what its class promises.
    """
    who = named("data", source)
    with staying():
        dataset: Dataset = promised(source.load(), Dataset, who)
    for name in ("labels", "attributes", "is_test", "fingerprint", "info"):
        if not hasattr(dataset, name):
            raise RecipeError(f"{who}: its {type(dataset).__name__} has no {name!r}; see unlearn.data.base.Dataset.")
    count = len(dataset)
    if not isinstance(dataset.labels, Sequence) or not all(isinstance(label, str) for label in dataset.labels):
        raise RecipeError(f'{who}: labels must be a list of text, one per item; "" for none.')
    if not isinstance(dataset.attributes, Sequence) or len(dataset.attributes) != count:
        raise RecipeError(f"{who}: attributes must be a list with one set of text for each of the {count} items.")
    for name in ("is_test", "is_corrupt"):
        mask = getattr(dataset, name)
        fits = isinstance(mask, Tensor) and mask.dtype == torch.bool and tuple(mask.shape) == (count,)
        if not fits and not (mask is None and name == "is_corrupt"):
            raise RecipeError(f"{who}: {name} must be a tensor of {count} bools, one per item.")
    for name, kind in (("fingerprint", str), ("info", dict)):
        if not isinstance(found := getattr(dataset, name), kind):
            raise RecipeError(f"{who}: {name} is a {type(found).__name__}; it must be a {kind.__name__}.")
    if (corruption := source.corruption) is not None:
        return CorruptedImages(dataset, corruption)
    return dataset
