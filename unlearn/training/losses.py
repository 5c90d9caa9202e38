"""Computes the losses of one phase at one step: each term's values and factors, the combined gradient, the log."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from unlearn.core.distributed import gather_objects, gather_rows, rank, sum_over_ranks, world_size
from unlearn.core.errors import RecipeError
from unlearn.data.base import Batch
from unlearn.objectives.base import Context, Objective, ParameterObjective, Values
from unlearn.objectives.surgery import WeightedSum, cosine, cosine_of, gram
from unlearn.training.contract import checked_penalty, checked_statistic, checked_values, checked_weight, combine
from unlearn.training.gradients import LazyLoss, add_gradient, fresh_gradients, norm, take_gradients
from unlearn.training.phase import Phase


class StepLog:
    """Losses and diagnostics of one step, summed over this rank's micro-batches.

    Attributes:
        values: by name.
        finite: whether every part of a term's loss was finite so far, by term.
    """

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}
        self.finite: dict[str, Tensor] = {}

    def watch(self, term: str, part: Tensor) -> None:
        """Note whether a part of a term's loss is finite; the device is not waited for."""
        finite = part.detach().isfinite().all()
        self.finite[term] = self.finite[term] & finite if term in self.finite else finite

    def not_finite(self, terms: Sequence[str], device: torch.device) -> list[str]:
        """Return which of the terms have a loss that is not finite on any rank; the same on every rank."""
        fine = torch.ones((), dtype=torch.bool, device=device)
        lost = torch.stack([~self.finite.get(term, fine).to(device) for term in terms]).double()
        return [term for term, found in zip(terms, sum_over_ranks(lost).tolist(), strict=True) if found]

    def add(self, key: str, value: Tensor) -> None:
        """Add this rank's share of a value."""
        self.values[key] = self.values[key] + value if key in self.values else value

    def reduced(self) -> dict[str, float]:
        """Return the sums over ranks; a rank without items lacks some keys."""
        total: dict[str, float] = {}
        for part in gather_objects({key: value.item() for key, value in self.values.items()}):
            for key, value in part.items():
                total[key] = total.get(key, 0.0) + value
        return total


class TermValues:
    """The values of a phase's terms on this rank's micro-batches, each sample's with its factor in the loss.

    Every term's per-sample values v_i enter the backward pass as sum_i c_i v_i, where c_i = weight * w_i / W (W the
    sum of sample weights over all ranks and micro-batches) or, for a statistic of the batch, the derivative of that
    statistic over the GLOBAL batch with respect to v_i. Summed over ranks and micro-batches this is the exact
    gradient, whatever the number of either.

    Args:
        phase: the phase with the terms.
        model: the trained model.
        batches: this rank's micro-batches by split name.
        context: returns the context of a term, ``group/name``.
        log: receives losses and diagnostics.
    """

    def __init__(
        self,
        phase: Phase,
        model: Any,
        batches: Mapping[str, list[Batch]],
        context: Callable[[str], Context[Any]],
        log: StepLog,
    ) -> None:
        self.phase, self.model, self.batches, self.context, self.log = phase, model, batches, context, log
        self._totals = self._weight_totals()

    def lazy(self, group: str) -> list[LazyLoss]:
        """Return one lazy loss per micro-batch of a group, and one for its terms over parameters."""
        sampled, penalties = split_terms(self.phase, group)
        lazy: list[LazyLoss] = []
        if sampled:
            micro = self.batches[group]
            # one micro-batch is the rank's whole batch: its statistic needs no pass of its own
            known = self._statistic_pass(group, sampled, micro) if len(micro) > 1 else {}
            lazy += [partial(self._micro_batch, group, sampled, known, index) for index in range(len(micro))]
        if penalties:
            lazy.append(partial(self._penalty, group, penalties))
        return lazy

    def samples(self, group: str) -> list[LazyLoss]:
        """Return one lazy loss per sample of the global batch; the loss is None for the samples of other ranks."""
        batches = [batch for batch in self.batches[group] if len(batch["id"])]
        mine = [{key: value[row : row + 1] for key, value in b.items()} for b in batches for row in range(len(b["id"]))]
        sampled, _ = split_terms(self.phase, group)
        lazy: list[LazyLoss] = []
        for owner, count in enumerate(gather_objects(len(mine))):
            for index in range(count):
                lazy.append(partial(self._alone, group, sampled, mine[index]) if owner == rank() else lambda: None)
        return lazy

    def _alone(self, group: str, terms: dict[str, Objective[Any]], batch: Batch) -> Tensor:
        """Return the weighted sum of the terms' values of one sample, as a scalar."""
        loss = torch.zeros((), device=batch["id"].device)
        for name, term in terms.items():
            values = self._call(group, name, term, batch).values
            loss = loss + (term.weight * values).sum()
        return loss

    def _call(self, group: str, name: str, term: Objective[Any], batch: Batch) -> Values:
        return checked_values(term, f"{group}={name}", self.model, batch, self.context(f"{group}/{name}"))

    def _micro_batch(
        self, group: str, terms: dict[str, Objective[Any]], known: dict[tuple[str, int], Tensor], index: int
    ) -> Tensor | None:
        batch = self.batches[group][index]
        loss: Tensor | None = None
        for name, term in terms.items():
            outcome = self._call(group, name, term, batch) if len(batch["id"]) else None
            values = outcome.values if outcome else torch.empty(0, device=batch["id"].device)
            weights = checked_weight(term, f"{group}={name}", batch) if outcome else values
            if (name, index) in known:
                factors = known[name, index]
            elif term.over_batch:  # also without items: the statistic is gathered over all ranks
                factors = self._statistic_gradient(group, name, term, [values.detach()], [weights])[0]
            else:  # a weighted mean over the global batch
                factors = term.weight * weights / self._totals[group, name]
                self.log.add(f"loss/{group}/{name}", (factors * values.detach()).sum())
            if outcome:
                part = (factors.to(values.dtype) * values).sum()
                self.log.watch(f"{group}={name}", part)
                loss = part if loss is None else loss + part
                for key, value in outcome.diagnostics.items():
                    share = weights / self._totals[group, name]
                    self.log.add(f"{log_prefix(self.phase, group, name)}/{key}", (value.detach() * share).sum())
        self._require_gradient(group, terms, loss)
        return loss

    def _penalty(self, group: str, terms: dict[str, ParameterObjective[Any]]) -> Tensor:
        """Return this rank's share of the penalty: all ranks compute the same one, and the gradients are summed."""
        total = torch.zeros((), dtype=torch.float64)
        for name, term in terms.items():
            context = self.context(f"{group}/{name}")
            penalty = checked_penalty(term, f"{group}={name}", self.phase.parameters, context)
            value = term.weight * penalty
            self.log.watch(f"{group}={name}", value)
            total = total.to(value) + value / world_size()
            self.log.add(f"loss/{group}/{name}", value.detach() / world_size())
        self._require_gradient(group, terms, total)
        return total

    def _require_gradient(self, group: str, terms: Mapping[str, Objective[Any]], loss: Tensor | None) -> None:
        """Raise a RecipeError if the loss depends on no trained parameter."""
        if loss is not None and torch.is_grad_enabled() and not loss.requires_grad:
            trained = list(self.phase.parameters)
            shown = ", ".join(trained[:5]) + (f" and {len(trained) - 5} more" if len(trained) > 5 else "")
            raise RecipeError(
                f"Phase {self.phase.name!r}: {group}={', '.join(terms)} reaches none of the parameters that are "
                f"trained: {shown}. Type scope=all, or a scope with parameters that it uses."
            )

    @torch.no_grad()
    def _statistic_pass(
        self, group: str, terms: dict[str, Objective[Any]], micro: list[Batch]
    ) -> dict[tuple[str, int], Tensor]:
        """Run all micro-batches once without gradient, for the factors of statistics over the whole batch."""
        known: dict[tuple[str, int], Tensor] = {}
        for name, term in terms.items():
            if not term.over_batch:
                continue
            held = [batch for batch in micro if len(batch["id"])]
            values = [self._call(group, name, term, batch).values for batch in held]
            weights = [checked_weight(term, f"{group}={name}", batch) for batch in held]
            full = iter(self._statistic_gradient(group, name, term, values, weights))
            for index, batch in enumerate(micro):
                known[name, index] = next(full) if len(batch["id"]) else torch.empty(0)
        return known

    def _statistic_gradient(
        self, group: str, name: str, term: Objective[Any], values: list[Tensor], weights: list[Tensor]
    ) -> list[Tensor]:
        """Return d(weight * reduce)/d(values) at this rank's rows, one tensor per given part."""
        device = next(iter(self.phase.parameters.values())).device
        nothing = torch.empty(0, dtype=torch.float64, device=device)
        local = torch.cat(values).double() if values else nothing
        rows = gather_rows(local)
        counts = gather_rows(torch.cat(weights).double() if weights else nothing)
        leaf = torch.cat(rows).detach().requires_grad_()
        with torch.enable_grad():
            loss = term.weight * checked_statistic(term, f"{group}={name}", leaf, torch.cat(counts))
            (gradient,) = torch.autograd.grad(loss, leaf)
        self.log.add(f"loss/{group}/{name}", loss.detach() / world_size())  # the same on every rank
        first = sum(len(part) for part in rows[: rank()])  # the rows are gathered in rank order
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
                    sums[group, name] += checked_weight(term, f"{group}={name}", batch).sum()
        if not sums:
            return {}
        totals = sum_over_ranks(torch.stack(list(sums.values())))
        return dict(zip(sums, totals.unbind(), strict=True))


class StepLosses:
    """The gradient of one phase at one step, combined as its ``combine`` says; arguments as in TermValues.

    Attributes:
        forget_size: norm of this rank's gradient of the forget terms, where ``gradient`` was asked for it.
    """

    def __init__(
        self,
        phase: Phase,
        model: Any,
        batches: Mapping[str, list[Batch]],
        context: Callable[[str], Context[Any]],
    ) -> None:
        self.phase, self.context, self.log = phase, context, StepLog()
        self.values = TermValues(phase, model, batches, context, self.log)
        self.forget_size: Tensor | None = None

    def gradient(self, state: dict[str, Any], log: bool, watch_forget: bool = False) -> list[Tensor]:
        """Return the combined gradient, in ``p.grad``; with ``log`` the conflict cosine is measured as well."""
        rule, parameters = self.phase.combine, list(self.phase.parameters.values())
        forget, retain = self.values.lazy("forget"), self.values.lazy("retain")
        if watch_forget and forget and retain:
            retain[0] = partial(self._after_forget, retain[0], parameters)
        summed = isinstance(rule, WeightedSum)
        if log and summed and forget and len(retain) == 1 and world_size() == 1:
            return self._summed(forget, retain[0], parameters)
        apart = rule.separate or (log and summed)
        if not (forget and retain and apart):  # one backward pass per micro-batch, and one copy of the gradient
            return fresh_gradients([*forget, *retain], parameters)
        fresh_gradients(forget, parameters)
        forget_gradient = take_gradients(parameters)
        self.forget_size = norm(forget_gradient) if watch_forget else None
        retain_gradient = fresh_gradients(retain, parameters)
        if log:
            # the same on every rank, while the log sums over ranks
            self.log.add("cosine", cosine(forget_gradient, retain_gradient) / world_size())
        if not rule.per_sample:
            combine(rule, forget_gradient, retain_gradient, state)
            return retain_gradient
        # p.grad is reused for each sample and then given back: the optimizer reads the result there
        held, samples = take_gradients(parameters), []
        for lazy in self.values.samples("retain"):
            fresh_gradients([lazy], parameters)
            samples.append(take_gradients(parameters))
        for parameter, gradient in zip(parameters, held, strict=True):
            parameter.grad = gradient
        combine(rule, forget_gradient, held, state, samples)
        return held

    def _after_forget(self, retain: LazyLoss, parameters: list[nn.Parameter]) -> Tensor | None:
        """Note the forget terms' gradient, which is all that there is before the first loss of the retain terms."""
        held = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if held and self.forget_size is None:
            self.forget_size = norm(held)
        return retain()

    def _summed(self, forget: list[LazyLoss], retain: LazyLoss, parameters: list[nn.Parameter]) -> list[Tensor]:
        """Return the sum of both gradients; their cosine is measured during the addition, without a copy of either."""
        total = fresh_gradients(forget, parameters)
        square = gram(total, total)[1]
        products = torch.zeros(3, dtype=torch.float64, device=square.device)

        def note(old: Tensor, added: Tensor) -> None:
            products.add_(torch.stack(gram([old], [added])))

        add_gradient(retain, parameters, note)
        self.log.add("cosine", cosine_of(products[0], square, products[2]))
        return total

    def followed(self) -> dict[str, dict[str, float]]:
        """Return the mean diagnostics of the terms that follow them, by ``group/name``; the same on all ranks."""
        terms = [(g, name) for g, name, term in self.phase.terms() if term.followed(self.context(f"{g}/{name}"))]
        if not terms:
            return {}
        log = self.log.reduced()
        prefixes = {f"{group}/{name}": f"{log_prefix(self.phase, group, name)}/" for group, name in terms}
        return {
            term: {key.removeprefix(prefix): value for key, value in log.items() if key.startswith(prefix)}
            for term, prefix in prefixes.items()
        }


def split_terms(phase: Phase, group: str) -> tuple[dict[str, Objective[Any]], dict[str, ParameterObjective[Any]]]:
    """Return a group's terms over samples and its terms over parameters, by name."""
    terms = phase.groups.get(group, {})
    penalties = {name: term for name, term in terms.items() if isinstance(term, ParameterObjective)}
    return {name: term for name, term in terms.items() if name not in penalties}, penalties


def log_prefix(phase: Phase, group: str, name: str) -> str:
    """Return the prefix of a term's diagnostics in the log; it has the term's name only if the group has several."""
    return group if len(split_terms(phase, group)[0]) == 1 else f"{group}/{name}"
