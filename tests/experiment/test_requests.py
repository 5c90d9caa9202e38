"""Forget sets of several sizes, and requests one after the other: what each starts from, forgets and measures."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.toys import ROOT
from tests.toys.command import evaluate, kill_after_a_checkpoint, unlearn

SMALL = [
    f"recipe={ROOT / 'tests' / 'toys' / 'recipes' / 'small.yaml'}", "optim.steps=3", "optim.batch=8",
    "pretrain.optim.steps=4",
]  # fmt: skip
SEQUENCE = "requests.sequence=[3,5,8]"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    done = unlearn(*SMALL, SEQUENCE, "output=run", cwd=folder, cache=cache)
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.fixture
def here(tmp_path: Path, finished: Path) -> Path:
    return Path(shutil.copytree(finished.parent, tmp_path / "here"))


def content(path: Path) -> Any:
    return json.loads(path.read_text())


def records(run: Path) -> list[dict[str, Any]]:
    """Return the figures that do not depend on the clock."""
    return [row for row in content(run / "metrics.json")["records"] if row["evaluator"] != "cost"]


def weights(folder: Path) -> bytes:
    return (folder / "model" / "model.safetensors").read_bytes()


def value(rows: list[dict[str, Any]], subject: str, split: str, **about: str) -> float:
    (found,) = [
        row["value"]
        for row in rows
        if (row["metric"], row["subject"], row["split"], row["about"]) == ("bits_per_dim", subject, split, about)
    ]
    return float(found)


def test_splits_of_a_sequence(finished: Path) -> None:
    splits = [content(finished / f"request-{number}" / "splits.json") for number in (1, 2, 3)]
    before: set[int] = set()
    held: set[int] = set()
    for one in splits:
        forget, retain = set(one["forget"]), set(one["retain"])
        assert forget and not forget & before and not retain & (forget | before)
        before |= forget
        held |= set(one["holdout"])
        assert len(retain | before) == len(splits[0]["retain"]) + len(splits[0]["forget"])
        assert not held & set(one["test"]), "what was forgotten before is nothing to keep"


def test_each_request_starts_from_the_last_result_and_compares_with_the_target(finished: Path, cache: Path) -> None:
    rows = records(finished)
    keys = [content(finished / f"request-{number}" / "run.json")["works_on"] for number in (1, 2, 3)]
    assert len({one["target model"] for one in keys}) == 1 and len({one["retrained model"] for one in keys}) == 3
    assert "result before" not in keys[0] and keys[1]["result before"] != keys[2]["result before"]
    assert len({weights(finished / f"request-{number}") for number in (1, 2, 3)}) == 3
    of_target = [value(rows, "target", "forget", request=f"{number} of 3") for number in (1, 2, 3)]
    so_far = value(rows, "target", "forget", request="3 of 3", forgotten="so far")
    sizes = [len(content(finished / f"request-{number}" / "splits.json")["forget"]) for number in (1, 2, 3)]
    mean = sum(size * figure for size, figure in zip(sizes, of_target, strict=True)) / sum(sizes)
    assert so_far == pytest.approx(mean, abs=1e-4), "all requests so far are their items together"
    assert not any(row["about"].get("forgotten") for row in rows if row["about"]["request"] == "1 of 3")


def test_a_request_alone_is_the_first_of_a_sequence(finished: Path, tmp_path: Path, cache: Path) -> None:
    done = unlearn(*SMALL, "data.forget.label=3", "output=alone", cwd=tmp_path, cache=cache)
    assert done.returncode == 0, done.stderr
    alone, first = records(tmp_path / "alone"), records(finished / "request-1")
    assert [{**row, "about": {"request": "1 of 3"}} for row in alone] == first
    assert weights(tmp_path / "alone") == weights(finished / "request-1")


def test_one_report_has_table_and_chart_of_the_sequence(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    facts = content(finished / "metrics.json")
    assert facts["over"] == "requests" and facts["part_folders"] == ["request-1", "request-2", "request-3"]
    assert 'id="requests"' in page and 'href="request-2/report.html"' in page and "by request" in page
    assert "items labelled ‘3’; then items labelled ‘5’; then items labelled ‘8’" in page
    assert "2 of 3" in (finished / "request-2" / "report.html").read_text()


def test_what_is_finished_is_not_done_again(here: Path, finished: Path, cache: Path) -> None:
    assert "finished run" in unlearn("resume=run", cwd=here, cache=cache).stderr
    before = (here / "run" / "request-1" / "metrics.json").stat().st_mtime_ns
    shutil.rmtree(here / "run" / "request-3")
    (here / "run" / "metrics.json").unlink()
    done = unlearn("resume=run", cwd=here, cache=cache)
    assert done.returncode == 0, done.stderr
    assert records(here / "run") == records(finished)
    assert (here / "run" / "request-1" / "metrics.json").stat().st_mtime_ns == before


def test_a_killed_sequence_has_the_same_figures(finished: Path, tmp_path: Path, cache: Path) -> None:
    arguments = [*SMALL, SEQUENCE, "output=runs/run", "trainer.checkpoint_every=1"]
    kill_after_a_checkpoint(arguments, tmp_path, cache, 1.0)
    resumed = unlearn("resume=runs/run", cwd=tmp_path, cache=cache)
    assert resumed.returncode == 0 or "finished run" in resumed.stderr, resumed.stderr
    assert records(tmp_path / "runs" / "run") == records(finished)


def test_a_changed_result_is_no_start(here: Path, cache: Path) -> None:
    shutil.rmtree(here / "run" / "request-3")
    weights = here / "run" / "request-2" / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes() + b"more")
    refused = unlearn("resume=run", cwd=here, cache=cache)
    assert refused.returncode == 2 and "request-2/model was changed" in refused.stderr


def test_one_request_is_measured_again(here: Path, finished: Path, cache: Path) -> None:
    done = evaluate("run/request-2", "evaluate.again={name: bits_per_dim, draws: 2}", cwd=here, cache=cache)
    assert done.returncode == 0, done.stderr
    assert [row for row in records(here / "run") if row["evaluator"] != "again"] == records(finished)
    more = [row for row in records(here / "run") if row["evaluator"] == "again"]
    assert {row["about"]["request"] for row in more} == {"2 of 3"}
    assert {row["about"].get("forgotten") for row in more} == {None, "so far"}


def test_seeds_of_a_sequence(tmp_path: Path, cache: Path) -> None:
    done = unlearn(*SMALL, "requests.sequence=[3,5]", "seed=[0,1]", "output=run", cwd=tmp_path, cache=cache)
    assert done.returncode == 0, done.stderr
    rows = records(tmp_path / "run")
    assert {row["n"] for row in rows} == {2} and {row["about"]["request"] for row in rows} == {"1 of 2", "2 of 2"}
    assert (tmp_path / "run" / "seed-1" / "request-2" / "model").is_dir()
    page = (tmp_path / "run" / "report.html").read_text()
    assert 'id="requests"' in page and 'href="seed-1/report.html"' in page
    assert evaluate("run/seed-1/request-2", "evaluate.cost={}", cwd=tmp_path, cache=cache).returncode == 0
    assert {row["n"] for row in records(tmp_path / "run")} == {2}


def test_sizes_are_nested_and_start_from_the_target(tmp_path: Path, cache: Path) -> None:
    done = unlearn(*SMALL, "requests.sizes=[4,16,40]", "output=run", cwd=tmp_path, cache=cache)
    assert done.returncode == 0, done.stderr
    parts = [tmp_path / "run" / f"size-{size}" for size in (4, 16, 40)]
    forgotten = [set(content(part / "splits.json")["forget"]) for part in parts]
    assert [len(one) for one in forgotten] == [4, 16, 40] and forgotten[0] < forgotten[1] < forgotten[2]
    assert not any("result before" in content(part / "run.json")["works_on"] for part in parts)
    assert {row["about"]["size"] for row in records(tmp_path / "run")} == {"4", "16", "40"}
    assert 'href="size-16/report.html"' in (tmp_path / "run" / "report.html").read_text()


def test_sizes_count_labels_where_several_are_named(tmp_path: Path, cache: Path) -> None:
    settings = ["data.forget.label=[5,3]", "requests.sizes=[1,2]", "pretrain.retrained=false", "output=run"]
    done = unlearn(*SMALL, *settings, cwd=tmp_path, cache=cache)
    assert done.returncode == 0, done.stderr
    small, large = (set(content(tmp_path / "run" / f"size-{n}" / "splits.json")["forget"]) for n in (1, 2))
    assert small < large
    deck = (tmp_path / "run" / "size-1" / "report.html").read_text()
    assert "items labelled ‘5’<" in deck


def test_without_forgetting_the_criteria_stay_at_the_targets(tmp_path: Path, cache: Path) -> None:
    """The control: with no forget term the retain term alone has a gradient near 0, as the target is where it aims."""
    still = ["forget.weight=0", "requests.sizes=[4,16]", "optim={name: sgd, lr: 1e-4}", "output=run"]
    done = unlearn(*SMALL, *still, cwd=tmp_path, cache=cache)
    assert done.returncode == 0, done.stderr
    rows = records(tmp_path / "run")
    for size in ("4", "16"):
        for split in ("forget", "retain", "holdout"):
            target, after = (value(rows, subject, split, size=size) for subject in ("target", "unlearned"))
            assert after == pytest.approx(target, abs=2e-3)


@pytest.mark.parametrize(
    ("kind", "setting"),
    [
        ("sust", "requests.sequence=[sust_1,sust_2,sust_3,sust_4]"),
        ("scal", "requests.sizes=[1,2,3,4]"),
    ],
)
def test_folds_of_muse(kind: str, setting: str, tmp_path: Path, cache: Path) -> None:
    """Four folds of MUSE's layout: each fold of ``sust`` is new, each of ``scal`` holds the one before."""
    texts = [f"The harbour of town {number} froze over in the {number}th winter." for number in range(1, 5)]
    sets = {"raw/forget": texts[:1], "raw/retain1": ["A bridge was opened."] * 4, "raw/holdout": ["A road was paved."]}
    sets |= {f"sust/forget_{n}": [texts[n - 1]] for n in range(1, 5)}
    sets |= {f"scal/forget_{n}": texts[:n] for n in range(1, 5)}
    for name, items in sets.items():
        (tmp_path / "news" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "news" / f"{name}.json").write_text(json.dumps(items))
    folds = [f"{kind}_{number}" for number in range(1, 5)]
    data = {"name": "muse", "path": str(tmp_path), "forget_set": folds, "chunk_tokens": 32, "forget": {"label": folds}}
    small = f"recipe={ROOT / 'tests' / 'toys' / 'recipes' / 'small_language.yaml'}"
    short = ["optim.steps=2", "pretrain.optim.steps=2", "evaluate.memorization=null", "evaluate.text_membership={}"]
    done = unlearn(small, f"data={json.dumps(data)}", setting, *short, "output=run", cwd=tmp_path, cache=cache)
    assert done.returncode == 0, done.stderr
    parts = content(tmp_path / "run" / "metrics.json")["part_folders"]
    forgotten = [set(content(tmp_path / "run" / part / "splits.json")["forget"]) for part in parts]
    if kind == "sust":
        assert len(set.union(*forgotten)) == sum(map(len, forgotten)), "each fold is new"
        return
    assert forgotten[0] < forgotten[1] < forgotten[2] < forgotten[3]


WRONG = [
    ("requests.sizes=[]", "sizes is empty"),
    ("requests.sequence=[]", "sequence is empty"),
    ("requests={sizes: [4], sequence: [3]}", "either sizes"),
    ("requests.sizes=[8,4]", "growing"),
    ("requests.sizes=[0,4]", "from 1"),
    ("requests.sizes=[4,5000]", "size 5000: data: count=5000, but only"),
    ("requests.sequence=[3,{label: [3]}]", "request 2 of 2: data.forget selects no training item that an earlier"),
    ("requests.sequence=[3,{}]", "request 2 of sequence is empty"),
    ("requests.sequence=[3,eleven]", "request 2 of 2: data.forget.label: the data has no 'eleven'"),
    ("requests={sequence: [3, 5], at: 3}", "from 1 to 2"),
    ("requests={sequence: [3, 5], at: 2}", "requests.at=null"),
    ("requests.folds=[3]", "requests.folds"),
]


@pytest.mark.parametrize(("setting", "message"), WRONG)
def test_wrong_requests_are_refused_in_a_sentence(setting: str, message: str, tmp_path: Path, cache: Path) -> None:
    done = unlearn(*SMALL, setting, cwd=tmp_path, cache=cache)
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and not (tmp_path / "runs").exists()


def test_more_labels_than_there_are(tmp_path: Path, cache: Path) -> None:
    done = unlearn(*SMALL, "data.forget.label=[3,5]", "requests.sizes=[1,3]", cwd=tmp_path, cache=cache)
    assert done.returncode == 2 and "3 is more than the 2 labels" in done.stderr


@pytest.mark.parametrize("setting", [SEQUENCE, "requests.sizes=[4,16]"])
def test_show_and_check(setting: str, tmp_path: Path, cache: Path) -> None:
    shown = unlearn(*SMALL, setting, "--show", cwd=tmp_path, cache=cache)
    assert shown.returncode == 0 and "requests:" in shown.stdout
    (tmp_path / "again.yaml").write_text(shown.stdout)
    again = unlearn("recipe=again.yaml", "--show", cwd=tmp_path, cache=cache)
    assert again.returncode == 0, again.stderr
    tried = unlearn(*SMALL, setting, "--check", cwd=tmp_path, cache=cache)
    assert tried.returncode == 0 and "the first is tried" in tried.stdout, tried.stderr
    assert not (tmp_path / "runs").exists()
