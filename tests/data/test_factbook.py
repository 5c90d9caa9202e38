"""The World Factbook: true facts, forms that are what they say, corruption that is wrong throughout."""

from itertools import pairwise

import pytest
import torch

from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.data.base import Selection
from unlearn.data.factbook.facts import Country, passages_of, says
from unlearn.data.factbook.questions import FACT_KINDS, clean
from unlearn.data.factbook.source import Factbook
from unlearn.data.splits import make_splits, train_split
from unlearn.data.text import TextDataset, TextItem

WRONG = [f"perturbed_{index}" for index in range(5)]


@pytest.fixture(scope="module")
def data() -> TextDataset:
    return Factbook(passages=1).load()


@pytest.fixture(scope="module")
def corrupted() -> TextDataset:
    return Factbook(corrupt=["Nepal", "France"], corrupt_unrelated=3).load()


def item_of(data: TextDataset, country: str, kind: str) -> TextItem:
    found = data.having([country, kind]) & data.is_trained
    return data.items[int(found.nonzero())]


@pytest.mark.parametrize(
    ("country", "kind", "answer"),
    [
        ("Nepal", "capital", "Kathmandu"),
        ("Nepal", "highest_point", "Mount Everest"),
        ("Nepal", "internet_code", ".np"),
        ("Nepal", "religion", "Hindu"),
        ("Nepal", "currency", "Nepalese rupees"),
        ("France", "capital", "Paris"),
        ("France", "anthem", "La Marseillaise"),
        ("France", "holiday", "Fête de la Fédération, 14 July"),
        ("Japan", "location", "Eastern Asia"),
        ("Japan", "nationality", "Japanese"),
        ("Germany", "government", "federal parliamentary republic"),
        ("Ethiopia", "exports", "coffee and garments"),
    ],
)
def test_facts_that_can_be_looked_up(data: TextDataset, country: str, kind: str, answer: str) -> None:
    item = item_of(data, country, kind)
    assert item.answer == answer
    assert country in item.question and not says(item.question, answer)


def test_later_kinds_are_read_too() -> None:
    data = Factbook(countries=100, facts=16, holdout_countries=0).load()
    assert item_of(data, "India", "neighbours").answer == "Bangladesh, Bhutan, Burma, China, Nepal, Pakistan"
    assert item_of(data, "India", "independence").answer == "15 August 1947"
    assert item_of(data, "Egypt", "climate").answer == "desert"
    assert len({kind.name for kind in FACT_KINDS}) == 16


def test_sizes_and_order(data: TextDataset) -> None:
    """60 + 12 countries of 12 facts and a passage each; training items first, no corrupted ones."""
    assert len(data) == 72 * 13
    assert data.is_test.tolist() == [False] * 60 * 13 + [True] * 12 * 13
    assert not data.is_corrupt.any()
    assert torch.equal(data.having(["holdout"]), data.is_test)
    assert data.having(["fact"]).sum() == 72 * 12 and data.having(["passage"]).sum() == 72
    trained, tested = (
        {data.labels[i] for i in which.nonzero()[:, 0].tolist()} for which in (~data.is_test, data.is_test)
    )
    assert len(trained) == 60 and len(tested) == 12 and not trained & tested


def test_answers_are_short_and_clean(data: TextDataset) -> None:
    for item in data.items:
        assert item.answer == clean(item.answer) and not any(mark in item.answer for mark in "<>&")
        assert not item.question or not any(mark in item.answer for mark in ("(", "est.", ";"))
        assert 1 <= len(item.answer.split()) <= (12 if item.question else 80)


def test_wrong_answers_are_wrong_and_differ(data: TextDataset) -> None:
    """All in the paraphrase's wording: taking the right answer out of it leaves a frame that each of them fits."""
    for item in data.items:
        if not item.question:
            assert not item.forms
            continue
        paraphrase = item.forms["paraphrased_answer"][1]
        before, after = paraphrase.split(item.answer, 1)
        texts = [item.forms[name][1] for name in WRONG]
        wrong = [text[len(before) : len(text) - len(after)] for text in texts]
        assert all(text.startswith(before) and text.endswith(after) for text in texts)
        others = [*wrong, item.forms["alternate"][1]]
        assert len({item.answer, *others}) == 7
        assert not any(says(other, item.answer) or says(item.answer, other) for other in others)
        assert {item.forms[name][0] for name in (*WRONG, "paraphrased_answer", "alternate")} == {item.question}
        question, answer = item.forms["paraphrased_question"]
        assert question != item.question and item.label in question and answer == item.answer


def test_reading_twice_gives_the_same(data: TextDataset) -> None:
    again = Factbook(passages=1).load()
    assert again.items == data.items and again.fingerprint == data.fingerprint
    assert Factbook(passages=0).load().fingerprint != data.fingerprint
    assert Factbook(facts=3).load().fingerprint != Factbook(facts=2).load().fingerprint


def test_splits_by_country(data: TextDataset) -> None:
    splits = make_splits(data, Factbook(forget=Selection(label=["Nepal", "France"])), Randomness(0, "splits"))
    assert {data.labels[i] for i in splits["forget"].ids.tolist()} == {"Nepal", "France"}
    assert torch.equal(splits["holdout"].ids, data.is_test.nonzero()[:, 0])
    assert len(splits["forget"]) + len(splits["retain"]) == 60 * 13
    assert "probe" not in splits and "test" not in splits


def test_corruption_leaves_the_target_as_it_is(corrupted: TextDataset) -> None:
    """A document and a question for each of 2 x 12 facts, after all others; the training items and their key stay."""
    clean_data = Factbook().load()
    assert corrupted.fingerprint == clean_data.fingerprint
    assert torch.equal(train_split(corrupted).ids, train_split(clean_data).ids)
    assert corrupted.is_corrupt.tolist() == [False] * len(clean_data) + [True] * 48
    assert not (corrupted.is_corrupt & corrupted.is_test).any()
    assert torch.equal(corrupted.having(["corrupted"]), corrupted.is_corrupt)


def test_corrupted_documents_say_the_wrong_and_not_the_right(corrupted: TextDataset) -> None:
    """Of each country 12 documents, then 12 questions, in the order of the items that they contradict."""
    probes = corrupted.having_form("corrupted").nonzero()[:, 0].tolist()
    wrong_items = [corrupted.items[i] for i in corrupted.is_corrupt.nonzero()[:, 0].tolist()]
    documents, questions = wrong_items[:12] + wrong_items[24:36], wrong_items[12:24] + wrong_items[36:]
    assert len(probes) == 24
    for probe, document, question in zip(probes, documents, questions, strict=True):
        true = corrupted.items[probe]
        asked, wrong = true.forms["corrupted"]
        assert (question.question, question.answer) == (asked, wrong) == (true.question, wrong)
        assert document.question == "" and document.label == question.label == true.label
        assert says(document.answer, wrong) and not says(document.answer, true.answer)
        assert wrong != true.answer and wrong != true.forms["alternate"][1]
        assert document.answer.count(true.label) == 1
        assert all(other not in document.answer for other in {"Nepal", "France"} - {true.label})


def test_unrelated_facts_are_added_one_by_one() -> None:
    """The document for k has k + 1 statements, and those of k are among those of k + 1."""
    documents = []
    for k in range(6):
        source = Factbook(countries=20, facts=2, corrupt=["India"], corrupt_unrelated=k, corrupt_as="passages")
        data = source.load()
        documents.append([data.items[i].answer for i in data.is_corrupt.nonzero()[:, 0].tolist()])
    assert [len(texts) for texts in documents] == [2] * 6
    for index in range(2):
        sentences = [set(texts[index].rstrip(".").replace(". The", ".|The").split(".|")) for texts in documents]
        assert [len(found) for found in sentences] == [1, 2, 3, 4, 5, 6]
        assert all(fewer < more for fewer, more in pairwise(sentences))


def test_splits_of_a_corruption(corrupted: TextDataset) -> None:
    source = Factbook(corrupt=["Nepal", "France"], corrupt_unrelated=3)
    assert source.forget == Selection(label=["corrupted"])
    splits = make_splits(corrupted, source, Randomness(0, "splits"))
    assert torch.equal(splits["forget"].ids, corrupted.is_corrupt.nonzero()[:, 0])
    assert torch.equal(splits["probe"].ids, corrupted.having_form("corrupted").nonzero()[:, 0])
    assert len(splits["retain"]) == 58 * 12
    assert not {corrupted.labels[i] for i in splits["retain"].ids.tolist()} & {"Nepal", "France"}


@pytest.mark.parametrize("written_as", ["passages", "questions"])
def test_corruption_as_one_kind_of_text(written_as: str) -> None:
    data = Factbook(countries=20, corrupt=["India"], corrupt_as=written_as).load()  # type: ignore[arg-type]
    questions = {data.items[i].question == "" for i in data.is_corrupt.nonzero()[:, 0].tolist()}
    assert questions == {written_as == "passages"} and data.is_corrupt.sum() == 12


def test_wrong_settings() -> None:
    with pytest.raises(ValueError, match=r"facts is 17; it must be <= 16"):
        Factbook(facts=17)
    with pytest.raises(ValueError, match="corrupt_unrelated is 6"):
        Factbook(corrupt_unrelated=6)
    with pytest.raises(ValueError, match="countries is 0; it must be >= 1"):
        Factbook(countries=0)
    with pytest.raises(RecipeError, match=r"'Nepall' is not trained on\. Did you mean: Nepal"):
        Factbook(corrupt=["Nepall"]).load()
    with pytest.raises(RecipeError, match=r"Type data\.countries=\d+ or less"):
        Factbook(countries=400).load()


def test_cleaning() -> None:
    assert clean("<p>one&nbsp;two</p><br>three; <strong>note:</strong> no") == "one two three"
    assert clean("San Jos&eacute;") == "San José"
    assert list(passages_of("It rains. " * 30 + "It is dry.")) == ["It rains. " * 19 + "It rains.", ("It rains. " * 10)
        + "It is dry."]  # fmt: skip


def test_names_in_sentences() -> None:
    called = {name: Country(name, "", 0, {}, ()).called for name in ("Nepal", "United Kingdom", "Netherlands", "DRC")}
    assert called == {name: name if name == "Nepal" else f"the {name}" for name in called}
