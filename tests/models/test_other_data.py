"""Every packaged data source with every kind of model: they fit, or one sentence says why not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.toys.pipelines import dit, images, stable_diffusion
from unlearn.config.registry import names, resolve
from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.data.base import Dataset, Split
from unlearn.data.concept import Concept
from unlearn.data.loading import load_data

OF_THE_HUB = {"muse": "text_files", "tofu": "text_files", "openmoji": "image_folder"}
"""Sources that need files from elsewhere, and those whose items are of the same kind."""

FITS = {
    "flow": {"coloured_digits", "digits", "mnist", "image_folder"},
    "gan": {"coloured_digits", "digits", "image_folder", "identities"},
    "diffusion": {"coloured_digits", "digits", "mnist", "image_folder", "prompts", "identities"},
    "language": {"factbook", "text_files"},
}
"""Sources that some model of a family reads; identities are prompts for a model that spells words."""

NEW = ("glow", "coupling_flow", "spline_flow", "autoregressive_flow", "unet", "text_unet", "dit", "stylegan2", "llama")
GIVEN = {"glow": "digits", "unet": "digits", "text_unet": "coloured_digits", "stylegan2": "digits", "llama": "factbook"}
"""Models that are built here, and written for data of these sources, to be given as trained ones."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dataset]:
    place = tmp_path_factory.mktemp("data")
    images(place / "images", 16)
    (place / "text").mkdir()
    for split in ("forget", "retain"):
        items = [{"question": f"{split} {number}", "answer": f"{number}"} for number in range(4)]
        (place / "text" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, items)))
    settings: dict[str, dict[str, Any]] = {
        "image_folder": {"path": str(place / "images"), "size": 16},
        "prompts": {"concepts": (Concept("cat", anchor="dog"),)},
        "text_files": {"path": str(place / "text")},
    }
    return {
        name: load_data(resolve("data", name)(**settings.get(name, {})))
        for name in names("data")
        if name not in OF_THE_HUB
    }


@pytest.fixture(scope="module")
def configs(data: dict[str, Dataset], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    place = tmp_path_factory.mktemp("models")
    found = {name: resolve("model", name)() for name in NEW}
    for name, source in GIVEN.items():
        (place / name).mkdir()
        config = resolve("model", name)()
        config.build(config.data_as_read(data[source]).info, Randomness(0)).save_pretrained(place / name)
        found[f"{name} as given"] = resolve("model", name)(pretrained=str(place / name))
    for name, write in (("stable diffusion", stable_diffusion), ("dit as given", dit)):
        found[name] = resolve("model", "stable_diffusion")(pretrained=str(write(place / name)))
    return found


def tried(config: Any, dataset: Dataset) -> Iterator[str]:
    """Yield the family of a model that takes the data as far as a first loss."""
    read = config.data_as_read(dataset)
    model = (
        config.load(config.fetch(config.pretrained)) if config.pretrained else config.build(read.info, Randomness(0))
    )
    model.check_fits(read.info)
    batch = Split("two", read, torch.arange(2)).batch(torch.arange(2))
    if model.family != "gan" and (model.family != "diffusion" or "image" in batch):
        assert model.eval().training_loss(batch, Randomness(0)).isfinite().all()
    yield model.family


@pytest.mark.parametrize("source", [name for name in names("data") if name not in OF_THE_HUB])
def test_every_model_takes_the_data_or_says_why_not(
    source: str, data: dict[str, Dataset], configs: dict[str, Any]
) -> None:
    taken: set[str] = set()
    for config in configs.values():
        try:
            taken.update(tried(config, data[source]))
        except RecipeError as error:
            assert "\n" not in str(error) and len(str(error)) < 500
    assert taken == {family for family, sources in FITS.items() if source in sources}
