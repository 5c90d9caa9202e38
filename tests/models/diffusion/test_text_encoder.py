"""Where words become tokens: prompts longer than the text encoder, concepts behind its end, and what is no text."""

import json
import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel

from tests.toys.command import unlearn
from tests.toys.diffusion import CONFIGS, small_model
from tests.toys.pipelines import METHODS, recipe, stable_diffusion
from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.data.concept import Concept
from unlearn.data.conditioned import Conditioned
from unlearn.data.prompts import PromptList
from unlearn.data.splits import make_splits
from unlearn.models.diffusion.config import TextUNet
from unlearn.models.diffusion.text_encoder import TextSide
from unlearn.models.guards.guidance import NegativeGuidance

SIX = "a red blue green white a"
"""With the start and the end these are the 8 tokens that the small model reads."""


def forgetting(template: str, **more: Any) -> dict[str, Any]:
    """Return the splits of prompts that ask for a three by one template."""
    data = PromptList(concepts=[Concept(name="three", templates=[template], **more)], retain_prompts=["a blue one"])
    return make_splits(CONFIGS["text"].read(data.load()), data, Randomness(0))


def test_prompts_that_are_cut_off_are_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    side = small_model("text").text
    assert side is not None and side.length == 8
    with caplog.at_level(logging.WARNING):
        whole, cut = side.tokens([SIX, f"{SIX} three"])
        side.tokens([f"{SIX} three"])
    assert torch.equal(whole, cut)
    assert [record.getMessage() for record in caplog.records] == [
        f"1 prompts are longer than the 8 tokens that the text encoder reads, and are cut off: '{SIX} three'"
    ]
    side.refuse_cut([SIX])
    with pytest.raises(RecipeError, match="three' is longer than the 8 tokens that the text encoder reads"):
        side.refuse_cut([SIX, f"{SIX} three"])


def test_the_text_encoder_itself_has_an_end() -> None:
    """A tokenizer that names no length (transformers takes 1e30 then) does not make the model read on."""
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    encoder = CLIPTextModel(CLIPTextConfig(vocab_size=20, max_position_embeddings=5, **sizes))
    tokenizer = TextUNet(words=("a", "red"), length=9).tokenizer()
    assert TextSide([], [tokenizer]).length == 9 and TextSide([encoder], [tokenizer]).length == 5
    tokenizer.model_max_length = int(1e30)
    side = TextSide([encoder], [tokenizer])
    assert side.tokens(["a red"]).shape == (1, 1, 5) and side.cut(["a red a", "a red a a"]) == ["a red a a"]


@pytest.mark.parametrize(
    ("template", "more", "message"),
    [
        ("a red blue green white {}", {}, None),  # the sixth word is the last one read
        ("a {} red blue green white a", {}, None),  # what is cut off is not the concept
        (f"{SIX} {{}}", {}, "a three' has more tokens than the 8 that the text encoder reads, so 'three' would"),
        ("a red blue green white {}", {"anchor": "white eight"}, "so 'white eight' would be cut off"),
        ("{}", {"probes": [f"{SIX} three"]}, "so 'three' would be cut off"),
        ("{}", {"anchor": f"{SIX} eight"}, "data.concepts: 'a red .* eight' is longer than the text encoder reads"),
    ],
)
def test_concepts_behind_the_end_are_refused(template: str, more: dict[str, Any], message: str | None) -> None:
    with pytest.raises(RecipeError, match=message) if message else nullcontext():
        forgetting(template, **more)


def test_labels_behind_the_end_are_refused_where_no_concept_is_named() -> None:
    class Labelled(Conditioned):
        def __init__(self, caption: str) -> None:
            base = PromptList(concepts=[Concept(name="three", templates=["{}"])]).load()
            base.captions, base.concepts = [caption, *base.captions[1:]], []
            super().__init__(base, CONFIGS["text"].conditioner(base))

    Labelled("a red three").check_forget(torch.tensor([0]))
    with pytest.raises(RecipeError, match="so 'three' would be cut off"):
        Labelled(f"{SIX} three").check_forget(torch.tensor([0]))


def test_how_many_prompts_are_cut_off_is_a_note() -> None:
    split = forgetting(f"{{}} {SIX}")["forget"]
    assert split.dataset.remarks(split.ids) == [
        "1 of 1 prompts are longer than the 8 tokens that the text encoder reads, and are cut off."
    ]
    assert not (kept := forgetting(f"{{}} {SIX}")["retain"]).dataset.remarks(kept.ids)


def test_prompts_of_settings_are_read_whole() -> None:
    model = small_model("text")
    assert len(model.prompts([f"{SIX} three"])) == 1
    with pytest.raises(RecipeError, match="is longer than the 8 tokens"):
        model.prompts([f"{SIX} three"], whole=True)
    with pytest.raises(RecipeError, match="is longer than the 8 tokens"):
        model.guarded(NegativeGuidance(prompts=[f"{SIX} three"]))


@pytest.mark.parametrize("broken", ["a \ud83d three", "a three\0"])
def test_what_is_no_text_is_refused(broken: str) -> None:
    with pytest.raises(RecipeError, match=r"which is no text. Write whole characters"):
        small_model("text").prompts([broken])


def test_concept_ablation_with_a_concept_behind_the_end_is_no_run(tmp_path: Path) -> None:
    """It ran with loss 0 and gradient 0: the prompt of the concept and that of the anchor had the same tokens."""
    model = stable_diffusion(tmp_path / "model")
    template = " ".join(["photo"] * 75)
    data = {
        "name": "prompts",
        "concepts": [{"name": "cat", "anchor": "dog", "templates": [f"{template} {{}}"]}],
        "retain_prompts": ["house"],
    }
    file = recipe(tmp_path / "recipe.yaml", model, tmp_path, 16, **METHODS["concept_ablation"])
    file.write_text(json.dumps(json.loads(file.read_text()) | {"data": data}))
    done = unlearn(f"recipe={file}", f"output={tmp_path / 'run'}", cwd=tmp_path, cache=tmp_path)
    assert done.returncode == 2 and "so 'cat' would be cut off. Type a shorter prompt." in done.stderr
    assert not (tmp_path / "run").exists()
