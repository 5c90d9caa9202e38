"""The LightningModule of every family, for unlearning and for training targets."""

import copy
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from unlearn.core.distributed import gather_objects, map_ids, sum_over_ranks
from unlearn.core.errors import Diverged, NoGradient, RecipeError
from unlearn.core.optim import learning_rate, make_optimizer
from unlearn.core.randomness import Randomness
from unlearn.core.reference_cache import ReferenceCache
from unlearn.core.reference_model import ReferenceModel
from unlearn.data.base import Split
from unlearn.objectives.base import Context, Objective
from unlearn.training.average import WeightAverage
from unlearn.training.checkpoint import copy_stored, restoring
from unlearn.training.dataloader import StepBatches
from unlearn.training.gradients import fresh_gradients, norm, take_gradients, watched
from unlearn.training.losses import StepLog, StepLosses, TermValues
from unlearn.training.phase import Phase

STILL_STEPS = 3
"""A gradient of exactly 0 in so many first steps ends the run, and in two if it has no more. One may have it: a term
that compares with the target is 0 there, and layers that begin at 0 hand no gradient on."""


class UnlearningModule(lightning.LightningModule):
    """Takes the optimizer steps of a method's phases (manual optimization).

    Args:
        model: the wrapper that is trained. It stays in eval mode: dropout off, batch statistics fixed.
        phases: in the order of their steps; exactly one is primary.
        splits: the data by split name.
        seed: the run's seed.
        reference: the frozen target.
        log_every: steps between records of losses, diagnostics and the conflict cosine.
        distilled_from: the frozen model that the target was distilled from, if it was.
        remedy: last sentence of the error for a gradient that is not finite.

    Attributes:
        step_count: primary steps taken; below 0 during the warm-up of another network.
        goal: the term that reached its goal and thereby ended the run, or None.
        row: the last measured row of the training curves.
        still: number of first steps in a row with a gradient of exactly 0, by what has it.
        common: the part of a term's context that all terms share (splits, reference, ...); ``_context`` completes it.
    """

    def __init__(
        self,
        model: nn.Module,
        phases: Sequence[Phase],
        splits: Mapping[str, Split],
        seed: int,
        reference: ReferenceModel | None = None,
        log_every: int = 10,
        distilled_from: ReferenceModel | None = None,
        remedy: str = "Type a smaller optim.lr, or optim.clip=1, or a smaller forget.weight.",
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = model.eval()
        self.phases: list[Phase] = []
        self.states: dict[str, dict[str, Any]] = {}
        self.combine_states: list[dict[str, Any]] = []
        for phase in phases:
            self.add_phase(phase)
        self.log_every, self.remedy = log_every, remedy
        self.primary = next(phase for phase in self.phases if phase.primary)
        networks = [phase.network for phase in self.phases if phase.network is not None]
        self.auxiliary_networks = nn.ModuleList(networks)
        self.step_count = min(phase.first for phase in self.phases)
        self.goal: str | None = None
        self.row: dict[str, float] = {}
        self.still: dict[str, int] = {}
        self.average = WeightAverage(self.primary.parameters, self.primary.optim.ema)
        self.common = Context(
            step=self.step_count,
            randomness=Randomness(seed),
            splits=splits,
            state={},
            reference=reference or _no_reference,
            map_ids=map_ids,
            device=torch.device("cpu"),
            distilled_from=distilled_from,
            averaged=self.average.in_place if self.average.decay is not None else None,
        )
        self._frozen = [frozen for frozen in (reference, distilled_from) if frozen is not None]
        self._checkpoint: dict[str, Any] | None = None

    def cache_reference_in(self, folder: Path) -> None:
        """Cache the target's values that terms compute once in ``folder``."""
        self.common = replace(self.common, reference_cache=ReferenceCache(folder))

    def resume_from(self, checkpoint: dict[str, Any]) -> None:
        """Restore a checkpoint when the fit starts, instead of preparing the terms."""
        self.step_count, self._checkpoint = checkpoint["step"], checkpoint

    def add_phase(self, phase: Phase) -> None:
        """Add a phase; it steps after the others."""
        self.phases.append(phase)
        self.combine_states.append({})
        self.states |= {f"{group}/{name}": {} for group, name, _ in phase.terms()}

    @override
    def configure_optimizers(self) -> list[Optimizer]:
        return [make_optimizer(phase.optim, list(phase.parameters.values())) for phase in self.phases]

    @override
    def on_fit_start(self) -> None:
        """Restore the checkpoint, or prepare the terms before the first step."""
        for frozen in self._frozen:
            frozen.to(next(self.model.parameters()))
        if self._checkpoint is not None:
            self._restore(self._checkpoint)
        else:
            with self._precision():
                for phase in self.phases:
                    for group, name, objective in phase.terms():
                        objective.prepare(self.model, self._context(f"{group}/{name}"))
            self.average.start()

    def _precision(self) -> AbstractContextManager[None]:
        """Return the autocast context of the steps: cached values of the target must have the steps' precision."""
        attached = self._trainer is not None
        return self.trainer.precision_plugin.train_step_context() if attached else nullcontext()

    @override
    def on_train_batch_start(self, batch: StepBatches, batch_idx: int) -> int | None:
        """End the run before this step (-1) if a term has reached its goal."""
        # a run that is resumed after its goal must not ask again: the answer may differ
        if self.goal is None and self.step_count >= 0:
            self.goal = next(iter(self._run_before_step()), None)
        return None if self.goal is None else -1

    @torch.no_grad()
    def _run_before_step(self) -> list[str]:
        """Call each term's ``before_step``; return the terms that reached their goal."""
        return [
            f"{group}/{name}"
            for phase in self.phases
            for group, name, objective in phase.terms()
            if objective.before_step(self.model, self._context(f"{group}/{name}"))
        ]

    @override
    def training_step(self, batch: StepBatches, batch_idx: int) -> None:
        """Take one optimizer step of every phase that is due."""
        step = self.step_count
        measure = step % self.log_every == 0
        optimizers: list[Any] = self.optimizers(use_pl_optimizer=True)  # type: ignore[assignment]
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        self.row = {}
        self.common.shared.clear()
        for index, phase in enumerate(self.phases):
            if not phase.is_due(step):
                continue
            losses = StepLosses(phase, self.model, batch, self._context)
            early = phase.primary and step < STILL_STEPS
            if step == phase.first:  # once is enough: what a loss reaches does not change
                with watched(phase.parameters) as reached:
                    gradients = losses.gradient(self.combine_states[index], measure, early)
                _refuse_unreached(phase, reached)
            else:
                gradients = losses.gradient(self.combine_states[index], measure, early)
            size = clip(gradients, phase.optim.clip)
            self._refuse_not_finite(phase, losses, size)
            if early:
                self._refuse_still(phase, losses, size)
            rate = learning_rate(phase.optim, step)
            optimizer = optimizers[index]
            for settings in optimizer.param_groups:
                settings["lr"] = rate
            # only primary steps count as Lightning's global steps
            (optimizer if phase.primary else optimizer.optimizer).step()
            for term, measured in losses.followed().items():
                self._objective(term).after_step(measured, self._context(term))
            if measure:
                prefix = "" if phase.primary else f"{phase.name}/"
                row = {**losses.log.reduced(), "grad_norm": float(size), "lr": rate}
                self.row |= {prefix + key: value for key, value in row.items()}
        if step >= 0:  # in a warm-up the model is not trained
            self.average.update(step)
        self.step_count += 1
        if self.step_count == self.primary.optim.steps:  # the last step may be the one that reaches the goal
            self.goal = next(iter(self._run_before_step()), None)

    def _refuse_not_finite(self, phase: Phase, losses: StepLosses, size: Tensor) -> None:
        """Raise Diverged before the optimizer sees a value that is not finite: its moments would stay nan."""
        terms = losses.log.not_finite([f"{group}={name}" for group, name, _ in phase.terms()], self.device)
        if not terms and torch.isfinite(size):
            return
        what = f"the loss of {', '.join(terms)}" if terms else f"the gradient of phase {phase.name!r}"
        target: nn.Module = self._frozen[0]() if self._frozen else self.model
        broken = [name for name, value in target.named_parameters() if not value.isfinite().all()]
        why = f"The target itself holds values that are not finite: {', '.join(broken[:3])}." if broken else self.remedy
        raise Diverged(
            f"Step {self.step_count}: {what} is not finite, so no step was taken; the state before it is kept. {why}"
        )

    def _refuse_still(self, phase: Phase, losses: StepLosses, size: Tensor) -> None:
        """Raise NoGradient where the first steps have no gradient at all, or the forget terms have none."""
        forget = phase.groups.get("forget", {})
        if forget and not any(term.weight for term in forget.values()):
            return  # a control: without a forget term, one that compares with the target has no gradient either
        groups: dict[str, Tensor | None] = {"the loss": size}
        if forget and "retain" in phase.groups:
            groups[f"forget={', '.join(forget)}"] = losses.forget_size
        for name, found in groups.items():
            local = torch.zeros((), device=self.device) if found is None else found.detach()
            moves = bool(sum_over_ranks(local.double()) > 0)
            self.still[name] = 0 if moves else self.still.get(name, 0) + 1
            if self.still[name] == max(2, min(STILL_STEPS, phase.optim.steps)):
                raise NoGradient(
                    f"The gradient of {name} is exactly 0 in the first {self.still[name]} steps, so nothing would be "
                    "learned or forgotten. Look whether the terms see the items and words that they are given (a "
                    "prompt cut off, an anchor equal to the concept), and whether scope reaches what they depend on."
                )

    def forget_gradient(
        self, batches: Sequence[StepBatches], terms: Mapping[str, Objective[Any]] | None = None
    ) -> dict[str, Tensor]:
        """Return the forget loss's gradient summed over the batches of some steps, for a saliency mask.

        The terms work on a copy of their states.

        Args:
            batches: the batches of each step.
            terms: replace the phase's own forget terms.
        """
        # asking for the gradient must not change the run that follows
        kept, self.states = self.states, copy.deepcopy(self.states)
        phase = self.primary
        if terms is not None:
            phase = replace(phase, groups={"forget": dict(terms)})
            self.states |= {f"forget/{name}": {} for name in terms}
        self._run_before_step()
        parameters = list(self.primary.parameters.values())
        total = [torch.zeros_like(parameter) for parameter in parameters]
        for batch in batches:
            self.common.shared.clear()
            moved = self.transfer_batch_to_device(batch, self.device, 0)
            lazy = TermValues(phase, self.model, moved, self._context, StepLog()).lazy("forget")
            torch._foreach_add_(total, fresh_gradients(lazy, parameters))
        take_gradients(parameters)
        self.states = kept
        return dict(zip(self.primary.parameters, total, strict=True))

    def snapshot(self) -> dict[str, Any]:
        """Return everything that a resumed run needs, except the frozen target."""
        return {
            "step": self.step_count,
            "parameters": [
                {name: parameter.detach() for name, parameter in phase.parameters.items()} for phase in self.phases
            ],
            "buffers": dict(self.model.named_buffers()),
            "optimizers": [optimizer.state_dict() for optimizer in self.plain_optimizers()],
            "states": self.states,
            "combine": self.combine_states,
            "average": self.average.values,
            "goal": self.goal,
        }

    @torch.no_grad()
    def load_weights(self, state: dict[str, Any]) -> None:
        """Load the weights, buffers, averages and terms' states. Raises RecipeError where they are no such state's."""
        with restoring("of the run"):
            self.step_count = state["step"]
            for phase, values in zip(self.phases, state["parameters"], strict=True):
                for name, parameter in phase.parameters.items():
                    copy_stored(name, values[name], parameter)
            for name, buffer in self.model.named_buffers():
                copy_stored(name, state["buffers"][name], buffer)
            self.states = {term: dict(state["states"][term]) for term in self.states}
            self.combine_states = move_data_to_device([dict(kept) for kept in state["combine"]], self.device)
            self.average.load(state["average"])
            self.goal = state["goal"]

    def _restore(self, state: dict[str, Any]) -> None:
        self.load_weights(state)
        with restoring("of the run"):
            for optimizer, saved in zip(self.plain_optimizers(), state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)

    def plain_optimizers(self) -> list[Optimizer]:
        """Return PyTorch's own optimizers, one per phase, without Lightning's wrapper."""
        optimizers: Any = self.optimizers(use_pl_optimizer=False)
        return optimizers if isinstance(optimizers, list) else [optimizers]

    def _objective(self, term: str) -> Objective[Any]:
        return next(o for phase in self.phases for group, name, o in phase.terms() if f"{group}/{name}" == term)

    def _context(self, term: str) -> Context[Any]:
        group, _, name = term.partition("/")
        own = (phase.network for phase in self.phases if term in phase.owners or name in phase.groups.get(group, {}))
        return replace(
            self.common,
            step=self.step_count,
            randomness=self.common.randomness.child(term).at(self.step_count),
            state=self.states[term],
            device=self.device,
            split=group,
            auxiliary=next((network for network in own if network is not None), None),
        )


def _no_reference() -> Any:
    raise RuntimeError("this phase has no reference: it trains a target")


def _refuse_unreached(phase: Phase, reached: set[str]) -> None:
    """Raise a RecipeError for parameters that no loss reaches on any rank: they would stay untrained."""
    everywhere = set[str]().union(*gather_objects(reached))
    if lost := [name for name in phase.parameters if name not in everywhere]:
        shown = ", ".join(lost[:5]) + (f" and {len(lost) - 5} more" if len(lost) > 5 else "")
        raise RecipeError(
            f"Phase {phase.name!r}: no loss reaches {len(lost)} of {len(phase.parameters)} trained "
            f"parameters: {shown}. Narrow the scope (scope.exclude=[...], with scope.name=pattern in place of all), or "
            "add a loss that reaches them."
        )


def clip(gradients: Sequence[Tensor], largest: float | None) -> Tensor:
    """Scale the gradients in place so that their norm is at most ``largest``; return the norm before clipping."""
    size = norm(gradients)
    if largest is not None:
        torch._foreach_mul_(list(gradients), (largest / (size + 1e-6)).clamp(max=1.0))
    return size
