"""Debiasing of normalizing flows: change how often categories are sampled."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from unlearn.core.errors import RecipeError, did_you_mean
from unlearn.core.validation import PositiveFloat, PositiveInt, Range, at_least
from unlearn.data.base import Batch
from unlearn.models.capabilities import LikelihoodSampler
from unlearn.models.feature_extractors.classifiers import features_for
from unlearn.models.likelihood import bits_per_dim
from unlearn.objectives.base import Context, Objective, Values
from unlearn.objectives.flow.threshold import Unit, current, distance_loss, measure, refresh, two_sided


@dataclass(frozen=True, kw_only=True)
class Debias(Objective[LikelihoodSampler]):
    """Move the share that categories have among the model's samples.

    ``controlled``: every image should have the target's bits/dim plus a shift that all images of its category share,
    in standard deviations of the retain images' bits/dim: positive makes the category rarer, negative more frequent.
    The exact answer has this form: a model whose p(category) changes and whose p(image | category) stays gives each
    image log p + log(new share / old share). How far a share really moves depends on the model, so a controller finds
    the shift: every ``measure_every`` steps it samples, counts categories with a classifier of real images, and moves
    the shift by ``gain`` times log(share / asked). The run ends when all shares are within ``tolerance`` twice in a
    row. The weight bounds how far a share can rise against the likelihood of retain images.

    ``exchanged``: the forget images (there: those that LACK an attribute) go to a fixed threshold, as in
    ``category_taming``, and the retain images (those that have it) stay; no share is asked for or measured.

    Args:
        shares: asked share by label, each in (0, 1), at most 1 together; the labels of the forget images. null drops a
            label that a base recipe names.
        mode: see above.
        threshold: ``exchanged``: delta, in standard deviations; ``controlled``: the largest shift either way. > 0.
        distance: ``exchanged``: unit of d in the loss; ``bits_per_dim`` is the released code's loss, sigmoid(d^2).
        measure_every: steps between two measurements of the shares, >= 1.
        samples: how many samples a measurement takes, >= 1.
        gain: standard deviations that the shift moves for a share e times too high, > 0.
        tolerance: largest difference from the asked share that counts as reached, in (0, 1).
        features: packaged feature net that classifies samples, or a folder with one; by default the one that fits.
        refresh: ``exchanged``: steps between two measurements of the retain images' bits/dim, >= 1.
        reference_images: how many random retain images are measured, >= 2.

    State:
        shifts, shares: by label in the order of ``shares``, (K,); what holds, and what was measured last.
        within: measurements in a row that were within the tolerance.
        reached: whether there were two.

    Reference:
        Malnick, Avidan and Fried, Taming Normalizing Flows, WACV 2024, arXiv:2211.16488; ``exchanged`` with
        ``distance: bits_per_dim`` is forget_attribute.py (``debias``) of the authors' research code. The controller is
        ours.
    """

    shares: dict[str, float | None] = field(default_factory=dict)
    mode: Literal["controlled", "exchanged"] = "controlled"
    threshold: PositiveFloat = 4.0
    distance: Unit = "sigma"
    measure_every: PositiveInt = 20
    samples: PositiveInt = 2000
    gain: PositiveFloat = 0.5
    tolerance: float = 0.02
    features: str | None = None
    refresh: PositiveInt = 10
    reference_images: Annotated[int, Range(at_least, 2)] = 1024

    prepares_with: ClassVar[tuple[str, ...]] = ("samples",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.tolerance < 1:
            raise ValueError(f"tolerance is {self.tolerance}; it must lie between 0 and 1")
        if not all(0 < share < 1 for share in self.asked.values()) or sum(self.asked.values()) > 1:
            raise ValueError(f"shares are {self.asked}; each must lie between 0 and 1, their sum must not exceed 1")
        if bool(self.asked) != (self.mode == "controlled"):
            raise ValueError("shares go with mode=controlled, e.g. shares: {'3': 0.3}; mode=paper takes none")

    @property
    def asked(self) -> dict[str, float]:
        """The shares without those that were dropped."""
        return {label: share for label, share in self.shares.items() if share is not None}

    def prepare(self, model: LikelihoodSampler, context: Context[LikelihoodSampler]) -> None:
        """Check the labels, measure sigma, and start with no shift."""
        if self.mode == "exchanged":
            return
        split = context.splits["forget"]
        names = {split.dataset.labels[i] for i in split.ids.tolist()}
        known = features_for(split.dataset.info, self.features).labels
        for label in self.asked:
            if label not in names or label not in known:
                raise RecipeError(
                    f"forget.shares: {label!r} is no label of the forget images that the classifier knows. "
                    f"{did_you_mean(label, names & set(known))}"
                )
        if left := names - set(self.asked):
            raise RecipeError(
                f"forget.shares says nothing about {', '.join(sorted(left))}, which data.forget selects. "
                f"Give each a share, or select {', '.join(sorted(self.asked))} only."
            )
        measure(model, context, self.reference_images)
        zero = torch.zeros(len(self.asked), dtype=torch.float64)
        context.state.update(shifts=zero, shares=zero.clone(), within=0, reached=False)

    def before_step(self, model: LikelihoodSampler, context: Context[LikelihoodSampler]) -> bool:
        """Measure the shares and correct the shifts; stop when they are as asked twice in a row."""
        if self.mode == "exchanged":
            refresh(model, context, self.refresh, self.reference_images)
            return False
        if context.step % self.measure_every:
            return False
        state = context.state
        asked = torch.tensor(list(self.asked.values()), dtype=torch.float64)
        found = self.measured(model, context)
        within = bool(((found - asked).abs() <= self.tolerance).all())
        state["shares"], state["within"] = found, state["within"] + 1 if within else 0
        state["reached"] = state["within"] >= 2  # a single measurement may be luck
        state["shifts"] = self.corrected(state["shifts"], found, asked)
        return bool(state["reached"])

    def corrected(self, shifts: Tensor, found: Tensor, asked: Tensor) -> Tensor:
        """Return the shifts after one measurement: an integral controller on the logarithm of the share.

        Args:
            shifts: (K,), in standard deviations.
            found: measured shares, (K,).
            asked: asked shares, (K,).
        """
        floor = 1 / self.samples  # a category that no sample shows is not infinitely rare
        error = torch.log((found + floor) / (asked + floor))
        return (shifts + self.gain * error).clamp(-self.threshold, self.threshold)

    def measured(self, model: LikelihoodSampler, context: Context[LikelihoodSampler]) -> Tensor:
        """Return the share of each asked label among samples, (K,)."""
        net = features_for(context.splits["forget"].dataset.info, self.features).to(context.device)
        noise = context.randomness.child("samples")

        def classify(ids: Tensor) -> Tensor:
            return net.classify(model.sample(ids, noise)["image"])

        classes = context.map_ids(classify, torch.arange(self.samples, device=context.device)).cpu()
        return torch.stack([(classes == net.labels.index(label)).double().mean() for label in self.asked])

    def __call__(self, model: LikelihoodSampler, batch: Batch, context: Context[LikelihoodSampler]) -> Values:
        """Return the loss of forget images, (B,), in standard deviations."""
        bits = bits_per_dim(model, batch, context.randomness)
        moments = current(context)
        if self.mode == "exchanged":
            z = moments.z(bits)
            return Values(distance_loss(z - self.threshold, moments, self.distance), {"z": z.detach()})
        with torch.no_grad():
            reference = bits_per_dim(context.reference(), batch, context.randomness)
        shift = (bits - reference) / moments.std
        return Values(two_sided(shift - self._asked_shift(batch, context)), {"shift": shift.detach()})

    def _asked_shift(self, batch: Batch, context: Context[LikelihoodSampler]) -> Tensor:
        """Return the shift of each image's category, (B,)."""
        names = context.splits["forget"].dataset.names
        table = torch.zeros(len(names), dtype=torch.float32)
        for label, shift in zip(self.asked, context.state["shifts"].tolist(), strict=True):
            table[names.index(label)] = shift
        return table.to(context.device)[batch["label"]]
