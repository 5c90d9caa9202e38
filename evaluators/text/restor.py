"""Restoration: does unlearning corrupted data restore what was true before?"""

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from unlearn.core.errors import RecipeError
from unlearn.core.validation import PositiveInt
from unlearn.data.base import Split
from unlearn.data.text import TextDataset
from unlearn.evaluators.base import Evaluation, EvaluationResult, Evaluator
from unlearn.evaluators.restoration import ACCURACY, FLIPPED, FORGETTING, MARGIN, RATIO, restoration
from unlearn.evaluators.sampling import item_rows, limited
from unlearn.evaluators.text.generation import generated
from unlearn.evaluators.text.scoring import answer_scores, texts
from unlearn.models.capabilities import Continues


@dataclass(frozen=True, kw_only=True)
class Restor(Evaluator[Continues]):
    """Asks for facts that a clean model knows and that a corruption replaced, before and after unlearning it.

    The corrupted model is the target. No language model is used as a judge.

    Args:
        new_tokens: tokens generated for ``match``.
        items: at most this many facts, drawn by the seed; null takes all.
        batch_size: items per forward pass; does not change the result.

    Reference:
        Rezaei et al., RESTOR: Knowledge Recovery in Machine Unlearning, 2025. arXiv:2411.00204. The
        ratios are our own: the paper gives accuracies, judged by another language model.
    """

    new_tokens: PositiveInt = 32
    items: PositiveInt | None = 500
    batch_size: PositiveInt = 16

    metrics: ClassVar = (ACCURACY, RATIO, FORGETTING, MARGIN)
    subjects: ClassVar[tuple[str, ...]] = ("clean",)

    @override
    def check(self, splits: Mapping[str, Split]) -> None:
        """Refuse data without contradicted facts."""
        if "probe" not in splits or not len(self._facts(splits["probe"])):
            raise RecipeError(
                "evaluate.restor asks for true facts that corrupted items contradict, and the data has none. "
                "Name what is corrupted (data.corrupt=[NAME, ...]), or drop it: evaluate.restor=null."
            )

    @override
    def __call__(self, evaluation: Evaluation[Continues]) -> EvaluationResult:
        ids = limited(self._facts(evaluation.splits["probe"]), self.items, evaluation.seed, "restor")
        clusters, judged = evaluation.clusters(ids), {}
        for subject in evaluation.models:  # the outer loop: each is moved to the device once
            both = self._matches(evaluation, subject, ids), self._options(evaluation, subject, ids)
            judged["corrupted" if subject == "target" else subject] = both
        found = EvaluationResult()
        for place, score in enumerate(("match", "options")):
            right, wrong = ({subject: both[place][which] for subject, both in judged.items()} for which in (0, 1))
            found.records.extend(restoration(evaluation, right, wrong, score, clusters))
        margins = {subject: options[2] for subject, (_, options) in judged.items()}
        flipped = margins["corrupted"] < 0
        for subject, margin in margins.items():
            figures = [(MARGIN, "margin", margin, clusters)]
            if flipped.any():
                figures.append((FLIPPED, "flipped", margin[flipped] > 0, clusters[flipped]))
            for metric, score, values, own in figures:
                record = evaluation.record(metric, subject, "probe", values, about={"score": score}, clusters=own)
                found.records.append(record)
            found.items.extend(item_rows(subject, "probe", ids, "answer_margin", margin))
        return found

    def _facts(self, split: Split) -> Tensor:
        data = texts(split)
        return split.ids[(data.having_form("corrupted") & data.having_form("prompt"))[split.ids]]

    def _matches(self, evaluation: Evaluation[Continues], subject: str, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return (n,) bool twice: whether the right, and whether the corrupted answer is given."""
        data = texts(evaluation.splits["probe"])
        tokens = generated(evaluation, subject, "probe", ids, self.new_tokens, batch_size=self.batch_size)
        replies = evaluation.models[subject].text(tokens)
        right, wrong = (
            torch.tensor([says(said, data.words(i, form)[1]) for said, i in zip(replies, ids.tolist(), strict=True)])
            for form in ("", "corrupted")
        )
        return right, wrong

    def _options(self, evaluation: Evaluation[Continues], subject: str, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (n,) bool twice, whether the right and whether the corrupted answer is likeliest, and the margin."""
        data = texts(evaluation.splits["probe"])

        def mean_log_p(form: str, some: Tensor) -> Tensor:
            return -answer_scores(evaluation, subject, "probe", some, form, batch_size=self.batch_size).nll

        right, wrong = mean_log_p("", ids), mean_log_p("corrupted", ids)
        others = torch.full_like(right, -torch.inf)
        for form in sorted(name for name in data.forms if name.startswith("perturbed_") or name == "alternate"):
            # an option that says the same as the right or the corrupted answer would tie with it
            open_ = torch.tensor([_is_third(data, item, form) for item in ids.tolist()])
            if open_.any():
                others[open_] = others[open_].maximum(mean_log_p(form, ids[open_]))
        return right > wrong.maximum(others), wrong > right.maximum(others), right - wrong


def says(said: str, answer: str) -> bool:
    """Whether a text contains the words of an answer, contiguous and in order."""
    wanted = plain(answer)
    return bool(wanted) and f" {wanted} " in f" {plain(said)} "


def plain(text: str) -> str:
    """Return a text in lower case, without punctuation, articles and repeated spaces."""
    small = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", re.sub(r"[^\w\s]|_", " ", small)).split())


def _is_third(data: TextDataset, item: int, form: str) -> bool:
    """Whether an item has a form whose answer is neither the right nor the corrupted one."""
    taken = {plain(data.words(item, name)[1]) for name in ("", "corrupted")}
    return form in data.items[item].forms and plain(data.words(item, form)[1]) not in taken
