"""The recipes of published scale, on models of the same class that are small enough for a test."""

import csv
import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig

from tests.toys import FILES
from tests.toys.command import unlearn
from tests.toys.language import tiny, tiny_splits
from unlearn.config import compose
from unlearn.config.recipe import load
from unlearn.config.schema import Trainer
from unlearn.core.errors import RecipeError
from unlearn.core.reference_model import ReferenceModel
from unlearn.experiment.memory_estimate import of_a_step
from unlearn.experiment.runner import check
from unlearn.models.language.memory import kept_numbers
from unlearn.run import main
from unlearn.training.build import recipe_module
from unlearn.training.fit import fit

RECIPES = ("language/tofu", "language/muse_news", "language/muse_books")
TOFU = FILES / "tofu_shaped"
SHORT = ["optim.steps=2", "optim.batch=4", "optim.accumulate=2", "trainer.tensorboard=false", "output=out"]


def write(folder: Path, name: str, content: object) -> None:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments for a target and a retrained model with random weights, each a folder of transformers."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("pretrained", "retrained")):
        (folder / name).mkdir()
        tiny(seed, width=64, depth=4).save_pretrained(folder / name)
    return [f"model.{name}={folder / name}" for name in ("pretrained", "retrained")]


@pytest.fixture(scope="module")
def muse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MUSE's layout with a few words of our own."""
    folder = tmp_path_factory.mktemp("muse")
    for name, word in (("forget", "harbour"), ("retain1", "bridge"), ("retain2", "tunnel"), ("holdout", "road")):
        write(
            folder,
            f"raw/{name}.json",
            [f"The {word} number {n} was closed in May, and opened again." for n in range(6)],
        )
    write(folder, "verbmem/forget.json", [{"prompt": f"The harbour number {n}", "gt": "was closed"} for n in range(3)])
    for side in ("forget", "retain"):
        pairs = [{"question": f"What of {side} {n}?", "answer": f"closed {n}"} for n in range(4)]
        write(folder, f"knowmem/{side}_qa.json", pairs[:3])
        write(folder, f"knowmem/{side}_qa_icl.json", pairs[3:])
    for side in ("forget", "retain", "holdout"):
        write(folder, f"privleak/{side}.json", [f"A text about {side}, number {n}, in May." for n in range(4)])
    return folder


def figures(folder: Path, subject: str = "unlearned") -> dict[tuple[str, str], Any]:
    records = json.loads((folder / "metrics.json").read_text())["records"]
    return {(record["metric"], record["split"]): record["value"] for record in records if record["subject"] == subject}


# ------------------------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize("name", RECIPES)
def test_every_entry_of_every_table_is_a_recipe(name: str) -> None:
    """It loads, and what it says is what the result holds; the reference is asked of the named method only."""
    tables: Any = compose.bare(compose.read(name)[1]["tables"])
    assert set(tables) == {"published", "tuned"}
    for settings, table in tables.items():
        assert {"gradient_ascent", "npo", "simnpo", "rmu"} <= set(table)
        for method, entry in table.items():
            own = [f"edit={method}", "forget=null", "retain=null"] if "edit" in entry else [f"forget={method}"]
            recipe = load(name, [*own, f"settings={settings}"])
            assert list(recipe.forget) == ([] if "edit" in entry else [method])
            assert load(recipe.tree).hash == recipe.hash
            assert f"tables.{settings}.{method}" in recipe.origins.values()


def test_the_settings_are_those_of_the_sources() -> None:
    """OpenUnlearning's trainer/SimNPO.yaml, the tuned run npo_lr5e5_b01_a5_ep10, and SimNPO's README on MUSE-Books."""
    published = load("language/tofu", ["forget=simnpo", "settings=published"])
    assert (published.forget["simnpo"].beta, published.forget["simnpo"].weight) == (4.5, 0.125)
    tuned = load("language/tofu", ["forget=npo", "retain=kl", "settings=tuned"])
    assert (tuned.optim.lr, tuned.retain["kl"].weight, tuned.forget["npo"].beta) == (5e-5, 5.0, 0.1)
    books = load("language/muse_books", ["forget=simnpo", "settings=tuned"])
    assert (books.forget["simnpo"].beta, books.retain["nll"].weight, books.optim.steps) == (0.75, 0.1, 170)
    assert books.select is not None and (books.select.every, books.select.patience) == (17, 1)


# --------------------------------------------------------------------------------------------------------- runs


@pytest.mark.parametrize("settings", ["published", "tuned"])
@pytest.mark.parametrize("name", RECIPES)
def test_rmu_moves_only_what_its_loss_reaches(name: str, settings: str, tmp_path: Path) -> None:
    """On a model that is deeper than the steered layer; under scope=all, the control, the layers above are refused."""

    def step(*more: str) -> None:
        recipe = load(name, ["forget=rmu", f"settings={settings}", *more])
        short = replace(recipe, optim=replace(recipe.optim, steps=1, batch=2, accumulate=1))
        module = recipe_module(short, tiny(depth=10), tiny_splits(), 0, ReferenceModel(lambda: tiny(depth=10)))
        fit(module, Trainer(threads=1, tensorboard=False), tmp_path / str(len(more)), "a step")

    step()
    with pytest.raises(RecipeError, match="no loss reaches"):
        step("scope=all")


def test_tofu_runs(models: list[str], tmp_path: Path) -> None:
    """In bfloat16 steps too the first loss is that of equal models, (2 / beta) log 2 of NPO and 0 of KL."""
    data = [f"data.path={TOFU}", "data.rows_per_author=4", "evaluate.tofu.new_tokens=4", "evaluate.cost=null"]
    method = ["forget=npo", "retain=kl", "settings=tuned"]
    done = unlearn("recipe=language/tofu", *method, *models, *data, *SHORT, cwd=tmp_path, cache=tmp_path / "cache")
    assert done.returncode == 0, done.stdout + done.stderr
    found = figures(tmp_path / "out")
    assert {("forget_quality", "forget"), ("exact_memorization", "forget"), ("probability", "retain")} <= set(found)
    assert any(metric == "model_utility" for metric, _ in found)
    assert ("privleak", "forget") not in found  # TOFU has no holdout
    with (tmp_path / "out" / "metrics.csv").open() as file:
        first = next(csv.DictReader(file))
    assert float(first["loss/forget/npo"]) == pytest.approx(20 * math.log(2), abs=0.1)
    assert abs(float(first["retain/kl"])) < 1e-3
    kept = load(tmp_path / "out" / "recipe.yaml")
    assert (kept.optim.lr, kept.optim.steps, kept.retain["kl"].weight) == (5e-5, 2, 5.0)
    assert (tmp_path / "out" / "model" / "model.safetensors").is_file()


def test_muse_runs_with_adapter_and_checkpointing(models: list[str], muse: Path, tmp_path: Path) -> None:
    """The tokenizer comes from a folder of its own, as for the published models."""
    own = [f"data.path={muse}", f"model.tokenizer={models[0].partition('=')[2]}", "data.chunk_tokens=16"]
    few = [
        "evaluate.muse.verbatim_tokens=4",
        "evaluate.muse.knowledge_tokens=4",
        "evaluate.text_membership.gradient_items=2",
    ]
    method = ["forget=npo", "retain=kl", "settings=published", "scope=lora", "model.checkpointing=true"]
    done = unlearn(
        "recipe=language/muse_news", *method, *models, *own, *few, *SHORT, cwd=tmp_path, cache=tmp_path / "cache"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = figures(tmp_path / "out")
    asked = {("verbatim_memorization", "forget"), ("knowledge_memorization", "forget"), ("privleak", "forget")}
    assert asked | {("knowledge_memorization", "retain"), ("exact_memorization", "holdout")} <= set(found)
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "trained: " in log and load(tmp_path / "out" / "recipe.yaml").model.checkpointing  # type: ignore[attr-defined]


def test_muse_runs_with_its_stop_rule(
    models: list[str], muse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = [f"data.path={muse}", f"model.tokenizer={models[0].partition('=')[2]}", "model.max_length=64"]
    few = ["evaluate={muse: {verbatim_tokens: 4, knowledge_tokens: 4}}", "select.every=1", "trainer.precision=32"]
    less = ["evaluate.memorization=null", "evaluate.text_membership=null", "evaluate.cost=null"]
    method = ["forget=simnpo", "settings=tuned"]
    monkeypatch.chdir(tmp_path)
    assert main(["recipe=language/muse_books", *method, *models, *own, *few, *less, *SHORT]) == 0
    assert "step 1: knowledge_memorization" in (tmp_path / "out" / "log.txt").read_text()


@pytest.mark.skipif("UNLEARN_TOFU" not in os.environ, reason="UNLEARN_TOFU names no folder of TOFU")
def test_tofu_itself_runs(models: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = ["data.split=forget01", "evaluate={tofu: {items: 3, new_tokens: 4}}", "data.retain.count=40"]
    less = ["evaluate.memorization.items=3", "evaluate.text_membership=null", "evaluate.cost=null"]
    monkeypatch.chdir(tmp_path)
    assert main(["recipe=language/tofu", *models, *few, *less, *SHORT]) == 0
    assert ("forget_quality", "forget") in figures(tmp_path / "out")


# ---------------------------------------------------------------------------------------------- without the hub


@pytest.mark.parametrize("flag", ["--check", ""])
@pytest.mark.parametrize(
    ("recipe", "settings", "message"),
    [
        ("language/tofu", [], "model.pretrained: 'open-unlearning/tofu_Llama-3.2-1B-Instruct_full' is no folder here"),
        ("language/muse_news", ["model.tokenizer=no/body"], "model.tokenizer: 'no/body' is no folder here"),
        ("language/muse_books", ["data.path=null"], "muse-bench/MUSE-Books (raw, retain1)"),
    ],
)
def test_without_the_hub_the_exit_code_is_2_and_the_message_says_what_is_missing(
    recipe: str,
    settings: list[str],
    message: str,
    flag: str,
    muse: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    data = [f"data.path={TOFU}", "data.rows_per_author=4"] if recipe == "language/tofu" else [f"data.path={muse}"]
    assert main([f"recipe={recipe}", *data, *settings, *filter(None, [flag])]) == 2
    assert message in (said := capsys.readouterr().err) and "Type " in said
    assert list(tmp_path.iterdir()) == []


# -------------------------------------------------------------------------------------------------------- check

SHAPE = {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": True,
}
"""Of Llama-3.2-1B, whose parameters are 1,235,814,400."""


@pytest.fixture(scope="module")
def described(models: list[str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with the configuration of a model of a billion weights, but without them."""
    folder = tmp_path_factory.mktemp("described")
    LlamaConfig(architectures=["LlamaForCausalLM"], **SHAPE).save_pretrained(folder)  # type: ignore[arg-type]
    AutoTokenizer.from_pretrained(models[0].partition("=")[2]).save_pretrained(folder)
    return f"model.pretrained={folder}"


def tofu_on(model: str, *settings: str) -> Any:
    return load("language/tofu", [model, f"data.path={TOFU}", "data.rows_per_author=4", *settings])


def test_check_tells_the_size_of_a_model_without_its_weights(described: str) -> None:
    text = check(tofu_on(described))
    assert "1,235,814,400 parameters, built without its weights" in text
    assert "trained: 1,235,814,400 of 1,235,814,400 parameters" in text
    assert "sound" not in text and "not tried: a step, evaluate." in text and "are not here)" in text
    adapter = 16 * (2 * 8 * (2048 + 2048) + 2 * 8 * (2048 + 512) + 3 * 8 * (2048 + 8192))
    assert f"trained: {adapter:,} of" in check(tofu_on(described, "scope=lora", "scope.rank=8"))


@pytest.mark.parametrize("name", RECIPES)
def test_check_calls_every_evaluator_on_small_models(name: str, models: list[str], muse: Path) -> None:
    own = (
        [f"data.path={TOFU}", "data.rows_per_author=4"]
        if name == "language/tofu"
        else [f"data.path={muse}", "model.tokenizer=null"]
    )
    text = check(load(name, [*models, *own, "optim.accumulate=1"]))
    assert "on the given model" in text and text.endswith("The recipe is sound."), text[-500:]


def test_the_estimate_of_a_step(described: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Single precision: 4 bytes a weight; Adam keeps 8; a sum under accumulation holds the gradient twice; KL, a head.

    In bfloat16 all but the head is half of that. A step of an adapter asks for its own gradient and moments only.
    """
    seen: list[dict[str, int]] = []
    monkeypatch.setattr(
        "unlearn.experiment.memory_estimate.of_a_step", lambda *given: seen.append(of_a_step(*given)) or seen[-1]
    )
    weights = 1_235_814_400
    for settings, bytes_, copies in (
        (["retain=kl"], 4, 2),
        (["retain=kl", "optim.accumulate=1"], 4, 1),
        (["retain=kl", "combine=gru"], 4, 3),
        (["retain=kl", "combine=orthograd", "optim.batch=3"], 4, 5),
        (["retain=kl", "model.dtype=bfloat16"], 2, 2),
    ):
        check(tofu_on(described, *settings))
        held, gradients, moments, head, activations = seen[-1].values()
        assert (held, gradients, moments) == tuple(n * bytes_ * weights for n in (1, copies, 2))
        assert head == 4 * 128256 * 2048 and activations > 0
    check(tofu_on(described, "scope=lora"))
    held, gradients, moments, head, _ = seen[-1].values()
    assert head == 0 and 4 * weights < held < 4.1 * weights and gradients == moments < 0.02 * held
    text = check(tofu_on(described, "retain=kl", "trainer.devices=2"))
    assert seen[-1]["gradient buckets, at most"] == 2 * 4 * 128256 * 2048  # the embeddings are one bucket
    assert "to measure one model at a time" in text


@pytest.mark.parametrize(("width", "depth"), [(64, 3), (96, 5)])
def test_the_estimate_of_activations_is_what_autograd_keeps(width: int, depth: int) -> None:
    """Counted by storage, weights left out; within a tenth. The control, half as many tokens, is far off.

    With checkpointing a model keeps every layer's input, and at any one time what a single layer keeps.
    """
    model = tiny(width=width, depth=depth).model
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.base_model(input_ids=torch.ones(3, 40, dtype=torch.int64), use_cache=False)
    numbers = sum(t.untyped_storage().nbytes() for place, t in kept.items() if place not in weights) / 4
    assert numbers == pytest.approx(kept_numbers(model.config, 120, False), rel=0.1)
    assert numbers != pytest.approx(kept_numbers(model.config, 60, False), rel=0.4)
    single = tiny(width=width, depth=1).model.config
    assert kept_numbers(model.config, 120, True) == depth * width * 120 + kept_numbers(single, 120, False)
