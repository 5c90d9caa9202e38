"""The verdict in plain words: what changed, whether the goals were reached, what it cost."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal

from unlearn.config.schema import Gate
from unlearn.core.errors import RecipeError, did_you_mean
from unlearn.core.records import Record, find
from unlearn.report.formatting import YES_NO, duration, figure, with_unit
from unlearn.report.labels import COST_METRICS, phrase
from unlearn.report.read_run import RunFolder
from unlearn.report.table import Measurement, cell_text, difference_text, measurements

FORGET_SPLITS = ("forget", "probe")
KEPT_SPLITS = ("retain", "test", "neighbours", "strangers", "cross_domain", "")
HEADLINES = (
    "restoration_ratio",
    "identity_similarity",
    "accuracy",
    "sample_share",
    "likelihood_quantile",
    "exact_memorization",
    "model_utility",
)
"""Metrics that a reader grasps first; the verdict prefers them, in this order, among those without a gate."""
FOUND_BY_ATTACKS = {"exact_memorization": "an exact memorization of {}", "accuracy": "the concept in {} of samples"}
"""What an attack finds, by its score; attacks with other scores are not compared."""
VerdictLevel = Literal["met", "missed", "open", "unfinished"]


@dataclass(frozen=True)
class GoalResult:
    """One goal of a run, and whether it was reached; ``met`` is None if its figure was not measured."""

    name: str
    text: str
    found: str
    met: bool | None


@dataclass(frozen=True)
class Verdict:
    """One word and a few sentences; the first says what was forgotten."""

    level: VerdictLevel
    word: str
    sentences: list[str]
    goals: list[GoalResult]


def judge(run: RunFolder) -> Verdict:
    """Judge a run by its records alone: gates, the method's own stop rule, and how the figures changed."""
    gates, by_request = read_gates(run), requests_of(run.records)
    measured = measurements(last_of(run.records))
    goals = [goal for records in by_request.values() for goal in check_gates(gates, records)]
    goals += method_goals(run.records)
    sentences = [_forgetting(run, measured), _keeping(run, measured), _attacked(measured)]
    sentences += [_cost(run)] if len(by_request) == 1 else []
    level, word = _level(run.status, goals)
    return Verdict(level, word, [sentence for sentence in sentences if sentence], goals)


def request_key(records: Sequence[Record]) -> str:
    """Return what tells the sizes or requests of records apart: ``size`` or ``request``, empty where nothing does."""
    return next((key for record in records for key in ("size", "request") if key in record.about), "")


def requests_of(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Return the records of each size or request, in order; all under an empty label where they are of one."""
    name = request_key(records)
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(record.about.get(name, ""), []).append(record)
    return found or {"": []}


def last_of(records: Sequence[Record]) -> list[Record]:
    """Return the records of the last size or request, all where they are of one."""
    return list(requests_of(records).values())[-1]


def _level(status: str, goals: Sequence[GoalResult]) -> tuple[VerdictLevel, str]:
    missed, only = sum(not goal.met for goal in goals), len(goals) == 1
    if status != "done":
        return "unfinished", f"This run did not come to its end (status: {status})"
    if not goals:
        return "open", "The recipe sets no goal; judge by the figures"
    if not missed:
        return "met", "The goal was reached" if only else "All goals were reached"
    return "missed", "The goal was not reached" if only else f"{missed} of {len(goals)} goals were not reached"


def read_gates(run: RunFolder) -> dict[str, Gate]:
    """Build the gates of a resolved recipe."""
    allowed = [item.name for item in fields(Gate)]
    gates = {}
    for name, node in run.part("gate").items():
        wrong = [key for key in node if key not in allowed] if isinstance(node, Mapping) else ["(no mapping)"]
        if wrong:
            raise RecipeError(f"gate.{name}: unknown key {wrong[0]!r}. {did_you_mean(wrong[0], allowed)}")
        gates[name] = Gate(**node)
    return gates


def check_gates(gates: Mapping[str, Gate], records: Sequence[Record]) -> list[GoalResult]:
    """Compare figures with the recipe's thresholds; a missing or undefined figure misses its gate."""
    return [_check(name, gate, records) for name, gate in gates.items()]


def _check(name: str, gate: Gate, records: Sequence[Record]) -> GoalResult:
    def measured(subject: str) -> Record | None:
        return find(records, gate.metric, subject, gate.split or None, gate.evaluator or None, **gate.about)

    record, base = measured(gate.subject), measured(gate.minus) if gate.minus else None
    asked = record or Record(
        evaluator="", metric=gate.metric, subject=gate.subject, value=math.nan, split=gate.split, about=gate.about
    )
    limits = [f"at least {figure(gate.min, asked.unit)}"] if gate.min is not None else []
    limits += [f"at most {figure(gate.max, asked.unit)}"] if gate.max is not None else []
    less = f", less the {gate.minus} model’s" if gate.minus else ""
    text = f"{phrase(asked, gate.evaluator)}{less}: {' and '.join(limits)}"
    if record is None or (gate.minus and base is None):
        return GoalResult(name, text, "not measured", None)
    value = record.value - (base.value if base else 0.0)
    low, high = (-math.inf if gate.min is None else gate.min), (math.inf if gate.max is None else gate.max)
    met = math.isfinite(value) and low <= value <= high
    return GoalResult(name, text, with_unit(value, record.unit, record.metric), met)


def method_goals(records: Sequence[Record]) -> list[GoalResult]:
    """Return whether the method's own stop rule was satisfied (metric ``reached``), one goal per term."""
    return [
        GoalResult(
            "reached",
            phrase(record),
            "in part" if 0 < record.value < 1 else figure(record.value, "", "reached"),
            record.value == 1,
        )
        for record in records
        if record.metric == "reached" and record.subject == "unlearned"
    ]


def forget_row(run: RunFolder, measured: Sequence[Measurement], with_target: bool = False) -> Measurement | None:
    """Return the figure that says best whether it was forgotten: one with a gate, then one with a direction."""
    return pick(run, measured, lambda row: row.split in FORGET_SPLITS, with_target)


def kept_row(run: RunFolder, measured: Sequence[Measurement], with_target: bool = False) -> Measurement | None:
    """Return the figure that says best what happened to everything else: a gate's, then one over all categories."""
    return pick(run, measured, lambda row: row.split in KEPT_SPLITS and "category" not in row.about, with_target)


def pick(
    run: RunFolder, measured: Sequence[Measurement], wanted: Callable[[Measurement], bool], with_target: bool
) -> Measurement | None:
    """Return the best of the wanted rows that have a figure and a direction, or None."""
    gates = read_gates(run).values()
    found = [
        row
        for row in measured
        if wanted(row)
        and row.metric not in (*COST_METRICS, *YES_NO)
        and row.direction != "none"
        and math.isfinite(row.value("unlearned"))
        and (not with_target or math.isfinite(row.value(before_of(row))))
    ]

    def rank(row: Measurement) -> tuple[int, ...]:
        known = HEADLINES.index(row.metric) if row.metric in HEADLINES else len(HEADLINES)
        return (not any(_is_of(gate, row) for gate in gates), known, row.direction not in ("lower", "higher"))

    return min(found, key=rank, default=None)


def _is_of(gate: Gate, row: Measurement) -> bool:
    named = gate.metric == row.metric and gate.evaluator in ("", row.evaluator)
    return named and gate.split in ("", row.split)


def before_of(row: Measurement) -> str:
    """Return the subject that unlearning began from: the target, or the corrupted model that is the target."""
    return "corrupted" if "target" not in row.cells and "corrupted" in row.cells else "target"


def _forgetting(run: RunFolder, measured: Sequence[Measurement]) -> str:
    row = forget_row(run, measured, with_target=True) or forget_row(run, measured)
    return _change(row) + _doubt(row) if row else "No figure on the forget data was recorded."


def _doubt(row: Measurement) -> str:
    """Say if a figure changed the wrong way, or by less than its intervals."""
    before, after = row.cells.get(before_of(row)), row.cells["unlearned"]
    if before is None or not math.isfinite(before.value) or _is_same(row):
        return ""
    worse = {"lower": after.value > before.value, "higher": after.value < before.value}
    worse |= {"zero": row.gap() > row.gap("target"), "retrained": row.gap() > row.gap("target")}
    if worse.get(row.direction, False):
        return " That is the wrong way."
    if before.ci95 and after.ci95 and before.ci95[0] <= after.ci95[1] and after.ci95[0] <= before.ci95[1]:
        return " The two 95 % intervals overlap, so this may be chance."
    return ""


def _is_same(row: Measurement) -> bool:
    return cell_text(row, before_of(row)) == cell_text(row, "unlearned")


def _keeping(run: RunFolder, measured: Sequence[Measurement]) -> str:
    row = kept_row(run, measured, with_target=True) or kept_row(run, measured)
    return _change(row) if row else "No figure on anything but the forget data was recorded."


def _attacked(measured: Sequence[Measurement]) -> str:
    """Name the attack after which the model remembers most, compared with one that never saw the data."""

    def excess(row: Measurement) -> float:
        return row.value("unlearned") - row.value("retrained")

    attacks = [
        row
        for row in measured
        if row.metric.startswith("attack_")
        and row.about.get("score") in FOUND_BY_ATTACKS
        and row.about.get("category") != "relearned"  # these were just taught
        and not row.about.get("budget", "").endswith(" 0 steps")  # and this is before the attack
        and math.isfinite(excess(row))
    ]
    if not attacks:
        return ""
    worst = max(attacks, key=excess)
    values = [figure(worst.value(subject), worst.unit, worst.metric) for subject in ("unlearned", "retrained")]
    budget = worst.about.get("budget", "")
    way = worst.label.removeprefix("attack ") + (f" ({budget})" if budget else "")
    return (
        f"The strongest attack that was run, {way}, finds {FOUND_BY_ATTACKS[worst.about['score']].format(values[0])} "
        f"(retrained without it: {values[1]})."
    )


def _change(row: Measurement) -> str:
    """Say how a figure changed from the target to the unlearned model, and what the retrained model has."""
    before, after = row.value(before_of(row)), row.value("unlearned")
    gold, what = ("retrained", "retrained without it") if "retrained" in row.cells else ("clean", "the clean model")
    end = with_unit(after, row.unit, row.metric)
    if not math.isfinite(before):
        text = f"{row.phrase} is {end}"
    elif _is_same(row):
        text = f"{row.phrase} stayed at {end}"
    else:
        verb = "fell" if after < before else "rose"
        text = f"{row.phrase} {verb} from {figure(before, row.unit, row.metric)} to {end}"
    value = row.value(gold)
    reference = f" ({what}: {figure(value, row.unit, row.metric)}{_apart(row)})" if math.isfinite(value) else ""
    return text[:1].upper() + text[1:] + reference + "."


def _apart(row: Measurement) -> str:
    """Say how far the unlearned model is from the retrained one, if that was measured item by item."""
    apart = difference_text(row, "unlearned")
    return f", difference {apart}" if apart else ""


def _cost(run: RunFolder) -> str:
    seconds, share = find(run.records, "cost_seconds"), find(run.records, "cost_share")
    if seconds is None or not math.isfinite(seconds.value):
        return ""
    known = share is not None and math.isfinite(share.value)
    more = f", {figure(share.value, 'share')} of the target’s training time" if share and known else ""
    return f"Unlearning took {duration(seconds.value)}{more}."
