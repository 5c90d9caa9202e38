"""The disjoint splits forget, retain, probe, holdout and test of one dataset."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.data.base import Dataset, Selection, Source, Split, check_names

Quantiles = Callable[[Tensor], Tensor]


def train_split(dataset: Dataset) -> Split:
    """Return all items that a target may be trained on."""
    return Split("train", dataset, torch.nonzero(dataset.is_trained).flatten())


def make_splits(
    dataset: Dataset,
    source: Source,
    randomness: Randomness,
    quantiles: Quantiles | None = None,
    before: Sequence[Selection] = (),
    so_far: bool = False,
) -> dict[str, Split]:
    """Draw the splits that ``source`` describes.

    Corrupted items can only be forgotten. If there are any, ``probe`` holds the true training items that they
    contradict (those with the form ``corrupted``), and these are not retained unless ``data.retain`` says so.

    Args:
        dataset: all items.
        source: the selections.
        randomness: stream for selections with a ``count``.
        quantiles: ids -> likelihood quantile of each under the target, for selections that need it.
        before: what earlier requests forgot; it is neither forgotten again nor retained, and its holdout items are no
            test items.
        so_far: whether forget and holdout are those of all requests, the earlier ones included.

    Raises:
        RecipeError: a selection names what the data lacks, is empty, or overlaps with another.
    """
    for name in ("forget", "retain", "holdout"):
        check_names(dataset, getattr(source, name), f"data.{name}")
    if source.forget.is_empty:
        raise RecipeError(
            "data.forget is empty: it must say what to forget. "
            f"Type e.g. data.forget.label={(dataset.names or ['NAME'])[0]}, or data.forget.ids=[0]."
        )
    train, test = dataset.is_trained, dataset.is_test
    chosen = earlier = held = torch.zeros_like(test)
    for selection in (*before, source.forget):
        forget = _forgotten(dataset, selection, chosen, randomness, quantiles)
        holdout = _holdout(dataset, source.holdout, selection, test, randomness, quantiles)
        earlier, chosen, held = chosen, chosen | _mask(dataset, forget), held | _mask(dataset, holdout)
    if so_far:
        forget, holdout = torch.nonzero(chosen).flatten(), torch.nonzero(held).flatten()
    dataset.check_forget(forget)
    contradicted = train & ~chosen & dataset.having_form("corrupted")
    retain = (
        torch.nonzero(train & ~chosen & ~contradicted).flatten()
        if source.retain.is_empty
        else _draw(dataset, source.retain, train & ~earlier, randomness.child("retain"), quantiles)
    )
    if len(retain) == 0:
        raise RecipeError("The retain set is empty: data.forget selects every training item. Narrow data.forget.")
    _refuse_overlap("forget", forget, "retain", retain)
    others = torch.nonzero(test & ~held).flatten()
    probe = torch.nonzero(contradicted).flatten()
    splits = {"forget": forget, "retain": retain, "probe": probe, "holdout": holdout, "test": others}
    return {name: Split(name, dataset, ids) for name, ids in splits.items() if len(ids)}


def _forgotten(
    dataset: Dataset, selection: Selection, before: Tensor, randomness: Randomness, quantiles: Quantiles | None
) -> Tensor:
    """Return the items that a request forgets, given (N,) bool what was forgotten before."""
    forget = _draw(dataset, selection, ~dataset.is_test & ~before, randomness.child("forget"), quantiles)
    if len(forget) == 0:
        again = " that an earlier request has not forgotten" if before.any() else ""
        raise RecipeError(
            f"data.forget selects no training item{again} ({_describe(selection)}); the forget set is empty. "
            "Loosen the conditions."
        )
    return forget


def forgotten_names(split: Split) -> list[str]:
    """Return the labels and attributes that the forget split takes as a whole.

    A name is forgotten if at least three quarters of its training items are forget items: the threes are forgotten if
    all threes are, but not if eight images of a three are.
    """
    dataset = split.dataset
    forget = _mask(dataset, split.ids if split.whole is None else split.whole)
    return [name for name in dataset.names if _share(forget, dataset.having([name]) & ~dataset.is_test) >= 0.75]


def _holdout(
    dataset: Dataset,
    selection: Selection,
    forget: Selection,
    test: Tensor,
    randomness: Randomness,
    quantiles: Quantiles | None,
) -> Tensor:
    """Return test items of the forget distribution. Raises RecipeError for a training item."""
    if selection.is_empty:
        by_name = replace(forget, ids=None, likelihood_quantile=None, count=None)
        candidates = test & ~dataset.having(["evaluation"])
        marked = candidates & dataset.having(["holdout"])
        if marked.any():
            matching = marked & _having(dataset, by_name)
            return torch.nonzero(matching if matching.any() else marked).flatten()
        found = torch.nonzero(candidates & _having(dataset, by_name)).flatten()
        # Single images without a label stand for the whole distribution; half of the test items are their holdout.
        return found if len(found) < int(candidates.sum()) else found[::2]
    among = torch.ones_like(test) if selection.ids else test  # a listed training item is refused by its overlap
    drawn = _draw(dataset, selection, among, randomness.child("holdout"), quantiles)
    _refuse_overlap("holdout", drawn, "training", torch.nonzero(~test).flatten())
    return drawn


def _draw(
    dataset: Dataset, selection: Selection, among: Tensor, randomness: Randomness, quantiles: Quantiles | None
) -> Tensor:
    ids = torch.nonzero(among & _having(dataset, selection)).flatten()
    wanted = set(selection.ids or ())
    if lost := sorted(wanted - set(ids.tolist())):
        raise RecipeError(
            f"data.{randomness.purpose.rsplit('/', 1)[-1]}.ids: {lost[:5]} are test items or fail the other "
            "conditions; only training items can be forgotten or retained."
        )
    if selection.likelihood_quantile is not None and len(ids):
        if quantiles is None:
            raise RecipeError("data: likelihood_quantile needs a model with a likelihood; this one has none.")
        low, high = selection.likelihood_quantile
        found = quantiles(ids)
        ids = ids[(found >= low) & (found <= high)]
    if selection.count is not None and len(ids):
        if selection.count > len(ids):
            raise RecipeError(
                f"data: count={selection.count}, but only {len(ids)} items meet the other conditions "
                f"({_describe(selection)}). Type a smaller count."
            )
        ids = ids[randomness.permutation(len(ids))[: selection.count]].sort().values
    return ids


def _having(dataset: Dataset, selection: Selection) -> Tensor:
    keep = torch.ones(len(dataset), dtype=torch.bool)
    if selection.label is not None:
        keep &= torch.stack([dataset.having([name]) for name in selection.label]).any(0) if selection.label else False
    if selection.all_of:
        keep &= dataset.having(selection.all_of)
    for name in selection.without or ():
        keep &= ~dataset.having([name])
    if selection.ids is not None:
        keep &= _mask(dataset, torch.tensor(selection.ids, dtype=torch.int64))
    return keep


def _mask(dataset: Dataset, ids: Tensor) -> Tensor:
    return torch.isin(torch.arange(len(dataset)), ids)


def _refuse_overlap(first: str, a: Tensor, second: str, b: Tensor) -> None:
    shared = a[torch.isin(a, b)]
    if len(shared):
        raise RecipeError(
            f"The {first} and the {second} set share {len(shared)} items (ids {shared[:5].tolist()}...). "
            "They must be disjoint: an item cannot be both. Change data.forget, data.retain or data.holdout."
        )


def _describe(selection: Selection) -> str:
    return ", ".join(f"{key}={value}" for key, value in vars(selection).items() if value is not None)


def _share(chosen: Tensor, among: Tensor) -> float:
    return chosen[among].double().mean().item() if among.any() else 0.0
