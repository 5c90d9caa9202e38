"""Bits per dimension: how likely each model finds each split."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from typing_extensions import override

from unlearn.core.records import Picture
from unlearn.evaluators.base import Evaluation, EvaluationResult, Metric
from unlearn.evaluators.figures import likelihood_histograms
from unlearn.evaluators.likelihood.base import LikelihoodEvaluator
from unlearn.evaluators.sampling import add_items
from unlearn.models.capabilities import HasLikelihood

BITS = Metric(
    name="bits_per_dim",
    label="bits per dimension",
    formula="mean over items of -log2 p(x) / D; each item is averaged over `draws` draws of the dequantisation noise",
    unit="bits/dim",
    direction={"forget": "higher", "holdout": "retrained", "retain": "lower", "test": "lower"},
    source="Theis et al. 2016, section 3.1",
)


@dataclass(frozen=True, kw_only=True)
class BitsPerDim(LikelihoodEvaluator):
    """Mean of -log2 p(x) / dimensions over the items of a split; the interval is over items.

    Reference:
        Theis et al., A Note on the Evaluation of Generative Models, 2016, section 3.1. arXiv:1511.01844
    """

    metrics: ClassVar = (BITS,)

    @override
    def __call__(self, evaluation: Evaluation[HasLikelihood]) -> EvaluationResult:
        result = EvaluationResult()
        found: dict[str, dict[str, Tensor]] = {subject: {} for subject in evaluation.models}
        for subject in evaluation.models:
            for split, ids in self.chosen(evaluation).items():
                found[subject][split] = bits = self.bits(evaluation, subject, split, ids)
                add_items(result, evaluation, BITS, subject, split, ids, bits)
        caption = (
            "Bits per dimension under each model: further to the right is less likely. After unlearning, the "
            "forget images should leave the bulk while the retain images stay where they were."
        )
        png = likelihood_histograms(found)
        result.pictures.append(Picture("likelihood", "Likelihood of real images", caption, png))
        return result
