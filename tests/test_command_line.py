"""The command line from outside: what it prints, when it stops, and with which exit code."""

import re
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.toys import ROOT
from tests.toys.command import unlearn
from unlearn.config import packaged
from unlearn.config.yaml_io import parse
from unlearn.run import HELP, main

SLOW = {"torch", "lightning", "omegaconf", "numpy", "rich"}

TINY = """
model: {name: glow, depth: 1, width: 4, scales: 1}
data: {name: digits, forget: {label: [3], count: 8}}
pretrain: {retrained: false, optim: {steps: 2, batch: 16}}
forget: likelihood_ascent
retain: training_loss
optim: {steps: 3, batch: 8}
trainer: {tensorboard: false}
"""

OWN = '''
"""An evaluator that fails as the environment says."""
import errno
import os
from dataclasses import dataclass
from unlearn.core.errors import Diverged
from unlearn.evaluators.base import Evaluator, EvaluationResult
from unlearn.core.records import Record

@dataclass(frozen=True, kw_only=True)
class Fragile(Evaluator):
    def __call__(self, evaluation):
        full = OSError(errno.ENOSPC, "no space left")
        errors = {"crash": full, "stop": KeyboardInterrupt(), "diverge": Diverged("loss is nan")}
        if os.environ.get("FRAGILE") in errors:
            raise errors[os.environ["FRAGILE"]]
        return EvaluationResult([Record(evaluator="fragile", metric="figure", subject="unlearned", value=2.0)])
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder with a tiny recipe, a class of the user and a cache of its own."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    (tmp_path / "command_line_own.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "command_line_own", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("UNLEARN_RESUMED_FOLDER", "")
    return tmp_path


def python(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, timeout=120)


def cpu_seconds(*arguments: str) -> float:
    """Return the smallest CPU time of some runs; unlike wall time it does not see what else the machine does."""
    found = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert python(*arguments).returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(found)


# -------------------------------------------------------------------------------------------- help and the list


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], [], ["--version"]])
def test_help_and_the_list_import_nothing_slow(arguments: list[str]) -> None:
    code = (
        f"import sys, unlearn.run; code = unlearn.run.main({arguments!r}); print(code, *sys.modules, file=sys.stderr)"
    )
    done = python("-c", code)
    words = done.stderr.split()
    assert words[0] == "0" and done.stdout and not SLOW & set(words), done.stderr[:500]


def test_reading_a_recipe_does_import_them() -> None:
    """The control of the test above."""
    assert "omegaconf" in python("-c", "import sys, unlearn.config.recipe; print(*sys.modules)").stdout.split()


@pytest.mark.parametrize("arguments", [["--help"], []])
def test_help_and_the_list_answer_at_once(arguments: list[str]) -> None:
    assert cpu_seconds("-m", "unlearn.run", *arguments) <= 5 * cpu_seconds("-c", "pass") + 0.2


def test_the_help_is_short_and_its_commands_work(capsys: pytest.CaptureFixture[str]) -> None:
    commands = re.findall(r"^  python -m unlearn\.run ?(.*?)(?:  .*)?$", HELP, re.MULTILINE)
    assert len(commands) == 4 and len(HELP.splitlines()) <= 13 and max(map(len, HELP.splitlines())) <= 120
    assert main(["--help"]) == 0 and capsys.readouterr().out == HELP
    for command in commands:
        if "recipe=" in command:
            assert main([*command.replace("--show", "").split(), "--show"]) == 0, command


def test_the_list_names_every_recipe_with_all_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    header, *rows = capsys.readouterr().out.split("\n\n")[0].splitlines()
    assert header.split() == ["RECIPE", "FAMILY", "METHOD", "NEEDS", "TITLE"]
    cells = [re.split(r"  +", row) for row in rows]
    assert sorted(row[0] for row in cells) == packaged.names("recipe") and cells[0][0] == "quickstart"
    assert all(len(row) == 5 and row[1] in ("flow", "gan", "diffusion", "language") for row in cells)


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_a_reader_that_has_enough_gets_no_traceback(arguments: list[str]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "unlearn.run", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout and process.stderr
    process.stdout.close()
    message = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=120) == 141 and message == ""


def test_a_closed_output_is_no_failure() -> None:
    command = f"exec {shlex.quote(sys.executable)} -m unlearn.run >&-"
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 0 and done.stderr == ""


# ---------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shw", "recipe=quickstart"], "there is no flag --shw. Did you mean: --show"),
        (["-x"], "there is no flag -x"),
        (["quickstrt"], "Did you mean: quickstart"),
        (["quickstart", "--show", "again"], "'again' is no setting"),
        (["recipe=quickstart", "optim.lr"], "'optim.lr' is no setting; write key=value"),
        (["recipe=quickstart", "=3"], "'=3' is no setting"),
        (["recipe=quickstart", ""], "'' is no setting"),
        (["recipe="], "recipe= is given without a value"),
        (["recipe=quickstart", "recipe=quickstart"], "recipe= is given twice"),
        (["recipe=quickstrt"], "there is no recipe 'quickstrt'. Did you mean: quickstart"),
        (["recipe=none.yaml"], "there is no recipe file"),
        (["optim.lr=1"], "no recipe is given; write recipe=NAME"),
        (["--show"], "no recipe is given"),
        (["recipe=quickstart", "--show", "--check"], "take one"),
        (["recipe=quickstart", "optim.lrr=1"], "Did you mean: lr"),
        (["recipe=quickstart", "resume=runs/x"], "a run brings its own recipe"),
        (["resume=nowhere"], "there is no run directory nowhere"),
        (["resume=auto"], "there is no unfinished run under runs/"),
        (["resume=auto", "optim.lr=1"], "there is no unfinished run under runs/"),
        (["resume=here", "output=there"], "a resumed run keeps its folder"),
        (["resume=auto", "--check"], "--check needs a recipe"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    before = sorted(folder.iterdir())
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert message in err and err.count("\n") == 1 and out == ""
    assert sorted(folder.iterdir()) == before, "nothing is written"


def test_only_the_first_rank_speaks(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert main(["recipe=none"]) == 2
    assert capsys.readouterr().err == ""


# ---------------------------------------------------------------------------------------------- show and check


def test_show_prints_the_recipe_with_origins_and_runs_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe=tiny.yaml", "data.forget.label=no", "--show"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"^    label: \['no'\] +# command line$", text, re.MULTILINE)
    assert re.search(r"^  depth: 1 +# tiny.yaml$", text, re.MULTILINE)
    assert re.search(r"^  momentum: 0.0 +# default$", text, re.MULTILINE)
    (folder / "again.yaml").write_text(text)
    assert main(["recipe=again.yaml", "--show"]) == 0
    assert parse(capsys.readouterr().out, "out") == parse(text, "text")


def test_check_takes_one_step_and_writes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(folder.iterdir())
    assert main(["recipe=tiny.yaml", "--check"]) == 0
    assert "parameters" in capsys.readouterr().out
    assert [path for path in sorted(folder.iterdir()) if path.name != "__pycache__"] == before
    assert main(["recipe=tiny.yaml", "data.forget.label=thirteen", "--check"]) == 2


def test_a_users_own_class_is_found_in_the_working_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also from the console script, which does not put the working folder on the path."""
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(folder))])
    assert main(["recipe=tiny.yaml", "evaluate.own={name: command_line_own:Fragile}", "--show"]) == 0
    assert main(["recipe=tiny.yaml", "evaluate.own={name: command_line_absent:Fragile}", "--show"]) == 2


# ------------------------------------------------------------------------------------------------ run and resume


def test_runs_end_with_the_codes_that_the_help_names(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after another: an evaluator that fails, go on by name, interrupt, go on without a name, a missed gate."""
    settings = ["recipe=tiny.yaml", "evaluate.own={name: command_line_own:Fragile}"]

    monkeypatch.setenv("FRAGILE", "crash")
    assert main(settings) == 1
    assert "own: failed (OSError: [Errno 28] no space left)" in capsys.readouterr().err
    (first,) = (folder / "runs" / "tiny").iterdir()
    assert parse((first / "recipe.yaml").read_text(), "r")["evaluate"] == {"own": {"name": "command_line_own:Fragile"}}

    monkeypatch.delenv("FRAGILE")
    assert main([*settings, "optim.lr=0.5", "resume=auto", "--check"]) == 0
    assert main([f"resume={first}"]) == 0
    assert list((folder / "runs" / "tiny").iterdir()) == [first] and (first / "metrics.json").is_file()
    assert main([f"resume={first}"]) == 2, "it is finished"

    monkeypatch.setenv("FRAGILE", "diverge")
    assert main([*settings, "output=second"]) == 1
    assert "loss is nan" in capsys.readouterr().err

    monkeypatch.setenv("FRAGILE", "stop")
    assert main([*settings, "resume=auto", "seed=1"]) == 130
    assert "no unfinished run of tiny: starting one" in capsys.readouterr().out

    monkeypatch.delenv("FRAGILE")
    assert main(["resume=auto"]) == 0
    assert "resuming runs" in capsys.readouterr().out
    assert main(["resume=second", "output=second"]) == 0
    assert main(["resume=auto"]) == 2, "all are finished"

    assert main([*settings, "gate.figure={metric: figure, max: 1}"]) == 3
    assert main([*settings, "gate.figure={metric: figure, max: 3}"]) == 0


LONG = "x" * 300
NOBODY = "~nobody-of-this-name/x"


@pytest.mark.parametrize("key", ["model.pretrained", "model.retrained", "output", "resume", "data.path"])
def test_names_that_no_file_can_have(key: str, tmp_path: Path) -> None:
    """A home that there is not and a name that is too long are mistakes of who typed them, not defects."""
    more = {"resume": [], "data.path": ["recipe=quickstart", "data.name=image_folder"]}.get(key, ["recipe=quickstart"])
    for name in (LONG,) if key == "output" else (LONG, NOBODY):  # the folder of that name can be made
        done = unlearn(*more, f"{key}={name}", cwd=tmp_path, cache=tmp_path)
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
