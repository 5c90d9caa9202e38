"""A phase: one network that steps on its own losses; a method with several networks has several."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from unlearn.core.distributed import gather_objects, gather_rows, rank, sum_over_ranks, world_size
from unlearn.core.errors import RecipeError
from unlearn.core.optim import Optim
from unlearn.data.base import Batch
from unlearn.objectives.base import Context, Objective, ParameterObjective
from unlearn.objectives.surgery import Combination, WeightedSum, angle, cosine, gram
from unlearn.training.gradients import LazyLoss, add_gradient, fresh_gradients, take_gradients


@dataclass(eq=False)  # by identity: two phases are never compared by their tensors
class Phase:
    """Which parameters step on which losses.

    Args:
        parameters: what moves, by name.
        groups: the terms by group, ``forget`` and ``retain``; a group reads the split of its name.
        optim: how it moves.
        combine: how the groups' gradients become one.
        name: for the log.
        every: run at every n-th step.
        primary: whether its steps are the steps that the run counts.
        network: what moves, where it is not the model; its terms find it in their context.
        owners: the terms, ``group/name``, that brought the network, and that find it too.
        warmup: steps that it takes before the first primary one.
        rests: whether it takes those alone; see Companion.
        file: where the network is written after the run; see Companion.
    """

    parameters: dict[str, nn.Parameter]
    groups: dict[str, dict[str, Objective]]
    optim: Optim
    combine: Combination = field(default_factory=WeightedSum)
    name: str = "main"
    every: int = 1
    primary: bool = True
    network: nn.Module | None = None
    owners: tuple[str, ...] = ()
    warmup: int = 0
    rests: bool = False
    file: str = ""

    @property
    def first(self) -> int:
        """The first step at which it is due; primary steps count from 0."""
        return -(self.warmup // self.every) * self.every

    def is_due(self, step: int) -> bool:
        """Whether it moves at a step."""
        return step >= self.first and step % self.every == 0 and not (self.rests and step >= 0)

    def terms(self) -> Iterable[tuple[str, str, Objective]]:
        """Yield (group, name, objective)."""
        for group, terms in self.groups.items():
            for name, objective in terms.items():
                yield group, name, objective


class StepLosses:
    """The losses of one phase at one step, from this rank's micro-batches.

    Every term's per-sample values v_i enter the backward pass as sum_i c_i v_i, where c_i = weight * w_i / W (W the
    sum of sample weights over all ranks and micro-batches) or, for a statistic of the batch, the derivative of that
    statistic over the GLOBAL batch with respect to v_i. Summed over ranks and micro-batches this is the exact
    gradient, whatever the number of either.
    """

    def __init__(
        self,
        phase: Phase,
        model: Any,
        batches: Mapping[str, list[Batch]],
        context: Callable[[str], Context],
    ) -> None:
        self.phase, self.model, self.batches, self.context = phase, model, batches, context
        self.log: dict[str, Tensor] = {}
        self._totals = self._weight_totals()

    def gradient(self, state: dict[str, Any], log: bool) -> list[Tensor]:
        """Return the combined gradient, in ``p.grad``; with ``log`` the conflict cosine is measured as well."""
        parameters = list(self.phase.parameters.values())
        forget, retain = self.group("forget"), self.group("retain")
        summed = isinstance(self.phase.combine, WeightedSum)
        if log and summed and forget and len(retain) == 1 and world_size() == 1:
            return self._summed(forget, retain[0], parameters)
        apart = self.phase.combine.separate or (log and summed)
        if not (forget and retain and apart):
            return fresh_gradients([*forget, *retain], parameters)
        fresh_gradients(forget, parameters)
        forget_gradient = take_gradients(parameters)
        retain_gradient = fresh_gradients(retain, parameters)
        if log:
            self.log["cosine"] = cosine(forget_gradient, retain_gradient) / world_size()  # the same on every rank
        if self.phase.combine.per_sample:
            held = take_gradients(parameters)
            samples = self._per_sample("retain", parameters)
            for parameter, gradient in zip(parameters, held, strict=True):
                parameter.grad = gradient
            self.phase.combine(forget_gradient, held, state, samples)
            return held
        self.phase.combine(forget_gradient, retain_gradient, state)
        return retain_gradient

    def _summed(self, forget: list[LazyLoss], retain: LazyLoss, parameters: list[nn.Parameter]) -> list[Tensor]:
        """Return the sum of both gradients; their cosine is measured while they are added, without a copy of either."""
        total = fresh_gradients(forget, parameters)
        square = gram(total, total)[1]
        products = torch.zeros(3, dtype=torch.float64, device=square.device)

        def note(old: Tensor, added: Tensor) -> None:
            products.add_(torch.stack(gram([old], [added])))

        add_gradient(retain, parameters, note)
        self.log["cosine"] = angle(products[0], square, products[2])
        return total

    def _per_sample(self, group: str, parameters: list[nn.Parameter]) -> list[list[Tensor]]:
        """Return the gradient of every sample of the global batch alone, the same on every rank."""
        batches = [batch for batch in self.batches[group] if len(batch["id"])]
        mine = [{key: value[row : row + 1] for key, value in b.items()} for b in batches for row in range(len(b["id"]))]
        counts = gather_objects(len(mine))
        terms = {n: t for n, t in self.phase.groups[group].items() if not isinstance(t, ParameterObjective)}
        samples = []
        for owner, count in enumerate(counts):
            for index in range(count):
                lazy = partial(self._alone, group, terms, mine[index]) if owner == rank() else lambda: None
                fresh_gradients([lazy], parameters)
                samples.append(take_gradients(parameters))
        return samples

    def _alone(self, group: str, terms: dict[str, Objective], batch: Batch) -> Tensor:
        """Return the weighted sum of the terms' values of one sample, as a scalar."""
        loss = torch.zeros((), device=batch["id"].device)
        for name, term in terms.items():
            values = term(self.model, batch, self.context(f"{group}/{name}")).values
            loss = loss + (term.weight * values).sum()
        return loss

    def reduced_log(self) -> dict[str, float]:
        """Return losses and diagnostics, summed over ranks (a rank without items lacks some)."""
        mine = {key: value.item() for key, value in self.log.items()}
        total: dict[str, float] = {}
        for part in gather_objects(mine):
            for key, value in part.items():
                total[key] = total.get(key, 0.0) + value
        return total

    def followed(self) -> dict[str, dict[str, float]]:
        """Return the mean diagnostics of the terms that follow them, by ``group/name``; the same on all ranks."""
        terms = [(g, name) for g, name, term in self.phase.terms() if term.followed(self.context(f"{g}/{name}"))]
        if not terms:
            return {}
        log = self.reduced_log()
        prefixes = {f"{group}/{name}": f"{self._place(group, name)}/" for group, name in terms}
        return {
            term: {key.removeprefix(prefix): value for key, value in log.items() if key.startswith(prefix)}
            for term, prefix in prefixes.items()
        }

    def _place(self, group: str, name: str) -> str:
        """Return what stands before the names of a term's diagnostics in the log."""
        sampled = [term for term in self.phase.groups[group].values() if not isinstance(term, ParameterObjective)]
        return group if len(sampled) == 1 else f"{group}/{name}"

    def group(self, group: str) -> list[LazyLoss]:
        """Return one lazy loss a micro-batch, and one for the terms over parameters."""
        terms = self.phase.groups.get(group, {})
        sampled = {name: term for name, term in terms.items() if not isinstance(term, ParameterObjective)}
        penalties = {name: term for name, term in terms.items() if isinstance(term, ParameterObjective)}
        lazy: list[LazyLoss] = []
        if sampled:
            micro = self.batches[group]
            known = self._statistic_pass(group, sampled, micro) if len(micro) > 1 else {}
            lazy += [self._lazy(group, sampled, batch, known, index) for index, batch in enumerate(micro)]
        if penalties:
            lazy.append(lambda: self._penalty(group, penalties))
        return lazy

    def _lazy(
        self, group: str, terms: dict[str, Objective], batch: Batch, known: dict[tuple[str, int], Tensor], index: int
    ) -> LazyLoss:
        return lambda: self._micro_batch(group, terms, batch, known, index)

    def _micro_batch(
        self, group: str, terms: dict[str, Objective], batch: Batch, known: dict[tuple[str, int], Tensor], index: int
    ) -> Tensor | None:
        loss: Tensor | None = None
        for name, term in terms.items():
            outcome = term(self.model, batch, self.context(f"{group}/{name}")) if len(batch["id"]) else None
            values = outcome.values if outcome else torch.empty(0, device=batch["id"].device)
            weights = term.sample_weight(batch) if outcome else values
            if (name, index) in known:
                factors = known[name, index]
            elif term.over_batch:
                factors = self._statistic_gradient(group, name, term, [values.detach()], [weights])[0]
            else:
                factors = term.weight * weights / self._totals[group, name]
                self._note(f"loss/{group}/{name}", (factors * values.detach()).sum())
            if outcome:
                part = (factors.to(values.dtype) * values).sum()
                loss = part if loss is None else loss + part
                for key, value in outcome.diagnostics.items():
                    share = weights / self._totals[group, name]
                    self._note(f"{self._place(group, name)}/{key}", (value.detach() * share).sum())
        self._refuse_constant(group, terms, loss)
        return loss

    def _refuse_constant(self, group: str, terms: Mapping[str, Objective], loss: Tensor | None) -> None:
        """Refuse a loss that no moving parameter has a part in: there is no gradient to take."""
        if loss is not None and torch.is_grad_enabled() and not loss.requires_grad:
            moving = list(self.phase.parameters)
            shown = ", ".join(moving[:5]) + (f" and {len(moving) - 5} more" if len(moving) > 5 else "")
            raise RecipeError(
                f"Phase {self.phase.name!r}: {group}={', '.join(terms)} reaches none of the parameters that may move: "
                f"{shown}. Type scope=all, or a scope with parameters that it uses."
            )

    def _penalty(self, group: str, terms: dict[str, ParameterObjective]) -> Tensor:
        """Every rank computes the same penalty; a world-th of it each makes their sum right."""
        total = torch.zeros((), dtype=torch.float64)
        for name, term in terms.items():
            value = term.weight * term.penalty(self.phase.parameters, self.context(f"{group}/{name}"))
            total = total.to(value) + value / world_size()
            self._note(f"loss/{group}/{name}", value.detach() / world_size())
        self._refuse_constant(group, terms, total)
        return total

    @torch.no_grad()
    def _statistic_pass(
        self, group: str, terms: dict[str, Objective], micro: list[Batch]
    ) -> dict[tuple[str, int], Tensor]:
        """Under accumulation, run all micro-batches once without gradient for the statistics of the batch."""
        known: dict[tuple[str, int], Tensor] = {}
        for name, term in terms.items():
            if not term.over_batch:
                continue
            held = [batch for batch in micro if len(batch["id"])]
            values = [term(self.model, batch, self.context(f"{group}/{name}")).values for batch in held]
            weights = [term.sample_weight(batch) for batch in held]
            factors = self._statistic_gradient(group, name, term, values, weights)
            full = iter(factors)
            for index, batch in enumerate(micro):
                known[name, index] = next(full) if len(batch["id"]) else torch.empty(0)
        return known

    def _statistic_gradient(
        self, group: str, name: str, term: Objective, values: list[Tensor], weights: list[Tensor]
    ) -> list[Tensor]:
        """Return d(weight * reduce)/d(values) at this rank's rows, a tensor for each given part."""
        device = next(iter(self.phase.parameters.values())).device
        nothing = torch.empty(0, dtype=torch.float64, device=device)
        local = torch.cat(values).double() if values else nothing
        rows = gather_rows(local)
        counts = gather_rows(torch.cat(weights).double() if weights else nothing)
        leaf = torch.cat(rows).detach().requires_grad_()
        with torch.enable_grad():
            loss = term.weight * term.reduce(leaf, torch.cat(counts))
            (gradient,) = torch.autograd.grad(loss, leaf)
        self._note(f"loss/{group}/{name}", loss.detach() / world_size())  # the same on every rank
        first = sum(len(part) for part in rows[: rank()])
        mine = gradient[first : first + len(local)]
        return list(mine.split([len(part) for part in values])) if values else []

    def _weight_totals(self) -> dict[tuple[str, str], Tensor]:
        """Return every sample term's sum of weights over all ranks and micro-batches, in one reduction."""
        sums: dict[tuple[str, str], Tensor] = {}
        for group, name, term in self.phase.terms():
            if not isinstance(term, ParameterObjective):
                held = [batch for batch in self.batches[group] if len(batch["id"])]
                device = self.batches[group][0]["id"].device
                sums[group, name] = torch.zeros((), dtype=torch.float64, device=device)
                for batch in held:
                    sums[group, name] += term.sample_weight(batch).sum()
        if not sums:
            return {}
        totals = sum_over_ranks(torch.stack(list(sums.values())))
        return dict(zip(sums, totals.unbind(), strict=True))

    def _note(self, key: str, value: Tensor) -> None:
        self.log[key] = self.log[key] + value if key in self.log else value
