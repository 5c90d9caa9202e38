"""Relearning of a person: whether fine-tuning on a few pictures restores them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from unlearn.core.validation import PositiveFloat, PositiveInt, Range, at_least, distinct
from unlearn.data.base import Split
from unlearn.evaluators.attacks.base.relearning import Curves, picture, train
from unlearn.evaluators.base import Evaluation, EvaluationResult, Evaluator, Metric
from unlearn.evaluators.image.face_verification import (
    check_identity_nets,
    drawn,
    embeddings,
    identity_nets,
    latents,
    near_latents,
    similarity_scales,
)
from unlearn.evaluators.sampling import some_of
from unlearn.evaluators.subjects import trainable_copy
from unlearn.models.capabilities import ImageGenerator
from unlearn.models.feature_extractors.embedders import Embedder, Perceptual
from unlearn.models.gan.inversion import Inversion
from unlearn.models.gan.latents import packaged_perceptual

ATTACK = Metric(
    name="attack_relearning",
    label="attack by relearning",
    formula="mean similarity (1 - d / m) between what the target and what a copy of the subject draw of held-out "
    "latents close to the identity, after the copy was trained on `k pictures, n steps` (`budget`)",
    direction="retrained",
    source="after Hu et al. 2025",
)


@dataclass(frozen=True, kw_only=True)
class FaceRelearning(Evaluator[ImageGenerator]):
    """Trains a copy of every subject on k pictures of each identity and measures the similarity of held-out ones.

    The pictures are what the target draws close to the identity's latent (``evaluate.identity``'s same_person); the
    copy is trained to draw them from the same latents, by the squared difference of pixels and a packaged perceptual
    distance, Adam on all weights. The figure is the similarity of what it then draws of held-out latents to what the
    target draws of them. The retrained model is trained at its own latents of the identity: it shows what k pictures
    teach.

    Args:
        identities: at most this many, drawn by the seed; null takes all.
        pictures: numbers of pictures per identity to train on, each >= 1.
        held: held-out pictures per identity, measured and never trained on.
        steps: steps after which the copy is measured, each >= 0; 0 is before the attack.
        lr: learning rate, > 0.
        near: distance of the pictures from the identity, as a share of the way to a random latent.
        inversion: how the latents of images are found.
        strangers: faces that the similarity's scale is taken from.
        features: net that compares faces; by default the packaged one that no loss uses by default.
        batch_size: images at once in the measurement; does not change the result.
    """

    identities: PositiveInt | None = 4
    pictures: Annotated[list[int], Range(distinct, 1)] = field(default_factory=lambda: [1, 4])
    held: PositiveInt = 2
    steps: Annotated[list[int], Range(distinct, 0)] = field(default_factory=lambda: [0, 10, 50])
    lr: PositiveFloat = 1e-3
    near: PositiveFloat = 0.1
    inversion: Inversion = field(default_factory=Inversion)
    strangers: Annotated[int, Range(at_least, 4)] = 32
    features: str | None = None
    batch_size: PositiveInt = 32

    metrics: ClassVar = (ATTACK,)

    @override
    def check(self, splits: Mapping[str, Split]) -> None:
        check_identity_nets(splits, None if self.features is None else [self.features])

    @override
    def __call__(self, evaluation: Evaluation[ImageGenerator]) -> EvaluationResult:
        target = evaluation.models["target"]
        net = identity_nets(None if self.features is None else [self.features], target.image_shape)[0]
        ids = some_of(evaluation, "forget", self.identities)
        (scale,) = similarity_scales(evaluation, [net], self.strangers, self.batch_size)
        places = self._places(evaluation, "target", ids)
        shown = torch.cat([drawn(target, part) for part in places.flatten(0, 1).split(self.batch_size)])
        shown = shown.unflatten(0, places.shape[:2])
        wanted = net(shown[:, : self.held].flatten(0, 1)).cpu()
        owners = torch.arange(len(ids)).repeat_interleave(self.held)
        perceptual = packaged_perceptual(target.image_shape)
        findings, curves = EvaluationResult(), Curves()
        for subject in evaluation.models:
            own = places if subject != "retrained" else self._places(evaluation, subject, ids)
            for k in sorted(self.pictures):
                # the first ones are held out, the same for every k
                w, images = (of[:, self.held : self.held + k].flatten(0, 1) for of in (own, shown))
                curves[subject, k] = []
                loss = partial(_loss, perceptual, w, images)
                held = own[:, : self.held].flatten(0, 1)
                for steps, faces in self._attack(evaluation, subject, loss, held, net).items():
                    values = scale.similarity(wanted, faces)
                    record = evaluation.record(
                        ATTACK,
                        subject,
                        "same_person",
                        values,
                        clusters=owners,
                        about={"budget": f"{k} pictures, {steps} steps", "features": net.name},
                        detector=net.detector,
                    )
                    findings.records.append(record)
                    curves[subject, k].append((steps, record.value))
        findings.pictures.append(picture(curves, "similarity to the person", "pictures of each person"))
        return findings

    def _attack(
        self,
        evaluation: Evaluation[ImageGenerator],
        subject: str,
        loss: Callable[[ImageGenerator, int], Tensor],
        held: Tensor,
        net: Embedder,
    ) -> dict[int, Tensor]:
        """Return steps -> embeddings of what a copy draws then of held-out latents, (n * held, D).

        The copy is gone before the next one is made.
        """
        copy = trainable_copy(evaluation.models, subject)
        optimizer = torch.optim.Adam(copy.parameters(), lr=self.lr)
        return {
            steps: embeddings(copy, held, [net], self.batch_size)[0]
            for steps in train(optimizer, partial(loss, copy), self.steps)
        }

    def _places(self, evaluation: Evaluation[ImageGenerator], subject: str, ids: Tensor) -> Tensor:
        """Return latents close to each identity's, held-out ones first, (n, held + k, num_ws, w_dim)."""
        number = self.held + max(self.pictures)
        w = latents(evaluation, subject, ids, self.inversion)
        return torch.stack(near_latents(evaluation, ids, w, number, self.near).split(number))


def _loss(perceptual: Perceptual | None, w: Tensor, images: Tensor, model: ImageGenerator, step: int) -> Tensor:
    """Return the mean squared error of pixels plus the perceptual distance; the batch is the same at every step."""
    found = model.synthesis(w)
    loss = (found - images.to(found)).square().flatten(1).mean(dim=1)
    if perceptual is not None:
        loss = loss + perceptual(found, images)
    return loss.mean()
