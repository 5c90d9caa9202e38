"""An adapter as target is merged into its base before anything starts; one in memory is part of the target."""

from __future__ import annotations

import json
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel, PromptTuningConfig, TrainableTokensConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.toys.language import encoder, tiny, tiny_dataset
from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.core.reference_model import AdapterDisabledReference
from unlearn.models.language.config import CausalLM, Language
from unlearn.models.lora import Lora

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing:FutureWarning")  # inside peft

STREAM = Randomness(0, "test")
IDS = torch.arange(4)


def log_p(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.log_prob(tiny_dataset().batch(IDS), STREAM)
    return found


def adapted() -> Any:
    """Return a model of peft whose adapter changes much."""
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["q_proj", "up_proj"], modules_to_save=["lm_head"])
    model = get_peft_model(tiny().model, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter += 0.5 * torch.randn_like(parameter)
    return model.eval()


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """A base, and an adapter that names it by an absolute path."""
    monkeypatch.setenv("UNLEARN_CACHE", str(tmp_path / "cache"))
    made = {name: tmp_path / name for name in ("base", "adapter")}
    made["base"].mkdir()
    tiny().save_pretrained(made["base"])
    model = adapted()
    model.peft_config["default"].base_model_name_or_path = str(made["base"])
    model.save_pretrained(made["adapter"])
    return made


@pytest.fixture
def wanted() -> torch.Tensor:
    """The log-probabilities of the adapted model by peft's own forward; far from the base's."""
    batch = tiny_dataset().batch(IDS)
    with torch.no_grad():
        logits = adapted()(input_ids=batch["tokens"]).logits[:, :-1].log_softmax(-1)
    each = logits.gather(2, batch["tokens"][:, 1:, None]).squeeze(2)
    found = (each * batch["answer"][:, 1:]).sum(1)
    assert (found - log_p(tiny())).abs().min() > 1
    return found


def read(**settings: str) -> Language:
    config = CausalLM(**settings)
    assert config.encoder().fingerprint
    return config.load(config.fetch(config.pretrained or ""))


def rewrite(folder: Path, **settings: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def test_a_pair_that_is_typed_is_merged(folders: dict[str, Path], wanted: torch.Tensor) -> None:
    model = read(pretrained=str(folders["base"]), adapter=str(folders["adapter"]))
    torch.testing.assert_close(log_p(model), wanted, atol=1e-4, rtol=1e-5)
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in tiny().named_parameters()]
    torch.testing.assert_close(log_p(read(pretrained=str(folders["base"]))), log_p(tiny()))


@pytest.mark.parametrize("place", [".", "base"])
def test_a_base_in_the_adapters_own_folder_is_found(place: str, folders: dict[str, Path], wanted: torch.Tensor) -> None:
    """Whole model and adapter in one folder, which transformers would put on unasked; or in a folder inside."""
    shutil.copytree(folders["base"], folders["adapter"] / place, dirs_exist_ok=True)
    rewrite(folders["adapter"], base_model_name_or_path=place)
    model = read(pretrained=str(folders["adapter"]))
    torch.testing.assert_close(log_p(model), wanted, atol=1e-4, rtol=1e-5)


def test_a_base_on_the_hub_is_fetched(
    folders: dict[str, Path], wanted: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(
        "unlearn.models.language.config.download", lambda name, weights=True: asked.append(name) or folders["base"]
    )
    rewrite(folders["adapter"], base_model_name_or_path="somebody/model")
    torch.testing.assert_close(log_p(read(pretrained=str(folders["adapter"]))), wanted, atol=1e-4, rtol=1e-5)
    assert set(asked) == {"somebody/model"}


def test_a_path_that_only_the_file_names_is_refused_with_what_to_type(folders: dict[str, Path]) -> None:
    with pytest.raises(RecipeError, match=rf"model\.pretrained={folders['base']} model\.adapter={folders['adapter']}"):
        read(pretrained=str(folders["adapter"]))
    rewrite(folders["adapter"], base_model_name_or_path="../base")
    with pytest.raises(RecipeError, match="outside of the folder"):
        read(pretrained=str(folders["adapter"]))
    rewrite(folders["adapter"], base_model_name_or_path=None)
    with pytest.raises(RecipeError, match="names no base"):
        read(pretrained=str(folders["adapter"]))
    with pytest.raises(RecipeError, match="holds an adapter"):
        Language.from_pretrained(folders["adapter"])


def test_a_folder_here_is_not_taken_for_a_model_of_the_hub(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """peft writes the path by which the base was read, which may look like a hub id."""
    place = folders["base"].parent
    monkeypatch.chdir(place.parent)
    rewrite(folders["adapter"], base_model_name_or_path=f"{place.name}/base")
    with pytest.raises(RecipeError, match=rf"model\.pretrained={place.name}/base model\.adapter="):
        read(pretrained=str(folders["adapter"]))


def test_a_path_that_the_user_typed_too_is_followed(folders: dict[str, Path], wanted: torch.Tensor) -> None:
    """As of a retrained adapter on the base that is the target."""
    config = CausalLM(pretrained=str(folders["base"]), retrained=str(folders["adapter"]))
    found = config.load(config.fetch(str(folders["adapter"])))
    torch.testing.assert_close(log_p(found), wanted, atol=1e-4, rtol=1e-5)


def test_the_merged_model_has_the_type_of_its_base(folders: dict[str, Path]) -> None:
    tiny().save_pretrained(folders["base"], torch.bfloat16)
    model = read(pretrained=str(folders["base"]), adapter=str(folders["adapter"]))
    assert set(model.saved.values()) == {torch.bfloat16}


TOKENS = tiny_dataset().batch(IDS)["tokens"].unique()[3:9].tolist()
KINDS: dict[str, PeftConfig] = {
    "embedding": LoraConfig(r=2, target_modules=["embed_tokens", "q_proj"]),
    "embedding and head": LoraConfig(r=2, target_modules=["embed_tokens", "lm_head"]),
    "embedding by expression": LoraConfig(r=2, target_modules=r".*(embed_tokens|q_proj)"),
    "embedding with DoRA": LoraConfig(r=2, target_modules=["embed_tokens", "up_proj"], use_dora=True),
    "tied": LoraConfig(r=2, target_modules=["embed_tokens"], ensure_weight_tying=True),
    "head": LoraConfig(r=2, target_modules=["lm_head"]),
    "whole embedding": LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens"]),
    "whole both": LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"]),
    "some tokens": LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=TOKENS),
    "only tokens": TrainableTokensConfig(token_indices=TOKENS),
    "DoRA": LoraConfig(r=2, target_modules="all-linear", use_dora=True),
    "biases": LoraConfig(r=2, target_modules=["q_proj"], bias="all"),
    "two parameters": LoraConfig(r=2, target_modules=[], target_parameters=["up_proj.weight", "q_proj.weight"]),
}
"""Adapters of peft that can be merged."""


def peft_log_p(model: Any) -> torch.Tensor:
    """Return log p of the answers by a model's own forward."""
    batch = tiny_dataset().batch(IDS)
    with torch.no_grad():
        logits = model.eval()(input_ids=batch["tokens"]).logits[:, :-1].log_softmax(-1)
    each = logits.gather(2, batch["tokens"][:, 1:, None]).squeeze(2)
    return (each * batch["answer"][:, 1:]).sum(1)  # type: ignore[no-any-return]


@pytest.mark.filterwarnings("ignore::UserWarning")  # peft's, of tied weights and stored embeddings
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("kind", "stored"),
    [*((kind, "auto") for kind in KINDS), ("embedding", False), ("whole both", True), ("some tokens", True)],
)
def test_whatever_layers_an_adapter_has_it_is_merged_as_peft_runs_it(
    kind: str, stored: bool | str, tied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Embeddings and heads included, which may share their weights, and whose base peft may have stored with them."""
    monkeypatch.setenv("UNLEARN_CACHE", str(tmp_path / "cache"))
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    inner: Any = tiny().model
    if tied:
        inner.config.tie_word_embeddings = True
        inner.tie_weights()
    Language(inner, encoder()).save_pretrained(base)
    torch.manual_seed(0)
    model = get_peft_model(inner, deepcopy(KINDS[kind]))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(adapter, save_embedding_layers=stored)
    wanted = peft_log_p(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter))
    assert (wanted - peft_log_p(AutoModelForCausalLM.from_pretrained(base))).abs().max() > 0.1
    typed = read(pretrained=str(base), adapter=str(adapter))
    if kind == "tied" and tied:
        with pytest.raises(RecipeError, match="adapter in memory"):
            Language.adopt((model, encoder().tokenizer), {})
        in_memory = typed
    else:
        in_memory = Language(Language.adopt((model, encoder().tokenizer), {}).model, encoder())
    for found in (typed, in_memory):
        torch.testing.assert_close(log_p(found), wanted, atol=1e-5, rtol=1e-5)
        found.round_as_saved()
        (tmp_path / "again").mkdir(exist_ok=True)
        found.save_pretrained(tmp_path / "again")
        torch.testing.assert_close(log_p(Language.from_pretrained(tmp_path / "again")), wanted, atol=1e-5, rtol=1e-5)


def test_an_adapter_that_repeats_layers_is_refused(folders: dict[str, Path]) -> None:
    config = LoraConfig(r=2, target_modules=["q_proj"], layer_replication=[(0, 2), (1, 2)])
    shutil.rmtree(folders["adapter"])
    get_peft_model(tiny().model, config).save_pretrained(folders["adapter"])
    with pytest.raises(RecipeError, match=r"cannot be merged into its base.*shared tensors"):
        read(pretrained=str(folders["base"]), adapter=str(folders["adapter"]))


@pytest.mark.filterwarnings("ignore::UserWarning")  # peft's, of tied weights and stored embeddings
def test_a_head_that_is_tied_no_more_keeps_the_type_that_it_shared(tmp_path: Path, monkeypatch: Any) -> None:
    """An embedding in single precision, all else in bfloat16; the adapter is of the embedding alone."""
    monkeypatch.setenv("UNLEARN_CACHE", str(tmp_path / "cache"))
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    inner: Any = tiny().model
    inner.config.tie_word_embeddings = True
    inner.tie_weights()
    Language(inner, encoder()).save_pretrained(base)
    weights = load_file(base / "model.safetensors")
    mixed = {name: weight if "embed" in name else weight.bfloat16() for name, weight in weights.items()}
    save_file(mixed, base / "model.safetensors", {"format": "pt"})
    model = read(pretrained=str(base))
    assert {name for name, dtype in model.saved.items() if dtype == torch.float32} == {
        "model.embed_tokens.weight",
        "lm_head.weight",
    }
    other = get_peft_model(inner, deepcopy(KINDS["embedding"]))
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            parameter += 0.2 * ("lora_embedding" in name)
    other.save_pretrained(adapter)
    merged = read(pretrained=str(base), adapter=str(adapter))
    assert {name for name, dtype in merged.saved.items() if dtype == torch.float32} >= {"lm_head.weight"}
    assert torch.equal(merged.model.lm_head.weight, weights["model.embed_tokens.weight"])


@pytest.mark.parametrize("kind", ["lacks", "left over", "nan", "prompt", "no weights", "width"])
def test_an_adapter_that_does_not_fit_is_refused(kind: str, folders: dict[str, Path]) -> None:
    path = folders["adapter"] / "adapter_model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if "lora_B" in name)
    said = {
        "lacks": "lora_B",
        "left over": "other",
        "nan": "not finite.*lora_B",
        "no weights": "holds no",
        "width": "read",
    }
    if kind == "prompt":
        model = get_peft_model(tiny().model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
        model.save_pretrained(folders["adapter"])
    elif kind == "no weights":
        path.unlink()
    else:
        first = weights.pop(name)
        changed = {"lacks": {}, "left over": {name: first, "other": first.clone()}, "nan": {name: first * torch.nan}}
        save_file({**weights, **changed.get(kind, {name: first[:1]})}, path)
    with pytest.raises(RecipeError, match=said.get(kind, "cannot be merged")):
        read(pretrained=str(folders["base"]), adapter=str(folders["adapter"]))
    assert not list((folders["base"].parent / "cache").rglob("config.json"))


@pytest.mark.parametrize("whole", [True, False])
def test_an_adapter_in_memory_is_part_of_the_target(whole: bool, wanted: torch.Tensor) -> None:
    """Given as peft's model, or as the transformers model inside; it is left as it was."""
    given = adapted()
    before = deepcopy(given.state_dict())
    model = Language.adopt((given if whole else given.get_base_model(), encoder().tokenizer), {})
    model = Language(model.model, encoder())
    torch.testing.assert_close(log_p(model), wanted, atol=1e-4, rtol=1e-5)
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in tiny().named_parameters()]
    assert all(torch.equal(value, before[name]) for name, value in given.state_dict().items())


def test_a_quantised_model_in_memory_is_refused() -> None:
    model = tiny().model
    model.config.quantization_config = {"load_in_4bit": True}
    with pytest.raises(RecipeError, match="quantised"):
        Language.adopt((model, encoder().tokenizer), {})


def test_an_adapter_in_memory_stays_on_when_that_of_the_scope_is_off(wanted: torch.Tensor, tmp_path: Path) -> None:
    model, scope = Language(adapted().get_base_model(), encoder()), Lora(rank=2)
    scope.attach(model, STREAM)
    torch.testing.assert_close(log_p(model), wanted, atol=1e-4, rtol=1e-5)
    with torch.no_grad():
        for name in scope.select(model):
            model.get_parameter(name).add_(0.05)
    after = log_p(model)
    assert (after - wanted).abs().max() > 1e-2
    reference = AdapterDisabledReference(model, lambda: scope.off(model))()
    torch.testing.assert_close(log_p(reference), wanted, atol=1e-4, rtol=1e-5)
    scope.detach(model, tmp_path)
    torch.testing.assert_close(log_p(model), after, atol=1e-4, rtol=1e-5)
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in tiny().named_parameters()]


def test_what_is_saved_of_an_adapter_in_memory_is_the_whole_model(wanted: torch.Tensor, tmp_path: Path) -> None:
    model = Language(adapted().get_base_model(), encoder())
    model.round_as_saved()
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(log_p(Language.from_pretrained(tmp_path)), wanted, atol=1e-4, rtol=1e-5)
