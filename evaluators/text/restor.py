"""Restoration: does unlearning corrupted data restore what was true before?"""

import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.core.records import Record
from unlearn.core.validation import PositiveInt
from unlearn.data.base import Split
from unlearn.data.text import TextDataset
from unlearn.evaluators.base import Evaluation, EvaluationResult, Evaluator, Metric
from unlearn.evaluators.sampling import item_rows, limited
from unlearn.evaluators.statistics import Interval, cluster_sums
from unlearn.evaluators.text.generation import generated
from unlearn.evaluators.text.scoring import answer_scores, texts
from unlearn.models.capabilities import Continues

ACCURACY = Metric(
    name="fact_accuracy",
    label="accuracy on contradicted facts",
    formula="share of contradicted facts that are right; `score: match`: the greedy answer contains the right one "
    "(lower case, no punctuation or articles); `options`: it has the highest mean log p per token among the right, "
    "the corrupted, the perturbed and the alternate answers. Wilson interval",
    unit="share",
    direction="higher",
    source="Rezaei et al. 2025",
)
RATIO = Metric(
    name="restoration_ratio",
    label="restoration ratio",
    formula="(a - a_corrupted) / (a_clean - a_corrupted) of `fact_accuracy`: 0 for nothing done, 1 for the clean "
    "model; undefined where the two are equal. Percentile interval of the bootstrap over facts, in pairs",
    direction="higher",
    source="ours",
)
FORGETTING = Metric(
    name="corruption_forgetting",
    label="corruption forgotten",
    formula="1 - c / c_corrupted, c the share of facts to which the corrupted answer is given (judged as above); "
    "undefined where c_corrupted is 0. Bootstrap interval",
    direction="higher",
    source="ours",
)
MARGIN = Metric(
    name="answer_margin",
    label="answer margin",
    formula="`score: margin`: mean over facts of the difference between the mean log p per token of the right and of "
    "the corrupted answer, in nats/token; `flipped`: share, of the facts where it is negative in the corrupted "
    "model, of those where it is positive",
    unit="nats/token",
    direction="higher",
    source="Rezaei et al. 2025",
)
FLIPPED = replace(MARGIN, unit="share")

RESAMPLES = 2000
"""Number of bootstrap resamples."""


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


def restoration(
    evaluation: Evaluation[Continues],
    correct: Mapping[str, Tensor],
    corrupted: Mapping[str, Tensor],
    score: str,
    clusters: Tensor | None = None,
) -> list[Record]:
    """Return the figures of restoration on probe items, which were judged by ``score``.

    Args:
        evaluation: its stream draws the same bootstrap items for every subject.
        correct: subject -> (n,) bool, whether it answers right; with subjects ``clean`` and ``corrupted``.
        corrupted: subject -> (n,) bool, whether it gives the corrupted answer.
        score: for ``about.score``.
        clusters: (n,), the source of each item.
    """
    records, stream = [], evaluation.randomness
    for subject, right in correct.items():
        resampled = partial(bootstrap, clusters=clusters)
        ratio = resampled(restoration_ratio, stream, correct["clean"], correct["corrupted"], right)
        forgotten = resampled(corruption_forgetting, stream, corrupted["corrupted"], corrupted[subject])
        add = partial(evaluation.record, about={"score": score}, clusters=clusters)
        for metric, figure in ((ACCURACY, right), (RATIO, ratio), (FORGETTING, forgotten)):
            records.append(add(metric, subject, "probe", figure, n=len(right)))
    return records


def restoration_ratio(clean: Tensor, corrupted: Tensor, unlearned: Tensor) -> Tensor:
    """Return (unlearned - corrupted) / (clean - corrupted) of accuracies; nan where the corruption changed nothing.

    0 where nothing is done, 1 for the clean model.
    """
    gap = clean - corrupted
    return torch.where(gap == 0, torch.nan, (unlearned - corrupted) / gap)


def corruption_forgetting(corrupted: Tensor, unlearned: Tensor) -> Tensor:
    """Return 1 - unlearned / corrupted of the shares of corrupted answers; nan where the corruption taught none."""
    return torch.where(corrupted == 0, torch.nan, 1 - unlearned / corrupted)


def bootstrap(
    statistic: Callable[..., Tensor], randomness: Randomness, *columns: Tensor, clusters: Tensor | None = None
) -> tuple[float, Interval]:
    """Return a statistic of the means of columns (n,) over the same items, and its percentile interval.

    Whole clusters are drawn where items share a source, as they vary together. There is no interval below two items,
    nor where the statistic is undefined in more than 5 % of the draws.
    """
    table = torch.stack(columns).double()
    value = float(statistic(*table.mean(dim=1)))
    sums = torch.stack([cluster_sums(column, clusters) for column in table])
    sizes = cluster_sums(torch.ones(table.shape[1], dtype=torch.float64), clusters)
    n = len(sizes)
    if n < 2:
        return value, None
    # drawn for all columns together: the models answer the same items, so their errors are correlated
    drawn = randomness.child("bootstrap").integers(torch.arange(RESAMPLES), n, (n,))
    found = statistic(*(column[drawn].sum(dim=1) / sizes[drawn].sum(dim=1) for column in sums))
    found = found[found.isfinite()]  # a resample in which the denominator is 0 has no value
    if len(found) < 0.95 * RESAMPLES:
        return value, None
    low, high = found.quantile(torch.tensor([0.025, 0.975], dtype=found.dtype)).tolist()
    return value, (low, high)
