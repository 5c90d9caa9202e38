"""Samples and choices of items that several evaluators use."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from unlearn.core.distributed import map_ids
from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.data.base import Split
from unlearn.data.conditioned import Conditioned
from unlearn.data.traps import PLANTED
from unlearn.evaluators.base import Evaluation, EvaluationResult, Metric
from unlearn.models.capabilities import Model, Samples


def sampled_splits(evaluation: Evaluation[Model]) -> tuple[str, ...]:
    """Return the splits whose conditions samples are drawn for: the empty name alone for unconditional models."""
    return ("forget", "retain") if is_conditional(evaluation.splits["forget"]) else ("",)


def is_conditional(split: Split) -> bool:
    """Return whether models of the data are conditioned on a class or a prompt."""
    return isinstance(split.dataset, Conditioned)


def conditioned_data(splits: Mapping[str, Split]) -> Conditioned:
    """Return the forget data of conditional models; the evaluators' ``check`` refuses others."""
    return cast(Conditioned, splits["forget"].dataset)


def sampled_items(evaluation: Evaluation[Model], split: str, n: int) -> Tensor:
    """Return the ids of the items that the first n samples of a split are conditioned on, (n,) int64, by the seed."""
    ids = evaluation.splits[split].ids
    order = Randomness(evaluation.seed, f"conditions/{split}").permutation(len(ids))
    return ids[order[torch.arange(n) % len(ids)]]


def sampled_clusters(evaluation: Evaluation[Model], split: str, n: int) -> Tensor | None:
    """Return the number of the prompt of each of the first n samples (n,); None where they have none."""
    data = evaluation.splits["forget"].dataset
    return data.prompts(sampled_items(evaluation, split, n)) if isinstance(data, Conditioned) else None


def samples(evaluation: Evaluation[Samples], subject: str, split: str, n: int, batch_size: int = 256) -> Tensor:
    """Return the first n samples of a subject, (n, C, H, W) uint8 on the CPU.

    Conditional models are conditioned on items of the split (``sampled_items``), others ignore it. The noise is the
    same for every subject, every split and every evaluator, whatever the batch size. Samples drawn before are reused.
    """
    conditional = is_conditional(evaluation.splits["forget"])
    key = ("samples", subject, split if conditional else "")
    known = evaluation.cache.get(key)
    start = 0 if known is None else len(known)
    if known is None or start < n:
        # the items of fewer samples are the first ones of more samples
        items = sampled_items(evaluation, split, n)[start:] if conditional else None
        more = drawn(evaluation, evaluation.models[subject], split, items, batch_size, first=start, count=n - start)
        known = more if known is None else torch.cat((known, more))
        evaluation.cache[key] = known
    return known[:n]


def drawn(
    evaluation: Evaluation[Model],
    model: Samples,
    split: str,
    items: Tensor | None,
    batch_size: int = 256,
    conditions: Tensor | None = None,
    first: int = 0,
    count: int = 0,
) -> Tensor:
    """Draw samples of a model, (n, C, H, W) uint8 on the CPU; sample i has the same noise for every model.

    Args:
        evaluation: with the data.
        model: a subject, or an attacked copy of it.
        split: of the items.
        items: what the samples are conditioned on, (n,); None for unconditional models.
        batch_size: samples drawn at once; does not change the result.
        conditions: (n, ...), to use in place of those of the items.
        first: number of the first sample.
        count: number of samples where there are no items.
    """
    randomness = Randomness(evaluation.seed, "samples")

    def draw(ids: Tensor) -> Tensor:
        if items is None:
            batch = model.sample(ids, randomness)
        else:
            rows = ids.cpu() - first  # ids are the numbers of the samples, which choose the noise
            like = evaluation.batch(split, items[rows])
            if conditions is not None:
                like[conditioned_data(evaluation.splits).encoder.key] = conditions[rows].to(ids.device)
            batch = model.sample(ids, randomness, like)
        if "image" not in batch:
            raise RecipeError(
                f"The samples of a {type(model).__name__} are not images (they hold {', '.join(sorted(batch))}), and "
                "this evaluator needs images. Drop it from the recipe: evaluate.NAME=null."
            )
        return batch["image"]

    n = count if items is None else len(items)
    return map_ids(draw, torch.arange(first, first + n, device=evaluation.device), batch_size).cpu()


def without_traps(split: Split) -> Tensor:
    """Return a split's ids without copyright traps, which are duplicated on purpose and evaluated by ``traps``."""
    planted = torch.tensor([PLANTED in names for names in split.dataset.attributes], dtype=torch.bool)
    return split.ids[~planted[split.ids]]


def some_of(evaluation: Evaluation[Model], split: str, limit: int | None) -> Tensor:
    """Return the ids of a split, or ``limit`` of them drawn by the seed, in the split's order, without traps."""
    return limited(without_traps(evaluation.splits[split]), limit, evaluation.seed, split)


def limited(ids: Tensor, limit: int | None, seed: int, name: str) -> Tensor:
    """Return ids (n,), or ``limit`` of them drawn by the seed and the name of the set, in their order."""
    if limit is None or len(ids) <= limit:
        return ids
    order = Randomness(seed, f"items/{name}").permutation(len(ids))
    return ids[order[:limit].sort().values]


def add_items(
    result: EvaluationResult,
    evaluation: Evaluation[Model],
    metric: Metric,
    subject: str,
    split: str,
    ids: Tensor,
    values: Tensor,
) -> None:
    """Add the values of items (n,) to a result: the record of their mean, and their item-level rows."""
    clusters = evaluation.clusters(ids)
    result.records.append(evaluation.record(metric, subject, split, values, clusters=clusters))
    result.items.extend(item_rows(subject, split, ids, metric.name, values))


def grey_levels(evaluation: Evaluation[Model]) -> int:
    """Return the number of grey levels of images; 256 where the data has none of its own."""
    return int(evaluation.splits["forget"].dataset.info.get("levels", 256))


def seen_by(net: Callable[[Tensor], Tensor], evaluation: Evaluation[Model], images: Tensor, batch_size: int) -> Tensor:
    """Return the output of a net that takes images in [-1, 1] on images (n, C, H, W) uint8, (n, D) on the CPU."""
    scale = 2 / (grey_levels(evaluation) - 1)  # 0 ... levels - 1 become -1 ... 1

    def look(rows: Tensor) -> Tensor:
        return net(images[rows.cpu()].to(evaluation.device).float() * scale - 1)

    return map_ids(look, torch.arange(len(images), device=evaluation.device), batch_size).cpu()


def item_rows(subject: str, split: str, ids: Tensor, metric: str, values: Tensor) -> list[dict[str, Any]]:
    """Return one row per item for the item-level file."""
    return [
        {"subject": subject, "split": split, "id": item, "metric": metric, "value": value}
        for item, value in zip(ids.tolist(), values.tolist(), strict=True)
    ]
