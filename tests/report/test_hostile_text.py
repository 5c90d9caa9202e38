"""Text of strangers is text in every place that shows it: the outputs have the structure that they have without it."""

import csv
import io
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt
from rich.console import Console

from tests.report.conftest import MakeRun
from unlearn.compare import main as compare
from unlearn.core.records import Picture, Record, TextTable
from unlearn.core.shown import csv_text, file_name, one_line, printable
from unlearn.evaluators.base import EvaluationResult
from unlearn.experiment.run_dir import RunDir
from unlearn.report.card import code, plain, write_model_card
from unlearn.report.page import build_report
from unlearn.report.table import metrics_table

HOSTILE = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", '" onmouseover="alert(1)', "' onfocus='x", "</style>",
    "</title><svg onload=alert(1)>", "<!-- x", "-->", "]]>", "&lt;b&gt;", "&#60;b&#62;", "{{ 7 * 7 }}", "{% raw %}",
    "[click](https://evil.example)", "![x](https://evil.example/p.png)", "https://evil.example/a", "www.evil.example",
    "HTTP://EVIL.example", "a@evil.example", "mailto:a@evil.example", "<https://evil.example>", "[a]: https://evil.ex",
    "[a][b]", "[^1]", "# heading", "## x", "- item", "* item", "+ item", "1. item", "12) item", "> quote", "---", "===",
    "***", "___", "```", "~~~", "`a`", "``", "a|b", "|---|", "**b**", "_i_", "~~s~~", "$x$", "$$x$$", "\\", "\\[x](y)",
    "line\nbreak", "a\n\n# heading", "a\r\nb", "a  \nb", "a\n    code", "tab\tbed", "\x1b[31mred\x1b[0m",
    "\x1b]0;t\x07",
    "\x9b2J", "\x00", "\x08\x08", "a\rb", "\u202eabc", "\u2066x", "\u2028x", "[bold]b[/bold]", "[/]", "[link=http://e]x",
    "=1+1", "+1+1", "-1+1", "@SUM(1)", '=HYPERLINK("http://evil.example")', "=cmd|'/c calc'!A0", "\t=1", "\uff1d1",
    "a,b",
    'a"b', "title: x\nlicense: y", "...", "../../x", "/etc/passwd", "x" * 200, "\ud800", "naïve 数字 \U0001f600",
]  # fmt: skip
MARKS = "\x00\x07\x08\x0c\r\x1b\x7f\x9b\u2028\u2029\u202e\u2066\ud800"


class Structure(HTMLParser):
    """The elements of a page with the names of their attributes, and their addresses."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, ...]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        addresses = [f"{key}={value}" for key, value in attrs if key in ("href", "src") and "base64" not in str(value)]
        self.found.append((tag, *(key for key, _ in attrs), *addresses))

    def handle_comment(self, data: str) -> None:
        self.found.append(("comment", data))


def structure_of_markdown(text: str) -> list[str]:
    """Return the kinds of element, without text and the comments that cut addresses."""
    reader = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    tokens = [part for token in reader.parse(text) for part in (token, *(token.children or ()))]
    inline = [token for token in tokens if token.type != "html_inline" or token.content != "<!-- -->"]
    return [token.type for token in inline if token.type not in ("text", "inline", "softbreak", "text_special")]


def everywhere(make_run: MakeRun, name: str, text: str) -> Path:
    """Write a run directory that has a text in every place where text can be."""
    more = {"split": "forget", "about": {text: text}, "unit": text, "label": text, "n": 3}
    subjects = ("target", "unlearned", "retrained")
    records = [Record(evaluator=text, metric=text, subject=one, value=0.5, ci95=(0.1, 0.9), **more) for one in subjects]
    records += [Record(evaluator="m", metric="bits_per_dim", subject=one, value=1.0, split=text) for one in subjects]
    table = TextTable(
        "texts", text, text, [text, text, "unlearned"], [[text, text, text], ["x", text, "y"]], truth=text
    )
    folder = make_run(
        name,
        records=records,
        recipe=text,
        hash=text,
        family=text,
        packages={"torch": text},
        device={text: text},
        seconds={"target": 1.0},
        notes=[text],
        failed_gates=[text],
        text_tables=["texts"],
        status="done",
        recipe_about={"title": text, "method": text},
        recipe_model={"name": text},
        recipe_data={"name": text, "forget": {"label": [text], "count": text}},
        recipe_forget={"name": text},
        recipe_gate={"goal": {"metric": text, "max": 0.1, "about": {text: text}}},
    )
    facts = json.loads((folder / "metrics.json").read_text())
    for row in facts["pictures"]:
        row |= {"title": text, "caption": text}
    (folder / "metrics.json").write_text(json.dumps(facts))
    (folder / "samples" / "texts.json").write_text(json.dumps(table.__dict__))
    (folder / "command.txt").write_text(text, errors="backslashreplace")
    return folder


@pytest.fixture(scope="module")
def plain_structures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    from tests.report.conftest import write_run

    folder = everywhere(lambda name, **more: write_run(tmp_path_factory.mktemp("x") / name, **more), "run", "word")
    page, card = build_report(folder).read_text(), write_model_card(folder, load="x = 1").read_text()
    return {"page": Structure(page).found, "card": structure_of_markdown(card.split("---\n", 2)[2])}


@pytest.mark.parametrize("number", range(0, len(HOSTILE), 3))  # all of them alone, below
def test_the_report_and_the_card_keep_their_structure(number, make_run, plain_structures):
    """No element, attribute, address, heading, link, table cell or control character is the text's."""
    text = HOSTILE[number]
    folder = everywhere(make_run, "run", text)
    page = build_report(folder).read_text()
    assert Structure(page).found == plain_structures["page"]
    assert not set(page) & set(MARKS)
    card = write_model_card(folder, load="x = 1").read_text()
    _, front, body = card.split("---\n", 2)
    assert structure_of_markdown(body) == plain_structures["card"]
    assert not set(card) & set(MARKS) and yaml.safe_load(front).keys() == {"library_name", "tags"}


def test_the_comparison_keeps_its_structure(make_run, tmp_path, capsys):
    """The page, its charts, its CSV file and the terminal."""
    sizes = set()
    for number, text in enumerate(["word", *HOSTILE[::4]]):
        runs = [everywhere(make_run, f"{number}-{one}", text) for one in range(2)]
        out = tmp_path / f"out-{number}"
        assert compare([*map(str, runs), "--output", str(out)]) == 0
        page, shown = (out / "comparison.html").read_text(), capsys.readouterr().out
        sizes.add(tuple(Structure(page).found))
        assert not set(page + shown) & set(MARKS)
        with (out / "comparison.csv").open(newline="", encoding="utf-8") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        assert not any(cell.startswith(("=", "+", "@", "\t", "\r")) for cell in cells)
        assert {"0.5", "0.1", "0.9"} <= set(cells)
    assert len(sizes) == 1


@pytest.mark.parametrize("text", HOSTILE)
def test_one_text(text):
    """Alone: a paragraph and a cell of Markdown, a code span, a cell of CSV, a line of a terminal, a file's name."""
    reader = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    assert set(structure_of_markdown(plain(text))) <= {"paragraph_open", "paragraph_close"}
    rendered = reader.render(plain(text)).replace("<!-- -->", "")
    assert Structure(rendered).found == [("p",)] * bool(rendered)
    assert structure_of_markdown(f"a `{code(text)}` b") == ["paragraph_open", "code_inline", "paragraph_close"]
    assert structure_of_markdown(f"| a | b |\n|---|---|\n| {plain(text)} | x |").count("td_open") == 2
    assert not set(printable(text)) & set(MARKS) and "\n" not in one_line(text)
    (cell,) = next(csv.reader(io.StringIO(csv_text([text], []), newline="")))
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r", "\uff1d"))
    name = file_name(text)
    assert name == Path(name).name and len(name) < 120 and not name.startswith(".")


def test_numbers_of_csv_are_untouched():
    cells = [-1.5, 2, "-1.5", "+3", "-2e-05", "−", "", None, True, "x-1"]
    assert csv_text(["a"], [[cell] for cell in cells]).splitlines()[1:] == [
        "-1.5", "2", "-1.5", "+3", "-2e-05", "−", '""', '""', "True", "x-1"
    ]  # fmt: skip


def test_what_an_evaluator_found_is_written_as_text(tmp_path, capsys):
    """Names become names of files, cells cells, and a note one entry of the log."""
    for text in HOSTILE:
        folder = tmp_path / "run"
        (folder / "samples").mkdir(parents=True, exist_ok=True)
        picture, table = Picture(text, text, text, b"png"), TextTable(text, text, text, ["a"], [[text]])
        items = [{"evaluator": "m", "id": -3, "text": text, text: 1.5}]
        findings = EvaluationResult([], [picture], items, [table], [f"note: {text}"])
        RunDir(folder).write_findings(findings, {})
        with (folder / "items.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
        assert rows[1][:2] == ["m", "-3"] and not rows[1][2].startswith(("=", "+", "@", "\t"))
        assert not set((folder / "log.txt").read_text(encoding="utf-8")) & set(MARKS)
    assert {path.name for path in tmp_path.iterdir()} == {"run"}
    assert not set(capsys.readouterr().err) & set(MARKS)
    entries = (tmp_path / "run" / "log.txt").read_text(encoding="utf-8").splitlines()
    assert sum(entry[2:3] == ":" for entry in entries) == len(HOSTILE)


@pytest.mark.parametrize("text", HOSTILE)
def test_the_table_of_the_terminal(text):
    """No markup of rich, no control character."""
    records = [Record(evaluator=text, metric=text, subject="unlearned", value=0.5, split=text, about={text: text})]
    file = io.StringIO()
    Console(file=file, width=4000).print(metrics_table(records))
    assert not set(file.getvalue()) & set(MARKS)
    assert one_line(text).replace("_", " ") in file.getvalue() or len(text) > 100


def test_seeds_lie_in_their_run(make_run):
    """A summary whose file names another folder is refused."""
    from unlearn.core.errors import RecipeError
    from unlearn.report.read_run import read_run

    make_run("other")
    for name in ("../other", "/", "..", ".", 3, ["x"]):
        folder = make_run(f"run{hash(str(name))}", part_folders=[name])
        with pytest.raises(RecipeError, match="part_folders"):
            read_run(folder)
