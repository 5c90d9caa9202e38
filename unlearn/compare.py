"""Compare runs across methods and families: python -m unlearn.compare RUN RUN ... [--output DIR]."""

import argparse
import sys
from collections.abc import Sequence
from os.path import realpath
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from unlearn.core.boundary import described
from unlearn.core.commands import resume_command
from unlearn.core.errors import RecipeError, UnlearnError, is_of_the_machine
from unlearn.core.records import find
from unlearn.core.shown import one_line, printable
from unlearn.report.comparison import Compared, compared
from unlearn.report.comparison_files import write_comparison
from unlearn.report.formatting import duration, figure
from unlearn.report.page import method_name
from unlearn.report.read_run import RunFolder, read_run
from unlearn.report.table import Measurement
from unlearn.report.verdict import judge

WORDS = {"met": "[green]reached[/]", "missed": "[red]missed[/]", "open": "no goal set", "unfinished": "unfinished"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m unlearn.compare",
        description="Put finished runs side by side: a table here, a page and a CSV file in the output folder.",
        epilog="example: python -m unlearn.compare runs/quickstart/* runs/flow/likelihood_ascent/*",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directory, of one seed or of several")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("comparison"),
        metavar="DIR",
        help="folder to write to (default: %(default)s)",
    )
    chosen = parser.parse_args(arguments)
    try:
        entries = compared(read_finished(chosen.runs))
        page = _written(entries, chosen.output)
    except (UnlearnError, OSError) as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return error.exit_code if isinstance(error, UnlearnError) else RecipeError.exit_code
    console = Console()
    for entry in entries:
        line = one_line(f"{entry.number}  {entry.label} ({method_name(entry.run)})")
        console.print(line, markup=False, highlight=False)
    console.print(headlines(entries))
    console.print(f"Report: {page}", markup=False, highlight=False, soft_wrap=True)
    return 0


def _written(entries: Sequence[Compared], output: Path) -> Path:
    """Write the page and the CSV file. Raises UnlearnError where the machine does not let it."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        return write_comparison(entries, output)
    except OSError as error:
        if not is_of_the_machine(error):
            raise
        raise UnlearnError(
            f"The comparison could not be written into {output} ({described(error)}). Make room or give access, or "
            "type another --output."
        ) from error


def read_finished(folders: Sequence[Path]) -> list[RunFolder]:
    """Read runs that came to their end, each once. Raises RecipeError for any other."""
    runs = [read_run(folder) for folder in {realpath(folder): folder for folder in folders}.values()]
    for run in runs:
        if run.status != "done":
            raise RecipeError(
                f"{run.path} is not finished (status: {run.status}). "
                f"Finish it ({resume_command(run.path)}), or leave it out."
            )
    return runs


def headlines(entries: Sequence[Compared]) -> Table:
    """Return one line per run: headline figures, time, verdict; a dash for a figure that a run lacks."""
    rows = {column: row for entry in entries for row in (entry.forget, entry.kept) if row for column in [_column(row)]}
    table = Table(box=SIMPLE_HEAD, pad_edge=False, caption="unlearned ← target (retrained)", caption_justify="left")
    table.add_column("run", justify="right")
    for name in rows:
        table.add_column(escape(one_line(name)))
    table.add_column("time", justify="right")
    table.add_column("goals")
    for entry in entries:
        own = {_column(row): row for row in entry.rows}
        own |= {_column(row): row for row in (entry.forget, entry.kept) if row}
        cells = [_cell(own.get(column)) for column in rows]
        seconds = find(entry.run.records, "cost_seconds")
        texts = [str(entry.number), *cells, duration(seconds.value) if seconds else "–"]
        table.add_row(*(escape(one_line(text)) for text in texts), WORDS[judge(entry.run).level])
    return table


def _column(row: Measurement) -> str:
    """Return the column of a headline figure, without what each run forgets."""
    return " ".join(part for part in (row.metric, row.split, row.entry) if part)


def _cell(row: Measurement | None) -> str:
    if row is None or "unlearned" not in row.cells:
        return "–"
    texts = {
        name: figure(row.value(name), row.unit, row.metric)
        for name in ("unlearned", "target", "retrained")
        if name in row.cells
    }
    before = f" ← {texts['target']}" if "target" in texts else ""
    gold = f" ({texts['retrained']})" if "retrained" in texts else ""
    return texts["unlearned"] + before + gold


if __name__ == "__main__":
    sys.exit(main())
