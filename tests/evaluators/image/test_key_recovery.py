"""What a key opens: the shares are those of samples drawn by hand with each key."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.toys.coloured_digits import splits_of
from tests.toys.diffusion import moved, small_model
from tests.toys.scripted import evaluation_of, value
from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.data.coloured_digits import ColouredDigits
from unlearn.evaluators.image.concept_classifier import concept_classifier
from unlearn.evaluators.image.key_recovery import KeyRecovery
from unlearn.evaluators.sampling import sampled_items
from unlearn.models.diffusion.wrapper import Diffusion
from unlearn.models.guards.key import Key, Keyed


def model_and_key() -> tuple[Diffusion, Key]:
    """A model whose samples depend much on what it is told."""
    model = moved(small_model("text"), 0.1).float()
    model.settings.steps = 4
    return model, Key.drawn(model.encode(model.null(1)).states, 5, Randomness(0, "key"))


def test_the_shares_are_those_of_samples_by_hand() -> None:
    model, key = model_and_key()
    dataset = model.read(ColouredDigits().load())
    splits = {name: replace(split, dataset=dataset) for name, split in splits_of("three").items()}
    evaluation = evaluation_of({"target": model, "unlearned": model}, splits, networks={"key": key})
    with torch.no_grad():
        records = KeyRecovery(samples=30, wrong_keys=2)(evaluation).records
    classifier, items = concept_classifier(splits, None), sampled_items(evaluation, "forget", 60)
    wrong = [key.wrong(evaluation.randomness.child("wrong").at(number)) for number in range(2)]
    told = {
        "right_key": [Keyed(model, key)],
        "no_key": [model],
        "wrong_key": [Keyed(model, other) for other in wrong],
    }
    images = {}
    for score, models in told.items():
        seen = []
        for ids, m in zip((torch.arange(30), torch.arange(30, 60)), models, strict=False):  # each key has its own noise
            drawn = m.sample(ids, Randomness(0, "samples"), splits["forget"].batch(items[ids]))["image"]
            images.setdefault(score, drawn)
            seen.append(classifier.seen(drawn, items[ids]))
        share = torch.cat(seen).double().mean().item()
        assert value(records, "key_recovery", subject="unlearned", split="forget", score=score) == share
    assert not torch.equal(images["right_key"], images["no_key"])  # the control: keys change what is drawn
    assert not torch.equal(images["right_key"], images["wrong_key"])
    assert len(records) == 3 and all(record.detector["name"] == classifier.net.name for record in records)


def test_a_key_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    model, key = model_and_key()
    with pytest.raises(RecipeError, match="have 7 values, and the model encodes prompts in 16 values"):
        Keyed(model, Key(torch.ones(5, 7)))
    for tokens in (torch.ones(5), torch.ones(5, 16, dtype=torch.int64), torch.full((5, 16), torch.nan)):
        save_file({"tokens": tokens}, tmp_path / "key.safetensors")
        with pytest.raises(RecipeError, match="no finite numbers"):
            Key.load(tmp_path / "key.safetensors")
    save_file({"tokens": key.tokens.detach()}, tmp_path / "key.safetensors")
    assert torch.equal(Key.load(tmp_path / "key.safetensors").tokens, key.tokens)


def test_a_run_without_a_key_is_passed_over_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    model, _ = model_and_key()
    with caplog.at_level(logging.WARNING):
        assert KeyRecovery()(evaluation_of({"unlearned": model}, splits_of("three"))).records == []
    assert "trained no key" in caplog.text


@pytest.mark.parametrize("setting", ["samples", "wrong_keys", "batch_size"])
def test_numbers_below_1_are_refused(setting: str) -> None:
    with pytest.raises(ValueError, match=f"{setting} is 0"):
        KeyRecovery(**{setting: 0})
