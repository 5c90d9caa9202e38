"""SFD: what the teacher is conditioned on in place of a forget item's own condition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.toys.diffusion import Bench, small_splits
from unlearn.core.errors import RecipeError
from unlearn.data.base import Split
from unlearn.objectives.diffusion.sfd import SFD


def overridden(bench: Bench, images: Tensor, step: int = 0) -> list[str]:
    """Return the words that condition the teacher on forget items, for estimates that show images."""
    term: Any = bench.objective
    f_psi = images.double() / 8 - 1
    batch = bench.batch()
    found = term._override(bench.model, {"id": batch["id"], **batch}, f_psi[: len(batch["id"])], bench.context(step))
    names = bench.splits["forget"].dataset.info["classes"]
    return [names[index] for index in found.classes.tolist()]


def test_what_conditions_the_teacher(tmp_path: Path) -> None:
    dataset = small_splits("class")["forget"].dataset
    sevens = dataset.batch(torch.nonzero(dataset.having(["7"])).flatten()[:8])["image"]
    threes = dataset.batch(small_splits("class")["forget"].ids)["image"]

    def words(images: Tensor = sevens, step: int = 0, **settings: Any) -> list[str]:
        return overridden(Bench(tmp_path / "values", SFD(**settings), "class"), images, step)

    assert set(words()) == {"8"}
    assert set(words(override="itself")) == {"3"}
    often = [word for step in range(40) for word in words(step=step, override="random")]
    kept = small_splits("class")["retain"]
    others = {dataset.labels[index] for index in kept.ids.tolist()}
    assert set(often) == others and max(often.count(w) for w in others) < 1.5 * len(often) / len(others)
    assert set(words(override="random", overrides=["1", "2"])) <= {"1", "2"}
    assert set(words(override="likeliest")) == {"7"}
    assert "3" not in words(threes, override="likeliest") and set(words(threes, override="likeliest")) != {"7"}
    drawn = [word for step in range(10) for word in words(step=step, override="drawn")]
    assert drawn.count("7") > 0.9 * len(drawn)  # the judge is sure of real images


def test_a_word_is_drawn_by_the_judges_probabilities(tmp_path: Path) -> None:
    """Of one uncertain image, 800 draws: each share within four standard deviations of its probability."""
    bench = Bench(tmp_path, SFD(override="drawn", overrides=list("012456789")), "class")
    dataset = bench.splits["forget"].dataset
    real = dataset.batch(torch.arange(10))["image"].double()
    image = (real[3] + real[8]) / 2
    often = [w for step in range(100) for w in overridden(bench, image.expand(8, -1, -1, -1), step)]
    judge = bench.objective._judge(bench.context())  # type: ignore[attr-defined]
    likely = judge.probabilities(bench.model.images(image[None] / 8 - 1))[0].double()
    likely[judge.labels.index("3")] = 0
    likely = likely / likely.sum()
    for label, p in zip(judge.labels, likely.tolist(), strict=True):
        assert abs(often.count(label) / len(often) - p) <= 4 * (p * (1 - p) / len(often)) ** 0.5 + 1e-9
    assert often.count("3") == 0


def test_a_prompt_keeps_its_other_words(tmp_path: Path) -> None:
    bench = Bench(tmp_path, SFD(override="random", overrides=["two"]), "text")
    batch = bench.batch()
    found = bench.objective._override(bench.model, batch, torch.zeros(8), bench.context())  # type: ignore[attr-defined]
    captions = [bench.splits["forget"].dataset.captions[index] for index in batch["id"].tolist()]  # type: ignore
    wanted = bench.model.prompts([caption.replace("three", "two") for caption in captions])
    assert torch.equal(found.tokens, wanted.tokens) and len(set(captions)) > 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"override": "random", "overrides": ["ten"]}, "no class 'ten'"),
        ({"override": "likeliest", "judge": "digitnet28"}, "digitnet28"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        Bench(tmp_path, SFD(**settings), "class")


def test_what_is_no_label_needs_words(tmp_path: Path) -> None:
    """Where red is forgotten, every digit still is retained in other colours: no label may take red's place."""
    dataset = small_splits("text")["forget"].dataset
    red = torch.nonzero(dataset.having(["red"])).flatten()[:8]
    bench = Bench(tmp_path, SFD(override="random"), "text", prepare=False)
    bench.splits = {"forget": Split("forget", dataset, red), "retain": Split("retain", dataset, red + 1)}
    with pytest.raises(RecipeError, match="overrides"):
        bench.objective.prepare(bench.model, bench.context())
