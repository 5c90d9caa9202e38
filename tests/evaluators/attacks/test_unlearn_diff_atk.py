"""UnlearnDiffAtk: the words that a search must find are known on painters."""

from itertools import product

import torch

from tests.toys.painters import (
    WORDS,
    attacked,
    bits,
    digits,
    ink,
    threes,
    typical,
    word_painter,
)
from unlearn.evaluators.attacks.unlearn_diff_atk import UnlearnDiffAtk, first_of_each, projected
from unlearn.evaluators.base import Evaluation
from unlearn.evaluators.image.concept_classifier import concept_classifier


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
    with attack.search(evaluation, concept_classifier(evaluation.splits, None), "unlearned", judge_items) as (
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
    with attack.search(evaluation, concept_classifier(evaluation.splits, None), "target", items) as (told, _):
        found = told[0, 0].tolist()
    free = [number for number, word in enumerate(WORDS) if number > 1 and word != "3"]
    assert found[1] == WORDS.index("3") and not set(free) & set(found)


def test_the_first_wanted_of_each_group() -> None:
    where, wanted = torch.tensor([1, 0, 1, 0]), torch.tensor([False, False, True, False])
    assert first_of_each(where, wanted).tolist() == [1, 2]
