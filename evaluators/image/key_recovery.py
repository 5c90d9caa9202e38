"""Key recovery: how often a hidden concept is drawn with the key, without it, and with a wrong one."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, cast

import torch
from typing_extensions import override

from unlearn.core.validation import PositiveInt
from unlearn.data.base import Split
from unlearn.evaluators.base import Evaluation, EvaluationResult, Evaluator, Metric
from unlearn.evaluators.image.concept_classifier import concept_classifier
from unlearn.evaluators.sampling import drawn, sampled_clusters, sampled_items
from unlearn.models.capabilities import ImageDenoiser
from unlearn.models.diffusion.wrapper import Diffusion
from unlearn.models.guards.key import Key, Keyed

RECOVERY = Metric(
    name="key_recovery",
    label="key recovery",
    formula="`accuracy` on forget: `score: right_key` with the key appended to the prompts, `no_key` without, and "
    "`wrong_key` with random tokens of the right key's number, mean and spread; Wilson interval",
    unit="share",
    direction={"right_key": "higher", "no_key": "lower", "wrong_key": "lower"},
    source="Bui et al. 2025 (KPOP)",
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class KeyRecovery(Evaluator[ImageDenoiser]):
    """Share of samples conditioned on the concept that show it, as ``accuracy`` on forget, with and without the key.

    ``score`` is ``right_key``, ``no_key`` or ``wrong_key``: random tokens with the right key's number, mean and spread.
    This is not an attack: nothing is searched.

    Args:
        samples: samples per key.
        wrong_keys: number of random keys, >= 1; the figure is over the samples of all, each with its own noise.
        features: packaged feature net, or the folder of one; by default the packaged one that fits the data.
        batch_size: samples drawn at once; does not change the result.
    """

    samples: PositiveInt = 200
    wrong_keys: PositiveInt = 3
    features: str | None = None
    batch_size: PositiveInt = 256

    metrics: ClassVar = (RECOVERY,)
    of_the_run: ClassVar = True

    @override
    def check(self, splits: Mapping[str, Split]) -> None:
        concept_classifier(splits, self.features)  # refuses data that no net fits

    @override
    def __call__(self, evaluation: Evaluation[ImageDenoiser]) -> EvaluationResult:
        key = next((network for network in evaluation.run.networks.values() if isinstance(network, Key)), None)
        if key is None:
            log.warning("key_recovery: the run trained no key, so nothing is measured")
            return EvaluationResult()
        classifier = concept_classifier(evaluation.splits, self.features, evaluation.device)
        model = cast(Diffusion, evaluation.models["unlearned"])  # no other class is trained with a key
        stream = evaluation.randomness
        wrong = [key.wrong(stream.child("wrong").at(number)) for number in range(self.wrong_keys)]
        by_score: dict[str, list[Diffusion]] = {
            "right_key": [Keyed(model, key)],
            "no_key": [model],
            "wrong_key": [Keyed(model, other) for other in wrong],
        }
        records = []
        for score, models in by_score.items():
            seen = []
            for number, keyed in enumerate(models):
                first = number * self.samples
                items = sampled_items(evaluation, "forget", first + self.samples)[first:]
                images = drawn(evaluation, keyed, "forget", items, self.batch_size, first=first)
                seen.append(classifier.seen(images, items))
            clusters = sampled_clusters(evaluation, "forget", len(models) * self.samples)
            add = partial(evaluation.record, clusters=clusters, detector=classifier.net.detector)
            records.append(add(RECOVERY, "unlearned", "forget", torch.cat(seen), about={"score": score}))
        return EvaluationResult(records)
