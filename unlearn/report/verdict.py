"""The verdict in plain words: what moved, whether the goals were reached, what it cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from unlearn.config.schema import Gate
from unlearn.core.errors import RecipeError, did_you_mean
from unlearn.core.records import Record, find
from unlearn.report.labels import HEADLINES, YES_NO, duration, figure, metric_label, phrase, with_unit
from unlearn.report.read_run import RunFolder
from unlearn.report.table import Row, cell_text, rows

FORGET_SPLITS = ("forget", "probe")
KEPT_SPLITS = ("retain", "test", "neighbours", "strangers", "cross_domain", "")
FOUND_BY_ATTACKS = {"exact_memorization": "an exact memorization of {}", "accuracy": "the concept in {} of samples"}
"""What attacks find, by their score."""
Level = Literal["met", "missed", "open", "unfinished"]


@dataclass(frozen=True)
class Goal:
    """One goal of a run, and whether it was reached; ``met`` is None where the figure is not there."""

    name: str
    text: str
    found: str
    met: bool | None


@dataclass(frozen=True)
class Verdict:
    """One word and a few sentences; the first says what was forgotten."""

    level: Level
    word: str
    sentences: list[str]
    goals: list[Goal]


def judge(run: RunFolder) -> Verdict:
    """Judge a run by its records alone: gates, the method's own stop rule, and the movement of the figures."""
    measured = rows(run.records)
    goals = check_gates(read_gates(run), run.records) + method_goals(run.records)
    sentences = [
        text for text in (_forgetting(run, measured), _keeping(run, measured), _attacked(measured), _cost(run)) if text
    ]
    level, word = _level(run.status, goals)
    return Verdict(level, word, sentences, goals)


def _level(status: str, goals: Sequence[Goal]) -> tuple[Level, str]:
    missed = [goal for goal in goals if not goal.met]
    if status != "done":
        return "unfinished", f"This run did not come to its end (status: {status})"
    if not goals:
        return "open", "The recipe sets no goal; judge by the figures"
    if not missed:
        return "met", "The goal was reached" if len(goals) == 1 else "All goals were reached"
    return "missed", "The goal was not reached" if len(
        goals
    ) == 1 else f"{len(missed)} of {len(goals)} goals were not reached"


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


def check_gates(gates: Mapping[str, Gate], records: Sequence[Record]) -> list[Goal]:
    """Compare figures with the recipe's thresholds; a figure that is missing or undefined misses its gate."""
    return [_check(name, gate, records) for name, gate in gates.items()]


def _check(name: str, gate: Gate, records: Sequence[Record]) -> Goal:
    split = gate.split or None
    record = find(records, gate.metric, gate.subject, split, **gate.about)
    base = find(records, gate.metric, gate.minus, split, **gate.about) if gate.minus else None
    limits = [f"at least {figure(gate.min, record.unit if record else '')}"] if gate.min is not None else []
    limits += [f"at most {figure(gate.max, record.unit if record else '')}"] if gate.max is not None else []
    asked = record or Record(
        evaluator="", metric=gate.metric, subject=gate.subject, value=math.nan, split=gate.split, about=gate.about
    )
    text = f"{phrase(asked)}{f', less the {gate.minus} model’s' if gate.minus else ''}: {' and '.join(limits)}"
    if record is None or (gate.minus and base is None):
        return Goal(name, text, "not measured", None)
    value = record.value - (base.value if base else 0.0)
    met = math.isfinite(value) and value >= _or(gate.min, -math.inf) and value <= _or(gate.max, math.inf)
    return Goal(name, text, with_unit(value, record.unit, record.metric), met)


def method_goals(records: Sequence[Record]) -> list[Goal]:
    """Return whether the method's own stop rule was satisfied (metric ``reached``), one goal a term."""
    return [
        Goal(
            "reached",
            phrase(record),
            "in part" if 0 < record.value < 1 else figure(record.value, "", "reached"),
            record.value == 1,
        )
        for record in records
        if record.metric == "reached" and record.subject == "unlearned"
    ]


def forget_row(run: RunFolder, measured: Sequence[Row], with_target: bool = False) -> Row | None:
    """Return the row that says best whether it was forgotten: one with a gate, then one with a direction."""
    return pick(run, measured, lambda row: row.split in FORGET_SPLITS, with_target)


def kept_row(run: RunFolder, measured: Sequence[Row], with_target: bool = False) -> Row | None:
    """Return the row that says best what happened to everything else: a gate's, then one over all categories."""
    return pick(run, measured, lambda row: row.split in KEPT_SPLITS and "category" not in row.about, with_target)


def pick(run: RunFolder, measured: Sequence[Row], wanted: Callable[[Row], bool], with_target: bool) -> Row | None:
    """Return the best of the wanted rows that have a figure and a direction, or None."""
    gated = {(gate.metric, gate.split) for gate in read_gates(run).values()}
    found = [
        row
        for row in measured
        if wanted(row)
        and row.evaluator != "cost"
        and row.metric not in YES_NO
        and row.direction != "none"
        and math.isfinite(row.value("unlearned"))
        and (not with_target or math.isfinite(row.value(before_of(row))))
    ]

    def rank(row: Row) -> tuple[int, ...]:
        is_gated = (row.metric, row.split) in gated or (row.metric, "") in gated
        known = HEADLINES.index(row.metric) if row.metric in HEADLINES else len(HEADLINES)
        return (not is_gated, known, row.direction not in ("lower", "higher"))

    return min(found, key=rank, default=None)


def before_of(row: Row) -> str:
    """Return the subject that unlearning began from: the target, or the corrupted model that is the target."""
    return "corrupted" if "target" not in row.cells and "corrupted" in row.cells else "target"


def _forgetting(run: RunFolder, measured: Sequence[Row]) -> str:
    row = forget_row(run, measured, with_target=True) or forget_row(run, measured)
    if row is None:
        return "No figure on the forget data was recorded."
    return _movement(row) + _doubt(row)


def _doubt(row: Row) -> str:
    """Say so where a figure moved the wrong way, or by less than its intervals."""
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


def _is_same(row: Row) -> bool:
    return cell_text(row, before_of(row)) == cell_text(row, "unlearned")


def _keeping(run: RunFolder, measured: Sequence[Row]) -> str:
    row = kept_row(run, measured, with_target=True) or kept_row(run, measured)
    return _movement(row) if row else "No figure on anything but the forget data was recorded."


def _attacked(measured: Sequence[Row]) -> str:
    """Name the attack after which the model remembers most, compared with one that never saw the data."""

    def excess(row: Row) -> float:
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
    way = metric_label(worst.metric).removeprefix("attack ") + (f" ({budget})" if budget else "")
    return (
        f"The strongest attack that was run, {way}, finds {FOUND_BY_ATTACKS[worst.about['score']].format(values[0])} "
        f"(retrained without it: {values[1]})."
    )


def _movement(row: Row) -> str:
    """Say how a figure went from the target to the unlearned model, beside the retrained one."""
    before, after = row.value(before_of(row)), row.value("unlearned")
    gold, what = (
        (row.value("retrained"), "retrained without it")
        if "retrained" in row.cells
        else (row.value("clean"), "the clean model")
    )
    end = with_unit(after, row.unit, row.metric)
    if not math.isfinite(before):
        text = f"{row.phrase} is {end}"
    elif _is_same(row):
        text = f"{row.phrase} stayed at {end}"
    else:
        text = (
            f"{row.phrase} {'fell' if after < before else 'rose'} from {figure(before, row.unit, row.metric)} to {end}"
        )
    reference = f" ({what}: {figure(gold, row.unit, row.metric)})" if math.isfinite(gold) else ""
    return text[:1].upper() + text[1:] + reference + "."


def _cost(run: RunFolder) -> str:
    seconds, share = find(run.records, "cost_seconds"), find(run.records, "cost_share")
    if seconds is None or not math.isfinite(seconds.value):
        return ""
    more = (
        f", {figure(share.value, 'share')} of the target’s training time"
        if share and math.isfinite(share.value)
        else ""
    )
    return f"Unlearning took {duration(seconds.value)}{more}."


def _or(value: Any, default: float) -> float:
    return default if value is None else float(value)
