"""MUSE's folder: what is trained on, what is only evaluated, and that neither leaks into the other."""

import json
from pathlib import Path

import pytest

from tests.toys.language import encoder
from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.data.base import Selection
from unlearn.data.muse import Muse
from unlearn.data.splits import make_splits

EVALUATED = (
    "verbmem", "knowmem_forget", "knowmem_retain", "privleak_forget", "privleak_retain", "privleak_holdout"
)  # fmt: skip


def write(folder: Path, name: str, content: object) -> None:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """News of our own, in all spellings that the layout allows."""
    news = tmp_path / "news"
    write(news, "raw/forget.txt", "The harbour froze over in May. " * 20)
    write(news, "raw/retain1.json", ["A bridge was opened.", "A tunnel was closed."])
    write(news, "raw/retain2.json", [{"text": "A road was paved."}])
    write(news, "raw/holdout.jsonl", '{"text": "The harbour was dredged."}\n')
    write(news, "verbmem/forget.json", [{"prompt": "The harbour froze", "gt": "over in May."}])
    for side, what in (("forget", "froze"), ("retain", "opened")):
        write(news, f"knowmem/{side}_qa.json", [{"question": f"What {what}?", "answer": what.upper()}])
        icl = [{"question": f"{what} {n}?", "answer": str(n)} for n in range(2)]
        write(news, f"knowmem/{side}_qa_icl.json", icl)
    for side in ("forget", "retain", "holdout"):
        write(news, f"privleak/{side}.json", [f"{side} one", f"{side} two"])
    for fold in range(1, 5):
        write(news, f"scal/forget_{fold}.json", [f"Scaled news {fold}."] * fold)
    write(news, "sust/forget_3.txt", "News of the third request.")
    return tmp_path


def test_passages_are_excerpts_and_have_no_end_token(folder: Path) -> None:
    """As MUSE trains and scores them, whether they are cut into chunks or whole; answers do end."""
    data, own = Muse(path=str(folder), chunk_tokens=16).load().encoded_by(encoder()), encoder()
    assert int(data.having(["forget"]).sum()) > 1 and int(data.having(["privleak_holdout"]).sum()) == 2
    ends = [data.tokens(index)[1][-1] == own.end for index in range(len(data))]
    assert ends == [bool(item.question) for item in data.items]


def test_roles(folder: Path) -> None:
    source = Muse(path=str(folder))
    data = source.load()
    assert data.is_test.tolist() == [False] * 3 + [True] * 11
    sizes = {name: int(data.having([name]).sum()) for name in data.names}
    assert sizes == {
        "forget": 1, "retain1": 2, "retain2": 1, "holdout": 1, "evaluation": 10, "verbmem": 1, "knowmem_forget": 1,
        "knowmem_retain": 1, "privleak_forget": 2, "privleak_retain": 2, "privleak_holdout": 2,
    }  # fmt: skip
    verbatim = data.items[int(data.having(["verbmem"]).nonzero())]
    assert (verbatim.question, verbatim.answer) == ("The harbour froze", "over in May.")
    assert data.in_context == {
        "knowmem_forget": [("froze 0?", "0"), ("froze 1?", "1")],
        "knowmem_retain": [("opened 0?", "0"), ("opened 1?", "1")],
    }
    assert Muse(path=str(folder / "news")).load().items == data.items


@pytest.mark.parametrize("forget", [Selection(), Selection(ids=[0]), Selection(without=["retain1"])])
def test_what_is_evaluated_is_no_holdout(folder: Path, forget: Selection) -> None:
    source = Muse(path=str(folder), forget=forget)
    data = source.load().encoded_by(encoder())
    splits = make_splits(data, source, Randomness(0, "splits"))
    assert {name: {next(iter(data.attributes[i] - {"evaluation"})) for i in splits[name].ids.tolist()}
        for name in ("forget", "holdout")} == {"forget": {"forget"}, "holdout": {"holdout"}}  # fmt: skip
    assert len(splits["test"]) == 10
    (folder / "news" / "raw" / "holdout.jsonl").unlink()
    without = source.load()
    assert "holdout" not in make_splits(without, source, Randomness(0, "splits"))


def test_raw_texts_are_cut_into_chunks(folder: Path) -> None:
    """The forget text has over 300 tokens: in chunks of 64, and evaluated texts stay whole."""
    reader = encoder()
    data = Muse(path=str(folder), chunk_tokens=64).load().encoded_by(reader)
    whole = "The harbour froze over in May. " * 20
    chunks = [item.answer for item in data.items if "forget" in item.attributes]
    assert "".join(chunks) == whole and max(map(reader.length, chunks)) <= 64
    assert reader.length(whole) / 64 <= len(chunks) <= 2 + reader.length(whole) / (0.8 * 64)
    kept = [item.answer for item in data.items if "retain1" in item.attributes]
    assert kept == ["A bridge was opened.\n\nA tunnel was closed."]
    assert sum(bool(item.attributes & set(EVALUATED)) for item in data.items) == 9
    assert data.in_context["knowmem_forget"] == [("froze 0?", "0"), ("froze 1?", "1")]
    assert not data.is_test[: len(chunks) + 1].any() and data.is_test[len(chunks) + 1 :].all()


@pytest.mark.parametrize(
    ("fold", "texts"), [("scal_2", ["Scaled news 2."] * 2), ("sust_3", ["News of the third request."])]
)
def test_folds_take_the_place_of_the_forget_set(folder: Path, fold: str, texts: list[str]) -> None:
    data = Muse(path=str(folder), forget_set=[fold]).load()  # type: ignore[list-item]
    assert [item.answer for item in data.items if "forget" in item.attributes] == texts
    assert data.fingerprint != Muse(path=str(folder)).load().fingerprint


def test_several_folds_are_told_apart_and_share_their_texts(tmp_path: Path, folder: Path) -> None:
    """A text of two folds is one item, which is trained on once; requests name the folds."""
    write(folder / "news", "scal/forget_1.json", ["one"])
    write(folder / "news", "scal/forget_2.json", ["one", "two"])
    data = Muse(path=str(folder), forget_set=["scal_1", "scal_2", "sust_3"]).load()
    forgotten = [(item.answer, item.attributes - {"forget"}) for item in data.items if "forget" in item.attributes]
    assert forgotten == [
        ("one", {"scal_1", "scal_2"}), ("two", {"scal_2"}), ("News of the third request.", {"sust_3"})
    ]  # fmt: skip
    with pytest.raises(ValueError, match="several different"):
        Muse(path=str(folder), forget_set=["scal_1", "scal_1"])


def test_optional_sets_may_be_missing(tmp_path: Path) -> None:
    write(tmp_path, "raw/forget.txt", "one")
    with pytest.raises(RecipeError, match=r"lacks raw/retain1.*verbmem/forget.*muse-bench/MUSE-Books"):
        Muse(path=str(tmp_path), corpus="books").load()
    write(tmp_path, "raw/retain1.txt", "two")
    data = Muse(path=str(tmp_path), corpus="books").load()
    assert len(data) == 2 and data.in_context == {"knowmem_forget": [], "knowmem_retain": []}
    with pytest.raises(RecipeError, match="lacks sust/forget_1"):
        Muse(path=str(tmp_path), forget_set=["sust_1"]).load()
    with pytest.raises(
        RecipeError, match=r"there is no folder 'nowhere'.*raw/forget.*The hub has it: muse-bench/MUSE-News"
    ):
        Muse(path="nowhere").load()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("verbmem/forget.json", [{"prompt": "p"}], r'verbmem/forget\.json, entry 0: there is no "gt"'),
        ("verbmem/forget.json", ["p"], 'entry 0: it must be an object with "prompt" and "gt"'),
        ("privleak/forget.json", ["fine", 3], r'privleak/forget\.json, entry 1: "text" is 3'),
        ("raw/retain1.json", '["a",\n"b"', r"raw/retain1\.json:2: not JSON"),
        ("raw/forget.txt", "  \n", r'raw/forget\.txt: "text" is empty'),
    ],
)
def test_wrong_content_is_named(folder: Path, name: str, content: object, message: str) -> None:
    write(folder / "news", name, content)
    with pytest.raises(RecipeError, match=message):
        Muse(path=str(folder)).load()


def test_wrong_settings() -> None:
    with pytest.raises(ValueError, match="chunk_tokens is 0; it must be >= 16"):
        Muse(chunk_tokens=0)
