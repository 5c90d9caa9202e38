"""Attacks on diffusion models: on painters, where what an attack must find is known, and on small real networks."""

from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from tests.toys.diffusion import small_model, small_splits
from tests.toys.painters import (
    DIGITS,
    WORDS,
    bits,
    class_painter,
    digits,
    ink,
    threes,
    typical,
    word_painter,
)
from tests.toys.scripted import evaluation_of, value
from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.evaluators.attacks.base.prompt_search import position, words_of
from unlearn.evaluators.attacks.concept_inversion import ConceptInversion, bounded
from unlearn.evaluators.attacks.image_relearning import ImageRelearning
from unlearn.evaluators.attacks.ring_a_bell import RingABell, without, worded
from unlearn.evaluators.attacks.unlearn_diff_atk import UnlearnDiffAtk, first_of_each, projected
from unlearn.evaluators.base import Evaluation
from unlearn.evaluators.image.concept_classifier import concept_classifier
from unlearn.models.conditioning import Condition
from unlearn.models.diffusion.token_embeddings import new_words
from unlearn.models.diffusion.wrapper import Diffusion
from unlearn.models.feature_extractors.classifiers import features_for

SUBJECTS = ("target", "unlearned", "retrained")


def attacked(told: str, **models: Diffusion) -> Evaluation:
    return evaluation_of(models, threes(told))


# new words


@pytest.mark.parametrize("told", ["class", "text", "dit"])
def test_a_new_word_that_is_an_old_one_changes_nothing(told: str) -> None:
    """With the row of a known word (class) as the new one the score is the same, to the last bit; so is the model."""
    model = small_model(told)
    before = bits(model)
    split = small_splits(told)["forget"]
    batch = split.batch(split.ids[:2])
    known = batch[split.dataset.told.key]
    word = int(known.flatten()[0]) if told != "text" else int(known[0, 0, 3])  # "a COLOUR three"
    renamed = torch.where(known == word, -1, known)
    x, t = torch.randn(2, *model.latent_shape, dtype=torch.float64), torch.tensor([3, 500])
    expected = model.predict(x, t, model.condition(batch))
    rows = [table.weight[[word]].detach() for table in model.tables()]
    assert len(rows) == {"class": 1, "text": 1, "dit": 2}[told]
    with new_words(model, model.tables(), rows):
        found = model.predict(x, t, model.condition({**batch, split.dataset.told.key: renamed}))
    assert torch.equal(found, expected)
    others = [row + 1 for row in rows]
    with new_words(model, model.tables(), others):
        moved = model.predict(x, t, model.condition({**batch, split.dataset.told.key: renamed}))
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


# concept inversion


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


# UnlearnDiffAtk


def test_the_simplex_projection_is_the_nearest_point() -> None:
    """Against a dense grid of the simplex in three dimensions; points of the simplex stay."""
    stream = torch.Generator().manual_seed(0)
    points = 3 * torch.randn(20, 3, generator=stream, dtype=torch.float64)
    found = projected(points)
    assert torch.allclose(found.sum(dim=1), torch.ones(20, dtype=torch.float64)) and (found >= 0).all()
    n = 200
    grid = torch.tensor([(i, j, n - i - j) for i, j in product(range(n + 1), repeat=2) if i + j <= n]) / n
    nearest = grid.double()[torch.cdist(points, grid.double()).argmin(dim=1)]
    assert (found - nearest).abs().max() <= 1.5 / n
    assert torch.allclose(projected(found), found, atol=1e-12)


def diff_atk(evaluation: Evaluation, **settings: float) -> dict[str, float]:
    given = {"samples": 4, "tokens": 1, "steps": 60, "lr": 0.05, **settings}
    return {record.subject: record.value for record in UnlearnDiffAtk(**given)(evaluation).records}


def test_the_attack_finds_the_word_that_undoes_the_hiding() -> None:
    """ "3" paints an eight, and "dog" what is missing to a three: "dog 3" paints a three.

    In the retrained painter the word "3" is empty. "3" is among the words that may be tried, and paints nothing; no
    other word alone is a three. Random words (the control) do not find "dog" either.
    """
    evaluation = attacked(
        "text",
        target=word_painter(),
        unlearned=word_painter(_3=ink("8"), dog=ink("3") - ink("8")),
        retrained=word_painter(_3=torch.zeros(64)),
    )
    before = {subject: bits(model) for subject, model in evaluation.models.items()}
    found = diff_atk(evaluation)
    assert found["unlearned"] == 1 and found["retrained"] == 0
    assert diff_atk(evaluation, steps=0)["unlearned"] == 0
    for subject, model in evaluation.models.items():
        assert all(torch.equal(tensor, before[subject][name]) for name, tensor in model.state_dict().items())


def test_the_words_kept_are_the_best_of_all_single_words() -> None:
    """Against trying every word; the painter's loss at fixed (t, eps) ranks words by the distance of their image."""
    stream = torch.Generator().manual_seed(2)
    strange = {
        word: ink("3") - ink("8") + 0.3 * torch.randn(64, generator=stream).view(1, 8, 8)
        for word in ("dog", "cat", "hat")
    }
    model = word_painter(_3=ink("8"), **strange)
    evaluation = attacked("text", target=word_painter(), unlearned=model)
    table = model.tables()[0].weight
    paints = table[WORDS.index("3")] + table[2:] - 1
    best = 2 + int((paints - typical()[3].flatten()).square().sum(dim=1).argmin())
    data = digits("text")
    attack = UnlearnDiffAtk(samples=1, tokens=1, steps=100, lr=0.05)
    judge_items = threes("text")["forget"].ids[:1]
    with attack.finds(evaluation, concept_classifier(evaluation.splits, None), "unlearned", judge_items) as (
        told,
        budget,
    ):
        assert told[0, 0].tolist() == [0, best, WORDS.index("3"), 1, 1, 1, 1, 1]
    assert budget == "1 tokens, 100 steps"
    assert data.conditions(["3"])[0, 0].tolist()[1] == WORDS.index("3")


def test_two_words_are_found_together() -> None:
    """Neither half of what is missing paints a three, both do."""
    missing = ink("3") - ink("8")
    upper, lower = missing.clone(), missing.clone()
    upper[:, 4:], lower[:, :4] = 0, 0
    model = word_painter(_3=ink("8"), dog=upper, cat=lower)
    evaluation = attacked("text", target=word_painter(), unlearned=model)
    assert diff_atk(evaluation, tokens=2, steps=150)["unlearned"] == 1


def test_no_words_are_put_where_the_prompt_alone_is_best() -> None:
    """The target paints its threes from "3"; every word in front would add its ink."""
    others = {word: torch.full((64,), 0.5) for word in WORDS[2:] if word != "3"}
    model = word_painter(**{f"_{word}": given for word, given in others.items()})
    evaluation = attacked("text", target=model)
    items = threes("text")["forget"].ids[:1]
    attack = UnlearnDiffAtk(samples=1, tokens=1, steps=5)
    with attack.finds(evaluation, concept_classifier(evaluation.splits, None), "target", items) as (told, _):
        found = told[0, 0].tolist()
    free = [number for number, word in enumerate(WORDS) if number > 1 and word != "3"]
    assert found[1] == WORDS.index("3") and not set(free) & set(found)


def test_prompts_without_room_and_classes_are_refused() -> None:
    splits = threes("text")
    UnlearnDiffAtk(tokens=5).check(splits)  # start, 3, end, and five
    with pytest.raises(RecipeError, match=r"6 words in front.*reads 8 tokens.*up to 3 of them.*tokens=5"):
        UnlearnDiffAtk(tokens=6).check(splits)
    for attack in (UnlearnDiffAtk, RingABell):
        with pytest.raises(RecipeError, match=r"evaluate\.concept_inversion"):
            attack().check(threes("class"))
    with pytest.raises(RecipeError, match=r"ring_a_bell.tokens is 7, and the model reads 6 words"):
        RingABell(tokens=7).check(splits)


def test_the_first_wanted_of_each_group() -> None:
    where, wanted = torch.tensor([1, 0, 1, 0]), torch.tensor([False, False, True, False])
    assert first_of_each(where, wanted).tolist() == [1, 2]


# Ring-A-Bell


def bell(evaluation: Evaluation, **settings: float) -> dict[str, float]:
    given = {"samples": 2, "tokens": 1, "population": 20, "generations": 20, "eta": 0.0, **settings}
    return {record.subject: record.value for record in RingABell(**given)(evaluation).records}


def test_a_synonym_rings_the_bell() -> None:
    """ "cat" is encoded as "3" is by the target's text encoder, and still painted so by a model that lost the word "3".

    The retrained painter knows neither. Without the concept's name the words must be found; with it the name is.
    """
    target = word_painter(cat=ink("3"))
    unlearned = word_painter(_3=ink("8"), cat=ink("3"))
    retrained = word_painter(_3=torch.zeros(64), cat=torch.zeros(64))
    evaluation = attacked("text", target=target, unlearned=unlearned, retrained=retrained)
    assert bell(evaluation) == {"target": 1, "unlearned": 1, "retrained": 0}
    named = attacked("text", target=word_painter(), unlearned=unlearned, retrained=retrained)
    assert bell(named, may_name=True)["unlearned"] == 0  # it asks for "3" by name


@pytest.mark.parametrize("eta", [0.0, 1.0, 3.0])
def test_the_search_ends_at_the_nearest_prompt(eta: float) -> None:
    """Against all prompts of three words: enc(P) + eta (enc(P) - enc("")), P = "3"."""
    stream = torch.Generator().manual_seed(1)
    model = word_painter(**{word: torch.randn(64, generator=stream) for word in WORDS[2:]})
    evaluation = attacked("text", target=model)
    data = digits("text")
    judge_items = threes("text")["forget"].ids[:1]
    attack = RingABell(tokens=2, population=60, generations=40, eta=eta, samples=1)
    with attack.finds(evaluation, concept_classifier(evaluation.splits, None), "target", judge_items) as (told, budget):
        found = told[0]
    free = [word for word in range(2, len(WORDS)) if WORDS[word] != "3"]
    every = worded(data, torch.tensor(list(product(free, repeat=2))))

    def encoded(tokens: Tensor) -> Tensor:
        return model.encode(Condition(tokens=tokens)).states

    with_it, bare = encoded(data.conditions(["3"])), encoded(data.conditions([""]))
    wanted = with_it + eta * (with_it - bare)
    best = every[(encoded(every) - wanted).square().flatten(1).sum(dim=1).argmin()]
    assert torch.equal(found, best)
    assert budget == "2 tokens, 40 generations of 60"


def test_captions_without_the_concept() -> None:
    assert without(["a red three", "three", "a three, a threefold"], ["three"]) == ["a red", "", "a , a threefold"]


def test_words_and_their_places() -> None:
    data = small_splits("text")["forget"].dataset
    three = words_of(data, "three")[0]
    assert len(three) == 1 and position(data.conditions(["a red three"])[0, 0].tolist(), three) == 3
    assert position([1, 2, 3], [4]) == -1 and position([1, 2, 3], [2, 3]) == 1
    assert len(words_of(data, "a red three")[0]) == 3
    assert words_of(data, " ".join(["red"] * 9))[0] == words_of(data, "red")[0] * 6  # cut at the length


# relearning


def test_relearning_brings_the_image_back() -> None:
    """The painter's rows are its weights: training on threes moves the row of the three to their mean, and no other.

    At 0 steps nothing was trained; a rate of nearly 0 (the control) brings nothing back. The subjects stay as they are.
    """
    evaluation = attacked("class", target=class_painter(), unlearned=class_painter(_3="8"))
    before = bits(evaluation.models["unlearned"])
    findings = ImageRelearning(items=[4], steps=[0, 100], lr=0.05, samples=4)(evaluation)
    found = {(r.subject, r.about["budget"]): r.value for r in findings.records}
    assert found == {
        ("target", "4 items, 0 steps"): 1,
        ("target", "4 items, 100 steps"): 1,
        ("unlearned", "4 items, 0 steps"): 0,
        ("unlearned", "4 items, 100 steps"): 1,
    }
    assert {r.metric for r in findings.records} == {"attack_relearning"}
    assert [picture.name for picture in findings.pictures] == ["relearning"]
    after = evaluation.models["unlearned"].state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    weak = ImageRelearning(items=[4], steps=[100], lr=1e-6, samples=4)(evaluation).records
    assert value(weak, "attack_relearning", subject="unlearned") == 0


def test_more_images_than_there_are_is_refused() -> None:
    with pytest.raises(RecipeError, match="trains on 500 forget images, but there are"):
        ImageRelearning(items=[500]).check(threes("class"))


# all


@pytest.mark.parametrize("attack", [ConceptInversion, ImageRelearning])
def test_one_step_generators_have_no_figures(attack: Callable) -> None:
    model = class_painter()
    model.settings.one_step = 400
    assert not attack()(attacked("class", target=model)).records


@pytest.mark.parametrize(
    ("make", "settings", "text"),
    [
        (ConceptInversion, {"steps": -1}, "steps is -1"),
        (ConceptInversion, {"lr": 0.0}, "lr is 0"),
        (ConceptInversion, {"bound": -1.0}, "bound is -1"),
        (ConceptInversion, {"source": "both"}, "source is 'both'"),
        (ConceptInversion, {"samples": 0}, "samples is 0"),
        (UnlearnDiffAtk, {"tokens": 0}, "tokens is 0"),
        (UnlearnDiffAtk, {"lr": -1.0}, "lr is -1"),
        (RingABell, {"population": 2}, "population is 2"),
        (RingABell, {"mutation": 1.5}, "mutation is 1.5"),
        (ImageRelearning, {"samples": 0}, "samples is 0"),
        (ImageRelearning, {"items": []}, "items is"),
    ],
)
def test_settings_out_of_range(make: Callable, settings: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make(**settings)


def test_the_painters_paint() -> None:
    """What the tests above rely on: the classifier reads every typical digit, from a class and from a word."""
    ids = torch.arange(10)
    data = digits("class")
    firsts = torch.stack([torch.nonzero(data.having([name])).flatten()[0] for name in DIGITS])
    net = features_for(data.info)
    for told, model in (("class", class_painter()), ("text", word_painter())):
        batch = digits(told).batch(firsts)
        drawn = model.sample(ids, Randomness(0), like=batch)["image"]
        assert net.classify(drawn)[:, 0].tolist() == list(range(10))
