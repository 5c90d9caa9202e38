"""SFD: a one-step generator is distilled from a teacher; conditioned on the forgotten, it takes another's score."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal, Self, TypeVar

import torch
import typing_extensions  # SFD has a setting called ``override``
from torch import Tensor, nn

from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.core.validation import NonNegativeFloat, NonNegativeInt, PositiveFloat
from unlearn.data.base import Batch
from unlearn.data.conditioned import Conditioned
from unlearn.models.base import frozen
from unlearn.models.conditioning import Condition
from unlearn.models.diffusion.protocols import PipelineDenoiser
from unlearn.models.feature_extractors.classifiers import Features, features_for
from unlearn.objectives.base import AuxiliaryNetwork, Context, Objective, Values
from unlearn.objectives.diffusion.noisy_states import check_anchors, mean_square

Override = Literal["itself", "anchor", "random", "likeliest", "drawn"]
"""What the teacher is conditioned on: the item's own condition; its anchor; one of the other words by chance; the word
that a judge finds likeliest in the fake score's estimate of x_0, or one drawn by the judge's probabilities."""

N = TypeVar("N", bound=nn.Module)

BY_JUDGE = ("likeliest", "drawn")
SMALLEST = 1e-5
"""Least value of the distance that a sample's loss is divided by, as in the released code."""


@dataclass(frozen=True, kw_only=True)
class SFD(Objective[PipelineDenoiser]):
    """Score forgetting distillation: the score of what the generator draws becomes that of the teacher.

    Three networks begin as the teacher: the teacher phi itself, which is frozen, the fake score psi, which is trained
    beside the generator on what it draws, and the generator g. Before each step of the generator psi takes one on
    || eps - eps_psi(x_t, c) ||^2, without gradient to x_0 = g(z, c). The generator's loss is

    [ (f_phi - f_psi) . ((f_phi - x_0) - alpha (f_phi - f_psi)) ] / omega,  omega = mean |f_phi - x_0|

    where f_phi is the teacher's estimate of x_0 from x_t, conditioned on what takes the item's place, f_psi that of
    psi, conditioned on the item's own condition. The gradient runs through x_t into both, whose weights are frozen, and
    not into omega. On items to be kept (the retain split, or all items of a distillation) the teacher has the item's
    own condition: score identity distillation, which is the first stage. Means are over values; the paper sums them.

    A model that is no one-step generator becomes one (``one_step``), with the weights that it has.

    Args:
        override: what the teacher is conditioned on; null is the anchor on forget items, and the item itself on others.
        overrides: words that may take an item's place, for ``random`` and the judge; by default the labels of the
            other items, where what is forgotten is a label.
        judge: packaged feature net, or the folder of one, that finds the likeliest word; null takes the one that fits.
        loss: ``sid`` as above; ``diff_instruct`` takes no gradient through f_phi and f_psi and leaves out omega: the
            gradient of Diff-Instruct, f_psi - f_phi at x_0. (The released code divides it by omega.)
        alpha: 1.2 of the paper's class-conditional models; 1 of its text-to-image models.
        one_step: timestep from which a new generator draws.
        t_min: smallest t of x_t.
        t_max: t of x_t lies below it.
        guidance: of both scores, in training psi too (kappa of long-short guidance); 1 for none.
        drop: share of items that psi is trained on without their condition; guidance asks for some.
        fake_weight: of the items of this term in the loss of psi.
        fake_lr: learning rate of psi; null takes the generator's. All else of its optimizer is the generator's.
        warmup: steps that psi takes at first alone, so that it knows what a generator that was distilled before draws;
            the released codes take none.
        redraw: draw anew for the generator's loss, as the released code does, not what psi was just trained on. That
            takes one more forward pass of the generator, and with ``optim.accumulate`` less memory.

    Reference:
        Chen et al., Score Forgetting Distillation, 2025. arXiv:2409.11219. The loss: Zhou et al., Score identity
        Distillation, 2024, as in both released codes. arXiv:2404.04057. Guidance: Zhou et al., Long and Short Guidance
        in Score identity Distillation, 2024. arXiv:2406.01561. Luo et al., Diff-Instruct, 2023. arXiv:2305.18455
    """

    override: Override | None = None
    overrides: list[str] = field(default_factory=list)
    judge: str | None = None
    loss: Literal["sid", "diff_instruct"] = "sid"
    alpha: float = 1.2
    one_step: NonNegativeInt = 440
    t_min: int = 38
    t_max: int = 712
    guidance: NonNegativeFloat = 1.0
    drop: float = 0.0
    fake_weight: NonNegativeFloat = 1.0
    fake_lr: PositiveFloat | None = None
    warmup: NonNegativeInt = 0
    redraw: bool = False

    @typing_extensions.override
    def smallest(self) -> Self:
        return replace(self, warmup=min(self.warmup, 1))

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.t_min < self.t_max:
            raise ValueError(f"t_min is {self.t_min} and t_max {self.t_max}; 0 <= t_min < t_max must hold")
        if not 0 <= self.drop < 1:
            raise ValueError(f"drop is {self.drop}; it must lie in [0, 1)")

    @typing_extensions.override
    def attach(self, model: PipelineDenoiser) -> None:
        """Turn a diffusion model into a one-step generator; freeze its autoencoder."""
        if max(self.one_step, self.t_max - 1) >= model.timesteps:
            raise RecipeError(
                f"one_step is {self.one_step} and t_max {self.t_max}; the model has {model.timesteps} timesteps, and "
                "both must lie within them. Type smaller ones."
            )
        if model.settings.one_step is None:
            model.settings.one_step = self.one_step
        if model.vae is not None:
            model.vae.requires_grad_(False)

    @typing_extensions.override
    def auxiliary(
        self, model: PipelineDenoiser, teacher: Callable[[], PipelineDenoiser], split: str, randomness: Randomness
    ) -> AuxiliaryNetwork:
        def build() -> nn.Module:
            found = teacher()
            if not isinstance(found, nn.Module):  # the trained model without its adapter: the copy has its own adapter
                assert isinstance(model, nn.Module)
                return _copy(model, lambda name, parameter: parameter.requires_grad)
            network = _copy(found, lambda name, _: name.startswith("denoiser.")).requires_grad_(False)
            network.denoiser.requires_grad_(True)
            return network

        return AuxiliaryNetwork(
            name="fake_score",
            build=build,
            groups={split: {"fake_score": FakeScore(weight=self.fake_weight, term=self)}},
            optim=lambda optim: replace(optim, lr=self.fake_lr or optim.lr),
            warmup=self.warmup,
        )

    @typing_extensions.override
    def prepare(self, model: PipelineDenoiser, context: Context[PipelineDenoiser]) -> None:
        """Find the words that may take an item's place; refuse what the data or the model cannot give."""
        how = self._how(context)
        if how == "anchor":
            check_anchors(context)
        elif how != "itself":
            words = self.overrides or sorted(_labels(context, "retain") - _labels(context, "forget") - {""})
            if not words:
                raise RecipeError(
                    f"sfd: override={how} asks for words that may take an item's place, and what is forgotten is "
                    "no label. Type overrides=[WORD, ...]."
                )
            model.prompts(words, whole=True)  # refuses a class that there is not
            known = self._judge(context).labels if how in BY_JUDGE else words
            if unknown := sorted(set(words) - set(known)):
                raise RecipeError(
                    f"sfd: the judge does not know {', '.join(unknown)}; it knows {', '.join(known)}. "
                    "Type overrides=[WORD, ...] with some of these, or another judge."
                )
            context.state["words"] = words

    def __call__(self, model: PipelineDenoiser, batch: Batch, context: Context[PipelineDenoiser]) -> Values:
        """Return the generator's loss, (B,); diagnostics: the distance of the two scores, and omega."""
        fake: PipelineDenoiser = context.beside()
        condition, teacher = model.condition(batch), context.teacher()
        drawn = context.shared.pop(context.key("drawn", batch), None)  # left by psi's step, in the same batch
        x0 = self.drawn(model, batch, context) if drawn is None else drawn
        x, t, _ = self.noised(model, batch, x0, context)
        # SiD takes the gradient through x_t into both estimates, Diff-Instruct takes it at x_0 alone
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.loss == "sid"), frozen(fake):
            f_psi = fake.denoised(x, t, fake.guided(x, t, condition, self.guidance))
            other = self._override(model, batch, f_psi, context)
            f_phi = teacher.denoised(x, t, teacher.guided(x, t, other, self.guidance))
        values = sid_loss(x0, f_phi, f_psi, self.alpha) if self.loss == "sid" else diff_instruct_loss(x0, f_phi, f_psi)
        return Values(values, {"score_gap": mean_square((f_phi - f_psi).detach()), "omega": _distance(f_phi, x0)})

    def drawn(self, model: PipelineDenoiser, batch: Batch, context: Context[PipelineDenoiser]) -> Tensor:
        """Return what the generator draws under the conditions of a batch, with gradient, (B, C, H, W)."""
        return model.generated(model.noise(batch["id"], context.randomness), model.condition(batch))

    def noised(
        self, model: PipelineDenoiser, batch: Batch, x0: Tensor, context: Context[PipelineDenoiser]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return x_t, t (B,) and the noise in x_t of items (B, C, H, W)."""
        ids, draw = batch["id"], context.randomness
        t = self.t_min + draw.child("t").integers(ids, self.t_max - self.t_min)
        noise = draw.child("noise").normal(ids, tuple(x0.shape[1:]), x0.dtype)
        return model.noised(x0, noise, t), t, noise

    def _how(self, context: Context[PipelineDenoiser]) -> Override:
        return self.override or ("anchor" if context.split == "forget" else "itself")

    @torch.no_grad()
    def _override(
        self, model: PipelineDenoiser, batch: Batch, f_psi: Tensor, context: Context[PipelineDenoiser]
    ) -> Condition:
        """Return the teacher's condition for each item."""
        ids, how = batch["id"], self._how(context)
        if how == "itself":
            return model.condition(batch)
        if how == "anchor":
            return model.condition(context.batch(context.split, ids, "anchor"))
        words: list[str] = context.state["words"]
        draw = context.randomness.child("override")
        if how == "random":
            chosen = draw.integers(ids, len(words))
        else:
            judge = self._judge(context).to(ids.device)
            known = [judge.labels.index(word) for word in words]
            likely = judge.probabilities(model.images(f_psi))[:, known].double()
            chosen = likely.argmax(dim=1)
            if how == "drawn":  # the first word at which the cumulated probability exceeds a uniform number
                reached = likely.cumsum(dim=1) / likely.sum(dim=1, keepdim=True)
                chosen = (reached[:, :-1] <= draw.uniform(ids, (1,), torch.float64)).sum(dim=1)
        dataset = context.splits[context.split].dataset
        assert isinstance(dataset, Conditioned)  # as ``read`` of every denoiser gives it
        others = dataset.instead(ids.cpu(), [words[index] for index in chosen.tolist()])
        return model.condition({key: value.to(ids.device) for key, value in others.items()})

    def _judge(self, context: Context[PipelineDenoiser]) -> Features:
        def read() -> Features:
            net = features_for(context.splits[context.split].dataset.info, self.judge)
            net.network.float()  # also where the run is in double precision
            return net

        return read() if context.reference_cache is None else context.reference_cache.once(f"judge {self.judge}", read)


@dataclass(frozen=True, kw_only=True)
class FakeScore(Objective[PipelineDenoiser]):
    """The fake score's own loss on what the generator draws; it leaves the drawn items for the generator's loss."""

    term: SFD

    def __call__(self, model: PipelineDenoiser, batch: Batch, context: Context[PipelineDenoiser]) -> Values:
        """Return the mean over values of (eps - eps_psi(x_t, t, c))^2, (B,)."""
        fake: PipelineDenoiser = context.beside()
        term, ids = self.term, batch["id"]
        # with gradient only where the generator's step, which follows, uses the same items; none follows a warm-up step
        keeps = torch.is_grad_enabled() and not term.redraw and context.step >= 0
        with torch.set_grad_enabled(keeps):
            x0 = term.drawn(model, batch, context)
        if keeps:
            context.shared[context.key("drawn", batch)] = x0
        x, t, noise = term.noised(model, batch, x0.detach(), context)
        dropped = context.randomness.child("drop").uniform(ids, ()) < term.drop
        score = _guided(fake, x, t, model.condition(batch), dropped, term.guidance)
        return Values(mean_square(score - noise))


def _guided(
    model: PipelineDenoiser, x: Tensor, t: Tensor, condition: Condition, dropped: Tensor, guidance: float
) -> Tensor:
    """Return the guided score, (B, C, H, W), of items some of which, ``dropped`` (B,), lose their condition.

    For those it is the unconditional score, which all items need once for the guidance anyway.
    """
    null, everyone = model.null(len(x)), torch.arange(len(x), device=x.device)
    if guidance == 1:
        return model.predict(x, t, Condition.cat([condition, null])[everyone + dropped * len(x)])
    rows = everyone[~dropped]
    asked = Condition.cat([null, condition[rows]])
    scores = model.predict(torch.cat([x, x[rows]]), torch.cat([t, t[rows]]), asked)
    empty, full = scores[: len(x)], scores[len(x) :]
    return empty.index_add(0, rows, guidance * (full - empty[rows]))


def sid_loss(x0: Tensor, f_phi: Tensor, f_psi: Tensor, alpha: float) -> Tensor:
    """Return SiD's loss of the generator per item, (B,), from x_0 and both estimates of it, each (B, C, H, W)."""
    gap = f_phi - f_psi
    return (gap * ((f_phi - x0) - alpha * gap)).flatten(1).mean(dim=1) / _distance(f_phi, x0)


def diff_instruct_loss(x0: Tensor, f_phi: Tensor, f_psi: Tensor) -> Tensor:
    """Return a loss, (B,), whose gradient at x_0 is Diff-Instruct's, f_psi - f_phi, over the number of values."""
    return ((f_phi - f_psi).detach() * (f_psi.detach() - x0)).flatten(1).mean(dim=1)


def _copy(network: N, chosen: Callable[[str, nn.Parameter], bool]) -> N:
    """Return a copy of a network with the chosen parameters of its own; all others are the same tensors."""
    # deepcopy takes what its memo holds under an object's id for the copy
    return copy.deepcopy(network, {id(p): p for name, p in network.named_parameters() if not chosen(name, p)})


@torch.no_grad()
def _distance(f_phi: Tensor, x0: Tensor) -> Tensor:
    return (f_phi - x0).abs().flatten(1).mean(dim=1).clamp(min=SMALLEST)


def _labels(context: Context[PipelineDenoiser], split: str) -> set[str]:
    data = context.splits[split]
    return {data.dataset.labels[index] for index in data.ids.tolist()}
