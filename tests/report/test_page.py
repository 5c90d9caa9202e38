"""The report: valid, self-contained, escaped, honest about what is missing, and quiet in a real browser."""

import base64
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

import unlearn
from unlearn.config.schema import SUBJECTS
from unlearn.core.errors import RecipeError
from unlearn.core.records import Record
from unlearn.experiment.part_summary import write_summary
from unlearn.report.page import build_report

VOID = {"meta", "link", "img", "br", "hr", "input"}
NASTY = "<script>alert('x')</script><img src=x onerror=alert(1)>\"'&{{7*7}}"


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that every tag is closed in order."""

    def __init__(self, html: str):
        super().__init__()
        self.open, self.tags, self.attributes, self.text, self.problems = [], [], [], [], []
        self.feed(html)
        self.close()
        self.problems += [f"never closed: {tag}" for tag in self.open]

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"closed out of order: {tag} at {self.getpos()}")

    def handle_data(self, data):
        self.text.append(data)

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())


def loads(html: str) -> list[str]:
    """Return whatever a page would fetch: sources and styles that are no data URI, and links to other hosts."""
    page = Page(html)
    found = [
        f"{tag} {name}={value[:60]}"
        for tag, name, value in page.attributes
        if name in ("src", "srcset", "data", "action") and not value.startswith("data:")
    ]
    found += [
        f"{tag} {value}"
        for tag, name, value in page.attributes
        if name == "href" and tag != "a" and not value.startswith("data:")
    ]
    found += [
        f"{tag} {value}" for tag, name, value in page.attributes if name == "href" and re.match(r"(\w+:)?//", value)
    ]
    return found + re.findall(r"@import|url\((?!['\"]?data:)", html)


def read(folder: Path) -> tuple[str, Page]:
    html = build_report(folder).read_text(encoding="utf-8")
    page = Page(html)
    assert page.problems == []
    assert loads(html) == [] and "script" not in page.tags
    assert not any(name.startswith("on") for _, name, _ in page.attributes)
    return html, page


def test_report_shows_everything(make_run):
    _, page = read(make_run())
    for text in (
        "Make a flow forget how to draw one digit",
        "items labelled ‘3’",
        "All goals were reached",
        "Share of ‘3’ in the samples fell from 9.8 % to 0.9 % (retrained without it: 0.4 %).",
        "What was to be forgotten",
        "Forgetting against utility",
        "What this does not show",
        "Relearning",
        "python -m unlearn.run recipe=flow/category_digits data.forget.label=3",
        "category_taming: weight: 0.6",
        "2.027 2.016 to 2.038",
        "↓ lower",
    ):
        assert text in page.words, text
    assert page.tags.count("img") == 4 and page.tags.count("svg") == 6  # five curves and the forget-utility picture
    assert "Prompt search" not in page.words  # makes no sense for a flow


def test_checker_finds_what_must_not_be():
    """The control of ``read``: each fault is found."""
    assert Page("<p><b>x</p></b>").problems and Page("<div>").problems and not Page("<p>x<br></p>").problems
    assert (
        loads('<img src="https://a.b/c.png">')
        and loads('<link href="style.css">')
        and loads("<style>@import 'a'</style>")
    )
    assert loads('<a href="//a.b">x</a>') and not loads('<a href="#x">x</a><img src="data:image/png;base64,AA">')


def test_pictures_are_inlined_whole(make_run):
    folder = make_run()
    _, page = read(folder)
    sources = [value for tag, name, value in page.attributes if (tag, name) == ("img", "src")]
    decoded = {base64.b64decode(source.split(",", 1)[1]) for source in sources}
    assert decoded == {path.read_bytes() for path in (folder / "samples").glob("*.png")}


def test_names_cannot_become_markup(make_run):
    folder = make_run(
        title=NASTY,
        category=NASTY,
        recipe=NASTY,
        device={NASTY: NASTY},
        recipe_gate={NASTY: {"metric": NASTY, "max": 1}},
        pictures=[{"name": "target", "title": NASTY, "caption": NASTY}],
        records=[
            Record(
                evaluator=NASTY,
                metric=NASTY,
                subject=subject,
                value=0.5,
                split="forget",
                unit=NASTY,
                about={NASTY: NASTY},
                direction="lower",
            )
            for subject in ("target", "unlearned", NASTY)
        ],
    )
    with (folder / "metrics.csv").open("a") as file:
        file.write("300,1,1,1,1,1,1\n")
    text = (folder / "metrics.csv").read_text().replace("cosine", '"<script>alert(2)</script>"')
    (folder / "metrics.csv").write_text(text)
    (folder / "command.txt").write_text(NASTY)
    html, page = read(folder)
    assert "alert('x')" in page.words and "{{7*7}}" in page.words and "<script" not in html


def test_undefined_and_missing_figures_are_said_to_be_so(make_run):
    def record(subject: str, value: float) -> Record:
        return Record(
            evaluator="e",
            metric="loss_gap",
            subject=subject,
            split="forget",
            value=value,
            ci95=(math.nan, math.inf),
            direction="lower",
        )

    _, page = read(make_run(records=[record("target", math.nan), record("unlearned", math.nan)], recipe_gate={}))
    assert "undefined" in page.words and "No figure on the forget data was recorded." in page.words
    assert "there is no model that never saw the data" in page.words and "Some figures are undefined" in page.words
    assert "Forgetting against utility" not in page.words


def test_report_of_almost_nothing(make_run):
    folder = make_run(records=[], with_pictures=False, with_curves=False, seconds={}, device={}, packages={})
    for name in ("command.txt", "environment.json"):
        (folder / name).unlink()
    _, page = read(folder)
    assert "No figure was recorded." in page.words and "svg" not in page.tags and "img" not in page.tags
    assert "Training" not in page.words and "not measured" in page.words  # the gates' figures


@pytest.mark.parametrize("content", ["", "step\n", "step,loss\n", "step,loss\n1,\n2,nan\n3,inf\n", "no\n1\n"])
def test_empty_curves_are_left_out(make_run, content):
    folder = make_run()
    (folder / "metrics.csv").write_text(content)
    _, page = read(folder)
    assert page.tags.count("svg") == 1


def test_pictures_that_are_gone_or_outside_are_left_out(make_run, tmp_path):
    (tmp_path / "secret.png").write_bytes(b"secret")
    shown = [{"name": name, "title": "A", "caption": "B"} for name in ("nothing", "../../secret", "target")]
    _, page = read(make_run(pictures=shown))
    assert page.tags.count("img") == 1


def test_unfinished_and_missed_runs_say_so(make_run):
    _, page = read(make_run("a", status="stopped"))
    assert "This run did not come to its end (status: stopped)" in page.words
    _, page = read(make_run("b", recipe_gate={"share": {"metric": "sample_share", "split": "forget", "max": 0.001}}))
    assert "1 of 2 goals were not reached" in page.words


def test_summary_of_seeds(make_run, tmp_path):
    seeds = [make_run(f"all/seed-{seed}", seed=seed) for seed in range(3)]
    write_summary(tmp_path / "all", seeds)
    html, page = read(tmp_path / "all")
    assert "seeds 0, 1, 2" in page.words and "One line per seed." in page.words and "seed-2" in page.words
    assert page.tags.count("img") == 4 and 'href="seed-1/report.html"' in html
    assert html.count('class="unlearned faint"') == 3 and "One seed:" not in page.words


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics.json", None, "is missing"),
        ("metrics.json", "{", "is not JSON"),
        ("metrics.json", "[]", "is not a mapping"),
        ("metrics.json", '{"schema": 2, "records": []}', "schema 1"),
        ("metrics.json", '{"schema": 1, "records": [{"metric": "x"}]}', "this is not a record"),
        (
            "metrics.json",
            '{"schema": 1, "records": [{"evaluator": "e", "metric": "x", "subject": "s", "value": "1"}]}',
            "this is not a record",
        ),
        ("metrics.json", '{"schema": 1, "records": [], "pictures": ["a"]}', "pictures with name"),
        ("recipe.yaml", None, "holds no recipe"),
        ("recipe.yaml", "a: [", "valid YAML"),
    ],
)
def test_broken_run_is_one_clear_error(make_run, name, content, message):
    folder = make_run()
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    with pytest.raises(RecipeError, match=message) as error:
        build_report(folder)
    assert str(folder / name) in str(error.value) and not (folder / "report.html").exists()


def test_no_folder_is_one_clear_error(tmp_path):
    with pytest.raises(RecipeError, match="is not a folder"):
        build_report(tmp_path / "nothing")


def open_in_browser(page: Path, folder: Path, size: str = "1280,2400") -> tuple[str, bytes]:
    """Open a page in headless Chromium; return what the console said, and a screenshot."""
    shot = folder / "shot.png"
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0"]
    command += [f"--window-size={size}", f"--user-data-dir={folder / 'profile'}", f"--screenshot={shot}", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return "\n".join(console), shot.read_bytes()


@pytest.mark.browser
@pytest.mark.skipif(not shutil.which("chromium"), reason="Chromium is not installed")
def test_browser_opens_the_report_without_an_error(make_run, tmp_path):
    """The control is the same page with a script and a picture from elsewhere: its own policy refuses both, aloud."""
    path = build_report(make_run())
    console, shot = open_in_browser(path, tmp_path)
    assert console == "" and len(shot) > 50_000
    broken = tmp_path / "broken.html"
    broken.write_text(
        path.read_text().replace("</main>", '<script>document.title = "x"</script><img src="a.png"></main>')
    )
    console, _ = open_in_browser(broken, tmp_path)
    assert "script" in console and "a.png" in console


def test_every_subject_has_a_colour() -> None:
    style = (Path(unlearn.__file__).parent / "report" / "style.css").read_text(encoding="utf-8")
    tones = re.findall(r"([^{}]+){ --tone: var", style)
    coloured = {name.strip() for names in tones for name in names.split(",")}
    assert {f".{subject}" for subject in SUBJECTS} <= coloured
