"""Writes a study's results: its table, as Markdown and CSV, and the page that compares its runs."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from unlearn.core.files import write_text
from unlearn.core.records import Record
from unlearn.core.shown import one_line, printable
from unlearn.experiment.part_summary import write_summary
from unlearn.report.card import plain
from unlearn.report.comparison import Compared
from unlearn.report.comparison_files import write_comparison
from unlearn.report.read_run import RunFolder, read_run
from unlearn.study.execution import Part, why_failed
from unlearn.study.spec import Study
from unlearn.study.study_table import (
    Line,
    cell,
    empty_columns,
    markdown,
    ordered,
    reference_lines,
    table_csv,
    write_block,
)

WORST_FIRST = ("failed", "unfinished", "not run", "gate missed")


def sum_up(study: Study, found: Sequence[Part], failed: Mapping[Path, str], document: Path | None) -> None:
    """Write and print the table of the finished parts, and write the comparison.

    Args:
        study: the study.
        found: every seed of every run.
        failed: why a run failed just now, by its folder.
        document: a file that gets the table too.
    """
    runs = {row: [part for part in found if part.row == row] for row in study.runs}
    read = {row: [read_run(part.folder) for part in own if part.finished] for row, own in runs.items()}
    lines = [
        _line(row, own, [cell(column, read[row]) for column in study.spec.columns.values()], failed)
        for row, own in runs.items()
    ]
    whole = [seeds for seeds in read.values() if len(seeds) == len(study.spec.seeds)]
    lines = [*reference_lines(study, whole), *ordered(study, lines)]
    table, title = markdown(study, lines), study.spec.about.title or study.name
    study.folder.mkdir(parents=True, exist_ok=True)
    write_text(study.folder / "table.md", f"# {plain(title)}\n\n{table}")
    write_text(study.folder / "table.csv", table_csv(study, lines))
    page = _compare(study, read)
    if document is not None:
        write_block(document, study.name, table)
    print(printable(f"\n{one_line(title)}\n\n{table}\nTable: {study.folder / 'table.md'}"))
    if page:
        print(f"Report: {page}")
    for warning in empty_columns(study, lines, [run for seeds in read.values() for run in seeds]):
        print(printable(warning), file=sys.stderr)


def _line(row: str, own: Sequence[Part], cells: list[Record | None], failed: Mapping[Path, str]) -> Line:
    """Return a run's row with its state, and a note for each seed that is not done."""
    states = {part: "failed" if part.folder in failed else part.state for part in own}
    worst = next((state for state in WORST_FIRST if state in states.values()), "done")
    notes = tuple(
        f"seed {part.seed}: {_note(part, state, failed)}" for part, state in states.items() if state != "done"
    )
    return Line(row, cells, worst, notes)


def _note(part: Part, state: str, failed: Mapping[Path, str]) -> str:
    if state == "failed":
        return f"failed: {failed.get(part.folder) or why_failed(part)}"
    if state == "gate missed":
        return " ".join(map(str, read_run(part.folder).facts["failed_gates"]))
    return state


def _compare(study: Study, read: Mapping[str, Sequence[RunFolder]]) -> Path | None:
    """Write the comparison of the finished runs; a run with several seeds is summarized first."""
    entries: list[Compared] = []
    for row, seeds in read.items():
        if len(seeds) > 1:
            folder = seeds[0].path.parent
            write_summary(folder, [seed.path for seed in seeds])
            entries.append(Compared(len(entries) + 1, row, read_run(folder)))
        elif seeds:
            entries.append(Compared(len(entries) + 1, row, seeds[0]))
    return write_comparison(entries, study.folder) if entries else None
