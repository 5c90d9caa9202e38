"""What the charts of a report show: headline strips, the forget-utility picture, training curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from unlearn.report.charts import Chart, Dot, Series, Strip, line_chart, scatter, strip
from unlearn.report.labels import SUBJECTS, figure, ordered
from unlearn.report.read_run import RunFolder
from unlearn.report.table import Row, cell, explain, rows
from unlearn.report.verdict import forget_row, kept_row

FIRST_CURVES = ("loss", "cosine", "z", "share")
"""Quantities whose charts come before the others."""


def tradeoff(run: RunFolder, measured: Sequence[Row]) -> dict[str, Any] | None:
    """Return the forget-utility picture: one point a subject, and faint ones for the single seeds."""
    usable = [row for row in measured if "target" in row.cells]  # where unlearning began is a point of its own
    forget, kept = forget_row(run, usable, with_target=True), kept_row(run, usable, with_target=True)
    if forget is None or kept is None:
        return None
    dots = _subject_dots(forget, kept)
    for seed in run.seeds:
        dots += [dot for dot in _seed_dots(rows(seed.records), forget, kept, seed.path.name)]
    chart = scatter(
        "Forgetting against utility", dots, axis_label(kept), axis_label(forget), units=(kept.unit, forget.unit)
    )
    legend = [(dot.css, cell(forget, dot.css), cell(kept, dot.css)) for dot in dots if not dot.faint]
    return {"chart": chart, "legend": legend, "x": kept, "y": forget} if chart else None


def _subject_dots(forget: Row, kept: Row) -> list[Dot]:
    dots = []
    for subject in ordered([*forget.cells, *kept.cells]):
        if subject in forget.cells and subject in kept.cells:
            x, y = kept.cells[subject], forget.cells[subject]
            title = f"{subject}: {figure(y.value, y.unit)} / {figure(x.value, x.unit)}"
            dots.append(Dot(x.value, y.value, subject, title, x.ci95, y.ci95))
    return dots


def _seed_dots(measured: Sequence[Row], forget: Row, kept: Row, name: str) -> list[Dot]:
    pair = [next((row for row in measured if same(row, wanted)), None) for wanted in (kept, forget)]
    x, y = pair
    if x is None or y is None:
        return []
    shared = [subject for subject in x.cells if subject in y.cells]
    return [
        Dot(x.value(s), y.value(s), s, f"{s}, {name}: {y.value(s):.4g} / {x.value(s):.4g}", faint=True) for s in shared
    ]


def same(row: Row, other: Row) -> bool:
    """Whether two runs' rows measure the same."""
    return (row.evaluator, row.metric, row.split, row.about) == (
        other.evaluator,
        other.metric,
        other.split,
        other.about,
    )


def axis_label(row: Row) -> str:
    """Return what an axis shows, its unit, and where it is better."""
    unit = f", {row.unit}" if row.unit not in ("", "share") else ""
    return f"{row.phrase}{unit} ({explain(row.direction)})"


def training_charts(run: RunFolder) -> list[Chart]:
    """Return one small chart a quantity; all losses share one, and so do ``forget/z`` and ``retain/z``."""
    parts = [seed.curves for seed in run.seeds] or [run.curves]
    columns = list(dict.fromkeys(column for curves in parts for column in curves))
    panels: dict[str, list[Series]] = {}
    for column in columns:
        panel, name = _panel_of(column)
        lines = [curves[column] for curves in parts if column in curves]
        panels.setdefault(panel, []).append(Series(name, lines))
    first = {name: index for index, name in enumerate(FIRST_CURVES)}
    names = sorted(panels, key=lambda name: first.get(name, len(first)))
    charts = [line_chart(name.replace("_", " "), panels[name]) for name in names]
    return [chart for chart in charts if chart is not None]


def _panel_of(column: str) -> tuple[str, str]:
    """Return the chart that a column belongs to, and the name of its line."""
    first, _, rest = column.partition("/")
    if first == "loss" and rest:
        return first, rest
    name = column.rpartition("/")[2]
    return name, column.removesuffix(f"/{name}") if "/" in column else name.replace("_", " ")


def strips(run: RunFolder, measured: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the tiles under the verdict: the forget figure, the utility figure, and what else is known of privacy."""
    membership = next((row for row in measured if row.metric == "membership_auc"), None)
    tiles = (("Forgetting", forget_row(run, measured)), ("Utility", kept_row(run, measured)), ("Privacy", membership))
    return [
        {"head": head, "row": row, "strips": strips}
        for head, row in tiles
        if row is not None and (strips := _strip_of(row))
    ]


def _strip_of(row: Row) -> list[Strip]:
    shown = [subject for subject in ordered(list(row.cells)) if subject in SUBJECTS]
    values = [(subject, row.cells[subject].value, row.cells[subject].ci95) for subject in shown]
    return strip(values, row.unit, row.metric)
