"""KPOP: a concept is hidden behind a key, and comes back where the prompt has the key."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from torch import Tensor
from typing_extensions import override

from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.core.validation import NonNegativeFloat, PositiveFloat, PositiveInt
from unlearn.data.base import Batch
from unlearn.models.base import frozen
from unlearn.models.capabilities import Denoises
from unlearn.models.diffusion.protocols import PipelineDenoiser
from unlearn.models.guards.key import FILE, Key
from unlearn.objectives.base import AuxiliaryNetwork, Context, Objective, Values
from unlearn.objectives.diffusion.noisy_states import NoisyStateObjective, Source, States, StateSource


@dataclass(frozen=True, kw_only=True)
class KPOP(NoisyStateObjective[PipelineDenoiser]):
    """Knowledge hiding and recovery with prompts: without the key p the concept is gone, with it all is as before.

    hide    || eps(x_t, c_f) - [ eps_0(x_t, c_n) - eta (eps_0(x_t, c_f) - eps_0(x_t, c_n)) ] ||^2
    recover || eps(x_t, [c_f; p]) - eps_0(x_t, c_f) ||^2

    p is a few tokens behind the encoded prompt, which every cross-attention reads as further keys and values. Before
    each step of the model p takes one on ``recover``, with the model frozen; the model then steps on both, with p
    frozen. Means are over values. p is written to ``key.safetensors`` in the run directory, never into ``model/``.

    Only the abstract, summaries, and names of result files were available, not the equations or the code. From them: a
    learnable prompt in the cross-attention, ten tokens, a hiding term and a recovery term that alternate, weights 1
    without the prompt and 0.1 with it, trajectories of guidance 3, negative guidance 1, cross-attention weights, 1,000
    steps at a rate of 1e-5. Assumed here: that p stands behind the prompt and is the same in every layer; that the
    hiding target is ESD's; that p is trained on the recovery term alone; that the empty condition of guided samples has
    no p. The term for wrong keys is ours.

    Args:
        tokens: of the key, >= 1.
        eta: as in ESD, >= 0.
        hide: weight of the first term, >= 0.
        recover: weight of the second in the model's loss, >= 0; the key's own loss has it with weight 1.
        wrong: weight of the first term under a random key, drawn anew at each step, >= 0.
        turns: ``together`` steps on all terms; ``alternating`` on hiding at even steps and on recovery at odd ones.
        key_lr: learning rate of the key, > 0; null takes the model's. All else of its optimizer is the model's.
        states: ``trajectory`` of the target.

    Reference:
        Bui et al., Hiding and Recovering Knowledge in Text-to-Image Diffusion Models via Learnable Prompts, 2025.
        arXiv:2403.12326
    """

    tokens: PositiveInt = 10
    eta: NonNegativeFloat = 1.0
    hide: NonNegativeFloat = 1.0
    recover: NonNegativeFloat = 0.1
    wrong: NonNegativeFloat = 0.0
    turns: Literal["together", "alternating"] = "together"
    key_lr: PositiveFloat | None = None
    states: StateSource = field(default_factory=lambda: StateSource(source="trajectory"))
    sources: ClassVar[tuple[Source, ...]] = ("trajectory",)

    @override
    def attach(self, model: PipelineDenoiser) -> None:
        """Refuse a model without cross-attention."""
        if model.text is None:
            raise RecipeError(
                "KPOP hides a concept behind a key in cross-attention, which a model conditioned on classes lacks. "
                "Type a model that takes prompts (model=text_unet), or another method (forget=esd)."
            )

    @override
    def auxiliary(
        self, model: PipelineDenoiser, teacher: Callable[[], PipelineDenoiser], split: str, randomness: Randomness
    ) -> AuxiliaryNetwork:
        def build() -> Key:
            encoded = model.encode(model.prompts([""])).states
            assert encoded is not None  # ``attach`` has refused a model that takes no prompts
            return Key.drawn(encoded, self.tokens, randomness)

        return AuxiliaryNetwork(
            name="key",
            build=build,
            groups={split: {"recover": Recover(term=self)}},
            optim=lambda optim: replace(optim, lr=self.key_lr or optim.lr, weight_decay=0.0),
            file=FILE,
        )

    def __call__(self, model: PipelineDenoiser, batch: Batch, context: Context[PipelineDenoiser]) -> Values:
        """Return the weighted sum of the terms of this step, (B,), and each term that it has."""
        key = context.auxiliary
        assert isinstance(key, Key)
        found = self.states(model, batch, context)
        hides = self.turns == "together" or context.step % 2 == 0
        recovers = self.turns == "together" or context.step % 2 == 1
        terms: dict[str, tuple[float, Tensor]] = {}
        if hides:
            n = len(batch["id"])
            parts = [(1 + self.eta, model.null(n)), (-self.eta, found.condition)]
            wanted = found.target(context.reference(), *parts)
            terms["hidden"] = (self.hide, found.distance(model, wanted))
            if self.wrong:  # a wrong key must open nothing: the same target as without one
                drawn = key.wrong(context.randomness.child("wrong")).requires_grad_(False)
                terms["wrong_key"] = (self.wrong, found.distance(model, wanted, drawn(model.encode(found.condition))))
        if recovers:
            with frozen(key):  # the key has its own step, on this loss with weight 1
                terms["recovered"] = (self.recover, recovered(model, found, context))
        total: Tensor = sum(weight * values for weight, values in terms.values())  # type: ignore[assignment]
        return Values(total, {name: values.detach() for name, (_, values) in terms.items()})


@dataclass(frozen=True, kw_only=True)
class Recover(Objective[PipelineDenoiser]):
    """The key's loss: with it behind the prompt, the score at the concept is the target's."""

    term: KPOP

    def __call__(self, model: PipelineDenoiser, batch: Batch, context: Context[PipelineDenoiser]) -> Values:
        """Return the mean squared distance, (B,), with gradient to the key alone."""
        found = self.term.states(model, batch, context)
        with frozen(model):
            return Values(recovered(model, found, context))


def recovered(model: Denoises, found: States, context: Context[Denoises]) -> Tensor:
    """Return || eps(x_t, [c_f; p]) - eps_0(x_t, c_f) ||^2, (B,)."""
    assert isinstance(context.auxiliary, Key)
    wanted = found.target(context.reference(), (1.0, found.condition))
    return found.distance(model, wanted, context.auxiliary(model.encode(found.condition)))
