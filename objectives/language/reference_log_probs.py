"""What several objectives for language models share: other forms of an item, the target's log-probs, chosen tokens."""

from typing import Literal

import torch
from torch import Tensor

from unlearn.core.errors import RecipeError
from unlearn.data.base import Batch, Split
from unlearn.models.capabilities import HasLikelihood
from unlearn.models.language.answers import Answers
from unlearn.objectives.base import Context

Reduction = Literal["mean", "sum"]
"""How the tokens of one answer become one value: their mean, or their sum, which grows with the length."""
Tokens = Literal["answer", "all"]
"""Which tokens count: those of the answer, or all real ones, the question included."""
Instead = Literal["refusal", "alternate"]
"""The answer to learn instead: an I-don't-know line, or another plausible answer, where the data has one."""


def reduced(answers: Answers, values: Tensor, reduction: Reduction) -> Tensor:
    """Return values (N,) of answer tokens as one value per item, (B,)."""
    return answers.means(values) if reduction == "mean" else answers.sums(values)


def check_form(split: Split, form: str, what: str) -> None:
    """Refuse a split whose items do not all have a form. Raises RecipeError."""
    lacking = int((~split.dataset.having_form(form)[split.ids]).sum())
    if lacking:
        raise RecipeError(
            f"{what}: {lacking} of the {len(split)} {split.name} items have no form {form!r} "
            "(a passage has no refusal; an alternate answer must come with the data). Type another objective, such as "
            f"{'retain=training_loss' if split.name == 'retain' else 'forget=npo'}, or other data."
        )


def remember_log_prob(model: HasLikelihood, context: Context[HasLikelihood], form: str = "") -> None:
    """Keep the target's log-prob of each item, or of another form of it: one number per item, no second model."""

    def compute(batch: Batch) -> tuple[Tensor, Tensor]:
        items = context.batch(context.split, batch["id"], form) if form else batch
        values = model.log_prob(items, context.randomness)
        return values, torch.ones_like(batch["id"])

    context.remember(_log_prob(form), context.split, compute)


def recall_log_prob(context: Context[HasLikelihood], ids: Tensor, form: str = "") -> Tensor:
    """Return the target's log-probs of items, (B,), in nats, summed over the answer."""
    return context.recall(_log_prob(form), context.split, ids)


def _log_prob(form: str) -> str:
    return f"log_prob.{form}" if form else "log_prob"


def scoring(batch: Batch, tokens: Tokens) -> Batch:
    """Return the batch with the tokens that count as its answer; nothing predicts the first token of an item."""
    if tokens == "answer":
        return batch
    return {**batch, "answer": batch["mask"] & (torch.arange(batch["mask"].shape[1], device=batch["mask"].device) > 0)}


def token_mask(batch: Batch, tokens: Tokens) -> Tensor:
    """Return (B, T) bool: the tokens whose hidden states count."""
    return batch["answer"] if tokens == "answer" else batch["mask"]
