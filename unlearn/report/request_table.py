"""How figures change over the sizes of a forget set, or from request to request."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from unlearn.core.records import Record
from unlearn.report.charts import Series, line_chart
from unlearn.report.labels import ordered
from unlearn.report.read_run import RunFolder
from unlearn.report.table import Measurement, cell, measurements
from unlearn.report.verdict import forget_row, kept_row, request_key, requests_of

CRITERIA = {
    "verbatim_memorization": "forget",
    "knowledge_memorization": "forget",
    "privleak": "forget",
    "utility": "retain",
}
"""MUSE's criteria, which are shown besides the headline figures: metric -> split."""


def request_table(run: RunFolder, last: Sequence[Measurement]) -> dict[str, Any] | None:
    """Return the criteria of each size or request, with a chart of each; None for a single one.

    Args:
        run: the run directory.
        last: the measurements of the last size or request.
    """
    name, labels = request_key(run.records), requests_of(run.records)
    if len(labels) < 2:
        return None
    by_label = {label: measurements(records) for label, records in labels.items()}
    heads = _heads(run, last)
    lines = []
    for number, (label, measured) in enumerate(by_label.items()):
        row = [_like(head, measured, name, label) for head in heads]
        link = f"{run.parts[number].path.name}/report.html" if run.over in ("sizes", "requests") else ""
        lines.append({"label": label, "link": link, "cells": [cell(one, "unlearned") if one else None for one in row]})
    at = {float(label): label for label in by_label} if name == "size" else _numbered(len(by_label))
    charts = []
    for head in heads:
        rows = [_like(head, measured, name, label) for label, measured in by_label.items()]
        series = [
            Series(subject, [[(x, row.value(subject)) for x, row in zip(at, rows, strict=True) if row]])
            for subject in ordered(list(head.cells))
        ]
        charts.append(line_chart(_phrase(head, name), series, head.unit, name, at))
    return {
        "name": name,
        "heads": [_phrase(head, name) for head in heads],
        "lines": lines,
        "charts": [chart for chart in charts if chart],
    }


def _numbered(count: int) -> dict[float, str]:
    """Return places on an axis, with their numbers from 1."""
    return {float(number): str(number) for number in range(1, count + 1)}


def _heads(run: RunFolder, last: Sequence[Measurement]) -> list[Measurement]:
    """Return the headline figures and MUSE's criteria, each on the newest request and then on all so far."""
    first = [row for row in (forget_row(run, last), kept_row(run, last)) if row is not None]
    wanted = [(row.evaluator, row.metric, row.split) for row in first]
    found: dict[tuple[str, str, str], dict[str, Measurement]] = {}
    for row in last:
        name = (row.evaluator, row.metric, row.split)
        criterion = row.metric in CRITERIA and row.split == CRITERIA[row.metric]
        if "unlearned" in row.cells and (name in wanted or criterion) and not row.about.get("category"):
            found.setdefault(name, {}).setdefault(row.about.get("forgotten", ""), row)  # of several levels the first
    return [row for rows in found.values() for row in rows.values()]


def _like(head: Measurement, measured: Sequence[Measurement], name: str, label: str) -> Measurement | None:
    """Return the same figure of another size or request; the first request is all that was forgotten so far."""
    about = {**head.about, name: label}
    newest = {key: value for key, value in about.items() if key != "forgotten"}
    for wanted in (about, newest):
        for row in measured:
            if (row.evaluator, row.metric, row.split, row.about) == (head.evaluator, head.metric, head.split, wanted):
                return row
    return None


def _phrase(head: Measurement, name: str) -> str:
    """Return what a figure is, without its size or request."""

    def bare(record: Record) -> Record:
        return replace(record, about={key: value for key, value in record.about.items() if key != name})

    return replace(head, cells={subject: bare(record) for subject, record in head.cells.items()}).phrase
