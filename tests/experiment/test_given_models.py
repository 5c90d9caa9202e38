"""Runs on models that somebody else made: their type is kept, adapters are merged, what cannot serve is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from nflows import distributions, flows, transforms
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import unlearn
from tests.toys.language_files import SMALL, figures, weights
from unlearn.core.errors import RecipeError
from unlearn.evaluate import main as evaluate
from unlearn.models.language.config import SmallLlama
from unlearn.run import main

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing:FutureWarning")  # inside peft


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with a cache of its own."""
    monkeypatch.setenv("UNLEARN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "initializer_range": 0.2}


def model(kind: str = "llama", **settings: int) -> PreTrainedModel:
    tokenizer = SmallLlama().encoder().tokenizer
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), **{**SIZES, "intermediate_size": 24, **settings})
    config.pad_token_id, config.bos_token_id, config.eos_token_id = 0, 1, 2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return made


def saved(folder: Path, made: PreTrainedModel) -> Path:
    made.save_pretrained(folder)
    SmallLlama().encoder().tokenizer.save_pretrained(folder)
    return folder


def forget(folder: Path, *settings: str) -> int:
    given = f"model={{name: causal_lm, pretrained: {folder}}}"
    return main([SMALL, given, *settings, "optim.steps=3", "output=run"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_type_of_the_target_is_kept_and_what_is_measured_is_what_is_saved(dtype: torch.dtype, here: Path) -> None:
    assert forget(saved(here / "given", model().to(dtype))) == 0
    assert {value.dtype for value in weights(here / "run").values()} == {dtype}
    measured = [record for record in figures(here / "run") if record["evaluator"] != "cost"]
    assert evaluate(["run"]) == 0
    assert [record for record in figures(here / "run") if record["evaluator"] != "cost"] == measured != []


def test_an_adapter_is_merged_into_the_target(here: Path) -> None:
    base = saved(here / "base", model())
    torch.manual_seed(0)
    adapted = get_peft_model(model(), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(here / "adapter")
    assert forget(base, "model.adapter=adapter") == 0
    stored = weights(here / "run")
    wanted = adapted.merge_and_unload().state_dict()
    plain = load_file(base / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    assert float((stored[name] - wanted[name]).abs().max()) < 0.02 < float((plain[name] - wanted[name]).abs().max())
    assert stored.keys() == plain.keys()


def own_flow(shift: float) -> flows.Flow:
    """Return a flow over [0, 1) of the user's own code, which takes no images where they are shifted."""
    layers = [
        transforms.PointwiseAffineTransform(shift=shift),
        transforms.PiecewiseRationalQuadraticCDF([1, 8, 8], num_bins=4),
        transforms.Logit(),
    ]
    return flows.Flow(transforms.CompositeTransform(layers), distributions.StandardNormal([1, 8, 8]))


def test_a_flow_of_the_users_own_code_unlearns(here: Path) -> None:
    """No folder can build it again, so what was saved is read into a copy of it."""
    recipe = Path(SMALL.removeprefix("recipe=")).with_name("small.yaml")
    settings: dict[str, Any] = {"optim.steps": 2, "evaluate": {"bits_per_dim": {"items": 8}}}
    target = own_flow(0.0)
    result = unlearn.unlearn(target, recipe=recipe, **settings)
    stored = load_file(result.folder / "model" / "model.safetensors")
    before = target.state_dict()
    after = {name.removeprefix("flow."): value for name, value in result.model.state_dict().items()}
    assert all(torch.equal(stored[name], value) for name, value in after.items())
    assert any(not torch.equal(before[name], value) for name, value in after.items())
    with pytest.raises(RecipeError, match=r"does not take data.*InputOutsideDomain"):
        unlearn.unlearn(own_flow(5.0), recipe=recipe, **settings)


def test_weights_that_are_no_numbers_leave_nothing_behind(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saved(here / "given", model())
    stored = load_file(folder / "model.safetensors")
    stored["model.norm.weight"][0] = torch.inf
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    assert forget(folder) == 2
    assert "model.norm.weight" in capsys.readouterr().err
    assert not (here / "run").exists() and not (here / "runs").exists()


def test_a_model_that_is_run_by_its_own_forward_is_compared_with_its_target(here: Path) -> None:
    """Its logits stand in for last hidden states in the reference of KL."""
    assert forget(saved(here / "given", model("modernbert-decoder")), "retain=kl") == 0
    assert json.loads((here / "run" / "run.json").read_text())["status"] == "done"


def test_evaluators_end_their_answers_where_the_models_positions_end(here: Path) -> None:
    folder = saved(here / "given", model("gpt2", n_positions=128))
    assert forget(folder, "evaluate={answer_samples: {new_tokens: 200, items: 2}}") == 0


def test_a_model_with_a_chat_template_runs(here: Path) -> None:
    """Its template cannot be copied, and a run copies its target."""
    tokenizer = copy.deepcopy(SmallLlama().encoder().tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    model().save_pretrained("chat")
    tokenizer.save_pretrained("chat")
    settings = ["model={name: causal_lm, max_length: 64}", "model.pretrained=chat", "optim.steps=2", "output=run"]
    assert main([SMALL, *settings]) == 0
    assert json.loads(Path("run/model/unlearn.json").read_text())["template"] == "chat"
    assert figures(Path("run"))
