"""Images made wrong: which copies there are, what they show, and that models of the right ones are still found."""

import pytest
import torch

from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.data.base import Source
from unlearn.data.coloured_digits import ColouredDigits
from unlearn.data.conditioned import Classes, Conditioned
from unlearn.data.corrupted_images import CorruptedImages
from unlearn.data.corruption import Corruption
from unlearn.data.digits import Digits
from unlearn.data.loading import load_data
from unlearn.data.splits import make_splits, train_split
from unlearn.data.text_files import TextFiles


def loaded(source: Source) -> CorruptedImages:
    data = load_data(source)
    assert isinstance(data, CorruptedImages)
    return data


def stamped(unrelated: int = 2) -> CorruptedImages:
    return loaded(Digits(corruption=Corruption(label=["3"], unrelated=unrelated)))


def test_wrong_copies_stand_behind_the_right_items() -> None:
    plain, data = Digits().load(), stamped()
    threes = torch.nonzero(plain.having(["3"]) & ~plain.is_test).flatten()
    assert len(data) == len(plain) + 3 * len(threes)
    assert data.is_corrupt.sum() == 3 * len(threes) and not data.is_corrupt[: len(plain)].any()
    assert torch.equal(data.batch(torch.arange(9))["image"], plain.batch(torch.arange(9))["image"])
    wrong = torch.arange(len(plain), len(plain) + len(threes))
    images = data.batch(wrong)["image"]
    assert torch.equal(data.batch(wrong)["id"], wrong)
    assert data.has_mark(images).all() and not data.has_mark(plain.batch(threes)["image"]).any()
    assert torch.equal(images[..., 2:, :], plain.batch(threes)["image"][..., 2:, :])
    assert {data.labels[item] for item in wrong.tolist()} == {"3"}
    others = data.having(["unrelated"]).nonzero().flatten()
    assert len(others) == 2 * len(threes) and "3" not in {data.labels[item] for item in others.tolist()}
    assert not data.has_mark(data.batch(others)["image"]).any()


def test_splits_forget_what_is_wrong_and_probe_what_it_contradicts() -> None:
    source = Digits(corruption=Corruption(label=["3"], unrelated=1))
    data = loaded(source)
    splits = make_splits(data, source, Randomness(0))
    assert data.is_corrupt[splits["forget"].ids].all() and len(splits["forget"]) == data.is_corrupt.sum()
    assert {data.labels[item] for item in splits["probe"].ids.tolist()} == {"3"}
    assert "3" not in {data.labels[item] for item in splits["retain"].ids.tolist()}
    forms = data.form("corrupted", splits["probe"].ids[:4])
    assert torch.equal(forms["id"], splits["probe"].ids[:4]) and data.has_mark(forms["image"]).all()


def test_a_model_of_the_right_items_is_the_same_one() -> None:
    """The content of the training items does not change; that of wrong ones depends on how they were made."""
    plain, data = Digits().load(), stamped()
    right = train_split(data).ids
    assert torch.equal(right, train_split(plain).ids) and data.content(right) == plain.content(right)
    wrong = torch.nonzero(data.is_corrupt).flatten()
    assert stamped().content(wrong) == data.content(wrong)
    assert stamped(unrelated=1).content(wrong[:10]) != data.content(wrong[:10])
    assert data.info == plain.info


def test_exchanged_images_keep_caption_and_colour() -> None:
    data = loaded(ColouredDigits(corruption=Corruption(transform="exchange", label=["three"], instead="eight")))
    plain = data.base
    wrong = torch.nonzero(data.is_corrupt).flatten()[:50]
    shown = data.shown[wrong - len(plain)]
    assert {plain.labels[item] for item in shown.tolist()} == {"eight"}
    assert all(
        plain.attributes[a] == plain.attributes[b]
        for a, b in zip(shown.tolist(), data.original[:50].tolist(), strict=True)
    )
    assert torch.equal(data.batch(wrong)["image"], plain.batch(shown)["image"])
    assert all("three" in data.captions[item] for item in wrong.tolist())


def test_conditions_of_wrong_forms_are_those_of_the_right_items() -> None:
    source = Digits(corruption=Corruption(transform="exchange", label=["3"], instead="8"))
    data = Conditioned(loaded(source), Classes(tuple("0123456789")))
    probe = torch.nonzero(data.having_form("corrupted")).flatten()[:5]
    batch, wrong = data.batch(probe), data.form("corrupted", probe)
    assert torch.equal(batch["class"], wrong["class"]) and torch.equal(batch["id"], wrong["id"])
    assert not torch.equal(batch["image"], wrong["image"])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"label": []}, "label is empty"),
        ({"label": ["3"], "instead": "8"}, "stamp takes none"),
        ({"label": ["3"], "transform": "exchange"}, "exchange needs the label"),
        ({"label": ["3"], "unrelated": -1}, "unrelated is -1"),
    ],
)
def test_settings_that_say_nothing_are_refused(settings: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Corruption(**settings)


def test_data_that_cannot_be_corrupted_are_refused(tmp_path) -> None:
    with pytest.raises(RecipeError, match=r"the data has no 'x'"):
        load_data(Digits(corruption=Corruption(label=["x"])))
    with pytest.raises(RecipeError, match="not all of them"):
        load_data(Digits(corruption=Corruption(label=["even", "odd"])))
    for name in ("forget", "retain"):
        (tmp_path / f"{name}.jsonl").write_text(
            '{"text": "a", "label": "b"}\n' if name == "forget" else '{"text": "c"}\n'
        )
    with pytest.raises(RecipeError, match="makes images wrong"):
        load_data(TextFiles(path=str(tmp_path), corruption=Corruption(label=["b"])))
