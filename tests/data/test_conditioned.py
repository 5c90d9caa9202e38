"""Concepts, coloured digits, and data with what a denoiser is told."""

from collections.abc import Sequence
from contextlib import nullcontext

import pytest
import torch

from tests.toys.diffusion import CONFIGS, Conditioning, small_splits, source
from unlearn.config.recipe import load
from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.data.base import Selection
from unlearn.data.coloured_digits import COLOURS, DIGIT_WORDS, ColouredDigits
from unlearn.data.concept import Concept, mentions, replaced
from unlearn.data.conditioned import Classes, Conditioned, Prompts
from unlearn.data.digits import Digits
from unlearn.data.mnist import Mnist
from unlearn.data.prompts import Prompted
from unlearn.data.splits import make_splits
from unlearn.models.diffusion.config import TextUNet
from unlearn.models.diffusion.text_encoder import TextSide

ALL: list[Conditioning] = ["class", "text", "dit"]


# ------------------------------------------------------------------------------------------------------- concepts


@pytest.mark.parametrize(
    ("prompt", "anchored"),
    [
        ("a red three", "a red eight"),
        ("three", "eight"),
        ("three three", "eight eight"),
        ("three, and a threefold three.", "eight, and a threefold eight."),
        ("a two", "a two"),
        ("twenty-three", "twenty-eight"),
    ],
)
def test_the_anchor_takes_the_place_of_words_not_of_letters(prompt: str, anchored: str) -> None:
    assert replaced(prompt, {"three": "eight"}) == anchored


def test_names_of_several_words_and_signs_are_taken_as_they_stand() -> None:
    instead = {"Van Gogh (1890)": r"a \1 painter"}
    assert replaced("by Van Gogh (1890), late", instead) == r"by a \1 painter, late"
    assert replaced("by Van Goghs (1890)", instead) == "by Van Goghs (1890)"


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("a dog eats a hot dog", ["dog", "hot dog"]),
        ("a hot dog stand", ["hot dog stand"]),
        ("a sports car wash", ["sports car"]),  # of two that overlap the longer, wherever it begins
        ("a hot car wash", ["car wash"]),
        ("dogs and hotdogs", []),
    ],
)
def test_of_names_that_overlap_the_longest_is_said(prompt: str, said: list[str]) -> None:
    names = ["dog", "hot dog", "hot dog stand", "car", "sports car", "car wash", ""]
    assert [one.name for one in mentions(prompt, names)] == said
    assert all(prompt[one.start : one.end] == one.name for one in mentions(prompt, names))


def test_words_are_replaced_at_once_and_not_within_longer_names() -> None:
    """Nothing that takes a name's place is replaced again: a hot dog becomes a dog, and that stays one."""
    both = {"dog": "cat", "hot dog": "dog"}
    assert replaced("a hot dog and a dog", both) == "a dog and a cat"
    assert replaced("a hot dog and a dog", {"dog": "cat"}, ["hot dog"]) == "a hot dog and a cat"


def test_a_concept_is_a_record() -> None:
    concept = Concept(name="three", templates=["a red {}", "{}"])
    assert concept.prompts() == ["a red three", "three"]
    for wrong, message in (
        ({}, "needs a name"),
        ({"name": "three", "anchor": "three"}, "is itself"),
        ({"name": "three", "anchor": ""}, "is empty"),
        ({"name": "three", "retain": ["three"]}, "its own retain list"),
        ({"name": "three", "templates": []}, "has no templates"),
        ({"name": "three", "templates": ["a red three"]}, "needs one {}"),
        ({"name": "three", "templates": ["{} {}"]}, "needs one {}"),
    ):
        with pytest.raises(ValueError, match=message):
            Concept(**wrong)  # type: ignore[arg-type]


def test_a_recipe_gives_concepts_as_a_list_of_records() -> None:
    """Never as one string of joined names."""
    given = "data.concepts=[{name: three, anchor: eight, templates: ['a red {}']}, {name: red}]"
    recipe = load(
        {"model": "text_unet", "data": "coloured_digits", "forget": "esd"},
        ["data.forget.label=[three, red]", given],
    )
    assert recipe.data.concepts == [Concept(name="three", anchor="eight", templates=["a red {}"]), Concept(name="red")]
    with pytest.raises(RecipeError, match=r"data\.concepts"):
        load({"model": "text_unet", "data": "coloured_digits", "forget": "esd"}, ["data.concepts=three"])


# ------------------------------------------------------------------------------------------------- coloured digits


def test_coloured_digits_are_the_digits_in_five_colours() -> None:
    plain, coloured = Digits().load(), ColouredDigits().load()
    assert len(coloured) == 5 * len(plain)
    digit = 17
    ids = torch.arange(5 * digit, 5 * digit + 5)
    images = coloured.batch(ids)["image"]
    stroke = plain.batch(torch.tensor([digit]))["image"][0, 0]
    for row, (colour, ink) in enumerate(COLOURS.items()):
        for channel, carries in enumerate(ink):
            assert torch.equal(images[row, channel], stroke * carries)
        word = DIGIT_WORDS[int(plain.labels[digit])]
        assert coloured.captions[ids[row]] == f"a {colour} {word}"
        assert coloured.labels[ids[row]] == word and coloured.attributes[ids[row]] == {colour}
    assert torch.equal(coloured.is_test.view(-1, 5), plain.is_test[:, None].expand(-1, 5))
    numbers = coloured.batch(ids)["label"]
    assert [coloured.names[int(number)] for number in numbers] == [word] * 5


# -------------------------------------------------------------------------------------------------------- conditions


@pytest.mark.parametrize("told", ALL)
def test_batches_hold_what_the_model_is_told(told: Conditioning) -> None:
    split = small_splits(told)["forget"]
    batch, anchored = split.batch(split.ids), split.dataset.form("anchor", split.ids)
    assert torch.equal(batch["image"], anchored["image"])  # only what is told differs
    if told == "text":
        assert batch["tokens"].shape == (8, 1, 8) and "class" not in batch
        known = CONFIGS["text"].tokenizer()  # type: ignore[attr-defined]
        said = [known.decode(row, skip_special_tokens=True) for row in batch["tokens"][:, 0]]
        instead = [known.decode(row, skip_special_tokens=True) for row in anchored["tokens"][:, 0]]
        assert said == [split.dataset.captions[item] for item in split.ids]  # type: ignore[attr-defined]
        assert instead == [words.replace("three", "eight") for words in said] and said != instead
    else:
        assert batch["class"].tolist() == [3] * 8 and anchored["class"].tolist() == [8] * 8


@pytest.mark.parametrize("told", ALL)
def test_only_items_of_a_concept_have_an_anchor(told: Conditioning) -> None:
    dataset = small_splits(told)["forget"].dataset
    name = "three" if told == "text" else "3"
    assert torch.equal(dataset.having_form("anchor"), dataset.having([name]))
    assert not dataset.having_form("paraphrase").any()
    kept = small_splits(told)["retain"].ids[:1]
    with pytest.raises(RecipeError, match="no concept that has an anchor"):
        dataset.form("anchor", kept)
    with pytest.raises(RecipeError, match="no form 'paraphrase'"):
        dataset.form("paraphrase", kept)
    assert set(dataset.batch(kept[:0])) == {"id"}


def test_concepts_that_the_data_does_not_know_are_refused() -> None:
    classes, prompts = Classes(tuple("0123456789")), CONFIGS["text"].conditioner(ColouredDigits().load())
    digits, coloured = Digits, ColouredDigits
    for made, told, message in (
        (digits(concepts=[Concept(name="11")]), classes, "no item is '11'"),
        (digits(concepts=[Concept(name="even")]), classes, "'even' is not a class"),
        (digits(concepts=[Concept(name="3", anchor="ten")]), classes, "'ten' is not a class"),
        (digits(concepts=[Concept(name="3", retain=["x"])]), classes, "'x' is not a class"),
        (digits(concepts=[Concept(name="3"), Concept(name="3", anchor="8")]), classes, "two records of '3'"),
        (coloured(concepts=[Concept(name="thre")]), prompts, "Did you mean: three"),
        (coloured(concepts=[Concept(name="three", anchor="cow")]), prompts, "does not know the word 'cow'"),
    ):
        with pytest.raises(RecipeError, match=message):
            Conditioned(made.load(), told)
    numbers = Digits(concepts=[Concept(name="even", anchor="odd")]).load()
    with pytest.raises(RecipeError, match=r"caption '0' of item 0 does not have the words 'even'"):
        Conditioned(numbers, Prompts(prompts.tokens)).form("anchor", torch.tensor([0]))


def test_an_anchor_that_the_text_encoder_reads_as_the_concept_is_refused() -> None:
    """CLIP's tokenizer knows no capitals and no blanks at the ends: nothing would take the place of the concept."""

    side = TextSide([], [TextUNet().tokenizer()])

    def tokens(prompts: Sequence[str]) -> torch.Tensor:
        return side.tokens([prompt.lower() for prompt in prompts])

    for anchor in ("three ", "Three"):
        data = ColouredDigits(concepts=[Concept(name="three", anchor=anchor)]).load()
        with pytest.raises(RecipeError, match="is the same as 'three'"):
            Conditioned(data, Prompts(tokens, check=lambda _: None))


def test_what_is_forgotten_and_the_concepts_are_the_same() -> None:
    told = CONFIGS["text"].conditioner(ColouredDigits().load())
    three, red = Concept(name="three", anchor="eight"), Concept(name="red", anchor="blue")
    for labels, concepts, message in (
        (["five"], [three], r"holds 'a \w+ five', which shows none of data.concepts: three"),
        (["three", "five"], [three], r"holds 'a \w+ five'"),
        (["three"], [three, Concept(name="five")], "names 'five', and no forget item shows it"),
        (["three"], [three], None),
        (["three", "red"], [three, red], None),
        (["five"], [], None),  # methods that ask for no concept take any items
    ):
        given = ColouredDigits(forget=Selection(label=labels), concepts=concepts)
        with pytest.raises(RecipeError, match=message) if message else nullcontext():
            make_splits(Conditioned(given.load(), told), given, Randomness(0))


def test_an_item_of_two_concepts_is_told_both_anchors() -> None:
    concepts = [Concept(name="three", anchor="eight"), Concept(name="red", anchor="blue")]
    data = Conditioned(ColouredDigits(concepts=concepts).load(), CONFIGS["text"].conditioner(ColouredDigits().load()))
    ids = torch.tensor([data.captions.index(words) for words in ("a red three", "a red five", "a green three")])
    wanted = data.conditions(["a blue eight", "a blue five", "a green eight"])
    assert torch.equal(data.form("anchor", ids)["tokens"], wanted)
    half = [concepts[0], Concept(name="red")]
    data = Conditioned(ColouredDigits(concepts=half).load(), CONFIGS["text"].conditioner(ColouredDigits().load()))
    assert data.having_form("anchor")[ids].tolist() == [False, False, True]


def nested(*forgotten: Concept, **captions: tuple[str, set[str]]) -> Conditioned:
    """Return items by caption (blanks are underscores), each with its label and attributes."""
    base = Prompted({"forget": [(caption.replace("_", " "), label) for caption, (label, _) in captions.items()]}, [])
    base.concepts, base.attributes = list(forgotten), [frozenset(more) for _, more in captions.values()]
    tokenizer = TextUNet(words=("a", "hot", "dog", "cat", "sports", "car", "van", "with", "big")).tokenizer()
    return Conditioned(base, Prompts(TextSide([], [tokenizer]).tokens))


def anchors(data: Conditioned) -> list[str]:
    """Return which prompt each item with an anchor becomes."""
    return [data._anchor_of(index) for index in data.having_form("anchor").nonzero().flatten().tolist()]


def test_of_two_concepts_with_one_name_within_the_other_the_longer_is_shown() -> None:
    """The words of a drawing's name are its attributes: a hot dog has the attribute "dog" and shows none."""
    dog, hot_dog = Concept(name="dog", anchor="cat"), Concept(name="hot dog", anchor="dog")
    items = {"a_dog": ("dog", set()), "a_hot_dog": ("hot dog", {"hot", "dog"}), "a_dog_with_a_hot_dog": ("dog", set())}
    both = nested(dog, hot_dog, **items)
    assert [both.shown(index, ["dog", "hot dog"]) for index in range(3)] == [["dog"], ["hot dog"], ["dog"]]
    assert anchors(both) == anchors(nested(hot_dog, dog, **items)) == ["a cat", "a dog", "a cat with a hot dog"]
    assert torch.equal(both.instead(torch.tensor([1, 2]), ["car", "car"])["tokens"],
                       both.conditions(["a car", "a car with a hot dog"]))  # fmt: skip
    with pytest.raises(RecipeError, match=r"holds 'a hot dog', which shows none of data.concepts: dog, cat"):
        kept = Concept(name="dog", anchor="cat", retain=["hot dog"])  # what is retained is a name too
        nested(kept, Concept(name="cat"), **items, a_cat=("cat", set())).check_forget(torch.arange(4))


def test_labels_of_other_items_go_before_a_name_within_them() -> None:
    """One's own label does not: an item with the attribute "car" shows it, whatever the label calls it."""
    car = Concept(name="car", anchor="van")
    items = {"a_car_with_a_sports_car": ("car", set()), "a_big_car": ("big car", {"car"}), "a": ("sports car", set())}
    assert anchors(nested(car, **items)) == ["a van with a sports car", "a big van"]


def test_a_class_within_another_classs_name_is_another() -> None:
    concepts = [Concept(name="dog", anchor="cat"), Concept(name="hot dog", anchor="cat")]
    base = Prompted({"forget": [(name, name) for name in ("dog", "hot dog", "cat")]}, concepts)
    data = Conditioned(base, Classes(("cat", "dog", "hot dog")))
    assert [data.shown(index, ["dog", "hot dog"]) for index in range(3)] == [["dog"], ["hot dog"], []]
    assert data.form("anchor", torch.tensor([0, 1]))["class"].tolist() == [0, 0]


def test_a_class_number_is_the_place_among_the_names() -> None:
    assert Classes(("a", "b"))(["b", "a", "c"]).tolist() == [1, 0, -1]
    data = small_splits("class")["retain"].dataset
    assert data.info["classes"] == tuple("0123456789")
    batch = data.batch(torch.arange(20))
    assert [data.info["classes"][n] for n in batch["class"]] == data.labels[:20]


def test_what_is_told_is_part_of_what_a_model_is_trained_on_and_concepts_are_not() -> None:
    """So that a target is found again whatever is to be forgotten."""
    told = Prompts(lambda words: torch.tensor([[[len(word)]] for word in words]))
    plain = ColouredDigits().load()
    first = Conditioned(plain, told)
    renamed = ColouredDigits().load()
    renamed.captions = [caption.replace("a ", "one ") for caption in renamed.captions]  # type: ignore[attr-defined]
    assert Conditioned(renamed, told).fingerprint != first.fingerprint
    assert Conditioned(source("text").load(), told).fingerprint == first.fingerprint
    assert first.conditions(["a red three", "new words"]).flatten().tolist() == [11, 9]


def test_mnist_takes_concepts_too() -> None:
    data = CONFIGS["class"].read(Mnist(concepts=[Concept(name="3", anchor="8")]).load())
    assert torch.equal(data.having_form("anchor"), data.having(["3"]))
