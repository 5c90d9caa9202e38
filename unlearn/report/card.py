"""The model card beside an exported model: what was forgotten, how, the figures, and what was not tested."""

import re
import sys
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from unlearn.config.registry import COMPONENTS, resolve, target
from unlearn.core.errors import RecipeError
from unlearn.core.files import write_text
from unlearn.core.shown import one_line
from unlearn.core.version import __version__
from unlearn.report.caveats import GUARANTEE, caveats, not_run
from unlearn.report.formatting import interval
from unlearn.report.labels import ordered
from unlearn.report.page import deck, method_name, shown
from unlearn.report.read_run import RunFolder, read_run
from unlearn.report.table import Measurement, better, cell_text, groups, measurements
from unlearn.report.texts import text_tables
from unlearn.report.verdict import judge

_SPECIAL = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", **{mark: f"\\{mark}" for mark in "\\`*_[]|~$"}})
_AT_START = re.compile(r"^(?=[#+=:-])|^([0-9]{1,9})(?=[.)](?: |$))")
"""What makes a line a heading, an item of a list, a rule, or the line above it a heading."""
_LINKED = re.compile(r"(?<=:)(?=//)|(?<=www)(?=\.)|(?<=mailto)(?=:)|(?<=.)(?=@)|(?<=xmpp)(?=:)", re.IGNORECASE)
"""Where an address that Markdown would link by itself is cut, by a comment that no reader sees."""


def write_model_card(folder: Path, load: str = "") -> Path:
    """Write ``model/README.md`` of a finished run (YAML front matter for model hubs), and return its path.

    Args:
        folder: run directory that holds ``metrics.json``, ``recipe.yaml`` and ``model/``.
        load: Python lines that load the model from a folder named ``model``; by default those of the recipe's wrapper.
    """
    run = read_run(folder)
    path = folder / "model" / "README.md"
    path.parent.mkdir(exist_ok=True)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # Markdown, not HTML: every value goes through the filter ``plain``
        finalize=shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"plain": plain, "code": code}
    write_text(path, environment.get_template("card.md.j2").render(_context(run, load)))
    return path


def plain(text: Any) -> str:
    """Return a value as one line of text without any Markdown or HTML of its own."""
    escaped = _AT_START.sub(r"\g<1>\\", one_line(text).translate(_SPECIAL))
    return _LINKED.sub("<!-- -->", escaped)


def code(text: Any) -> str:
    """Return a value as one line that can stand in a code span."""
    return one_line(text).replace("`", "'")


def _context(run: RunFolder, load: str) -> dict[str, Any]:
    measured = measurements(run.records)
    subjects = ordered([subject for row in measured for subject in row.cells])
    return {
        "front": yaml.safe_dump(_front_matter(run), sort_keys=False, allow_unicode=True).strip(),
        "title": run.part("about").get("title") or run.name,
        "deck": deck(run),
        "verdict": judge(run),
        "subjects": subjects,
        "groups": groups(measured),
        "cell": _cell,
        "better": better,
        "text_tables": text_tables(run),
        "guarantee": GUARANTEE,
        "not_run": not_run(run),
        "caveats": caveats(run),
        "load": load.strip() or loading_lines(run),
        "command": run.command,
        "recipe": run.name,
        "hash": str(run.facts.get("hash") or "")[:12],
        "version": __version__,
    }


def loading_lines(run: RunFolder) -> str:
    """Return the lines that load the exported model with its wrapper; nothing where the recipe names none.

    A class of one's own is named where the run that writes the card has it: what a folder says is not imported.
    """
    name = str(run.part("model").get("name"))
    if name not in COMPONENTS["model"] and _module_of(name) not in sys.modules:
        return ""
    try:
        wrapper = resolve("model", name).wrapper
    except RecipeError:
        return ""
    lines = ("from pathlib import Path", f"from {wrapper.__module__} import {wrapper.__name__}")
    return "\n".join((*lines, "", f"model = {wrapper.read_by(run.path / 'model')}"))


def _module_of(name: str) -> str:
    """Return the module of a dotted path or of a plugin's name, nothing for another one."""
    try:
        return target("model", name).split(":")[0]
    except RecipeError:
        return ""


def _front_matter(run: RunFolder) -> dict[str, Any]:
    """Return the metadata that model hubs read; the licence is the user's to add."""
    family = str(run.facts.get("family") or "")
    tags = ["machine-unlearning", family, method_name(run)]
    return {"library_name": "unlearnkit", "tags": [tag for tag in tags if tag]}


def _cell(row: Measurement, subject: str) -> str:
    text, ends = cell_text(row, subject), interval(row.cells[subject]) if subject in row.cells else ""
    text = (
        f"{text} {row.unit}" if row.unit == "MiB" and subject in row.cells else text
    )  # the others are spelled out in their names
    return f"{text} ({ends})" if ends else text
