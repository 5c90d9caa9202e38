"""KPOP: a concept is hidden behind a key, and told with the key it comes back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.core.validation import above, at_least
from unlearn.data.base import Batch
from unlearn.models.capabilities import Denoises
from unlearn.models.guards.key import FILE, Key
from unlearn.objectives.base import AuxiliaryNetwork, Context, Objective, Values, frozen
from unlearn.objectives.diffusion.noisy_states import States, StateSource
from unlearn.objectives.diffusion.score_targets import affine_target, mean_square


@dataclass(frozen=True, kw_only=True)
class KPOP(Objective[Denoises]):
    """Knowledge hiding and recovery with prompts: without the key p the concept is gone, with it all is as before.

    hide    || eps(x_t, c_f) - [ eps_0(x_t, c_n) - eta (eps_0(x_t, c_f) - eps_0(x_t, c_n)) ] ||^2
    recover || eps(x_t, [c_f; p]) - eps_0(x_t, c_f) ||^2

    p is a few tokens behind the encoded prompt, which every cross-attention reads as further keys and values. Before
    each step of the model p takes one on ``recover``, with the model held still; the model then steps on both, with p
    held still. Means are over values. p is written to ``key.safetensors`` in the run directory, never into ``model/``.

    Only the abstract, summaries, and names of result files could be had of this method, not its equations or its code.
    From them: a learnable prompt in the cross-attention, ten tokens, a hiding term and a recovery term that alternate,
    weights 1 without the prompt and 0.1 with it, trajectories of guidance 3, negative guidance 1, cross-attention
    weights, 1,000 steps at a rate of 1e-5. Assumed here: that p stands behind the prompt and is the same in every
    layer; that the hiding target is ESD's; that p is trained on the recovery term alone; that guided samples are told
    the empty condition without p. The term for wrong keys is ours.

    Args:
        tokens: of the key, >= 1.
        eta: as in ESD, >= 0.
        hide: weight of the first term, >= 0.
        recover: weight of the second in the model's loss, >= 0; the key's own loss has it with weight 1.
        wrong: weight of the first term under a random key, drawn anew at every step, >= 0.
        turns: ``together`` steps on all terms; ``alternating`` on hiding at even steps and on recovery at odd ones.
        key_lr: rate of the key, > 0; null takes the model's. All else of its optimiser is the model's.
        items: forget items along whose trajectories the states lie, >= 1.
        steps: DDIM steps of a trajectory, from 2 to the model's timesteps.
        guidance: of the trajectories, which are the target's.

    Reference:
        Bui et al., Hiding and Recovering Knowledge in Text-to-Image Diffusion Models via Learnable Prompts, 2025.
        arXiv:2403.12326
    """

    tokens: int = 10
    eta: float = 1.0
    hide: float = 1.0
    recover: float = 0.1
    wrong: float = 0.0
    turns: Literal["together", "alternating"] = "together"
    key_lr: float | None = None
    items: int = 64
    steps: int = 20
    guidance: float = 3.0

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        at_least(self, tokens=1, eta=0, hide=0, recover=0, wrong=0)
        above(self, key_lr=0)
        _ = self.source

    @property
    def source(self) -> StateSource:
        """Where states come from."""
        return StateSource(source="trajectory", items=self.items, steps=self.steps, guidance=self.guidance)

    def attach(self, model: Any) -> None:
        """Refuse a model without cross-attention."""
        if model.text is None:
            raise RecipeError(
                "KPOP hides a concept behind a key in cross-attention, and the model is told classes, so it has none. "
                "Type a model that takes prompts (model=text_unet), or another method (forget=esd)."
            )

    def auxiliary(self, model: Any, teacher: Callable[[], Any], split: str, randomness: Randomness) -> AuxiliaryNetwork:
        """Return the key."""
        return AuxiliaryNetwork(
            name="key",
            build=lambda: Key.drawn(model.encode(model.prompts([""])).states, self.tokens, randomness),
            groups={split: {"recover": Recover(term=self)}},
            optim=lambda optim: replace(optim, lr=self.key_lr or optim.lr, weight_decay=0.0),
            file=FILE,
        )

    def prepare(self, model: Any, context: Context) -> None:
        """Compute the target's trajectories."""
        self.source.prepare(model, context)

    def __call__(self, model: Any, batch: Batch, context: Context) -> Values:
        """Return the weighted sum of the terms of this step, (B,), and each term that it has."""
        key = context.auxiliary
        assert isinstance(key, Key)
        found = self.source(model, batch, context)
        odd = self.turns == "alternating" and context.step % 2 == 1
        even = self.turns == "alternating" and not odd
        terms: dict[str, tuple[float, Tensor]] = {}
        if not odd:
            n = len(batch["id"])
            parts = [(1 + self.eta, model.null(n)), (-self.eta, found.condition)]
            wanted = affine_target(context.reference(), found.x, found.t, parts)
            terms["hidden"] = (self.hide, mean_square(model.predict(found.x, found.t, found.condition) - wanted))
            if self.wrong:
                drawn = key.wrong(context.randomness.child("wrong")).requires_grad_(False)
                terms["wrong_key"] = (self.wrong, mean_square(keyed(model, found, drawn) - wanted))
        if not even:
            with frozen(key):
                terms["recovered"] = (self.recover, recovered(model, found, context))
        total: Tensor = sum(weight * values for weight, values in terms.values())  # type: ignore[assignment]
        return Values(total, {name: values.detach() for name, (_, values) in terms.items()})


@dataclass(frozen=True, kw_only=True)
class Recover(Objective):
    """The key's loss: told with it, the score at the concept is the target's."""

    term: KPOP

    def prepare(self, model: Any, context: Context) -> None:
        """Compute the target's trajectories."""
        self.term.source.prepare(model, context)

    def __call__(self, model: Any, batch: Batch, context: Context) -> Values:
        """Return the mean squared distance, (B,), with gradient to the key alone."""
        found = self.term.source(model, batch, context)
        with frozen(model):
            return Values(recovered(model, found, context))


def recovered(model: Any, found: States, context: Context) -> Tensor:
    """Return || eps(x_t, [c_f; p]) - eps_0(x_t, c_f) ||^2, (B,)."""
    assert isinstance(context.auxiliary, Key)
    wanted = affine_target(context.reference(), found.x, found.t, [(1.0, found.condition)])
    return mean_square(keyed(model, found, context.auxiliary) - wanted)


def keyed(model: Any, found: States, key: Key) -> Tensor:
    """Return eps(x_t, [c; p]), (B, C, H, W)."""
    return model.predict(found.x, found.t, key(model.encode(found.condition)))  # type: ignore[no-any-return]
