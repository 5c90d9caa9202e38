"""Re-inversion: search a latent from which the unlearned generator still draws the person."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from unlearn.core.records import Picture
from unlearn.core.validation import NonNegativeInt, PositiveInt, Range, at_least, distinct
from unlearn.data.base import Split
from unlearn.evaluators.base import Evaluation, EvaluationResult, Evaluator, Metric
from unlearn.evaluators.figures import panels
from unlearn.evaluators.image.face_verification import (
    check_identity_nets,
    drawn,
    embeddings,
    face_panel,
    identity_nets,
    latents,
    similarity_scales,
)
from unlearn.evaluators.sampling import item_rows, some_of
from unlearn.models.capabilities import ImageGenerator
from unlearn.models.gan.inversion import Inversion
from unlearn.models.gan.latents import invert

ATTACK = Metric(
    name="attack_reinversion",
    label="attack by re-inversion",
    formula="mean over identities of the similarity (1 - d / m) between the person's picture and the face that "
    "gradient descent among the subject's latents finds for it. `budget`: steps, and the space that is searched",
    direction="retrained",
    source="Karras et al. 2020 (StyleGAN2), appendix D",
)


@dataclass(frozen=True, kw_only=True)
class Reinversion(Evaluator[ImageGenerator]):
    """Inverts each identity's picture on every subject and measures the similarity of the found face to the person.

    The picture is the given one, or what the target draws of the seed or latent. The attacker knows the weights and
    minimises a pixel and a perceptual distance (``inversion``); each budget is a separate search. A model that never
    saw the person shows what the search alone reaches. The similarity is that of
    ``evaluate.identity``: 1 is the same face, 0 a stranger.

    Args:
        identities: at most this many are attacked, drawn by the seed; null takes all.
        steps: lengths of the searches, each >= 1.
        inversion: the search; its ``steps`` are ignored here.
        strangers: faces that the similarity's scale is taken from.
        features: nets that compare faces (embedders.identity_net); by default those that are packaged for such
            images. For faces the search minimises a distance of ``dlib_face``, so trust ``mobile_face``.
        shown: number of identities in the picture.
        batch_size: images at once; does not change the result.
    """

    identities: PositiveInt | None = 4
    steps: Annotated[list[int], Range(distinct, 1)] = field(default_factory=lambda: [50, 200])
    inversion: Inversion = field(default_factory=Inversion)
    strangers: Annotated[int, Range(at_least, 4)] = 32
    features: list[str] | None = None
    shown: NonNegativeInt = 4
    batch_size: PositiveInt = 32

    metrics: ClassVar = (ATTACK,)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.features is not None and not self.features:
            raise ValueError("features is empty; name at least one net, or null for those that are packaged")

    @override
    def check(self, splits: Mapping[str, Split]) -> None:
        check_identity_nets(splits, self.features)

    @override
    def __call__(self, evaluation: Evaluation[ImageGenerator]) -> EvaluationResult:
        target = evaluation.models["target"]
        nets = identity_nets(self.features, target.image_shape)
        ids = some_of(evaluation, "forget", self.identities)
        images = self.pictures(evaluation, ids)
        persons = [net(images).cpu() for net in nets]
        scales = similarity_scales(evaluation, nets, self.strangers, self.batch_size)
        findings, shown = EvaluationResult(), [face_panel("the person", target, images[: self.shown])]
        stream = evaluation.randomness.child("search")  # the same noise for every subject
        for subject, model in evaluation.models.items():
            for steps in sorted(self.steps):
                search = replace(self.inversion, steps=steps)
                w = invert(model, images.to(target.dtype), ids.to(images.device), search, stream)
                found = embeddings(model, w, nets, self.batch_size)
                for number, scale in enumerate(scales):
                    values = scale.similarity(persons[number], found[number])
                    about = {"budget": f"{steps} steps, {self.inversion.space}", "features": scale.net.name}
                    findings.records.append(
                        evaluation.record(ATTACK, subject, "forget", values, about=about, detector=scale.net.detector)
                    )
                    if number == 0 and steps == max(self.steps):
                        findings.items.extend(item_rows(subject, "forget", ids, "attack_reinversion", values))
            title = f"{subject}, found in {max(self.steps)} steps"
            shown.append(face_panel(title, model, drawn(model, w)[: self.shown]))
        if self.shown:
            findings.pictures.append(
                Picture(
                    name="reinversion",
                    title="What an attacker finds again",
                    caption=(
                        "The person, and the most similar face that a search among each model's latents found. If the "
                        "unlearned model still draws the person, they were moved, not removed."
                    ),
                    png=panels(shown, self.shown, stacked=True),
                )
            )
        return findings

    def pictures(self, evaluation: Evaluation[ImageGenerator], ids: Tensor) -> Tensor:
        """Return the pictures to invert, (n, C, H, W) in [-1, 1]: the given ones, or what the target draws."""
        target, found = evaluation.models["target"], []
        for item in ids.split(1):
            batch = evaluation.batch("forget", item)
            if "image" in batch:
                found.append(target.pixels(batch).float())
            else:
                found.append(drawn(target, latents(evaluation, "target", item, self.inversion)))
        return torch.cat(found)
