"""Formulas over the answer tokens of texts: memorisation, membership scores, truth ratio, overlap of words."""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from unlearn.core.errors import RecipeError
from unlearn.models.language.answers import Answers

_TOKENS_AT_ONCE = 1024  # of log-probabilities over the whole vocabulary, held several times


def token_measures(answers: Answers) -> tuple[Tensor, Tensor, Tensor]:
    """Return per answer token log p, whether it is the likeliest, and its standardised log p; each (N,).

    The standardised log p is z = (log p(y) - mu) / sigma with mu and sigma^2 the mean and the variance of log p(v)
    over v drawn from the model's own prediction; sigma^2 is at least 1e-6, as a flat prediction has none.

    Reference:
        Zhang et al., Min-K%++: Improved Baseline for Pre-Training Data Detection, 2024, eq. 2. arXiv:2404.02936
    """
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for logits, targets in zip(
        answers.logits.split(_TOKENS_AT_ONCE), answers.targets.split(_TOKENS_AT_ONCE), strict=True
    ):
        log_p = logits.log_softmax(dim=1)
        p = log_p.exp()
        mean = (p * log_p).sum(dim=1)  # minus the entropy of the prediction
        variance = (p * (log_p - mean[:, None]).square()).sum(dim=1)
        chosen = log_p.gather(1, targets[:, None]).squeeze(1)
        z = (chosen - mean) / variance.clamp(min=1e-6).sqrt()
        found.append((chosen, logits.argmax(dim=1) == targets, z))
    chosen, right, z = (torch.cat(parts) for parts in zip(*found, strict=True))
    return chosen, right, z


def exact_memorization(answers: Answers, right: Tensor) -> Tensor:
    """Return the share of an item's answer tokens that are the likeliest, (B,) float64; nan without answer tokens.

    ``right`` says of each token whether it is, (N,) bool.

    Reference:
        Tirumala et al., Memorization Without Overfitting, 2022, section 3. arXiv:2205.10770
    """
    return answers.sums(right.double()) / answers.lengths.double()


def extraction_strength(answers: Answers, right: Tensor) -> Tensor:
    """Return 1 - min{k: tokens k ... |y| are all predicted} / |y| per item, (B,) float64; nan without answer tokens.

    k runs to |y|, so an answer whose last token is wrong has 0. ``right`` says of each token whether it is predicted,
    (N,) bool.

    Reference:
        Wang et al., Towards Effective Evaluations and Comparisons for LLM Unlearning Methods, 2025. arXiv:2406.09179
    """
    # the last wrong token decides: everything after it is predicted
    last_wrong = torch.full_like(answers.lengths, -1)
    last_wrong.scatter_reduce_(0, answers.row[~right], answers.places[~right], "amax")
    return 1 - (last_wrong + 1) / answers.lengths.double()


def lowest_mean(answers: Answers, values: Tensor, k: float) -> Tensor:
    """Return the mean of the lowest share k of an item's token values (N,), (B,) float64; nan without tokens.

    At least one token counts, so that short answers have a value.
    """
    lengths = answers.lengths
    # k n in double precision: in single precision it may fall on the other side of an integer
    kept = torch.tensor([max(1, int(k * n)) for n in lengths.tolist()], device=lengths.device)[:, None]
    width = max(1, int(lengths.max())) if len(lengths) else 1
    # padding is +inf, so that it sorts behind every token
    table = torch.full((answers.size, width), torch.inf, dtype=torch.float64, device=values.device)
    table[answers.row, answers.places] = values.double()
    among = torch.arange(width, device=values.device) < kept
    mean = torch.where(among, table.sort(dim=1).values, 0).sum(dim=1) / kept.squeeze(1)
    return mean.masked_fill(lengths == 0, torch.nan)


def log_truth_ratio(right: Tensor, wrong: Tensor, arithmetic: bool = False) -> Tensor:
    """Return log r per item, (n,): r = P(wrong answers) / P(right answer), with P = exp(-mean NLL per token).

    Args:
        right: (n,) mean NLL of the right answer.
        wrong: (n, k) mean NLL of the wrong answers, nan where an item has fewer.
        arithmetic: average the probabilities of the wrong answers, not their logarithms.

    Reference:
        Maini et al., TOFU: A Task of Fictitious Unlearning for LLMs, 2024, eq. 1. arXiv:2401.06121 (the released
        code and OpenUnlearning take the geometric mean).
    """
    if arithmetic:
        # mean of exp(-nll) over the wrong answers, in logarithms; one that is missing (nan) has probability 0
        number = (~wrong.isnan()).sum(dim=1)
        return (-wrong).nan_to_num(nan=-torch.inf).logsumexp(dim=1) - number.log() + right
    return right - wrong.nanmean(dim=1)


def rouge_l(truth: str, said: str, stemmer: bool) -> tuple[float, float]:
    """Return recall and F1 of the longest common subsequence of words, or with a stemmer of their Porter stems.

    Reference:
        Lin, ROUGE: A Package for Automatic Evaluation of Summaries, 2004, section 3.
    """
    score = _scorer(stemmer).score(truth, said)["rougeL"]
    return score.recall, score.fmeasure


@cache
def _scorer(stemmer: bool) -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise missing_package("ROUGE-L", "rouge-score") from error
    return RougeScorer(["rougeL"], use_stemmer=stemmer)


def missing_package(what: str, package: str) -> RecipeError:
    """Return the error for a package of the language extra that is not installed."""
    return RecipeError(f'{what} needs the package {package}. Type: pip install "unlearnkit[language]"')
