"""Membership inference on texts: can a model's scores tell forgotten items from items that were never trained on?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from unlearn.distributed import map_ids
from unlearn.errors import RecipeError
from unlearn.evaluators.base import Evaluation, Evaluator, Findings
from unlearn.evaluators.measures import auc, auc_change
from unlearn.evaluators.shared import at_least, limited, some_of
from unlearn.evaluators.text_measures import zlib_length
from unlearn.evaluators.text_scores import AnswerScores, answer_scores, texts
from unlearn.metrics import Record

Pair = tuple[Tensor, Tensor]
"""Scores of the forget items (m,) and of the holdout items (n,)."""

SPLITS = ("forget", "holdout")


@dataclass(frozen=True, kw_only=True)
class TextMembership(Evaluator):
    """Areas under the ROC curve of attacks that call high scores members: forget against holdout; and PrivLeak.

    The scores, with L the mean NLL of the answer tokens: ``loss`` -L, ``zlib`` -L / bytes of the compressed answer,
    ``min_k`` mean log p of the least likely share k of the tokens, ``min_k_plus_plus`` the same of standardised log p,
    ``gradient_norm`` minus the norm of the gradient of L over all weights, ``reference`` the reference model's L minus
    L. 0.5 is no leak; compare with the retrained model's value. Intervals are DeLong's.

    PrivLeak, for every subject but the retrained model, is 100 (A - A_r) / A_r, where A is the probability that a
    holdout item has the higher ``min_k`` score than a forget item, and A_r the retrained model's: -100 where the
    forget items are remembered, positive where they became less likely than unseen ones.

    Args:
        k: share of the tokens that Min-K reads, at least one token; in (0, 1].
        items: at most so many items of a split, drawn by the seed; null takes all.
        gradient_items: the same for ``gradient_norm``, which takes a backward pass an item; 0 leaves it out.
        reference: folder of a model of the same tokenizer that saw neither split, for the score ``reference``.
        batch_size: items a forward pass; does not change the result.

    Reference:
        Carlini et al., Extracting Training Data from Large Language Models, 2021 (zlib, reference). arXiv:2012.07805
        Shi et al., Detecting Pretraining Data from Large Language Models, 2024 (Min-K). arXiv:2310.16789
        Zhang et al., Min-K%++, 2024. arXiv:2404.02936
        Shi et al., MUSE, 2024, section 3.1 (PrivLeak). arXiv:2407.06460
    """

    k: float = 0.4
    items: int | None = 500
    gradient_items: int = 50
    reference: str | None = None
    batch_size: int = 16

    needs: ClassVar[tuple[str, ...]] = ("continues",)

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        at_least(self, items=1, gradient_items=0, batch_size=1)
        if not 0 < self.k <= 1:
            raise ValueError(f"k is {self.k}; it must be above 0 and at most 1")

    def __call__(self, evaluation: Evaluation) -> Findings:
        """Return ``membership_auc`` for every subject and score, and ``privleak``; nothing without a holdout."""
        if any(split not in evaluation.splits for split in SPLITS):
            return Findings()
        judge = self._reference_nll(evaluation)
        found = {subject: dict(self.scores(evaluation, subject, judge)) for subject in evaluation.models}
        records = []
        for subject, scores in found.items():
            for score, pair in scores.items():
                value, ci95 = auc(*pair)
                records.append(_record(evaluation, "membership_auc", subject, score, pair, value, ci95))
            if "min_k" in scores and "retrained" in found and subject != "retrained":
                pair, reference = scores["min_k"], found["retrained"]["min_k"]
                value, ci95 = auc_change(pair[::-1], reference[::-1])  # the holdout items stand as members
                percent = None if ci95 is None else (100 * ci95[0], 100 * ci95[1])
                records.append(_record(evaluation, "privleak", subject, "min_k", pair, 100 * value, percent))
        return Findings(records)

    def scores(
        self, evaluation: Evaluation, subject: str, reference: Mapping[str, Tensor] | None = None
    ) -> Iterator[tuple[str, Pair]]:
        """Yield every score with its values; ``reference`` holds the mean NLL of another model by split.

        Items without answer tokens are left out; nothing is yielded where a split has no others.
        """
        own = {split: self._read(evaluation, subject, split) for split in SPLITS}
        said = {split: own[split].tokens > 0 for split in SPLITS}
        if not all(kept.any() for kept in said.values()):
            return

        def pair(values: Mapping[str, Tensor]) -> Pair:
            return values["forget"][said["forget"]], values["holdout"][said["holdout"]]

        yield "loss", pair({split: -own[split].nll for split in SPLITS})
        yield "zlib", pair({split: -own[split].nll / self._zlib_lengths(evaluation, split) for split in SPLITS})
        yield "min_k", pair({split: own[split].min_k for split in SPLITS})
        yield "min_k_plus_plus", pair({split: own[split].min_k_plus_plus for split in SPLITS})
        if reference is not None:
            yield "reference", pair({split: reference[split] - own[split].nll for split in SPLITS})
        if self.gradient_items:
            ids = pair({split: some_of(evaluation, split, self.items) for split in SPLITS})
            few = [limited(ids[n], self.gradient_items, evaluation.seed, split) for n, split in enumerate(SPLITS)]
            norms = [gradient_norms(evaluation, subject, split, some) for split, some in zip(SPLITS, few, strict=True)]
            yield "gradient_norm", (-norms[0], -norms[1])

    def _read(self, evaluation: Evaluation, subject: str, split: str) -> AnswerScores:
        ids = some_of(evaluation, split, self.items)
        return answer_scores(evaluation, subject, split, ids, k=self.k, batch_size=self.batch_size)

    def _zlib_lengths(self, evaluation: Evaluation, split: str) -> Tensor:
        data, ids = texts(evaluation.splits[split]), some_of(evaluation, split, self.items)
        return torch.tensor([zlib_length(data.words(item)[1]) for item in ids.tolist()])

    def _reference_nll(self, evaluation: Evaluation) -> dict[str, Tensor] | None:
        """Return the reference model's mean NLL by split, or None where none is named."""
        if self.reference is None:
            return None
        model = type(next(iter(evaluation.models.values()))).from_pretrained(Path(self.reference).expanduser())
        try:
            model.check_fits(evaluation.splits["forget"].dataset.info)
        except RecipeError as error:
            raise RecipeError(
                f"evaluate.text_membership.reference={self.reference}: this model turns text into other tokens than "
                "the target does, so that likelihoods cannot be compared. Type a model with the target's tokenizer, "
                "or null."
            ) from error
        judge = replace(
            evaluation, models={self.reference: model.eval().to(evaluation.device, torch.float32)}, cache={}
        )
        return {split: self._read(judge, self.reference, split).nll for split in SPLITS}


def gradient_norms(evaluation: Evaluation, subject: str, split: str, ids: Tensor) -> Tensor:
    """Return the 2-norm of the gradient of an item's mean NLL over all weights, (n,) float64, item by item."""
    model = evaluation.models[subject]
    weights = [weight for weight in model.parameters() if weight.is_floating_point()]
    frozen = [weight for weight in weights if not weight.requires_grad]

    def norm(one: Tensor) -> Tensor:
        with torch.enable_grad():
            answers = model.answers(evaluation.batch(split, one))
            loss = -answers.means(answers.log_probs()).sum()
            gradients = torch.autograd.grad(loss, weights, allow_unused=True)
        squares = [gradient.double().square().sum() for gradient in gradients if gradient is not None]
        return torch.stack(squares).sum().sqrt()[None]

    try:
        for weight in frozen:
            weight.requires_grad_(True)
        return map_ids(norm, ids.to(evaluation.device), batch_size=1).cpu()
    finally:
        for weight in frozen:
            weight.requires_grad_(False)


def _record(
    evaluation: Evaluation,
    metric: str,
    subject: str,
    score: str,
    pair: Pair,
    value: float,
    ci95: tuple[float, float] | None,
) -> Record:
    leak = metric == "privleak"
    return Record(
        evaluator="text_membership",
        metric=metric,
        subject=subject,
        split="forget",
        about={"score": score},
        value=value,
        ci95=ci95,
        n=len(pair[0]) + len(pair[1]),
        seed=evaluation.seed,
        direction="zero" if leak else "retrained",
        unit="%" if leak else "",
    )
