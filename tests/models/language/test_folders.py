"""Folders that anybody may have made: read whole, in their own float type, or refused in one sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from tests.toys.language import encoder, tiny, tiny_dataset
from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.models.language.config import CausalLM, Language
from unlearn.models.language.folder import restate_types, stated_types

STREAM = Randomness(0)
IDS = torch.arange(4)
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    tiny().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "model"))


def log_p(model: Language) -> torch.Tensor:
    with torch.no_grad():
        return model.log_prob(tiny_dataset().batch(IDS), STREAM)


def edited(path: Path, change: Callable[[dict[str, object]], object]) -> None:
    """Change the object in a JSON file."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def rewritten(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the weights in a folder."""
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS, {"format": "pt"})


def name_of(part: str) -> str:
    return f"model.layers.0.{part}.weight"


def nan(weights: dict[str, torch.Tensor]) -> None:
    weights[name_of("mlp.up_proj")][0, 0] = torch.nan


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no head": (lambda f: rewritten(f, lambda w: w.pop("lm_head.weight")), r"lacks weights.*lm_head\.weight"),
    "no layer": (lambda f: rewritten(f, lambda w: w.pop(name_of("mlp.up_proj"))), r"lacks.*layers\.0\.mlp\.up_proj"),
    "left over": (lambda f: rewritten(f, lambda w: w.update(extra=torch.ones(2))), "no place for.*extra"),
    "not finite": (lambda f: rewritten(f, nan), r"not finite.*layers\.0\.mlp\.up_proj"),
    "another width": (lambda f: edited(f / "config.json", lambda c: c.update(intermediate_size=8)), "cannot be read"),
    "truncated": (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-400]), "cannot be read"),
    "empty": (lambda f: (f / WEIGHTS).write_bytes(b""), "cannot be read"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "cannot be read"),
    "git-lfs": (lambda f: (f / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid"), "git lfs pull"),
    "bad json": (lambda f: (f / "config.json").write_text('{"model_type": "llama",'), "cannot be read"),
    "a list": (lambda f: (f / "config.json").write_text("[]"), "holds a list"),
    "end": (
        lambda f: edited(f / "generation_config.json", lambda c: c.update(eos_token_id="2")),
        "eos_token_id is '2'",
    ),
    "settings": (lambda f: (f / "unlearn.json").write_text("[]"), "holds a list"),
    "no type": (lambda f: (f / "config.json").write_text("{}"), "cannot be read"),
    "bad tokenizer": (
        lambda f: (f / "tokenizer.json").write_text('{"model": "\ud800"}', errors="surrogatepass"),
        "cannot",
    ),
    "4-bit": (
        lambda f: edited(f / "config.json", lambda c: c.update(quantization_config={"quant_method": "bitsandbytes"})),
        "quantised.*bitsandbytes",
    ),
    "code": (
        lambda f: edited(
            f / "config.json", lambda c: c.update(model_type="own", auto_map={"AutoConfig": "code.Config"})
        ),
        "trust_remote_code=False",
    ),
    "code of a tokenizer": (
        lambda f: edited(
            f / "tokenizer_config.json",
            lambda c: c.update(tokenizer_class="Own", auto_map={"AutoTokenizer": ["code.Own", "code.Own"]}),
        ),
        "trust_remote_code=False",
    ),
    "outside": (
        lambda f: edited(f / "tokenizer_config.json", lambda c: c.update(vocab_file="/etc/hostname")),
        "outside",
    ),
    "not causal": (
        lambda f: edited(f / "config.json", lambda c: c.update(model_type="t5", architectures=["T5Model"])),
        "cannot be read",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_folder_is_one_sentence(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one line, and without a question on standard input."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asked"))
    (folder / "code.py").write_text("raise RuntimeError('code of the folder ran')")
    breaks, said = BROKEN[kind]
    breaks(folder)
    with pytest.raises(RecipeError, match=said) as raised:
        Language.from_pretrained(folder)
    assert "\n" not in str(raised.value) and "code of the folder ran" not in str(raised.value)
    str(raised.value).encode()


def test_own_code_beside_a_known_architecture_does_not_run(folder: Path) -> None:
    """Falcon's and Phi's folders still bring the code that transformers has long had."""
    wanted = log_p(Language.from_pretrained(folder))
    (folder / "code.py").write_text("raise RuntimeError('code of the folder ran')")
    edited(folder / "config.json", lambda c: c.update(auto_map={"AutoModelForCausalLM": "code.Model"}))
    assert torch.equal(log_p(Language.from_pretrained(folder)), wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_model_is_saved_in_the_type_of_its_folder(dtype: torch.dtype, folder: Path, tmp_path: Path) -> None:
    """Trained in single precision; what is measured after rounding is what is read back."""
    tiny().save_pretrained(folder, dtype)
    model = Language.from_pretrained(folder)
    assert model.model.dtype == torch.float32
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 1.0 + 2**-12
    model.round_as_saved()
    measured = log_p(model)
    again = tmp_path / "again"
    again.mkdir()
    model.save_pretrained(again)
    assert {value.dtype for value in load_file(again / WEIGHTS).values()} == {dtype}
    assert json.loads((again / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    assert torch.equal(log_p(Language.from_pretrained(again)), measured)


def test_older_files_of_weights_have_a_type_too(folder: Path, tmp_path: Path) -> None:
    """pytorch_model.bin, beside which training leaves other files of the same ending."""
    weights = {name: value.bfloat16() for name, value in load_file(folder / WEIGHTS).items()}
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    (folder / "training_args.bin").write_bytes(b"no weights")
    again = tmp_path / "again"
    again.mkdir()
    Language.from_pretrained(folder).save_pretrained(again)
    assert {value.dtype for value in load_file(again / WEIGHTS).values()} == {torch.bfloat16}


def test_every_tensor_is_saved_in_the_type_that_it_came_in(folder: Path, tmp_path: Path) -> None:
    """As of folders in bfloat16 whose norms and head are in single precision; shards and older names included."""

    def single(name: str) -> bool:
        return "norm" in name or name.startswith("lm_head")

    weights = {name: value if single(name) else value.bfloat16() for name, value in load_file(folder / WEIGHTS).items()}
    edited(folder / "config.json", lambda c: c.update(dtype="bfloat16"))
    for store in (weights, {name.removeprefix("model."): value for name, value in weights.items()}):
        save_file(store, folder / WEIGHTS, {"format": "pt"})
        model = Language.from_pretrained(folder)
        assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter *= 1.0 + 2**-12
        model.round_as_saved()
        again = tmp_path / f"again{len(list(tmp_path.iterdir()))}"
        again.mkdir()
        model.save_pretrained(again)
        found = load_file(again / WEIGHTS)
        assert {name: value.dtype for name, value in found.items()} == {n: v.dtype for n, v in weights.items()}
        assert json.loads((again / "config.json").read_text())["dtype"] == "bfloat16"
        kept = {name: torch.equal(value, weights[name]) for name, value in found.items() if value.dim() > 1}
        assert kept == {name: not single(name) for name in kept}, "bfloat16 holds no such step, and float32 does"
        assert torch.equal(log_p(Language.from_pretrained(again)), log_p(model))


def test_types_are_stated_as_they_were_in_each_part_of_a_configuration(tmp_path: Path) -> None:
    """Older folders name them torch_dtype."""
    given = {"torch_dtype": "bfloat16", "text_config": {"dtype": "float16", "rope": {"x": 1}}, "gone": {"dtype": "x"}}
    written = {"dtype": "float32", "text_config": {"dtype": "float32"}, "vision_config": {"dtype": "float32"}}
    (tmp_path / "config.json").write_text(json.dumps(written))
    restate_types(tmp_path, stated_types(given))
    assert json.loads((tmp_path / "config.json").read_text()) == {
        "dtype": "bfloat16",
        "text_config": {"dtype": "float16"},
        "vision_config": {"dtype": "float32"},
    }


@pytest.mark.parametrize(("asked", "saved"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_a_type_that_is_asked_for_counts(asked: str, saved: torch.dtype, folder: Path, tmp_path: Path) -> None:
    tiny().save_pretrained(folder, torch.float16)
    model = Language.from_pretrained(folder, dtype=asked)
    assert model.model.dtype == saved
    model.round_as_saved()
    model.save_pretrained(tmp_path)
    assert {value.dtype for value in load_file(tmp_path / WEIGHTS).values()} == {saved}


def test_a_sharded_folder_is_read(folder: Path, tmp_path: Path) -> None:
    wanted = log_p(Language.from_pretrained(folder))
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path, max_shard_size="10KB")
    encoder().tokenizer.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    shutil.copy(folder / "unlearn.json", tmp_path)
    assert torch.equal(log_p(Language.from_pretrained(tmp_path)), wanted)
    next(tmp_path.glob("model-00002-*")).unlink()
    with pytest.raises(RecipeError, match="cannot be read"):
        Language.from_pretrained(tmp_path)
    edited(tmp_path / f"{WEIGHTS}.index.json", lambda c: c["weight_map"].update(x="../other.safetensors"))
    with pytest.raises(RecipeError, match="nothing outside of the given folder"):
        Language.from_pretrained(tmp_path)


def test_a_tokenizer_larger_than_the_embedding_is_refused(folder: Path) -> None:
    tokenizer = encoder().tokenizer
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(RecipeError, match="embeddings of 300 tokens"):
        Language.from_pretrained(folder)


def gpt2(length: int) -> GPT2LMHeadModel:
    settings = {"vocab_size": 300, "n_positions": length, "n_embd": 8, "n_layer": 1, "n_head": 1, "eos_token_id": 2}
    return GPT2LMHeadModel(GPT2Config(**settings, bos_token_id=1)).eval()


def test_lengths_end_where_the_models_positions_end(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """128 learned positions: items are that long at most, and an answer ends there, whatever is beside it."""
    gpt2(128).save_pretrained(folder)
    (folder / "unlearn.json").unlink()
    model = Language.from_pretrained(folder)
    config = CausalLM(pretrained=str(folder))
    assert model.encoder.max_length == config.encoder().max_length == 128
    assert model.encoder.fingerprint == config.encoder().fingerprint
    model.model.generation_config.eos_token_id = None
    batch = tiny_dataset().form("prompt", torch.arange(6))
    lengths = batch["mask"].sum(1)
    said = model.generate(batch, 200)
    assert said.shape == (6, 200) and "128 positions" in caplog.text
    assert all(bool((row[128 - length :] == -1).all()) for row, length in zip(said, lengths.tolist(), strict=True))
    alone = tiny_dataset().form("prompt", torch.tensor([3]))
    assert torch.equal(model.generate(alone, 200)[0], said[3])
    assert torch.equal(model.generate(batch, 20), said[:, :20])
    assert Language.adopt((gpt2(64), encoder().tokenizer), {}).encoder.max_length == 64


def test_memory_is_estimated_for_architectures_without_heads(tmp_path: Path) -> None:
    config = AutoConfig.for_model("mamba", vocab_size=300, hidden_size=16, num_hidden_layers=1)
    config.save_pretrained(tmp_path)
    encoder().tokenizer.save_pretrained(tmp_path)
    meta = CausalLM(pretrained=str(tmp_path)).meta_model("32")
    assert meta is not None and isinstance(meta.model, Language)
    (tmp_path / "config.json").write_text('{"model_type": "llama", "quantization_config": {"bits": 4}}')
    with pytest.raises(RecipeError, match="quantised"):
        CausalLM(pretrained=str(tmp_path)).meta_model("32")


def test_a_slow_tokenizer_is_refused(folder: Path) -> None:
    for path in folder.glob("token*.json"):
        path.unlink()
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}')
    with pytest.raises(RecipeError, match="fast"):
        Language.from_pretrained(folder)
