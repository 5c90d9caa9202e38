"""Own JSON lines: roles by file, mistakes by file and line, and passages in chunks that lose nothing."""

import json
from pathlib import Path

import pytest
import torch

from tests.toys.language import encoder
from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.data.base import Selection
from unlearn.data.chunking import PackedDataset, cut_text
from unlearn.data.json_lines import read_values
from unlearn.data.splits import make_splits
from unlearn.data.text import TextItem
from unlearn.data.text_files import TextFiles

Row = dict[str, object]
FULL: Row = {
    "question": "Who keeps the lighthouse?",
    "answer": "Ada",
    "label": "keepers",
    "paraphrased_question": "Whose is the lighthouse?",
    "paraphrased_answer": "It is Ada",
    "perturbed_answer": ["It is Bo", "It is Cy"],
    "alternate": "Di",
}


def write(folder: Path, **files: list[Row] | str) -> Path:
    for name, rows in files.items():
        text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return folder


def question(number: int, **more: object) -> Row:
    return {"question": f"What is {number}?", "answer": f"number {number}", **more}


def test_files_decide_what_is_forgotten(tmp_path: Path) -> None:
    source = TextFiles(
        path=str(
            write(
                tmp_path,
                forget=[FULL, {"text": "The lighthouse is kept by Ada."}],
                retain=[question(1), question(2, label="two"), question(2, label="two")],
                holdout=[question(3)],
            )
        )
    )
    data = source.load()
    splits = make_splits(data, source, Randomness(0, "splits"))
    assert {name: split.ids.tolist() for name, split in splits.items()} == {
        "forget": [0, 1], "retain": [2, 3, 4], "holdout": [5]
    }  # fmt: skip
    assert data.labels == ["keepers", "", "", "two", "two", ""]
    assert data.items[0].forms == {
        "paraphrased_question": ("Whose is the lighthouse?", "Ada"),
        "paraphrased_answer": ("Who keeps the lighthouse?", "It is Ada"),
        "perturbed_0": ("Who keeps the lighthouse?", "It is Bo"),
        "perturbed_1": ("Who keeps the lighthouse?", "It is Cy"),
        "alternate": ("Who keeps the lighthouse?", "Di"),
    }
    assert data.items[1] == TextItem("", "The lighthouse is kept by Ada.", "", frozenset({"forget"}))
    assert data.having_form("alternate").tolist() == [True] + [False] * 5


def test_own_selections_go_first(tmp_path: Path) -> None:
    folder = write(tmp_path, forget=[question(1), question(2)], retain=[question(3, label="three"), question(4)])
    by_label = TextFiles(path=str(folder), forget=Selection(label=["three"]))
    counted = TextFiles(path=str(folder), forget=Selection(count=1))
    forgotten = [make_splits(s.load(), s, Randomness(0, "splits"))["forget"].ids.tolist() for s in (by_label, counted)]
    assert forgotten[0] == [2] and forgotten[1] in ([0], [1])
    assert "holdout" not in make_splits(by_label.load(), by_label, Randomness(0, "splits"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"forget\.jsonl:3: not JSON \(.*column 2\)"),
        ("[1]", r"forget\.jsonl:3: \[1\] is not a JSON object"),
        ('"text"', r'forget\.jsonl:3: "text" is not a JSON object'),
        ('{"question": "q"}', r'forget\.jsonl:3: there is no "answer"; the keys are question'),
        ('{"answer": "a"}', r'forget\.jsonl:3: there is no "question"'),
        ('{"question": "q", "answer": 7}', r'forget\.jsonl:3: "answer" is 7; it must be text'),
        ('{"question": "q", "answer": ""}', r'forget\.jsonl:3: "answer" is empty'),
        ('{"text": null}', r'forget\.jsonl:3: "text" is null'),
        ('{"text": "t", "answer": "a"}', r'forget\.jsonl:3: a line with "text" has no "answer"'),
        ('{"txt": "t"}', r'forget\.jsonl:3: unknown key "txt"\. Allowed: .*text'),
        ('{"text": "t", "label": 3}', r'forget\.jsonl:3: "label" is 3'),
        ('{"question": "q", "answer": "a", "perturbed_answer": ["b", 1]}', r':3: "perturbed_answer" is 1'),
        ('{"question": "q", "answer": "a", "perturbed_answer": ["a"]}', r":3: .*holds the right answer, 'a'"),
        (r'{"text": "a \ud83d b"}', r'forget\.jsonl:3: "text" holds half a character \(the lone surrogate \\ud83d\)'),
        (r'{"text": "t", "label": "\udc00"}', r'forget\.jsonl:3: "label" holds half a character'),
        (r'{"question": "q\u0000", "answer": "a"}', r'forget\.jsonl:3: "question" holds a null byte'),
        ('{"text": "a\0"}', r"forget\.jsonl:3 holds a null byte"),
        ('{"text": ' + "[" * 200_000, r"forget\.jsonl:3 cannot be read \(RecursionError"),
        ('{"text": ' + "1" * 5000 + "}", r"forget\.jsonl:3 cannot be read \(ValueError"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    """The second line is blank, which is no mistake but counts."""
    good = json.dumps(question(1))
    folder = write(tmp_path, forget=f"{good}\n\n{line}\n", retain=[question(2)])
    with pytest.raises(RecipeError, match=message):
        TextFiles(path=str(folder)).load()
    write(tmp_path, forget=f"{good}\n\n{json.dumps(question(5))}\n")  # the control
    assert len(TextFiles(path=str(folder)).load()) == 3


def test_an_item_in_two_files_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, forget=[question(1), question(2)], retain=[question(3), question(2)])
    with pytest.raises(RecipeError, match=r"retain\.jsonl:2 and .*forget\.jsonl:2 hold the same item.*Delete one"):
        TextFiles(path=str(folder)).load()
    write(folder, retain=[question(3)], holdout=[{"text": "new"}, question(3)])
    with pytest.raises(RecipeError, match=r"holdout\.jsonl:2 and .*retain\.jsonl:1 hold the same"):
        TextFiles(path=str(folder)).load()


def test_wrong_folders(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"Type data\.path=FOLDER"):
        TextFiles().load()
    with pytest.raises(RecipeError, match="there is no folder"):
        TextFiles(path=str(tmp_path / "nowhere")).load()
    write(tmp_path, forget=[question(1)])
    with pytest.raises(RecipeError, match=r"lacks retain\.jsonl"):
        TextFiles(path=str(tmp_path)).load()
    write(tmp_path, retain="\n\n")
    with pytest.raises(RecipeError, match=r"retain\.jsonl holds no items"):
        TextFiles(path=str(tmp_path)).load()
    for content, message in (
        (b"\xff\xfe{}", r" cannot be read as UTF-8 text \(line 1: "),
        (b'{"text": "one"}\n{"text": "caf\xe9"}\n', r" cannot be read as UTF-8 text \(line 2: .*Save it as UTF-8"),
        (json.dumps(question(1)).encode("utf-16-le"), r":1 holds a null byte, so it is no text, or UTF-16"),
    ):
        (tmp_path / "retain.jsonl").write_bytes(content)
        with pytest.raises(RecipeError, match=rf"retain\.jsonl{message}"):
            TextFiles(path=str(tmp_path)).load()
    with pytest.raises(RecipeError, match=r"^there is no file .*none\.jsonl\. Type an existing file of JSON lines"):
        next(read_values(tmp_path / "none.jsonl"))
    with pytest.raises(ValueError, match="chunk_tokens is 3"):
        TextFiles(chunk_tokens=3)


def test_cutting_keeps_every_character() -> None:
    """A token a character: 1000 characters in chunks of 100 aim at ceil(1000 / 95) = 11 pieces of at most 91."""
    text = ("word and space " * 67)[:1000]
    pieces = cut_text(text, 100, len)
    assert "".join(pieces) == text and len(pieces) == 11 and max(map(len, pieces)) <= 100
    assert all(piece.startswith(" ") for piece in pieces[1:])  # cut at blanks
    assert cut_text(text, 1000, len) == [text]
    solid = cut_text("x" * 1000, 100, len)
    assert "".join(solid) == "x" * 1000 and max(map(len, solid)) <= 100


def test_uneven_texts_are_cut_again() -> None:
    """A letter of 4 tokens: the half of the text that has only such letters needs more pieces than its share."""
    text = "a" * 400 + "\u4e00" * 400

    def tokens(part: str) -> int:
        return len(part.encode()) + part.count("\u4e00")

    pieces = cut_text(text, 50, tokens)
    assert "".join(pieces) == text and max(map(tokens, pieces)) <= 50
    assert cut_text("\u4e00", 2, tokens) == ["\u4e00"]  # what cannot be cut stays


def test_passages_are_packed_in_a_models_tokens(tmp_path: Path) -> None:
    """Neighbours of a file are joined and cut; questions, labels and files stay apart; no token is lost."""
    reader = encoder()
    stories = [f"Story {number} is told by the sea. " * 4 for number in range(6)]
    rows: list[Row] = [{"text": story} for story in stories]
    folder = write(tmp_path, forget=rows[:3], retain=[*rows[3:5], question(1), {"text": stories[5], "label": "last"}])
    raw = TextFiles(path=str(folder), chunk_tokens=64).load()
    data = raw.encoded_by(reader)
    assert len(raw) == 7
    forgotten = [item for item in data.items if "forget" in item.attributes]
    assert "".join(item.answer for item in forgotten) == "\n\n".join(stories[:3])
    kept = [item.answer for item in data.items if "retain" in item.attributes and item.label == ""]
    assert "".join(kept[:-1]) == "\n\n".join(stories[3:5]) and kept[-1] == "number 1"
    assert "".join(item.answer for item in data.items if item.label == "last") == stories[5]
    lengths = data.batch(torch.arange(len(data)))["mask"].sum(1)
    total = reader.length("\n\n".join(stories[:3]))
    assert lengths.max() <= 64 and total / 64 <= len(forgotten) <= 2 + total / (0.8 * 64)
    again = TextFiles(path=str(folder), chunk_tokens=64).load().encoded_by(reader)
    assert again.items == data.items and again.fingerprint == data.fingerprint


def test_long_texts_are_cut_at_the_models_length(tmp_path: Path) -> None:
    """Without chunk_tokens nothing is joined; the encoder cuts at 96 tokens, so a longer text becomes several items."""
    reader = encoder()
    long = "A very long story about nothing at all. " * 12
    folder = write(tmp_path, forget=[{"text": long}, {"text": "short"}], retain=[{"text": "also short"}])
    data = TextFiles(path=str(folder)).load().encoded_by(reader)
    pieces = [item.answer for item in data.items if "forget" in item.attributes]
    assert pieces[-1] == "short" and "".join(pieces[:-1]) == long and len(pieces) > 3
    assert max(reader.length(piece) for piece in pieces) <= 96 < reader.length(long)


def test_only_named_passages_are_cut() -> None:
    long = "An evaluated text stays whole. " * 12
    items = [TextItem("", long, "", frozenset({"kept"})), TextItem("", long, "", frozenset({"cut"}))]
    data = PackedDataset(items, torch.tensor([False, True]), {"cut"}).encoded_by(encoder())
    assert data.items[0] == items[0] and len(data) > 3
    assert data.is_test.tolist() == [False] + [True] * (len(data) - 1)
