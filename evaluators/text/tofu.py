"""The TOFU suite: probability, ROUGE-L, truth ratio, forget quality and model utility."""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from scipy.stats import ks_2samp
from torch import Tensor
from typing_extensions import override

from unlearn.core.records import Direction, Record
from unlearn.core.validation import PositiveInt
from unlearn.data.text import TextDataset
from unlearn.evaluators.base import Evaluation, EvaluationResult, Evaluator, Metric
from unlearn.evaluators.sampling import item_rows, limited
from unlearn.evaluators.statistics import Z95, mean_error
from unlearn.evaluators.text.generation import generated
from unlearn.evaluators.text.metrics import log_truth_ratio, rouge_l
from unlearn.evaluators.text.scoring import DIRECTIONS, answer_scores, measured_splits, question_ids, texts
from unlearn.models.capabilities import Continues

WORLD = ("real_authors", "world_facts")
"""Attributes of test questions about the real world; their probability is that among the options."""

_DIRECTIONS: dict[str, Direction] = {**DIRECTIONS, "test": "higher"}
PROBABILITY = Metric(
    name="probability",
    label="probability of the answer",
    formula="mean over questions of p(answer)^(1/tokens) = exp(-mean NLL). For the `set`s real_authors and "
    "world_facts p / (p + sum over the wrong answers), each p that power. 0 ... 1",
    unit="share",
    direction=_DIRECTIONS,
    source="Maini et al. 2024, section 2.2.1",
)
ROUGE = Metric(
    name="rouge_l_recall",
    label="ROUGE-L recall",
    formula="mean over questions of the ROUGE-L recall (words stemmed) of the greedy answer, `new_tokens` tokens at "
    "most. 0 ... 1",
    unit="share",
    direction=_DIRECTIONS,
    source="Maini et al. 2024, section 2.2.1; Lin 2004, section 3",
)
TRUTH = Metric(
    name="truth_ratio",
    label="truth ratio",
    formula="r = P(wrong) / P(right), P = exp(-mean NLL), over the wrong answers the geometric mean. Forget and "
    "holdout: mean of min(r, 1/r); others: mean of max(0, 1 - r). 0 ... 1",
    unit="share",
    direction=_DIRECTIONS,
    source="Maini et al. 2024, eq. 1",
)
QUALITY = Metric(
    name="forget_quality",
    label="forget quality",
    formula="p-value of the two-sample Kolmogorov-Smirnov test between r of the forget questions under the subject "
    "and under the retrained model; `score: statistic`: its statistic D, which still tells models apart where p is "
    "practically 0. Identical models: p = 1, D = 0",
    direction={"forget": "higher", "statistic": "lower"},
    source="Maini et al. 2024, section 2.2.2",
)
UTILITY = Metric(
    name="model_utility",
    label="model utility",
    formula="harmonic mean of `probability`, `rouge_l_recall` and `truth_ratio` on retain, real_authors and "
    "world_facts, or of those that the data have (`parts`); interval linearised. 0 ... 1",
    unit="share",
    direction="higher",
    source="Maini et al. 2024, section 2.2.1",
)
BY_QUESTION = {metric.name: metric for metric in (PROBABILITY, ROUGE, TRUTH)}
RATIO = "truth_ratio_r"
"""The truth ratio itself per item; ``truth_ratio`` maps it to a score."""


class Questions(NamedTuple):
    """Questions measured together: their name, the split in the records, and their ids (n,)."""

    name: str
    split: str
    ids: Tensor


@dataclass(frozen=True, kw_only=True)
class TofuMetrics(Evaluator[Continues]):
    """Generated answers, likelihoods of right and wrong answers, and the summary figures of both.

    In the truth ratio the right answer is the paraphrased one where there is one, and the perturbed ones are wrong.
    Passages are left out; where a split has questions with perturbed answers, those without are left out too.

    Args:
        new_tokens: tokens generated for ROUGE-L.
        items: at most this many questions per split, drawn by the seed; null takes all.
        arithmetic: average the wrong answers' probabilities, as the paper writes, not their logarithms, as the
            released code and OpenUnlearning do.
        batch_size: items per forward pass; does not change the result.

    Reference:
        Maini et al., TOFU: A Task of Fictitious Unlearning for LLMs, 2024, section 2.2. arXiv:2401.06121
    """

    new_tokens: PositiveInt = 200
    items: PositiveInt | None = 400
    arithmetic: bool = False
    batch_size: PositiveInt = 16

    metrics: ClassVar = (*BY_QUESTION.values(), QUALITY, UTILITY)

    @override
    def __call__(self, evaluation: Evaluation[Continues]) -> EvaluationResult:
        sets = list(self.sets(evaluation))
        values = {
            subject: {each.name: self.measure(evaluation, subject, each) for each in sets}
            for subject in evaluation.models
        }
        findings = EvaluationResult()
        for subject, by_set in values.items():
            for name, split, ids in sets:
                about = {"set": name} if name in WORLD else {}
                for metric, each in by_set[name].items():
                    findings.items.extend(item_rows(subject, split, ids, metric, each))
                    if metric in BY_QUESTION:
                        findings.records.append(
                            evaluation.record(
                                BY_QUESTION[metric],
                                subject,
                                split,
                                each,
                                about=about,
                                clusters=evaluation.clusters(ids),
                            )
                        )
            kept = [(by_set[name], evaluation.clusters(ids)) for name, _, ids in sets if name in ("retain", *WORLD)]
            parts = [
                ([found[metric] for metric in BY_QUESTION if metric in found], clusters) for found, clusters in kept
            ]
            findings.records.extend(_model_utility(evaluation, subject, parts))
        ratios = {
            subject: by_set["forget"][RATIO] for subject, by_set in values.items() if RATIO in by_set.get("forget", {})
        }
        findings.records.extend(_forget_quality(evaluation, ratios))
        bare = [each.name for each in sets if any(RATIO not in by_set[each.name] for by_set in values.values())]
        findings.notes.extend(_lacking(evaluation, [each.name for each in sets], bare))
        return findings

    def sets(self, evaluation: Evaluation[Continues]) -> Iterator[Questions]:
        """Yield the questions of forget, retain and holdout, and those about the real world if there are any."""
        for split in measured_splits(evaluation):
            data, asked = texts(evaluation.splits[split]), question_ids(evaluation.splits[split])
            whole = asked[data.having_form("perturbed_0")[asked]]
            ids = limited(whole if len(whole) else asked, self.items, evaluation.seed, split)
            yield from answerable(data, Questions(split, split, ids))
        data = texts(evaluation.splits["forget"])
        for name in WORLD:
            found = torch.nonzero(data.having([name]) & data.is_test & data.having_form("prompt")).flatten()
            ids = limited(found, self.items, evaluation.seed, name)
            yield from answerable(data, Questions(name, "test", ids))

    def measure(self, evaluation: Evaluation[Continues], subject: str, questions: Questions) -> dict[str, Tensor]:
        """Return metric -> value per item, (n,) float64; metrics whose forms the data lacks are left out."""
        ids, data = questions.ids, texts(evaluation.splits["forget"])  # all splits share their data
        own, paraphrased = (self._nll(evaluation, subject, ids, form) for form in ("", "paraphrased_answer"))
        wrong = [
            self._nll(evaluation, subject, ids, form)
            for form in sorted(data.forms)
            if form.startswith("perturbed_") and data.having_form(form)[ids].any()
        ]
        values: dict[str, Tensor] = {}
        if questions.name not in WORLD:
            values["probability"] = (-own).exp()
        elif wrong:
            # p / (p + sum of the wrong), in logarithms; a wrong answer that an item lacks has probability 0
            options = (-torch.stack((own, *wrong), dim=1)).nan_to_num(nan=-torch.inf)
            values["probability"] = (-own - options.logsumexp(dim=1)).exp()
        said = generated(evaluation, subject, "forget", ids, self.new_tokens, batch_size=self.batch_size)
        pairs = zip(ids.tolist(), evaluation.models[subject].text(said), strict=True)
        recall = [rouge_l(data.words(item)[1], text, stemmer=True)[0] for item, text in pairs]
        values["rouge_l_recall"] = torch.tensor(recall, dtype=torch.float64)
        if wrong:
            right = torch.where(data.having_form("paraphrased_answer")[ids], paraphrased, own)
            log_ratio = log_truth_ratio(right, torch.stack(wrong, dim=1), self.arithmetic)
            # a forgotten item should have r near 1, neither side preferred; elsewhere a small r is good
            forgotten = _DIRECTIONS[questions.split] == "retrained"
            values["truth_ratio"] = (-log_ratio.abs()).exp() if forgotten else (-torch.expm1(log_ratio)).clamp(min=0)
            values[RATIO] = log_ratio.exp()
        return values

    def _nll(self, evaluation: Evaluation[Continues], subject: str, ids: Tensor, form: str) -> Tensor:
        """Return the mean NLL of items in a form, (n,); nan where an item lacks it."""
        having = texts(evaluation.splits["forget"]).having_form(form)[ids]
        result = torch.full((len(ids),), torch.nan, dtype=torch.float64)
        if having.any():
            scores = answer_scores(evaluation, subject, "forget", ids[having], form, batch_size=self.batch_size)
            result[having] = scores.nll
        return result


def answerable(data: TextDataset, questions: Questions) -> Iterator[Questions]:
    """Yield the questions whose answers have tokens, if any; a question that fills the context leaves none."""

    def has_answers(item: int) -> bool:
        forms = [form for form in data.items[item].forms if form.startswith(("perturbed_", "paraphrased_answer"))]
        return all(data.tokens(item, form)[1] for form in ("", *forms))

    kept = torch.tensor([has_answers(item) for item in questions.ids.tolist()], dtype=torch.bool)
    if kept.any():
        yield questions._replace(ids=questions.ids[kept])


def _lacking(evaluation: Evaluation[Continues], measured: Sequence[str], bare: Sequence[str]) -> Iterator[str]:
    """Yield sentences on splits that ask nothing, and on sets without wrong answers."""
    silent = [split for split in measured_splits(evaluation) if split not in measured]
    if silent:
        yield f"tofu: {' and '.join(silent)} ask nothing that can be scored, so nothing is measured there."
    if bare:
        off = "truth_ratio and no forget_quality" if "forget" in bare else "truth_ratio"
        yield f"tofu: the questions of {' and '.join(bare)} have no perturbed answers, so there is no {off}."


def _model_utility(
    evaluation: Evaluation[Continues], subject: str, parts: Sequence[tuple[Sequence[Tensor], Tensor]]
) -> list[Record]:
    """Return the harmonic mean of the means of all parts; the interval is linearised.

    Args:
        evaluation: which records it.
        subject: whose it is.
        parts: of each set its metrics, (n,) each, and the source of each item.
    """
    means = [values.mean().item() for group, _ in parts for values in group]
    if not means:
        return []
    broken = any(math.isnan(mean) for mean in means)
    utility = math.nan if broken else 0.0 if 0 in means else len(means) / sum(1 / mean for mean in means)
    ci95 = None
    if utility > 0 and all(len(values) > 1 for group, _ in parts for values in group):
        # dU/dm_i = U^2 / (N m_i^2); metrics of one set share items, so they are summed per item, then the variance
        errors = [
            mean_error(torch.stack([values * utility**2 / values.mean() ** 2 for values in group]).sum(0), clusters)[0]
            for group, clusters in parts
        ]
        half = Z95 * math.sqrt(sum(error**2 for error in errors)) / len(means)
        ci95 = (max(0.0, utility - half), min(1.0, utility + half))
    about = {"parts": f"{len(means)} of {len(BY_QUESTION) * (1 + len(WORLD))}"}
    n = sum(len(group[0]) for group, _ in parts)
    return [evaluation.record(UTILITY, subject, "", (utility, ci95), n=n, about=about)]


def _forget_quality(evaluation: Evaluation[Continues], ratios: Mapping[str, Tensor]) -> list[Record]:
    """Compare every subject's truth ratios (n,) with the retrained model's, where there is one."""
    records = []
    for subject in [name for name in ratios if name != "retrained" and "retrained" in ratios]:
        p_value, statistic = kolmogorov_smirnov(ratios[subject], ratios["retrained"])
        n = len(ratios[subject])
        for value, about in ((p_value, {}), (statistic, {"score": "statistic"})):
            records.append(evaluation.record(QUALITY, subject, "forget", value, n=n, about=about))
    return records


def kolmogorov_smirnov(a: Tensor, b: Tensor) -> tuple[float, float]:
    """Return p-value and statistic of the two-sample test between values (n,) and (m,); nan where one is nan."""
    if a.isnan().any() or b.isnan().any():
        return math.nan, math.nan
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "ks_2samp: Exact calculation unsuccessful", RuntimeWarning)
        # exact p where the sizes allow it; scipy warns where it falls back to the asymptotic one
        test = ks_2samp(a.numpy(), b.numpy())
    return float(test.pvalue), float(test.statistic)
