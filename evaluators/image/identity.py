"""Does a generator still draw a person, what is close to them, and everybody else?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from unlearn.core.records import Picture, Record
from unlearn.core.validation import above, at_least
from unlearn.data.base import Split
from unlearn.evaluators.base import Evaluation, EvaluationResult, Evaluator, Metric
from unlearn.evaluators.figures import Panel, panels
from unlearn.evaluators.image.face_verification import (
    SIDE,
    SimilarityScale,
    check_identity_nets,
    chosen_identities,
    identity_nets,
    latents,
    left_by_the_term,
    near_latents,
    other_pictures,
    over_identities,
    seen,
    strangers,
)
from unlearn.evaluators.sampling import item_rows
from unlearn.models.capabilities import ImageGenerator
from unlearn.models.feature_extractors.embedders import Embedder
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

    def rows(self, chosen: Tensor) -> LatentGroup:
        """Return the group of some rows."""
        return LatentGroup(self.w[chosen.to(self.w.device)], self.owners[chosen])


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

    identities: int | None = 16
    same_person: int = 4
    near: float = 0.1
    neighbours: int = 4
    strangers: int = 64
    features: list[str] | None = None
    inversion: Inversion = field(default_factory=Inversion)
    encoder: str | None = None
    shown: int = 2
    batch_size: int = 32

    metrics: ClassVar = (SIMILARITY, DISTANCE)

    def __post_init__(self) -> None:
        at_least(self, identities=1, same_person=1, neighbours=1, strangers=4, shown=0, batch_size=1)
        above(self, near=0)
        if self.features is not None and not self.features:
            raise ValueError("features is empty; name at least one net, or null for those that are packaged")

    @override
    def check(self, splits: Mapping[str, Split]) -> None:
        """Refuse images that no net fits, and an encoder that does not."""
        check_identity_nets(splits, self.features)
        check_encoder(self.encoder, splits["forget"].dataset.info)

    @override
    def __call__(self, evaluation: Evaluation[ImageGenerator]) -> EvaluationResult:
        target = evaluation.models["target"]
        nets = identity_nets(self.features, target.image_shape)
        ids = chosen_identities(evaluation, self.identities)
        w = latents(evaluation, "target", "forget", ids, self.encoder or self.inversion)
        pool = self.strangers + self.neighbours * len(ids)
        groups = {
            "forget": LatentGroup(w, torch.arange(len(ids))),
            "same_person": self._same(evaluation, ids, w),
            "pool": LatentGroup(strangers(evaluation, pool), torch.full((pool,), NEITHER)),
        }
        before = {name: seen(target, group.w, nets, self.batch_size) for name, group in groups.items()}
        chosen = self._nearest(nets[0], before["forget"][0], before["pool"][0])
        rest = torch.ones(pool, dtype=torch.bool)
        rest[chosen] = False
        rows = {"neighbours": chosen.flatten(), "strangers": torch.nonzero(rest).flatten()[: self.strangers]}
        everybody, pooled = groups.pop("pool"), before.pop("pool")
        for name, part in rows.items():
            groups[name] = everybody.rows(part)
            before[name] = [faces[part] for faces in pooled]
        owners = torch.arange(len(ids)).repeat_interleave(self.neighbours)
        groups["neighbours"] = LatentGroup(groups["neighbours"].w, owners)
        scales = [SimilarityScale.of(net, faces) for net, faces in zip(nets, pooled, strict=True)]
        findings = EvaluationResult(records=[self._scale(evaluation, scale) for scale in scales])
        aims = LatentGroup(self.aims(evaluation, ids, w), torch.arange(len(ids)))
        self._add(findings, evaluation, "target_latent", ids, {"forget": aims}, before, scales, target)
        for subject, model in evaluation.models.items():
            places = groups
            if subject == "retrained":
                own = latents(evaluation, subject, "forget", ids, self.encoder or self.inversion)
                places = {"forget": LatentGroup(own, torch.arange(len(ids)))}
            self._add(findings, evaluation, subject, ids, places, before, scales, model)
        findings.pictures.extend(self._sheets(evaluation, ids, groups, aims))
        return findings

    def aims(self, evaluation: Evaluation[ImageGenerator], ids: Tensor, w: Tensor) -> Tensor:
        """Return the latents that replace each identity, in the shape of its latents w, (n, num_ws, w_dim)."""
        known = left_by_the_term(evaluation, "target_latents")
        if all(item in known for item in ids.tolist()) and known:
            return torch.stack([known[item] for item in ids.tolist()]).to(w)
        mean: Tensor = evaluation.models["target"].w_avg
        return 2 * mean.to(w) - w

    def _same(self, evaluation: Evaluation[ImageGenerator], ids: Tensor, w: Tensor) -> LatentGroup:
        """Return latents of further pictures of each identity, or near ones for those without."""
        pictures, owners = other_pictures(evaluation, ids)
        without = [place for place in range(len(ids)) if place not in owners.tolist()]
        parts = []
        if len(pictures):
            found = latents(evaluation, "target", "forget", pictures, self.encoder or self.inversion)
            parts.append(LatentGroup(found, owners))
        if without:
            places = torch.tensor(without)
            close = near_latents(evaluation, ids[places], w[places.to(w.device)], self.same_person, self.near)
            parts.append(LatentGroup(close, places.repeat_interleave(self.same_person)))
        return LatentGroup(torch.cat([part.w for part in parts]), torch.cat([part.owners for part in parts]))

    def _nearest(self, net: Embedder, faces: Tensor, pool: Tensor) -> Tensor:
        """Return the positions in the pool (m, D) of the k most similar faces to each of faces (n, D), (n, k)."""
        rows = [net.distance(one.expand_as(pool), pool) for one in faces]
        return torch.stack(rows).argsort(dim=1, stable=True)[:, : self.neighbours]

    def _add(
        self,
        findings: EvaluationResult,
        evaluation: Evaluation[ImageGenerator],
        subject: str,
        ids: Tensor,
        groups: Mapping[str, LatentGroup],
        before: Mapping[str, list[Tensor]],
        scales: list[SimilarityScale],
        model: ImageGenerator,
    ) -> None:
        """Add the records and item rows of a subject."""
        for split, group in groups.items():
            unchanged = subject == "target"
            nets = [scale.net for scale in scales]
            faces = before[split] if unchanged else seen(model, group.w, nets, self.batch_size)
            for number, scale in enumerate(scales):
                about = {"features": scale.net.name}
                values = scale.similarity(before[split][number], faces[number])
                findings.records.append(self._record(evaluation, subject, split, about, values, group.owners, scale))
                if not (number or unchanged):
                    whose = group.owners.clone()
                    whose[group.owners >= 0] = ids[group.owners[group.owners >= 0]]
                    findings.items.extend(item_rows(subject, split, whose, "identity_similarity", values))
                more = {}
                if split in ("same_person", "neighbours"):
                    person = before["forget"][number][group.owners]
                    more["to_person"] = scale.similarity(person, faces[number])
                if split == "forget":
                    others = torch.cat([before["neighbours"][number], before["strangers"][number]])
                    more["to_strangers"] = scale.nearest(faces[number], others)
                for score, values in more.items():
                    scored = {**about, "score": score}
                    findings.records.append(
                        self._record(evaluation, subject, split, scored, values, group.owners, scale)
                    )

    def _record(
        self,
        evaluation: Evaluation[ImageGenerator],
        subject: str,
        split: str,
        about: dict[str, str],
        values: Tensor,
        owners: Tensor,
        scale: SimilarityScale,
    ) -> Record:
        judged = subject == "unlearned" and (split == "same_person" or not about.get("score"))
        return evaluation.record(
            SIMILARITY,
            subject,
            split,
            over_identities(values, owners),
            n=len(values),
            about=about,
            direction=None if judged else "none",
            detector=scale.net.detector,
        )

    def _scale(self, evaluation: Evaluation[ImageGenerator], scale: SimilarityScale) -> Record:
        figure, about = (scale.apart, scale.ci95), {"features": scale.net.name}
        detector = scale.net.detector
        return evaluation.record(DISTANCE, "target", "strangers", figure, n=scale.pairs, about=about, detector=detector)

    def _sheets(
        self, evaluation: Evaluation[ImageGenerator], ids: Tensor, groups: Mapping[str, LatentGroup], aims: LatentGroup
    ) -> list[Picture]:
        """Return a sheet for each of a few identities."""
        pictures = []
        for place in range(min(self.shown, len(ids))):
            parts = [groups["forget"].rows(torch.tensor([place]))]
            for split in ("same_person", "neighbours"):
                group = groups[split]
                parts.append(group.rows(torch.nonzero(group.owners == place).flatten()[:4]))
            parts.append(groups["strangers"].rows(torch.arange(min(4, len(groups["strangers"].owners)))))
            w = torch.cat([part.w for part in parts])
            framed = torch.tensor([True] + [False] * (len(w) - 1))
            content = [
                Panel(subject, model.images(model.synthesis(w)).cpu(), model.levels, framed, SIDE)
                for subject, model in evaluation.models.items()
                if subject != "retrained"
            ]
            target = evaluation.models["target"]
            sent = target.images(target.synthesis(aims.w[place : place + 1])).cpu()
            content.append(Panel("target, where it was sent", sent, target.levels, cell=SIDE))
            name = evaluation.splits["forget"].dataset.labels[int(ids[place])] or f"item {int(ids[place])}"
            counts = [len(part.owners) for part in parts[1:]]
            pictures.append(
                Picture(
                    name=f"identity_{place + 1}",
                    title=f"Before and after: {name}",
                    caption=(
                        f"Framed: {name}. Then {counts[0]} more of the same person, {counts[1]} strangers who look "
                        f"most like them, and {counts[2]} other strangers; the same place is the same latent. The "
                        "framed face is to change, the strangers are to stay."
                    ),
                    png=panels(content, len(w), stacked=True),
                )
            )
        return pictures
