"""The report of one run, or of several seeds of it: one self-contained HTML file."""

import base64
import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from unlearn.core.files import write_text
from unlearn.core.records import Picture
from unlearn.core.shown import printable
from unlearn.core.version import __version__
from unlearn.report.caveats import GUARANTEE, caveats, not_run
from unlearn.report.charts import strips, tradeoff, training_charts
from unlearn.report.formatting import duration
from unlearn.report.labels import DIRECTIONS, forgotten, ordered
from unlearn.report.read_run import RunFolder, read_run
from unlearn.report.request_table import request_table
from unlearn.report.table import Measurement, better, cell, groups, measurements
from unlearn.report.texts import text_tables
from unlearn.report.verdict import forget_row, judge, kept_row, last_of

SMALL_PICTURE = 400
"""Pictures narrower than this many pixels are enlarged without smoothing."""
FIRST_PICTURES = ("forget", "samples", "became")
"""Pictures that come before the others: what was forgotten, and what the models make now."""


def build_report(folder: Path) -> Path:
    """Write ``report.html`` from what is in a run directory, and return its path.

    Raises RecipeError where ``metrics.json`` or ``recipe.yaml`` is missing or corrupt; everything else may be
    missing and is then left out.
    """
    run = read_run(folder)
    path = folder / "report.html"
    write_text(path, template_environment().get_template("report.html.j2").render(report_context(run)))
    return path


def template_environment() -> Environment:
    """Return the template environment; every value is escaped."""
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(explain=DIRECTIONS.__getitem__, better=better, duration=duration, slug=_slug)
    made.globals.update(
        cell=cell, version=__version__, now=lambda: datetime.now().astimezone().strftime("%Y-%m-%d %H:%M")
    )
    return made


def shown(value: Any) -> Any:
    """Return a value as templates show it: a text without control characters; text that is marked up stays."""
    return printable(value) if type(value) is str else value


def report_context(run: RunFolder) -> dict[str, Any]:
    """Return everything that the template shows."""
    measured = measurements(run.records)
    last = measurements(last_of(run.records))
    about, verdict = run.part("about"), judge(run)
    subjects = ordered([subject for row in measured for subject in row.cells])
    return {
        "run": run,
        "title": about.get("title") or run.name,
        "deck": deck(run),
        "verdict": verdict,
        "strips": strips(run, last),
        "pictures": [_picture(picture) for picture in sorted(run.pictures, key=_picture_order)],
        "text_tables": text_tables(run),
        "tradeoff": tradeoff(run, last),
        "subjects": subjects,
        "curves": training_charts(run),
        "groups": groups(measured),
        "seed_table": _seed_table(run, last),
        "requests": request_table(run, last),
        "seconds": _stages(run),
        "guarantee": GUARANTEE,
        "not_run": not_run(run),
        "caveats": caveats(run),
        "facts": _facts(run),
    }


def deck(run: RunFolder) -> list[tuple[str, str]]:
    """Return the line under the title: what is forgotten, by which method, on which model and data."""
    data = run.part("data")
    parts = [
        ("forgets", _forgets(run)),
        ("method", str(run.part("about").get("method") or method_name(run))),
        ("model", str(run.part("model").get("name") or "")),
        ("data", str(data.get("name") or "")),
        ("seeds" if run.seeds else "seed", _seeds(run)),
    ]
    return [(label, text) for label, text in parts if text]


def _forgets(run: RunFolder) -> str:
    """Return in words what is forgotten: the requests one after the other, or the selection and its sizes."""
    requests, selection = run.part("requests"), run.part("data").get("forget")
    if requests.get("at") is None and (sequence := requests.get("sequence")):
        return "; then ".join(map(forgotten, sequence))
    text = forgotten(selection) if isinstance(selection, Mapping) else str(selection or "")
    if requests.get("at") is None and (sizes := requests.get("sizes")):
        text += f"; sizes {', '.join(map(str, sizes))}"
    return text


def method_name(run: RunFolder) -> str:
    """Return the registry names of the forget objectives, of the edit or of the guard."""
    for key in ("forget", "edit", "guard"):
        part = run.part(key)
        if part:
            return str(part["name"]) if "name" in part else ", ".join(part)
    return ""


def _seed_table(run: RunFolder, measured: Sequence[Measurement]) -> dict[str, Any] | None:
    """Return the headline figures of each seed, with the way to its own report."""
    if not run.seeds:
        return None
    heads = [row for row in (forget_row(run, measured), kept_row(run, measured)) if row is not None]
    lines = []
    for seed in run.seeds:
        own = measurements(seed.records)
        found = [next((row for row in own if row.is_like(head)), None) for head in heads]
        cells = [cell(row, "unlearned") if row else None for row in found]
        lines.append({"name": seed.path.name, "word": judge(seed).word, "cells": cells})
    return {"heads": [row.phrase for row in heads], "lines": lines}


def _picture_order(picture: Picture) -> int:
    first = picture.name in FIRST_PICTURES
    return FIRST_PICTURES.index(picture.name) if first else len(FIRST_PICTURES)


def _picture(picture: Picture) -> dict[str, Any]:
    """Return a picture as a data URI, with the size that its PNG header states."""
    width, height = int.from_bytes(picture.png[16:20], "big"), int.from_bytes(picture.png[20:24], "big")
    return {
        "title": picture.title,
        "caption": picture.caption,
        "source": f"data:image/png;base64,{base64.b64encode(picture.png).decode()}",
        "width": width,
        "height": height,
        "pixelated": width < SMALL_PICTURE,
        "wide": width > 1.4 * height,
    }


def _stages(run: RunFolder) -> list[dict[str, Any]]:
    """Return the seconds of every stage, with its share of the longest for the bar."""
    seconds = {name: float(value) for name, value in run.fact("seconds").items() if isinstance(value, int | float)}
    longest = max(seconds.values(), default=0.0) or 1.0
    return [
        {"name": name.replace("_", " "), "text": duration(value), "width": round(100 * value / longest, 1)}
        for name, value in seconds.items()
        if math.isfinite(value)
    ]


def _facts(run: RunFolder) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return the environment as headed lists of names and values."""
    run_facts = {"recipe": run.name, "hash": run.facts.get("hash"), "status": run.status, "folder": run.path.name}
    parts = {
        "Run": run_facts,
        "Device": run.fact("device"),
        "Packages": run.fact("packages"),
        "Environment": run.environment,
    }
    return [(head, flat) for head, tree in parts.items() if (flat := list(flatten(tree).items()))]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return a nested mapping as dotted keys and texts; empty values are left out."""
    found: dict[str, str] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            found |= flatten(value, f"{prefix}{name}.")
        elif value not in (None, "", []):
            found[f"{prefix}{name}"] = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return found


def _seeds(run: RunFolder) -> str:
    value = run.facts.get("seeds") or run.recipe.get("seed")
    return ", ".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)


def _slug(text: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in text.lower()).strip("-")
