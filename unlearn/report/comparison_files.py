"""The files of a comparison: a page, and all figures as a CSV file."""

import math
from collections.abc import Sequence
from pathlib import Path

from unlearn.core.files import write_text
from unlearn.core.records import Record
from unlearn.core.shown import csv_text
from unlearn.report.comparison import Compared, comparison_context
from unlearn.report.labels import about_text
from unlearn.report.page import template_environment


def write_comparison(entries: Sequence[Compared], output: Path) -> Path:
    """Write ``comparison.csv`` and ``comparison.html`` into an existing folder, and return the page's path."""
    rows = [csv_row(entry, record) for entry in entries for record in entry.run.records]
    table = csv_text(list(rows[0]) if rows else [], [list(row.values()) for row in rows])
    write_text(output / "comparison.csv", table)
    page = output / "comparison.html"
    write_text(page, template_environment().get_template("comparison.html.j2").render(comparison_context(entries)))
    return page


def csv_row(entry: Compared, record: Record) -> dict[str, object]:
    """Return a record as a row of the CSV file; undefined and unknown values are empty."""
    low, high = record.ci95 or ("", "")
    return {
        "run": str(entry.run.path),
        "recipe": entry.run.name,
        "hash": entry.run.facts.get("hash") or "",
        "seed": record.seed,
        "evaluator": record.evaluator,
        "metric": record.metric,
        "split": record.split,
        "about": about_text(record.about),
        "subject": record.subject,
        "value": "" if math.isnan(record.value) else record.value,
        "low": low,
        "high": high,
        "n": record.n,
        "unit": record.unit,
        "direction": record.direction,
    }
