"""The target's distribution at answer tokens without the target: its cached last states, and its frozen head."""

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from unlearn.core.errors import RecipeError
from unlearn.core.reference_cache import ReferenceCache
from unlearn.data.base import Batch
from unlearn.models.capabilities import Continues
from unlearn.objectives.base import Context


def remember_logits(model: Continues, context: Context[Continues]) -> None:
    """Keep, in ``prepare``, what the target's logits at the answer tokens of this term's items follow from.

    On disk: the last hidden states, (tokens, D), and once per run the head's weights. In memory afterwards: the head. A
    head that is not trained (under an adapter) is its own copy.
    """

    def compute(batch: Batch) -> tuple[Tensor, Tensor]:
        return model.answer_states(batch), batch["answer"].sum(dim=1)

    context.remember("answer_states", context.split, compute)
    own = model.head()
    for name, value in own.state_dict().items() if _trained(own) else ():
        context.cache.put(f"head.{name}", torch.zeros(1, dtype=torch.int64), partial(_one_row, value))


def recall_logits(model: Continues, context: Context[Continues], ids: Tensor) -> Tensor:
    """Return the target's logits at the answer tokens of items, (N, V), without gradient, in the order of answers."""
    head = model.head()
    if _trained(head):
        head = context.cache.once("head", lambda: _frozen_head(model.head(), context.cache, context.device))
    with torch.no_grad():
        logits: Tensor = head(context.recall("answer_states", context.split, ids))
    return logits if logits.dtype == torch.float64 else logits.float()  # a softmax in half precision is too coarse


def remember_top(model: Continues, context: Context[Continues], k: int) -> None:
    """Keep, in ``prepare``, the target's ``k`` largest log-probs at each answer token, and that of all others together.

    Raises:
        RecipeError: the vocabulary has no more than ``k`` tokens.
    """

    def compute(batch: Batch) -> tuple[Tensor, Tensor]:
        logits = model.answers(batch).logits
        if not k < logits.shape[1]:
            raise RecipeError(f"top_k is {k}; it must be smaller than the vocabulary, {logits.shape[1]} tokens.")
        tokens = logits.topk(k, dim=1).indices
        # both in one row: the numbers of tokens stay exact in single precision up to 2^24
        return torch.cat((bucketed(logits, tokens), tokens.to(logits.dtype)), dim=1), batch["answer"].sum(dim=1)

    context.remember(f"top_{k}", context.split, compute)


def recall_top(context: Context[Continues], ids: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return (N, k + 1) log-probs, the last of all other tokens together, and (N, k) the tokens."""
    rows = context.recall(f"top_{k}", context.split, ids)
    return rows[:, : k + 1], rows[:, k + 1 :].long()


def bucketed(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return log-probs of ``tokens`` (N, k) and of all others together, (N, k + 1), of logits (N, V)."""
    buckets: Tensor = _Bucketed.apply(logits, tokens)  # type: ignore[no-untyped-call]
    return buckets


class _Bucketed(torch.autograd.Function):
    """The gradient in one pass over (N, V), where plain operations keep and sum several such tensors.

    With G = sum of the gradients g of all buckets, that of a token's logit is g - p G; that of any other logit is
    p / p_rest (g_rest - p_rest G).
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, tokens: Tensor) -> Tensor:
        chosen = logits.gather(1, tokens)
        rest = logits.scatter(1, tokens, -torch.inf).logsumexp(dim=1, keepdim=True)
        total = torch.cat((chosen, rest), dim=1).logsumexp(dim=1, keepdim=True)
        buckets = torch.cat((chosen, rest), dim=1) - total
        ctx.save_for_backward(logits, tokens, rest, buckets)
        return buckets

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        logits, tokens, rest, buckets = ctx.saved_tensors
        whole = gradient - buckets.exp() * gradient.sum(dim=1, keepdim=True)  # of each bucket
        result = (logits - rest).exp_().mul_(whole[:, -1:])
        return result.scatter_(1, tokens, whole[:, :-1]), None


def _frozen_head(head: nn.Module, place: ReferenceCache, device: torch.device) -> nn.Module:
    """Return a copy of the head with the target's weights: the model trains its own, or ties them to others."""
    first = torch.zeros(1, dtype=torch.int64, device=device)
    frozen = copy.deepcopy(head)
    for name, value in frozen.state_dict().items():
        value.copy_(place.get(f"head.{name}", first)[0])
        place.drop(f"head.{name}")
    return frozen.requires_grad_(False).eval()


def _trained(head: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in head.parameters())


def _one_row(value: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    return value.detach()[None], torch.ones(1, dtype=torch.int64)
