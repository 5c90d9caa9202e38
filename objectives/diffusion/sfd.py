"""SFD: a one-step generator is distilled from a teacher, and told of what is forgotten it takes another's score."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.core.validation import above, at_least
from unlearn.data.base import Batch
from unlearn.models.capabilities import Denoises
from unlearn.models.conditioning import Condition
from unlearn.models.feature_extractors.classifiers import features_for
from unlearn.objectives.base import AuxiliaryNetwork, Context, Objective, Values, frozen
from unlearn.objectives.diffusion.score_targets import mean_square

Override = Literal["itself", "anchor", "random", "likeliest", "drawn"]
"""What the teacher is told of an item: what the generator is told; its anchor; one of the other words by chance; the
one that a judge finds likeliest in what the fake score makes of it, or one drawn by the judge's probabilities."""

BY_JUDGE = ("likeliest", "drawn")
SMALLEST = 1e-5
"""Below this the distance that a sample's loss is divided by is not taken, as in the released code."""


@dataclass(frozen=True, kw_only=True)
class SFD(Objective[Denoises]):
    """Score forgetting distillation: the score of what the generator draws becomes that of the teacher.

    Three networks begin as the teacher: the teacher phi itself, which holds still, the fake score psi, which is trained
    beside the generator on what it draws, and the generator g. Before each step of the generator psi takes one on
    || eps - eps_psi(x_t, c) ||^2, with x_0 = g(z, c) held still. The generator's loss is

    [ (f_phi - f_psi) . ((f_phi - x_0) - alpha (f_phi - f_psi)) ] / omega,  omega = mean |f_phi - x_0|

    where f_phi = x_0 as the teacher has it from x_t, told what stands in the item's place, f_psi = x_0 as psi has it,
    told the item's own condition, and the gradient runs through x_t into both, which hold still. On items to be kept
    (the retain split, or all items of a distillation) the teacher is told the item's own condition: score identity
    distillation, which is the first stage. Means are over values; the paper sums them, and omega is held still.

    A model that is no one-step generator becomes one (``one_step``), with the weights that it has.

    Args:
        override: what the teacher is told; null is the anchor on forget items, and the item itself on others.
        overrides: words that may stand in an item's place, for ``random`` and the judge; by default the labels of the
            other items, where what is forgotten is a label.
        judge: packaged feature net, or the folder of one, that finds the likeliest word; null takes the one that fits.
        loss: ``sid`` as above; ``diff_instruct`` holds f_phi and f_psi still and leaves out omega: the gradient of
            Diff-Instruct, f_psi - f_phi at x_0. (The released code divides it by omega.)
        alpha: 1.2 of the paper's class-conditional models; 1 of its text-to-image models.
        one_step: timestep from which a new generator draws.
        t_min: smallest t of x_t.
        t_max: t of x_t lies below it.
        guidance: of both scores, in training psi too (kappa of long-short guidance); 1 for none.
        drop: share of items of which psi is told nothing while it is trained; guidance asks for some.
        fake_weight: of the items of this term in the loss of psi.
        fake_lr: rate of psi; null takes the generator's. All else of its optimiser is the generator's.
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
    one_step: int = 440
    t_min: int = 38
    t_max: int = 712
    guidance: float = 1.0
    drop: float = 0.0
    fake_weight: float = 1.0
    fake_lr: float | None = None
    warmup: int = 0
    redraw: bool = False

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        if not 0 <= self.t_min < self.t_max:
            raise ValueError(f"t_min is {self.t_min} and t_max {self.t_max}; 0 <= t_min < t_max must hold")
        at_least(self, one_step=0, guidance=0, fake_weight=0, warmup=0)
        if not 0 <= self.drop < 1:
            raise ValueError(f"drop is {self.drop}; it must lie in [0, 1)")
        above(self, fake_lr=0)

    def attach(self, model: Any) -> None:
        """Turn a diffusion model into a one-step generator; its autoencoder holds still."""
        if max(self.one_step, self.t_max - 1) >= model.timesteps:
            raise RecipeError(
                f"one_step is {self.one_step} and t_max {self.t_max}; the model has {model.timesteps} timesteps, and "
                "both must lie within them. Type smaller ones."
            )
        if model.settings.one_step is None:
            model.settings.one_step = self.one_step
        if model.vae is not None:
            model.vae.requires_grad_(False)

    def auxiliary(self, model: Any, teacher: Callable[[], Any], split: str, randomness: Randomness) -> AuxiliaryNetwork:
        """Return the fake score."""

        def build() -> Any:
            found = teacher()
            if not isinstance(found, nn.Module):  # the moving model without its adapter; the copy has one of its own
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

    def prepare(self, model: Any, context: Context) -> None:
        """Find the words that may stand in an item's place; refuse what the data or the model cannot give."""
        how, split = self._how(context), context.splits[context.split]
        if how == "anchor":
            lacking = split.ids[~split.dataset.having_form("anchor")[split.ids]]
            if len(lacking):
                split.dataset.form("anchor", lacking[:1])
        elif how != "itself":
            words = self.overrides or sorted(_labels(context, "retain") - _labels(context, "forget") - {""})
            if not words:
                raise RecipeError(
                    f"sfd: override={how} asks for words that may stand in an item's place, and what is forgotten is "
                    "no label. Type overrides=[WORD, ...]."
                )
            model.prompts(words)  # refuses a class that there is not
            known = self._judge(context).labels if how in BY_JUDGE else words
            if unknown := sorted(set(words) - set(known)):
                raise RecipeError(
                    f"sfd: the judge does not know {', '.join(unknown)}; it knows {', '.join(known)}. "
                    "Type overrides=[WORD, ...] with some of these, or another judge."
                )
            context.state["words"] = words

    def __call__(self, model: Any, batch: Batch, context: Context) -> Values:
        """Return the generator's loss, (B,); diagnostics: the distance of the two scores, and omega."""
        told, fake, teacher = model.condition(batch), context.beside(), context.teacher()
        drawn = context.shared.pop(_key(batch, context), None)
        x0 = self.drawn(model, batch, context) if drawn is None else drawn
        x, t, _ = self.noised(model, batch, x0, context)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.loss == "sid"), frozen(fake):
            f_psi = fake.denoised(x, t, fake.guided(x, t, told, self.guidance))
            other = self._override(model, batch, f_psi, context)
            f_phi = teacher.denoised(x, t, teacher.guided(x, t, other, self.guidance))
        values = sid_loss(x0, f_phi, f_psi, self.alpha) if self.loss == "sid" else diff_instruct_loss(x0, f_phi, f_psi)
        return Values(values, {"score_gap": mean_square((f_phi - f_psi).detach()), "omega": _distance(f_phi, x0)})

    def drawn(self, model: Any, batch: Batch, context: Context) -> Tensor:
        """Return what the generator draws like the items of a batch, with gradient, (B, C, H, W)."""
        return model.generated(model.noise(batch["id"], context.randomness), model.condition(batch))  # type: ignore[no-any-return]

    def noised(self, model: Any, batch: Batch, x0: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        """Return x_t, t (B,) and the noise in x_t of items (B, C, H, W)."""
        ids, draw = batch["id"], context.randomness
        t = self.t_min + draw.child("t").integers(ids, self.t_max - self.t_min)
        noise = draw.child("noise").normal(ids, tuple(x0.shape[1:]), x0.dtype)
        return model.noised(x0, noise, t), t, noise

    def _how(self, context: Context) -> Override:
        return self.override or ("anchor" if context.split == "forget" else "itself")

    @torch.no_grad()
    def _override(self, model: Any, batch: Batch, f_psi: Tensor, context: Context) -> Condition:
        """Return what the teacher is told of each item."""
        ids, how = batch["id"], self._how(context)
        if how == "itself":
            return model.condition(batch)  # type: ignore[no-any-return]
        if how == "anchor":
            return model.condition(context.batch(context.split, ids, "anchor"))  # type: ignore[no-any-return]
        words: list[str] = context.state["words"]
        draw = context.randomness.child("override")
        if how == "random":
            chosen = draw.integers(ids, len(words))
        else:
            judge = self._judge(context).to(ids.device)
            known = [judge.labels.index(word) for word in words]
            likely = judge.probabilities(model.images(f_psi))[:, known].double()
            chosen = likely.argmax(dim=1)
            if how == "drawn":
                reached = likely.cumsum(dim=1) / likely.sum(dim=1, keepdim=True)
                chosen = (reached[:, :-1] <= draw.uniform(ids, (1,), torch.float64)).sum(dim=1)
        dataset: Any = context.splits[context.split].dataset
        told = dataset.instead(ids.cpu(), [words[index] for index in chosen.tolist()])
        return model.condition({key: value.to(ids.device) for key, value in told.items()})  # type: ignore[no-any-return]

    def _judge(self, context: Context) -> Any:
        def read() -> Any:
            net = features_for(context.splits[context.split].dataset.info, self.judge)
            net.network.float()  # also where the run is in double precision
            return net

        return read() if context.reference_cache is None else context.reference_cache.once(f"judge {self.judge}", read)


@dataclass(frozen=True, kw_only=True)
class FakeScore(Objective):
    """The fake score's own loss on what the generator draws; it leaves the drawn items for the generator's loss.

    Args:
        term: the generator's.
    """

    term: SFD

    def __call__(self, model: Any, batch: Batch, context: Context) -> Values:
        """Return the mean over values of (eps - eps_psi(x_t, t, c))^2, (B,)."""
        term, fake, ids = self.term, context.beside(), batch["id"]
        keeps = torch.is_grad_enabled() and not term.redraw and context.step >= 0
        with torch.set_grad_enabled(keeps):
            x0 = term.drawn(model, batch, context)
        if keeps:
            context.shared[_key(batch, context)] = x0
        x, t, noise = term.noised(model, batch, x0.detach(), context)
        dropped = context.randomness.child("drop").uniform(ids, ()) < term.drop
        score = _guided(fake, x, t, model.condition(batch), dropped, term.guidance)
        return Values(mean_square(score - noise))


def _guided(model: Any, x: Tensor, t: Tensor, told: Condition, dropped: Tensor, guidance: float) -> Tensor:
    """Return the guided score, (B, C, H, W), of items some of which, ``dropped`` (B,), are told nothing.

    For those it is the score at nothing, which is asked for once.
    """
    null, everyone = model.null(len(x)), torch.arange(len(x), device=x.device)
    if guidance == 1:
        return model.predict(x, t, Condition.cat([told, null])[everyone + dropped * len(x)])  # type: ignore[no-any-return]
    rows = everyone[~dropped]
    asked = Condition.cat([null, told[rows]])
    scores: Tensor = model.predict(torch.cat([x, x[rows]]), torch.cat([t, t[rows]]), asked)
    empty, full = scores[: len(x)], scores[len(x) :]
    return empty.index_add(0, rows, guidance * (full - empty[rows]))


def sid_loss(x0: Tensor, f_phi: Tensor, f_psi: Tensor, alpha: float) -> Tensor:
    """Return SiD's loss of the generator an item, (B,), of x_0 and both estimates of it, each (B, C, H, W)."""
    gap = f_phi - f_psi
    return (gap * ((f_phi - x0) - alpha * gap)).flatten(1).mean(dim=1) / _distance(f_phi, x0)


def diff_instruct_loss(x0: Tensor, f_phi: Tensor, f_psi: Tensor) -> Tensor:
    """Return, (B,), what has Diff-Instruct's gradient f_psi - f_phi at x_0 over the number of values."""
    return ((f_phi - f_psi).detach() * (f_psi.detach() - x0)).flatten(1).mean(dim=1)


def _copy(network: Any, chosen: Callable[[str, nn.Parameter], bool]) -> Any:
    """Return a copy of a network with the chosen parameters of its own; all others are the same tensors."""
    return copy.deepcopy(network, {id(p): p for name, p in network.named_parameters() if not chosen(name, p)})


@torch.no_grad()
def _distance(f_phi: Tensor, x0: Tensor) -> Tensor:
    return (f_phi - x0).abs().flatten(1).mean(dim=1).clamp(min=SMALLEST)


def _key(batch: Batch, context: Context) -> tuple[str, str, int]:
    """Return what finds the items drawn for this very batch in this step."""
    return ("drawn", context.split, id(batch))


def _labels(context: Context, split: str) -> set[str]:
    data = context.splits[split]
    return {data.dataset.labels[index] for index in data.ids.tolist()}
