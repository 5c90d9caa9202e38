"""The table of a study: one row per run and one column per figure, over the finished seeds."""

import math
import re
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from unlearn.core.errors import RecipeError, did_you_mean
from unlearn.core.files import read_text, write_text
from unlearn.core.intervals import t_interval
from unlearn.core.records import Record, find
from unlearn.core.shown import csv_text
from unlearn.report.card import code, plain
from unlearn.report.formatting import YES_NO, figure, interval
from unlearn.report.labels import ARROWS, DIRECTIONS
from unlearn.report.read_run import RunFolder
from unlearn.study.spec import Column, Study


@dataclass(frozen=True)
class Line:
    """One row: a run or a reference, with one cell per column, None if nothing was measured."""

    name: str
    cells: list[Record | None]
    state: str = "done"
    notes: tuple[str, ...] = ()


def cell(column: Column, runs: Sequence[RunFolder], subject: str | None = None) -> Record | None:
    """Return a column's figure over the runs of several seeds: the mean, with Student's t interval.

    One seed alone keeps its own interval, over items; a difference of one seed has none.
    """
    found = [one for run in runs if (one := _of_seed(column, run.records, subject or column.subject)) is not None]
    values = [record.value for record in found if math.isfinite(record.value)]
    if not found or len(found) == 1:
        return found[0] if found else None
    first = found[0]
    ends = None if first.metric in YES_NO else t_interval(values)
    if ends is not None and column.absolute:
        ends = (max(0.0, ends[0]), ends[1])
    mean = statistics.fmean(values) if values else math.nan
    return replace(first, value=mean, ci95=ends, n=len(values), seed=0)


def _of_seed(column: Column, records: Sequence[Record], subject: str) -> Record | None:
    record = find(records, column.metric, subject, column.split or None, column.evaluator or None, **column.about)
    if record is None or column.minus is None:
        return record
    other = find(records, column.metric, column.minus, record.split, evaluator=record.evaluator, **record.about)
    if other is None:
        return None
    difference = record.value - other.value
    value = abs(difference) if column.absolute else difference
    return replace(record, value=value, ci95=None, n=1, direction="zero", seed=0)


def ordered(study: Study, lines: Sequence[Line]) -> list[Line]:
    """Return the rows sorted by the study's order column, best first; rows without a figure come last."""
    if not study.spec.order:
        return list(lines)
    place = list(study.spec.columns).index(study.spec.order)

    def rank(line: Line) -> float:
        record = line.cells[place]
        if record is None or not math.isfinite(record.value):
            return math.inf
        return {"higher": -record.value, "zero": abs(record.value)}.get(record.direction, record.value)

    return sorted(lines, key=rank)


def reference_lines(study: Study, runs: Sequence[Sequence[RunFolder]]) -> Iterator[Line]:
    """Yield a row per reference; its cell is empty if the runs differ, e.g. because their data do."""
    for subject in study.spec.references:
        cells: list[Record | None] = []
        for column in study.spec.columns.values():
            own = [] if column.subject != "unlearned" else [cell(column, seeds, subject) for seeds in runs]
            texts = {cell_text(record) for record in own if record is not None}
            cells.append(next((one for one in own if one is not None), None) if len(texts) == 1 else None)
        yield Line(subject, cells, state="")


def cell_text(record: Record | None) -> str:
    """Return ``figure (low to high)``, or a dash if nothing was measured."""
    if record is None:
        return "–"
    ends = "" if record.metric in YES_NO else interval(record)
    return figure(record.value, record.unit, record.metric) + (f" ({ends})" if ends else "")


def markdown(study: Study, lines: Sequence[Line]) -> str:
    """Return the table with its caption and notes."""
    arrows = [ARROWS[next((r.direction for r in column if r is not None), "none")] for column in _columns(study, lines)]
    headings = [f"{name} {arrow}".strip() for name, arrow in zip(study.spec.columns, arrows, strict=True)]
    troubled = any(line.state not in ("done", "") for line in lines)
    rows = [["", *headings, *(["run"] if troubled else [])]]
    rows += [[line.name, *map(cell_text, line.cells), *([line.state] if troubled else [])] for line in lines]
    text = ["| " + " | ".join(map(plain, row)) + " |" for row in rows]
    text.insert(1, "|---|" + "---:|" * len(headings) + ("---|" if troubled else ""))
    notes = [f"- {plain(line.name)}, {plain(note)}" for line in lines for note in line.notes]
    return "\n".join([*text, "", caption(study, arrows), *(["", *notes] if notes else [])]) + "\n"


def caption(study: Study, arrows: Sequence[str]) -> str:
    """Return the caption: what brackets and arrows mean, and the command that makes the table."""
    over = f"seeds {', '.join(map(str, study.spec.seeds))}" if len(study.spec.seeds) > 1 else "items"
    means = {ARROWS[name]: text for name, text in DIRECTIONS.items() if ARROWS[name] in arrows and ARROWS[name]}
    legend = "; ".join(f"{arrow} {text}" for arrow, text in means.items())
    made = f"Made by `python -m unlearn.study {code(study.asked)}`."
    return f"In brackets: 95 % interval over {over}. – : not measured. {legend + '. ' if legend else ''}{made}"


def _columns(study: Study, lines: Sequence[Line]) -> list[list[Record | None]]:
    return [[line.cells[place] for line in lines] for place in range(len(study.spec.columns))]


def table_csv(study: Study, lines: Sequence[Line]) -> str:
    """Return the table as CSV: value, low and high of every column."""
    columns = ["run", "state", *(f"{name}{end}" for name in study.spec.columns for end in ("", " low", " high"))]
    rows: list[list[float | str]] = []
    for line in lines:
        numbers: list[float | str] = []
        for record in line.cells:
            low, high = record.ci95 or ("", "") if record else ("", "")
            numbers += [record.value if record and math.isfinite(record.value) else "", low, high]
        rows.append([line.name, line.state, *numbers])
    return csv_text(columns, rows)


def empty_columns(study: Study, lines: Sequence[Line], runs: Sequence[RunFolder]) -> list[str]:
    """Return a sentence for each column that no finished run has a figure for."""
    if not runs:
        return []
    metrics = {record.metric for run in runs for record in run.records}
    found = []
    for (name, column), cells in zip(study.spec.columns.items(), _columns(study, lines), strict=True):
        if all(record is None for record in cells):
            known = did_you_mean(column.metric, metrics) if column.metric not in metrics else _abouts(column, runs)
            found.append(f"column {name!r}: no run has a figure for it. {known}")
    return found


def _abouts(column: Column, runs: Sequence[RunFolder]) -> str:
    """Return the (subject, split, about) under which a metric was found."""
    seen = dict.fromkeys(
        ", ".join([record.subject, record.split or "no split", *(f"{k}: {v}" for k, v in record.about.items())])
        for run in runs
        for record in run.records
        if record.metric == column.metric
    )
    return f"{column.metric} was measured for: {'; '.join(seen)}."


def block(path: Path, name: str) -> tuple[str, str]:
    """Return the text before and after the block of a study in a document.

    Raises:
        RecipeError: the file does not exist, or does not have exactly one such block.
    """
    if not path.is_file():
        raise RecipeError(f"--write: there is no file {path}.")
    text = read_text(path, "--write")
    found = list(re.finditer(rf"<!-- table: {re.escape(name)} -->\n.*?(?=<!-- end -->)", text, re.DOTALL))
    if len(found) != 1:
        raise RecipeError(
            f"--write: {path} has {len(found)} blocks of {name}. Put these two lines where the table belongs:\n"
            f"<!-- table: {name} -->\n<!-- end -->"
        )
    start, end = found[0].span()
    return text[:start], text[end:]


def write_block(path: Path, name: str, table: str) -> None:
    """Replace the text between the markers of a document by a table."""
    before, behind = block(path, name)
    write_text(path, f"{before}<!-- table: {name} -->\n{table}{behind}")
