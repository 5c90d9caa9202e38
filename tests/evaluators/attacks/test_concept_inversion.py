"""Concept inversion: new words in a model, and what is found by them on painters."""

import pytest
import torch
from torch import nn

from tests.toys.diffusion import small_model, small_splits
from tests.toys.painters import (
    attacked,
    bits,
    class_painter,
    ink,
    threes,
    typical,
    word_painter,
)
from tests.toys.scripted import evaluation_of
from unlearn.data.conditioned import Conditioned, Prompts
from unlearn.data.prompts import Prompted
from unlearn.evaluators.attacks.concept_inversion import ConceptInversion, NewNames, bounded
from unlearn.evaluators.base import Evaluation
from unlearn.models.conditioning import Condition
from unlearn.models.diffusion.config import TextUNet
from unlearn.models.diffusion.text_encoder import TextSide
from unlearn.models.diffusion.token_embeddings import new_words


@pytest.mark.parametrize("told", ["class", "text", "dit"])
def test_a_new_word_that_is_an_old_one_changes_nothing(told: str) -> None:
    """With the row of a known word (class) as the new one the score is the same, to the last bit; so is the model."""
    model = small_model(told)
    before = bits(model)
    split = small_splits(told)["forget"]
    batch = split.batch(split.ids[:2])
    known = batch[split.dataset.encoder.key]
    word = int(known.flatten()[0]) if told != "text" else int(known[0, 0, 3])  # "a COLOUR three"
    renamed = torch.where(known == word, -1, known)
    x, t = torch.randn(2, *model.latent_shape, dtype=torch.float64), torch.tensor([3, 500])
    expected = model.predict(x, t, model.condition(batch))
    rows = [table.weight[[word]].detach() for table in model.tables()]
    assert len(rows) == {"class": 1, "text": 1, "dit": 2}[told]
    with new_words(model, model.tables(), rows):
        found = model.predict(x, t, model.condition({**batch, split.dataset.encoder.key: renamed}))
    assert torch.equal(found, expected)
    others = [row + 1 for row in rows]
    with new_words(model, model.tables(), others):
        moved = model.predict(x, t, model.condition({**batch, split.dataset.encoder.key: renamed}))
        plain = model.predict(x, t, model.condition(batch))
    assert not torch.equal(moved, expected) or told == "dit"  # a new DiT's blocks are the identity
    assert torch.equal(plain, expected)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_new_words_are_forgotten_after_an_error() -> None:
    model = class_painter()
    with pytest.raises(ValueError, match="stop"), new_words(model, model.tables(), [torch.zeros(1, 64)]):
        raise ValueError("stop")
    assert type(model.denoiser.class_embedding) is nn.Embedding


def test_new_words_get_a_gradient() -> None:
    """The painter's loss is the squared distance of its row from the image, over 64, times (signal / noise)^2."""
    model = class_painter()
    row = torch.zeros(1, 64, requires_grad=True)
    x0, t = typical()[3:4], torch.tensor([500])
    noise = torch.ones_like(x0)
    with torch.enable_grad(), new_words(model, model.tables(), [row]):
        loss = (
            (model.predict(model.noised(x0, noise, t), t, Condition(classes=torch.tensor([-1]))) - noise)
            .square()
            .mean()
        )
    (gradient,) = torch.autograd.grad(loss, row)
    kept = model.alphas[500]
    expected = 2 / 64 * (0 - x0.flatten()) * kept / (1 - kept)
    assert torch.allclose(gradient[0], expected, rtol=1e-4)


def test_new_words_stand_in_the_place_of_the_longest_name() -> None:
    """ "dog" in "hot dog" is no dog, whether the hot dog is forgotten too or the label of another item."""
    words = TextUNet(words=("a", "hot", "dog", "by"))
    items = [("a hot dog by a dog", "dog"), ("a hot dog", "hot dog"), ("dog", "dog")]
    base = Prompted({"forget": items}, [])
    data = Conditioned(base, Prompts(TextSide([], [words.tokenizer()]).tokens))
    for forgotten, expected in (
        (["dog", "hot dog"], [[0, 3, 4, 5, 6, 3, -1, 1], [0, 3, -2, -3, 1, 1, 1, 1], [0, -1] + [1] * 6]),
        (["dog"], [[0, 3, 4, 5, 6, 3, -1, 1], [0, 3, 4, 5, 1, 1, 1, 1], [0, -1] + [1] * 6]),
    ):
        assert NewNames(data, forgotten).conditions(torch.arange(3))[:, 0].tolist() == expected


def inversion(evaluation: Evaluation, **settings: float) -> dict[str, float]:
    given = {"samples": 4, "steps": 60, "lr": 0.1, "batch": 8, "images": 10, **settings}
    records = ConceptInversion(**given)(evaluation).records
    return {record.subject: record.value for record in records}


@pytest.mark.parametrize("told", ["class", "text"])
def test_inversion_finds_what_the_embedding_hides(told: str) -> None:
    """The unlearned painter has the eight's image in the row of the three; the retrained one nothing at all.

    An unbounded search paints the mean three in all of them: the control with no data shows what the budget does.
    """
    hidden = class_painter(_3="8") if told == "class" else word_painter(_3=ink("8"))
    never = class_painter(_3="") if told == "class" else word_painter(_3=torch.zeros(64))
    target = class_painter() if told == "class" else word_painter()
    evaluation = attacked(told, target=target, unlearned=hidden, retrained=never)
    before = {subject: bits(model) for subject, model in evaluation.models.items()}
    assert inversion(evaluation, steps=0) == {"target": 1, "unlearned": 0, "retrained": 0}
    assert inversion(evaluation) == {"target": 1, "unlearned": 1, "retrained": 1}
    for subject, model in evaluation.models.items():
        assert all(torch.equal(tensor, before[subject][name]) for name, tensor in model.state_dict().items())
        assert all(parameter.requires_grad for parameter in model.parameters())
        assert all(parameter.grad is None for parameter in model.parameters())


def test_a_bound_keeps_the_embedding_near_its_start() -> None:
    """Bound 0 is no attack; a bound of two mean lengths of the table reaches the three."""
    evaluation = attacked("class", target=class_painter(), unlearned=class_painter(_3="8"))
    assert inversion(evaluation, bound=0.0)["unlearned"] == 0
    assert inversion(evaluation, bound=0.05)["unlearned"] == 0
    assert inversion(evaluation, bound=2.0)["unlearned"] == 1


def test_the_bound_is_the_length_of_the_move() -> None:
    moves = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    assert torch.allclose(bounded(moves, torch.tensor(1.0)), torch.tensor([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]]))
    assert not bounded(moves, torch.tensor(0.0)).any()


def test_inversion_learns_from_images_of_the_target() -> None:
    """The target paints a seven for three: learned from its images a word shows no three, learned from data it does."""
    evaluation = attacked("class", target=class_painter(_3="7"), unlearned=class_painter(_3=""))
    assert inversion(evaluation)["unlearned"] == 1
    assert inversion(evaluation, source="target")["unlearned"] == 0


def test_budgets_are_told() -> None:
    """64 numbers of one row, and the three's one word."""
    for told, model in (("class", class_painter()), ("text", word_painter())):
        records = ConceptInversion(samples=2, steps=3)(attacked(told, target=model)).records
        assert records[0].about == {"score": "accuracy", "budget": "3 steps, 64 numbers"}
        assert (records[0].direction, records[0].n, records[0].detector["name"]) == ("retrained", 2, "digitnet8")
    records = ConceptInversion(samples=2, steps=3, bound=0.5)(attacked("class", target=class_painter())).records
    assert records[0].about["budget"] == "3 steps, 64 numbers, bound 0.5"


def test_the_search_is_the_same_whatever_the_batch() -> None:
    evaluation = attacked("class", target=class_painter(), unlearned=class_painter(_3="8"))
    assert inversion(evaluation, batch_size=1) == inversion(evaluation, batch_size=64)


def test_a_dit_has_a_row_in_each_block() -> None:
    splits = threes("class")
    model = small_model("dit").float()
    evaluation = evaluation_of({"target": model}, splits)
    before = bits(model)
    records = ConceptInversion(samples=2, steps=2, batch=2, images=2)(evaluation).records
    assert records[0].about["budget"] == "2 steps, 32 numbers"  # two blocks of width 16
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
