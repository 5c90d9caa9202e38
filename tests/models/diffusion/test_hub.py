"""Which files of a pipeline on the hub are read, and what is said where the hub cannot be reached."""

from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.toys.command import unlearn
from tests.toys.pipelines import small_pipeline
from unlearn.models.diffusion.hub import chosen, variant

RECIPE = ["recipe=diffusion/stable_diffusion", "data.concepts=[{name: three, anchor: eight}]", "--check"]


def files(*parts: str, weights: tuple[str, ...] = ("", ".fp16"), kinds: tuple[str, ...] = ("safetensors", "bin")):
    """Names as pipelines on the hub have them."""
    names = ["model_index.json", "README.md", ".gitattributes", "v1-5-pruned.safetensors", "v1-5-pruned.ckpt"]
    for part in parts:
        of_diffusers = part in ("unet", "vae", "transformer")
        names += [
            f"{part}/config.json",
            f"{part}/model.onnx",
            f"{part}/openvino_model.bin",
            f"{part}/flax_model.msgpack",
        ]
        for kind in kinds:
            stem = "diffusion_pytorch_model" if of_diffusers else "model" if kind == "safetensors" else "pytorch_model"
            names += [f"{part}/{stem}{weight}.{kind}" for weight in weights]
    return names


def taken(names: list[str], weights: bool = True) -> set[str]:
    return set(chosen(names, weights))


def test_one_set_of_weights_is_taken_and_nothing_that_is_not_read() -> None:
    names = files("unet", "vae", "text_encoder", "safety_checker", "vae_decoder")
    names += ["scheduler/scheduler_config.json", "tokenizer/vocab.json", "tokenizer/merges.txt"]
    described = {"model_index.json", "unet/config.json", "vae/config.json", "text_encoder/config.json"}
    described |= {"scheduler/scheduler_config.json", "tokenizer/vocab.json", "tokenizer/merges.txt"}
    described |= {"safety_checker/config.json"}
    assert taken(names, weights=False) == described
    assert taken(names) - described == {
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "safety_checker/model.safetensors",
    }
    assert variant(names) is None


@pytest.mark.parametrize(
    ("weights", "kinds", "wanted", "reads"),
    [
        (("", ".non_ema"), ("bin",), "unet/diffusion_pytorch_model.bin", None),
        (("", ".fp16"), ("bin",), "unet/diffusion_pytorch_model.bin", None),
        ((".fp16",), ("safetensors", "bin"), "unet/diffusion_pytorch_model.fp16.safetensors", "fp16"),
        ((".fp16",), ("bin",), "unet/diffusion_pytorch_model.fp16.bin", "fp16"),
    ],
)
def test_what_alone_is_there_is_taken(
    weights: tuple[str, ...], kinds: tuple[str, ...], wanted: str, reads: str | None
) -> None:
    names = files("unet", weights=weights, kinds=kinds)
    assert taken(names) == {"model_index.json", "unet/config.json", wanted} and variant(names) == reads


def test_half_precision_is_taken_of_all_where_one_part_has_nothing_else() -> None:
    names = files("unet", kinds=("safetensors",)) + files("vae", weights=(".fp16",), kinds=("safetensors",))[5:]
    names += files("text_encoder", weights=("",), kinds=("safetensors",))[5:]
    weights = {name for name in taken(names) if name.endswith(".safetensors")}
    assert variant(names) == "fp16" and weights == {
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "text_encoder/model.safetensors",
    }


def test_all_shards_are_taken_with_their_index() -> None:
    plain = [f"unet/diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    half = [f"unet/diffusion_pytorch_model.fp16-0000{n}-of-00002.safetensors" for n in (1, 2)]
    index = ["unet/diffusion_pytorch_model.safetensors.index.json"]
    names = ["model_index.json", *plain, *half, *index, "unet/diffusion_pytorch_model.safetensors.index.fp16.json"]
    assert taken(names) == {"model_index.json", *plain, *index}
    assert taken(names, weights=False) == {"model_index.json"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache, a folder of its own."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_what_the_cache_has_needs_no_network_and_check_reads_no_weights(tmp_path: Path, hub: Path) -> None:
    """A hub cache of its own layout; the weights are taken out, so that reading them would fail."""
    place = hub / "models--someone--tiny"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0123abc")
    small_pipeline().save_pretrained(place / "snapshots" / "0123abc")
    for file in place.rglob("*.safetensors"):
        file.unlink()
    done = unlearn(
        *RECIPE, "model.pretrained=someone/tiny", "scope.kinds=[cross_attention_kv]", cwd=tmp_path, cache=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "built without its weights" in done.stdout and "not tried: a step, evaluate." in done.stdout
    assert "cross_attention" not in done.stderr and not (tmp_path / "runs").exists()


def test_what_cannot_be_had_is_one_message(tmp_path: Path, hub: Path) -> None:
    done = unlearn(*RECIPE, "model.pretrained=someone/other", cwd=tmp_path, cache=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
    assert "model.pretrained: 'someone/other' is no folder here, and the hub did not give it" in done.stderr
    assert "Type an existing folder with model_index.json" in done.stderr
