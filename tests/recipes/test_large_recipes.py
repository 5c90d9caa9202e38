"""Recipes that ask for a GPU, made small: every part of them runs, on the CPU, in seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.toys.drawings import write_drawings
from tests.toys.gan import small_gan
from unlearn.config.recipe import load
from unlearn.data.splits import train_split
from unlearn.experiment.model_store import training_key
from unlearn.experiment.train_classifier import main as train_judge
from unlearn.models.diffusion.wrapper import Diffusion
from unlearn.models.gan.stylegan2.generator import Generator
from unlearn.models.gan.wrapper import LatentGenerator
from unlearn.run import main

SMALL = [
    "model.channels=[8,16]",
    "model.layers=1",
    "model.head_dim=8",
    "model.steps=2",
    "pretrain.optim={steps: 2, batch: 4}",
    "evaluate.concept_accuracy.samples=4",
    "evaluate.feature_distance={samples: 4, items: 8, bootstraps: 2}",
    "evaluate.sample_grid={side: 2, search: 4}",
    "gate=null",
    "output=out",
]
"""Of every recipe here; the rest is as it stands in the file."""

ON_CPU = ["trainer={accelerator: cpu, threads: 1, precision: '32', tensorboard: false}"]
ATTACKS = [
    "evaluate.concept_inversion={samples: 4, steps: 1}",
    "evaluate.image_relearning={items: [2], steps: [1], samples: 4}",
]
WORDS = ["evaluate.unlearn_diff_atk={samples: 4, steps: 1}", "evaluate.ring_a_bell={samples: 4, generations: 1}"]


BOOK_AND_CAR = {"1F4D5": "red", "1F693": "blue"}
"""A closed book and a police car: words that the recipes keep must be in the captions."""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNLEARN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def figures(folder: Path) -> dict[str, set[str]]:
    """Return metric -> subjects."""
    records: list[dict[str, Any]] = json.loads((folder / "metrics.json").read_text())["records"]
    found: dict[str, set[str]] = {}
    for record in records:
        found.setdefault(record["metric"], set()).add(record["subject"])
    return found


def test_random_labels_on_framed_mnist(here: Path) -> None:
    small = [*SMALL, *ON_CPU, *ATTACKS, "optim.steps=2", "optim.batch=4", "data.forget.count=16"]
    assert main(["recipe=diffusion/salun_mnist", *small]) == 0
    found = figures(here / "out")
    subjects = {"target", "unlearned", "retrained"}
    for metric in ("unlearning_accuracy", "frechet_digitnet28", "attack_concept_inversion", "attack_relearning"):
        assert found[metric] == subjects, metric
    assert found["classifier_accuracy"] == {"target"}  # the judge looks inside of the frame
    settings = Diffusion.from_pretrained(here / "out" / "model").settings
    assert settings.shape == (1, 32, 32) and settings.steps == 2


def test_a_generator_of_framed_mnist_is_distilled_and_forgets(here: Path) -> None:
    small = [*SMALL, *ON_CPU, "distil.optim={steps: 2, batch: 4}", "optim={steps: 2, batch: 4, forget_batch: 2}"]
    small += [f"{part}.warmup=2" for part in ("distil", "forget", "retain")]
    assert main(["recipe=diffusion/sfd_mnist", *small]) == 0
    assert {"target", "unlearned", "teacher"} <= figures(here / "out")["accuracy"]
    assert Diffusion.from_pretrained(here / "out" / "model").settings.one_step == 440


def test_both_recipes_of_mnist_share_their_target() -> None:
    keys = []
    for name in ("salun_mnist", "sfd_mnist"):
        recipe = load(f"diffusion/{name}")
        split = train_split(recipe.model.read(recipe.data.load()))
        keys.append(training_key(recipe.model, recipe.pretrain, split))
    assert keys[0] == keys[1]


@pytest.fixture(scope="module")
def emoji(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Settings of the recipes of emoji: drawings of one's own, and the judge that their header has trained."""
    folder = tmp_path_factory.mktemp("emoji")
    data = [f"data.path={write_drawings(folder / 'svg', BOOK_AND_CAR)}", "data.size=16"]
    judge = folder / "openmoji_judge"
    train_judge(["--recipe", "diffusion/esd_openmoji", "--output", str(judge), "--epochs", "1", *data])
    evaluators = ("concept_accuracy", "feature_distance", "sample_grid")
    attacks = ("concept_inversion", "unlearn_diff_atk", "ring_a_bell", "image_relearning")
    return [*data, *(f"evaluate.{name}.features={judge}" for name in (*evaluators, *attacks))]


@pytest.mark.parametrize("method", ["esd", "uce", "rece"])
def test_emoji_from_captions(method: str, emoji: list[str], here: Path) -> None:
    steps = [
        "optim.steps=2",
        "optim.batch=4",
        "forget.states.items=4",
        "forget.states.steps=2",
        "forget.states.walks=2",
    ]
    small = [*SMALL, *ON_CPU, *ATTACKS, *WORDS, *(steps if method == "esd" else []), "model.text_width=16"]
    assert main([f"recipe=diffusion/{method}_openmoji", *small, *emoji]) == 0
    found = figures(here / "out")
    subjects = {"target", "unlearned", "retrained"}
    attacks = ("concept_inversion", "unlearn_diff_atk", "ring_a_bell", "relearning")
    for metric in ("accuracy", "frechet_openmoji_judge", *(f"attack_{name}" for name in attacks)):
        assert found[metric] == subjects, metric
    model = Diffusion.from_pretrained(here / "out" / "model")
    assert model.text is not None and model.settings.shape == (3, 16, 16)
    tokens = model.text.tokens(["a drawing of a red heart", "a drawing of a red circle", "nothing"])
    assert (tokens[0] != tokens[1]).sum() == 1  # either has a word of its own, taken from the captions
    assert not torch.isin(tokens[0], tokens[2, :, 1]).any()  # as what is unknown has not


def test_without_a_judge_the_recipe_says_what_to_type(
    emoji: list[str], here: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["recipe=diffusion/uce_openmoji", *SMALL, *emoji[:2]]) == 2
    assert "openmoji_judge/config.json is missing" in (told := capsys.readouterr().err)
    assert "--recipe NAME" in told
    assert not (here / "out").exists()


def test_a_stylegan2_learns_faces_that_another_generator_drew(here: Path) -> None:
    """The person is an image to it, whose latent is found by inversion; style mixing and both penalties are on."""
    (here / "dcgan").mkdir()
    small_gan("dcgan").save_pretrained(here / "dcgan")
    narrow = {"channel_base": 128, "channel_max": 8, "z_dim": 8, "w_dim": 8, "layers": 2}
    small = [
        f"model.images_of={here / 'dcgan'}",
        *(f"model.{name}={value}" for name, value in narrow.items()),
        "data.strangers=12",
        "data.test_strangers=8",
        "pretrain.optim={steps: 2, batch: 4}",
        "optim={steps: 2, batch: 2}",
        "forget.pool=2",
        "forget.inversion.steps=2",
        "retain.pool=4",
        "evaluate.identity={same_person: 1, neighbours: 1, strangers: 4, inversion: {steps: 2}}",
        "evaluate.generator_distance={samples: 8, bootstraps: 2}",
        "evaluate.reinversion={steps: [2], strangers: 4}",
        "gate=null",
        "output=out",
    ]
    assert main(["recipe=gan/stylegan2_faces", *small, *ON_CPU]) == 0
    found = figures(here / "out")
    assert found["identity_similarity"] >= {"unlearned", "target_latent"}
    assert found["attack_reinversion"] == {"target", "unlearned"}
    model = LatentGenerator.from_pretrained(here / "out" / "model")
    assert isinstance(model.generator, Generator) and model.image_shape == (3, 64, 64)
