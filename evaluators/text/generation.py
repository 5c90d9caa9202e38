"""One greedy generation pass, shared by all evaluators of generated text."""

from collections.abc import Sequence

import torch
from torch import Tensor

from unlearn.core.distributed import map_ids
from unlearn.data.text import collate
from unlearn.evaluators.base import Evaluation
from unlearn.evaluators.text.scoring import texts
from unlearn.models.capabilities import Continues

_UNKNOWN = -2  # no token, and not -1, which follows the end


def generated(
    evaluation: Evaluation[Continues], subject: str, split: str, ids: Tensor, new_tokens: int, batch_size: int = 16
) -> Tensor:
    """Return the greedy continuation of the prompts of items (n,), (n, new_tokens) int64, -1 after the end.

    A shorter answer is the beginning of a longer one, so cached tokens are reused unless more are requested.
    """
    data = texts(evaluation.splits[split])
    key = ("generated", subject, id(data))
    table = evaluation.cache.get(key)
    if table is None or table.shape[1] < new_tokens:
        table = torch.full((len(data), new_tokens), _UNKNOWN, dtype=torch.int64)
        evaluation.cache[key] = table
    missing = ids[table[ids, 0] == _UNKNOWN]
    if len(missing):
        prompts = [data.tokens(item, "prompt")[0] for item in missing.tolist()]
        model = evaluation.models[subject]  # only now: asking moves it to the device
        table[missing] = continuations(model, prompts, table.shape[1], evaluation.device, batch_size)
    return table[ids, :new_tokens]


def continuations(
    model: Continues, prompts: Sequence[list[int]], new_tokens: int, device: torch.device, batch_size: int = 16
) -> Tensor:
    """Continue prompts, given as tokens, greedily: (n, new_tokens) int64 on the CPU, -1 after the end.

    Prompts of similar length share a batch, to save padding; neither order nor batches change the result.
    """
    order = torch.tensor([len(prompt) for prompt in prompts]).argsort(stable=True)

    def extend(some: Tensor) -> Tensor:
        batch = collate([(prompts[index], []) for index in some.tolist()], some.cpu())
        return model.generate({key: value.to(device) for key, value in batch.items()}, new_tokens)

    result = torch.empty(len(prompts), new_tokens, dtype=torch.int64)
    result[order] = map_ids(extend, order.to(device), batch_size).cpu()
    return result
