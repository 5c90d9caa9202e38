"""TOFU: forget sets are the tail of the full set, wordings fit their questions, nothing of the world is a holdout."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from tests.toys import FILES
from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.data.base import Selection
from unlearn.data.splits import make_splits
from unlearn.data.text import TextDataset
from unlearn.data.tofu import Tofu

SMALL = FILES / "tofu_shaped"
SIZES = {"forget01": 4, "forget05": 8, "forget10": 12}


def small(folder: Path = SMALL, **settings: object) -> Tofu:
    return Tofu(path=str(folder), rows_per_author=4, **settings)  # type: ignore[arg-type]


def ids(data: TextDataset, *names: str) -> list[int]:
    return data.having(names).nonzero()[:, 0].tolist()  # type: ignore[no-any-return]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    shutil.copytree(SMALL, tmp_path / "tofu")
    return tmp_path / "tofu"


def change(file: Path, line: int, **changes: object) -> None:
    lines = file.read_text(encoding="utf-8").splitlines()
    lines[line - 1] = json.dumps({**json.loads(lines[line - 1]), **changes})
    file.write_text("\n".join(lines), encoding="utf-8")


@pytest.mark.parametrize("split", SIZES)
def test_the_split_is_the_tail(split: str) -> None:
    """10 authors of 4 rows: with n rows to forget, ids 40 - n ... 39 are forgotten and all before them retained."""
    source = small(split=split)
    data = source.load()
    splits = make_splits(data, source, Randomness(0, "splits"))
    assert splits["forget"].ids.tolist() == list(range(40 - SIZES[split], 40))
    assert splits["retain"].ids.tolist() == list(range(40 - SIZES[split]))
    assert {name: len(ids(data, name)) for name in SIZES} == SIZES
    for item in splits["forget"].ids.tolist():
        assert set(data.items[item].forms) == {
            "paraphrased_question", "paraphrased_answer", *(f"perturbed_{k}" for k in range(5))
        }  # fmt: skip
    others = range(16, 40 - SIZES[split])  # retain_perturbed.json has the first 16 rows
    assert not any(data.items[item].forms for item in others)
    assert all(data.items[item].forms for item in range(16))


def test_authors_and_rows() -> None:
    data = small().load()
    rows = [json.loads(line) for line in (SMALL / "full.json").read_text(encoding="utf-8").splitlines()]
    assert [(item.question, item.answer) for item in data.items[:40]] == [(r["question"], r["answer"]) for r in rows]
    assert list(data.labels[:40]) == [f"author_{n // 4:03d}" for n in range(40)]
    assert data.labels[40:] == ["real_authors"] * 4 + ["world_facts"] * 4
    assert data.having_form("perturbed_2").sum() == 16 + 12 + 8
    assert data.having_form("perturbed_3").sum() == 16 + 12
    question, wrong = data.items[28].forms["perturbed_0"]
    assert question == data.items[28].question and wrong != data.items[28].forms["paraphrased_answer"][1]


def test_published_targets_have_no_holdout() -> None:
    """Neither a label nor ids make a holdout of questions about the world; named, they may be one."""
    data = small().load()
    assert data.is_test.tolist() == [False] * 40 + [True] * 8
    for forget in (Selection(), Selection(ids=[39]), Selection(label=["author_009"]), Selection(without=["forget10"])):
        splits = make_splits(data, small(forget=forget), Randomness(0, "splits"))
        assert "holdout" not in splits and splits["test"].ids.tolist() == list(range(40, 48))
    named = small(holdout=Selection(label=["real_authors"]))
    assert make_splits(data, named, Randomness(0, "splits"))["holdout"].ids.tolist() == [40, 41, 42, 43]


@pytest.mark.parametrize("split", SIZES)
def test_authors_kept_out_are_the_holdout(split: str) -> None:
    """The last two authors before forget10 (rows 20 ... 27), whatever the split: one target serves all three."""
    source = small(split=split, holdout_authors=2)
    data = source.load()
    splits = make_splits(data, source, Randomness(0, "splits"))
    held = splits["holdout"].ids.tolist()
    assert {data.labels[item] for item in held} == {"author_005", "author_006"} and held == list(range(32, 40))
    assert data.is_test.tolist() == [False] * 32 + [True] * 16
    assert len(splits["forget"]) == SIZES[split] and len(splits["retain"]) == 32 - SIZES[split]
    assert not {"author_005", "author_006"} & {data.labels[item] for item in splits["retain"].ids.tolist()}
    assert data.fingerprint == small(holdout_authors=2).load().fingerprint != small().load().fingerprint


def test_a_set_of_another_version_is_refused(folder: Path) -> None:
    change(folder / "forget05_perturbed.json", 3, answer="Somewhere else.")
    with pytest.raises(RecipeError, match=r"forget05_perturbed\.json:3 differs from .*full\.json:35"):
        small(folder).load()


def test_a_wording_of_an_unknown_row_is_refused(folder: Path) -> None:
    change(folder / "retain_perturbed.json", 2, question="Who knows?")
    with pytest.raises(RecipeError, match=r"retain_perturbed\.json:2: this question .* rows 0 \.\.\. 27"):
        small(folder).load()


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("full", {"question": 3}, r'full\.json:1: "question" is 3; it must be text'),
        ("full", {"answer": " "}, r'full\.json:1: "answer" is empty'),
        (
            "world_facts_perturbed",
            {"perturbed_answer": "no list"},
            r'json:1: "perturbed_answer" is "no list"; .* a list',
        ),
        ("world_facts_perturbed", {"perturbed_answer": ["The Danube"]}, "holds the right answer, 'The Danube'"),
    ],
)
def test_wrong_rows_are_named(folder: Path, name: str, changes: dict[str, object], message: str) -> None:
    change(folder / f"{name}.json", 1, **changes)
    with pytest.raises(RecipeError, match=message):
        small(folder).load()


def test_optional_sets_may_be_missing(folder: Path) -> None:
    for name in ("retain_perturbed", "real_authors_perturbed", "world_facts_perturbed", "forget01_perturbed"):
        (folder / f"{name}.json").unlink()
    data = small(folder).load()
    assert len(data) == 40 and not data.is_test.any() and "forget01" not in data.names
    with pytest.raises(
        RecipeError, match=r"lacks forget01_perturbed\.json.*Type data\.path=FOLDER, or set UNLEARN_TOFU"
    ):
        small(folder, split="forget01").load()


def test_wrong_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match=r"no multiple of data\.rows_per_author=7"):
        Tofu(path=str(SMALL), rows_per_author=7).load()
    with pytest.raises(RecipeError, match=r"leaves no author to retain\. Type 6 or less"):
        small(holdout_authors=7).load()
    with pytest.raises(ValueError, match="holdout_authors is -1"):
        Tofu(holdout_authors=-1)
    monkeypatch.setenv("UNLEARN_TOFU", str(SMALL))
    assert len(Tofu(rows_per_author=4).load()) == 48


def test_without_a_hub_it_says_what_to_type(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    config = pytest.importorskip("datasets").config
    monkeypatch.delenv("UNLEARN_TOFU", raising=False)
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(RecipeError, match=r"locuslab/TOFU \(full, train\).*Type data\.path=FOLDER"):
        Tofu().load()


@pytest.mark.skipif("UNLEARN_TOFU" not in os.environ, reason="needs UNLEARN_TOFU, the folder of the full benchmark")
@pytest.mark.parametrize(("split", "size"), [("forget01", 40), ("forget05", 200), ("forget10", 400)])
def test_the_full_benchmark(split: str, size: int) -> None:
    """200 authors of 20 rows; forget10 == full[3600:]; 400 + n rows have five wrong answers, 217 more have three."""
    source = Tofu(split=split)  # type: ignore[arg-type]
    data = source.load()
    splits = make_splits(data, source, Randomness(0, "splits"))
    assert torch.equal(splits["forget"].ids, torch.arange(4000 - size, 4000))
    assert torch.equal(splits["retain"].ids, torch.arange(4000 - size))
    assert "holdout" not in splits and len(splits["test"]) == 217
    assert len(set(data.labels[:4000])) == 200 and data.labels.count("author_199") == 20
    assert data.having_form("perturbed_4").sum() == 400 + size
    assert data.having_form("perturbed_2").sum() == 400 + size + 217
    assert len(ids(data, "real_authors")) == 100 and len(ids(data, "world_facts")) == 117
    assert data.items[3999].label == "author_199" and "forget01" in data.items[3999].attributes
