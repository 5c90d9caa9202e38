"""Membership inference on texts: do a model's scores distinguish forgotten items from items never trained on?"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from os.path import expanduser
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from unlearn.core.distributed import map_ids
from unlearn.core.errors import RecipeError
from unlearn.core.validation import NonNegativeInt, PositiveInt
from unlearn.data.base import Split
from unlearn.evaluators.base import Evaluation, EvaluationResult, Evaluator, Metric
from unlearn.evaluators.per_item import Separation, privleak
from unlearn.evaluators.sampling import limited, without_traps
from unlearn.evaluators.statistics import Pair, detected
from unlearn.evaluators.subjects import OneAtATime
from unlearn.evaluators.text.scoring import AnswerScores, answer_scores, texts
from unlearn.models.capabilities import TokenizedLanguageModel

AUC = Metric(
    name="membership_auc",
    label="membership inference AUC",
    formula="P(a forget item scores above a holdout item) + P(tie) / 2; interval by DeLong's variance. With L the "
    "mean NLL of the answer tokens, `score` is `loss` -L; `zlib` -L / bytes of the compressed answer; `min_k` mean "
    "log p of the least likely share k of the tokens; `min_k_plus_plus` the same of (log p - mean) / std over the "
    "prediction; `gradient_norm` -‖∇L‖ over all weights; `reference` L of a reference model - L",
    direction="retrained",
    source="Yeom et al. 2018; Carlini et al. 2021; Shi et al. 2024 (Min-K%); Zhang et al. 2024 (Min-K%++)",
)
PRIVLEAK = Metric(
    name="privleak",
    label="PrivLeak",
    formula="100 (A - A_r) / A_r, A = P(a holdout item has the higher `min_k` score than a forget item), A_r that of "
    "the retrained model. -100: the forget items are remembered; positive: they became less likely than unseen ones. "
    "Interval linearised, with the covariance of the two",
    unit="%",
    direction="zero",
    source="Shi et al. 2024 (MUSE), section 3.1",
)

DETECTED = Metric(
    name="tpr_at_1_fpr",
    label="members found at 1 % false alarms",
    formula="share of forget items with a higher score than all but 1 % of the holdout items (than all of them, where "
    "there are fewer than 100); Wilson interval for the threshold given",
    unit="share",
    direction="retrained",
    source="Carlini et al. 2022 (LiRA), section 3",
)

SPLITS = ("forget", "holdout")
"""Members and non-members. Splits share one dataset, so items of both are read through ``forget``."""


@dataclass(frozen=True, kw_only=True)
class TextMembership(Evaluator[TokenizedLanguageModel]):
    """Areas under the ROC curve of attacks that call high scores members: forget against holdout; and PrivLeak.

    The formulas of the scores are those of ``AUC`` and ``PRIVLEAK`` above. 0.5 is no leak; compare with the retrained
    model's value. PrivLeak is measured for every subject but the retrained model.

    Args:
        k: share of the tokens that Min-K averages, at least one token; in (0, 1].
        items: at most this many items per split, drawn by the seed; null takes all.
        gradient_items: the same for ``gradient_norm``, which takes one backward pass per item; 0 leaves it out.
        reference: folder of a model with the same tokenizer that was trained on neither split, for the score
            ``reference``.
        batch_size: items per forward pass; does not change the result.

    Reference:
        Carlini et al., Extracting Training Data from Large Language Models, 2021 (zlib, reference). arXiv:2012.07805
        Shi et al., Detecting Pretraining Data from Large Language Models, 2024 (Min-K). arXiv:2310.16789
        Zhang et al., Min-K%++, 2024. arXiv:2404.02936
        Shi et al., MUSE, 2024, section 3.1 (PrivLeak). arXiv:2407.06460
    """

    k: float = 0.4
    items: PositiveInt | None = 500
    gradient_items: NonNegativeInt = 50
    reference: str | None = None
    batch_size: PositiveInt = 16

    metrics: ClassVar = (AUC, DETECTED, PRIVLEAK)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.k <= 1:
            raise ValueError(f"k is {self.k}; it must be above 0 and at most 1")

    @override
    def check(self, splits: Mapping[str, Split]) -> None:
        """Refuse data that is not text, and a missing reference."""
        texts(splits["forget"])
        if self.reference is not None:
            _reference_folder(self.reference)

    @override
    def __call__(self, evaluation: Evaluation[TokenizedLanguageModel]) -> EvaluationResult:
        items = self.compared(evaluation)
        if items is None:
            lacking = "the data have no holdout, so there is no membership_auc and no privleak"
            return EvaluationResult(notes=[f"text_membership: {lacking}."])
        reference = self._reference_nll(evaluation, items)
        found = {subject: self.scores(evaluation, subject, items, reference) for subject in evaluation.models}
        records = []
        for subject, scores in found.items():
            for score, pair in scores.items():
                about = {"score": score}
                records.append(evaluation.record(AUC, subject, "forget", pair, about=about))
                hits, own = detected(pair.members, pair.others), pair.clusters and pair.clusters[0]
                records.append(evaluation.record(DETECTED, subject, "forget", hits, about=about, clusters=own))
            if "min_k" in scores and "retrained" in found and subject != "retrained":
                figure = privleak(scores["min_k"], found["retrained"]["min_k"])
                of = {"score": "min_k"}
                records.append(evaluation.record(PRIVLEAK, subject, "forget", figure, n=len(scores["min_k"]), about=of))
        return EvaluationResult(records)

    def compared(self, evaluation: Evaluation[TokenizedLanguageModel]) -> Pair | None:
        """Return the ids of forget items (m,) and of holdout items (n,), or None where one side is empty.

        Data may set texts apart for this (attributes privleak_forget and privleak_holdout).
        """
        data = evaluation.splits["forget"].dataset
        items = {split: data.having([f"privleak_{split}"]).nonzero().flatten() for split in SPLITS}
        if not all(map(len, items.values())):
            if not all(split in evaluation.splits for split in SPLITS):
                return None
            items = {split: without_traps(evaluation.splits[split]) for split in SPLITS}
        members, others = (limited(ids, self.items, evaluation.seed, split) for split, ids in items.items())
        return members, others

    def scores(
        self, evaluation: Evaluation[TokenizedLanguageModel], subject: str, items: Pair, reference: Pair | None = None
    ) -> dict[str, Separation]:
        """Return every score with its values; ``reference`` is the mean NLL of the items under a reference model.

        Items without answer tokens are left out; there are no scores where one side has no other items.
        """
        data = texts(evaluation.splits["forget"])
        sides: list[dict[str, tuple[Tensor, Tensor]]] = []
        for split, ids, reference_nll in zip(SPLITS, items, reference or (None, None), strict=True):
            found = answer_scores(evaluation, subject, "forget", ids, k=self.k, batch_size=self.batch_size)
            answered = found.tokens > 0
            if not answered.any():
                return {}
            own, kept = AnswerScores(*(column[answered] for column in found)), ids[answered]
            sizes = torch.tensor([len(zlib.compress(data.words(item)[1].encode())) for item in kept.tolist()])
            side = {
                "loss": -own.nll,
                "zlib": -own.nll / sizes,
                "min_k": own.min_k,
                "min_k_plus_plus": own.min_k_plus_plus,
            }
            if reference_nll is not None:
                side["reference"] = reference_nll[answered] - own.nll
            scored = {score: (values, evaluation.clusters(kept)) for score, values in side.items()}
            if self.gradient_items:
                few = limited(kept, self.gradient_items, evaluation.seed, split)
                scored["gradient_norm"] = -gradient_norms(evaluation, subject, few), evaluation.clusters(few)
            sides.append(scored)
        members, others = sides
        return {
            score: Separation(*values, clusters)
            for score in members
            for values, clusters in [zip(members[score], others[score], strict=True)]
        }

    def _reference_nll(self, evaluation: Evaluation[TokenizedLanguageModel], items: Pair) -> Pair | None:
        """Return the reference model's mean NLL of the items, or None where none is named."""
        if self.reference is None:
            return None
        target = next(iter(evaluation.models.values()))
        model = type(target).from_pretrained(_reference_folder(self.reference))
        if model.encoder.vocabulary != target.encoder.vocabulary:
            raise RecipeError(
                f"evaluate.text_membership.reference={self.reference}: this model tokenizes text differently "
                "from the target, so likelihoods cannot be compared. Type a model with the target's tokenizer, "
                "or null."
            )
        if isinstance(evaluation.models, OneAtATime):
            evaluation.models.release()  # the reference model takes the subject's place on the device
        models = OneAtATime({self.reference: lambda: model}, evaluation.device)
        alone = replace(evaluation, models=models, cache={})
        members, others = (
            answer_scores(alone, self.reference, "forget", ids, batch_size=self.batch_size).nll for ids in items
        )
        return members, others


def _reference_folder(reference: str) -> Path:
    folder = Path(expanduser(reference))
    if not folder.is_dir():
        raise RecipeError(
            f"evaluate.text_membership.reference={reference}: there is no such folder. "
            "Type the folder of a model, or null."
        )
    return folder


def gradient_norms(evaluation: Evaluation[TokenizedLanguageModel], subject: str, ids: Tensor) -> Tensor:
    """Return the 2-norm of the gradient of each item's mean NLL over all weights, (n,) float64."""
    model = evaluation.models[subject]
    weights = [weight for weight in model.parameters() if weight.is_floating_point()]
    frozen = [weight for weight in weights if not weight.requires_grad]

    def norm(one: Tensor) -> Tensor:
        with torch.enable_grad():
            answers = model.answers(evaluation.batch("forget", one))
            loss = -answers.means(answers.log_probs()).sum()
            gradients = torch.autograd.grad(loss, weights, allow_unused=True)
        squares = [gradient.double().square().sum() for gradient in gradients if gradient is not None]
        return torch.stack(squares).sum().sqrt()[None]

    try:
        for weight in frozen:
            weight.requires_grad_(True)  # a model under evaluation may be frozen, and the norm is over all weights
        return map_ids(norm, ids.to(evaluation.device), batch_size=1).cpu()
    finally:
        for weight in frozen:
            weight.requires_grad_(False)
