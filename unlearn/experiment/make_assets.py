"""`make models`: trains every model that ships with the package anew, and writes it to ``unlearn/assets``."""

import json
import shutil
import sys
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from unlearn.config.recipe import load
from unlearn.config.schema import Recipe
from unlearn.core.distributed import map_ids
from unlearn.core.errors import RecipeError
from unlearn.core.files import write_json
from unlearn.core.randomness import Randomness
from unlearn.data.base import Dataset, Split
from unlearn.data.splits import train_split
from unlearn.evaluators.statistics import frechet
from unlearn.experiment.asset_cards import write_cards
from unlearn.experiment.inputs import distilled, training_items
from unlearn.experiment.model_store import StoredModel
from unlearn.experiment.pretraining import find_or_train
from unlearn.models.base import Wrapper
from unlearn.models.capabilities import Trains, TrainsAgainst
from unlearn.models.feature_extractors.classifiers import features_for

SHIPPED: dict[str, tuple[str, list[str]]] = {
    **{f"digits_glow/without_{digit}": ("flow/category_digits", [f"data.forget.label={digit}"]) for digit in range(10)},
    "digits_glow/target": ("flow/category_digits", []),
    "mnist_glow/target": ("flow/taming_mnist", []),
    "factbook_llama/target": ("language/npo_factbook", []),
    "factbook_llama/without_six": ("language/npo_factbook", []),
    "coloured_digits_unet/target": ("diffusion/esd_digits", []),
    "coloured_digits_unet/without_three": ("diffusion/esd_digits", []),
    "digits_unet/target": ("diffusion/salun_digits", []),
    "digits_unet/without_3": ("diffusion/salun_digits", []),
    "digits_unet/one_step": ("diffusion/sfd_digits", []),
    "digits_stylegan2/target": ("gan/guide_digits", []),
    "digits_stylegan2/without_3": ("gan/guide_digits", []),
}
"""Folder under ``unlearn/assets`` -> recipe and overrides; ``target`` is trained on everything, ``one_step`` is what
the recipe distils of its target."""

VOCABULARY = 2048
"""Entries of the tokenizer of the small language models."""

TOLERANCE = {"test_loss": 2e-3, "test_frechet": 0.02}
"""Largest change of the figure at which weights are still stored in half precision."""

SAMPLES = 2000
"""Number of samples for the distance of a GAN to the test images."""


def make(name: str, assets: Path) -> str:
    """Train one model, store it with its key and figures, and return a line about it."""
    recipe_name, overrides = SHIPPED[name]
    recipe = load(recipe_name, overrides)
    dataset = recipe.model.read(recipe.data.load())
    trained = found(name, recipe, dataset, anew=True)
    config = recipe.model
    folder = assets / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    test = Split("test", dataset, torch.nonzero(dataset.is_test).flatten())
    model = trained.read()
    what, exact = figure(model, test)
    model.save_pretrained(folder, torch.float16)
    stored = figure(config.wrapper.from_pretrained(folder), test)[1]
    if abs(stored - exact) > TOLERANCE[what]:
        model.save_pretrained(folder)
        stored = exact
    figures = {what: stored, f"{what}_single_precision": exact}
    record = {"key": trained.key, "seconds": trained.seconds}
    write_json(folder / "trained.json", {**record, "recipe": recipe_name, "overrides": overrides, "metrics": figures})
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return f"{name:<28} {trained.seconds:6.1f} s  {what} {stored:.4f}  {size / 1024:.0f} KiB"


def found(name: str, recipe: Recipe, dataset: Dataset, anew: bool = False) -> StoredModel:
    """Return the model that goes by a name in ``SHIPPED``, as its recipe has it: trained ``anew``, or found."""
    everything = train_split(dataset)
    part = name.rpartition("/")[2]
    if part == "one_step":
        if recipe.distil is None:
            raise RecipeError(f"{name}: the recipe {recipe.name} distils nothing")
        target = find_or_train(recipe.model, recipe.pretrain, recipe.trainer, everything, "target")
        return distilled(recipe, replace(recipe.distil, train=anew), target, dataset)
    split = everything if part == "target" else training_items(recipe, dataset)
    config = replace(recipe.model, train=True) if anew else recipe.model
    return find_or_train(config, recipe.pretrain, recipe.trainer, split, name)


def make_tokenizer(assets: Path) -> str:
    """Train the small language models' tokenizer on the Factbook, and return a line about it."""
    from unlearn.data.factbook.source import Factbook
    from unlearn.models.language.tokenization import train_tokenizer
    from unlearn.models.language.wrapper import SETTINGS

    items = Factbook(facts=16, passages=4).load().items
    texts = [f"Question: {item.question}\nAnswer: {item.answer}" if item.question else item.answer for item in items]
    tokenizer = train_tokenizer(texts, VOCABULARY)
    tokenizer.save_pretrained(assets / "factbook_tokenizer")
    (assets / "factbook_tokenizer" / SETTINGS).write_text(json.dumps({"bos": True}, indent=2) + "\n")
    return f"{'factbook_tokenizer':<28} {len(tokenizer):,} tokens"


def main(wanted: list[str]) -> None:
    """Make the models whose name starts with one of ``wanted``, or all."""
    assets = Path(str(files("unlearn"))) / "assets"
    if not wanted or "factbook_tokenizer" in wanted:
        print(make_tokenizer(assets), flush=True)
    for name in SHIPPED:
        if not wanted or name.startswith(tuple(wanted)):
            print(make(name, assets), flush=True)
    write_cards(assets, SHIPPED)


def figure(model: Wrapper, test: Split) -> tuple[str, float]:
    """Return the name and the value of a model's quality figure, lower is better.

    It is the mean training loss, or for a GAN, which has none of its own, the Frechet distance of samples to the test
    images in the features of the packaged net.
    """
    if not isinstance(model, TrainsAgainst):
        return "test_loss", mean_loss(model, test)
    net = features_for(test.dataset.info)
    ids = torch.arange(SAMPLES)
    draw: Any = model.sample
    drawn = map_ids(lambda part: net.embed(draw(part, Randomness(0, "shipped"))["image"]), ids)
    real = map_ids(lambda part: net.embed(test.batch(part)["image"]), test.ids)
    return "test_frechet", frechet(drawn, real)


def mean_loss(model: Wrapper, split: Split) -> float:
    """Return the mean training loss over a split, in the wrapper's unit; always the same noise."""
    if not isinstance(model, Trains):
        raise TypeError(f"{type(model).__name__} has no training loss, so it cannot be trained here")
    loss = model.eval().training_loss
    return map_ids(lambda ids: loss(split.batch(ids), Randomness(0, "shipped")), split.ids).mean().item()


if __name__ == "__main__":
    main(sys.argv[1:])
