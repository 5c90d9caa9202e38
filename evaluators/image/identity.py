"""Does a generator still draw a person, what is close to them, and everybody else?"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from unlearn.core.records import Picture
from unlearn.core.validation import NonNegativeInt, PositiveFloat, PositiveInt, Range, at_least
from unlearn.data.base import Split
from unlearn.evaluators.base import Evaluation, EvaluationResult, Evaluator, Metric
from unlearn.evaluators.figures import Panel, panels
from unlearn.evaluators.image.face_verification import (
    SimilarityScale,
    check_identity_nets,
    embeddings,
    face_panel,
    identity_nets,
    latents,
    near_latents,
    other_pictures,
    stored_by_forget_term,
    strangers,
)
from unlearn.evaluators.sampling import item_rows, some_of
from unlearn.models.capabilities import ImageGenerator
from unlearn.models.gan.inversion import Inversion
from unlearn.models.gan.latents import check_encoder

SIMILARITY = Metric(
    name="identity_similarity",
    label="identity similarity",
    formula="mean of 1 - d / m: 1 is the same face, 0 a stranger. d is the distance between the embeddings of what "
    "the target and what the subject draw of one latent, m is `identity_distance`. `score: to_person`: d to what the "
    "target draws of the identity itself; `to_strangers`: 1 - d / m to the most alike stranger. Student's t interval "
    "over identities, over items where there is one",
    direction={"forget": "lower", "same_person": "lower", "neighbours": "higher", "strangers": "higher"},
    otherwise="`none` for other subjects than the unlearned model, and for scores on other splits than same_person",
    source="after Seo et al. 2024 (GUIDE), section 4; the scale is ours",
)
DISTANCE = Metric(
    name="identity_distance",
    label="identity distance",
    formula="m: mean distance between unrelated faces of the target, each paired with the next; Euclidean for "
    "`dlib_face`, 1 - cos for others",
)

NEITHER = -1
"""Owner of latents that belong to no identity."""


@dataclass(frozen=True)
class LatentGroup:
    """Latents of one split.

    Attributes:
        w: (n, num_ws, w_dim).
        owners: (n,) int64, the position of the owner in the list of identities; -1 for strangers.
    """

    w: Tensor
    owners: Tensor


@dataclass(frozen=True)
class TargetFaces:
    """What the target draws, to which the faces of every subject are compared.

    Attributes:
        ids: the identities, (n,).
        groups: latents by split.
        faces: embeddings by split, (m, D) per net.
        scales: one per net.
    """

    ids: Tensor
    groups: Mapping[str, LatentGroup]
    faces: Mapping[str, list[Tensor]]
    scales: list[SimilarityScale]


@dataclass(frozen=True, kw_only=True)
class IdentityMetrics(Evaluator[ImageGenerator]):
    """Similarity of faces before and after unlearning, from the same latents: 1 is the same face, 0 a stranger.

    1 - d / m, with d the distance between what the target and the subject draw of one latent, m the mean distance
    between unrelated faces of the target. ``split`` forget: the identities; same_person: further pictures of them, or
    latents close to theirs; neighbours: the strangers who look most like them to the first net; strangers: the others.
    ``score: to_person`` is the similarity to what the target draws of the identity itself, ``to_strangers`` that of the
    identities to the most similar of all strangers: it falls below the target's where no face is drawn any more.

    The unlearned model is measured at the target's latents, so that a change of the mapping network alone does not
    count. The retrained model has latents of its own: from the seed, or by inversion. ``target_latent`` is what the
    target draws at the latents that replace the identity: those that the forget term left as ``target_latents`` in its
    state, or the reflection at the mean, 2 w_avg - w.

    Args:
        identities: at most this many are measured, drawn by the seed; null takes all.
        same_person: number of latents near each identity without further pictures.
        near: their distance from it, as a share of the way to a random latent.
        neighbours: number per identity.
        strangers: number of others; neighbours are selected from these and as many more as there are neighbours.
        features: nets that compare faces, by name or path (embedders.identity_net); by default those that are
            packaged for such images: for faces ``mobile_face``, which no loss uses by default, and
            ``dlib_face``.
        inversion: how the latents of images are found, except those that the forget term left.
        encoder: a TorchScript file that predicts them in place of the inversion.
        shown: number of identities with a picture.
        batch_size: images at once; does not change the result.

    Reference:
        Seo et al., Generative Unlearning for Any Identity, 2024, section 4 (ID and ID_others, cosines of embeddings).
        arXiv:2405.09879. The scale is ours, as embeddings need not be centred.
    """

    identities: PositiveInt | None = 16
    same_person: PositiveInt = 4
    near: PositiveFloat = 0.1
    neighbours: PositiveInt = 4
    strangers: Annotated[int, Range(at_least, 4)] = 64
    features: list[str] | None = None
    inversion: Inversion = field(default_factory=Inversion)
    encoder: str | None = None
    shown: NonNegativeInt = 2
    batch_size: PositiveInt = 32

    metrics: ClassVar = (SIMILARITY, DISTANCE)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.features is not None and not self.features:
            raise ValueError("features is empty; name at least one net, or null for those that are packaged")

    @override
    def check(self, splits: Mapping[str, Split]) -> None:
        check_identity_nets(splits, self.features)
        check_encoder(self.encoder, splits["forget"].dataset.info)

    @override
    def __call__(self, evaluation: Evaluation[ImageGenerator]) -> EvaluationResult:
        target = evaluation.models["target"]
        known = self._target_faces(evaluation)
        ids, groups, persons = known.ids, known.groups, known.groups["forget"].owners
        findings = EvaluationResult()
        for scale in known.scales:
            figure, about, detector = (scale.apart, scale.ci95), {"features": scale.net.name}, scale.net.detector
            findings.records.append(
                evaluation.record(
                    DISTANCE, "target", "strangers", figure, n=scale.pairs, about=about, detector=detector
                )
            )
        replacements = self.replacement_latents(evaluation, ids, groups["forget"].w)
        self._add(findings, evaluation, "target_latent", target, {"forget": LatentGroup(replacements, persons)}, known)
        shown = [
            [group.w[(group.owners == place) | (group.owners == NEITHER)][:4] for group in groups.values()]
            for place in range(min(self.shown, len(ids)))
        ]
        sent = [
            face_panel("target, where it was sent", target, target.synthesis(replacements[[place]]))
            for place in range(len(shown))
        ]
        grids: list[list[Panel]] = [[] for _ in shown]
        for subject, model in evaluation.models.items():  # the outer loop: each is moved to the device once
            places = groups
            if subject == "retrained":
                own = latents(evaluation, subject, ids, self.encoder or self.inversion)
                places = {"forget": LatentGroup(own, persons)}
            self._add(findings, evaluation, subject, model, places, known)
            if subject != "retrained":  # its latents show other faces
                for grid, parts in zip(grids, shown, strict=True):
                    w = torch.cat(parts)
                    grid.append(face_panel(subject, model, model.synthesis(w), marked=torch.arange(len(w)) == 0))
        labels = evaluation.splits["forget"].dataset.labels
        for place, (grid, parts) in enumerate(zip(grids, shown, strict=True)):
            name = labels[int(ids[place])] or f"item {int(ids[place])}"
            findings.pictures.append(_picture(place, name, parts, [*grid, sent[place]]))
        return findings

    def replacement_latents(self, evaluation: Evaluation[ImageGenerator], ids: Tensor, w: Tensor) -> Tensor:
        """Return the latents that replace each identity, in the shape of its latents w, (n, num_ws, w_dim)."""
        known = stored_by_forget_term(evaluation, "target_latents")
        if all(item in known for item in ids.tolist()):
            return torch.stack([known[item] for item in ids.tolist()]).to(w)
        return 2 * evaluation.models["target"].w_avg.to(w) - w

    def _target_faces(self, evaluation: Evaluation[ImageGenerator]) -> TargetFaces:
        target = evaluation.models["target"]
        nets = identity_nets(self.features, target.image_shape)
        ids = some_of(evaluation, "forget", self.identities)
        w, persons = latents(evaluation, "target", ids, self.encoder or self.inversion), torch.arange(len(ids))
        groups = {"forget": LatentGroup(w, persons), "same_person": self._same_person(evaluation, ids, w)}
        faces = {split: embeddings(target, group.w, nets, self.batch_size) for split, group in groups.items()}
        pool = strangers(evaluation, self.strangers + self.neighbours * len(ids))
        pooled = embeddings(target, pool, nets, self.batch_size)
        apart = torch.stack([nets[0].distance(one.expand_as(pooled[0]), pooled[0]) for one in faces["forget"][0]])
        nearest = apart.argsort(dim=1, stable=True)[:, : self.neighbours].flatten()  # ties by position
        rest = torch.ones(len(pool), dtype=torch.bool)
        rest[nearest] = False
        others = torch.nonzero(rest).flatten()[: self.strangers]
        for split, rows, owners in (
            ("neighbours", nearest, persons.repeat_interleave(self.neighbours)),
            ("strangers", others, torch.full_like(others, NEITHER)),
        ):
            groups[split] = LatentGroup(pool[rows], owners)
            faces[split] = [part[rows] for part in pooled]
        return TargetFaces(ids, groups, faces, [SimilarityScale.of(*one) for one in zip(nets, pooled, strict=True)])

    def _same_person(self, evaluation: Evaluation[ImageGenerator], ids: Tensor, w: Tensor) -> LatentGroup:
        """Return latents of further pictures of each identity, or near ones for those without."""
        pictures, owners = other_pictures(evaluation, ids)
        without = [place for place in range(len(ids)) if place not in owners.tolist()]
        parts = []
        if len(pictures):
            found = latents(evaluation, "target", pictures, self.encoder or self.inversion)
            parts.append(LatentGroup(found, owners))
        if without:
            places = torch.tensor(without)
            close = near_latents(evaluation, ids[places], w[places], self.same_person, self.near)
            parts.append(LatentGroup(close, places.repeat_interleave(self.same_person)))
        return LatentGroup(torch.cat([part.w for part in parts]), torch.cat([part.owners for part in parts]))

    def _add(
        self,
        findings: EvaluationResult,
        evaluation: Evaluation[ImageGenerator],
        subject: str,
        model: ImageGenerator,
        groups: Mapping[str, LatentGroup],
        known: TargetFaces,
    ) -> None:
        """Add the records and item rows of a subject."""
        nets = [scale.net for scale in known.scales]
        for split, group in groups.items():
            before, owners = known.faces[split], group.owners
            faces = before if subject == "target" else embeddings(model, group.w, nets, self.batch_size)
            for number, scale in enumerate(known.scales):
                values = {"": scale.similarity(before[number], faces[number])}
                if split in ("same_person", "neighbours"):
                    values["to_person"] = scale.similarity(known.faces["forget"][number][owners], faces[number])
                if split == "forget":
                    others = torch.cat([known.faces[name][number] for name in ("neighbours", "strangers")])
                    values["to_strangers"] = scale.nearest(faces[number], others)
                for score, of_items in values.items():
                    judged = subject == "unlearned" and (split == "same_person" or not score)
                    findings.records.append(
                        evaluation.record(
                            SIMILARITY,
                            subject,
                            split,
                            of_items,
                            clusters=owners,
                            about={"features": scale.net.name} | ({"score": score} if score else {}),
                            direction=None if judged else "none",
                            detector=scale.net.detector,
                        )
                    )
                if number == 0 and subject != "target":
                    whose = torch.where(owners == NEITHER, NEITHER, known.ids[owners])
                    findings.items.extend(item_rows(subject, split, whose, "identity_similarity", values[""]))


def _picture(place: int, name: str, parts: list[Tensor], content: list[Panel]) -> Picture:
    _, same, near, far = map(len, parts)
    return Picture(
        name=f"identity_{place + 1}",
        title=f"Before and after: {name}",
        caption=(
            f"Framed: {name}. Then {same} more of the same person, {near} strangers who look most like them, and {far} "
            "other strangers; the same place is the same latent. The framed face is to change, the strangers are to "
            "stay."
        ),
        png=panels(content, sum(map(len, parts)), stacked=True),
    )
