"""UCE: what it asks for, whether the solution is the brute-force one on a real model, and what it leaves alone."""

import logging
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from tests.toys.diffusion import small_model, small_splits
from unlearn.core.errors import RecipeError
from unlearn.data.base import Split
from unlearn.data.concept import Concept
from unlearn.models.diffusion.text_encoder import TextSide
from unlearn.models.diffusion.wrapper import Diffusion
from unlearn.objectives.edits.cross_attention import (
    Asked,
    asked,
    captions_of,
    effective,
    kept_of,
    kept_prompts,
    keys_and_values,
    rows_of,
)
from unlearn.objectives.edits.rece import RECE
from unlearn.objectives.edits.uce import UCE, collect

EDITS = [UCE(), RECE()]


def no_training(*given: Any) -> Any:
    raise AssertionError("an edit in closed form trains nothing")


def with_concepts(*concepts: Concept) -> dict[str, Split]:
    """The small splits of coloured digits under other concepts."""
    splits = small_splits("text")
    dataset = deepcopy(splits["forget"].dataset)
    dataset.concepts = concepts  # type: ignore[attr-defined]
    return {name: replace(split, dataset=dataset) for name, split in splits.items()}


def states(model: Diffusion, *prompts: str) -> Tensor:
    found = model.encode(model.prompts(prompts)).states
    assert found is not None
    return found.detach()


def maps(model: Diffusion) -> dict[str, Tensor]:
    return {name: layer.weight.detach().clone() for name, layer in keys_and_values(model, "test").items()}


def edited(edit: Any, splits: Mapping[str, Split] | None = None) -> tuple[Diffusion, Diffusion]:
    model = small_model("text")
    return model, edit(model, no_training, splits or small_splits("text"))


def test_every_key_and_value_map_of_cross_attention_is_found_and_no_other() -> None:
    """The lower level down, the middle and the two of the lower level up: four blocks, two maps each."""
    found = keys_and_values(small_model("text"), "test")
    assert len(found) == 8 and all(name.endswith((".attn2.to_k", ".attn2.to_v")) for name in found)
    assert {layer.in_features for layer in found.values()} == {16}


@pytest.mark.parametrize("edit", EDITS, ids=["uce", "rece"])
def test_only_these_maps_change(edit: Any) -> None:
    target, result = edited(edit)
    before, after, named = target.state_dict(), result.state_dict(), keys_and_values(target, "test")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"{name}.weight" for name in named}
    fresh = small_model("text").state_dict()
    assert all(torch.equal(value, fresh[name]) for name, value in before.items())  # the target stays as it is


def test_the_prompts_that_change_and_those_that_stay() -> None:
    three = Concept(name="three", anchor="eight", retain=["five"], templates=["a red {}", "{}"])
    assert asked([three], ["a blue three", "a blue one", "a three three", "a threefold"]) == [
        Asked("a red three", 11, "a red eight", 11),
        Asked("three", 5, "eight", 5),
        Asked("a blue three", 12, "a blue eight", 12),
        Asked("a three three", 13, "a eight eight", 13),
    ]
    assert asked([Concept(name="three")], []) == [Asked("three", 5, "", 0)]
    red = Concept(name="red", anchor="green", templates=["a {} one"])
    assert asked([red], []) == [Asked("a red one", 5, "a green one", 7)]
    stay = kept_prompts([three, red], ["a blue one", "a red one", "a blue three", "a blue threefold"])
    assert stay == ["", "a red five", "five", "a blue one", "a blue threefold"]


def test_of_names_within_each_other_the_longer_is_asked_for() -> None:
    dog, hot_dog = Concept(name="dog", anchor="cat"), Concept(name="hot dog", anchor="bun")
    captions = ["a dog by a hot dog", "a hot dog"]
    assert asked([dog, hot_dog], captions) == [
        Asked("dog", 3, "cat", 3),
        Asked("a dog by a hot dog", 5, "a cat by a hot dog", 5),
        Asked("hot dog", 7, "bun", 3),
        Asked("a dog by a hot dog", 18, "a dog by a bun", 14),
        Asked("a hot dog", 9, "a bun", 5),
    ]
    assert asked([dog], captions, ["hot dog"])[1:] == [Asked("a dog by a hot dog", 5, "a cat by a hot dog", 5)]
    assert kept_prompts([dog], ["a dog", "a hot dog"]) == [""]
    assert kept_prompts([dog], ["a dog", "a hot dog"], ["hot dog"]) == ["", "a hot dog"]
    kept = Concept(name="dog", retain=["hot dog"])
    assert kept_prompts([kept], ["a dog", "a hot dog"]) == ["", "hot dog", "a hot dog"]


def test_captions_are_spread_over_a_split_where_there_are_too_many() -> None:
    split = small_splits("text")["retain"]
    every = captions_of(split, 1000)
    assert every == sorted(set(every)) and len(every) > 5
    some = captions_of(split, 5)
    assert len(some) == 5 and set(some) < set(every) and captions_of(split, 0) == []


def test_rows_by_hand() -> None:
    """ "a red three" is <start> a red three <end> <end> ...: the subject is token 3 and, of "red", token 2."""
    model = small_model("text")
    entry = Asked("a red three", 11, "", 0)
    full, empty = states(model, "a red three")[0], states(model, "")[0]
    last = rows_of(model, [entry], "last_subject", 2.0)
    assert torch.equal(last.inputs, full[3:4]) and torch.equal(last.guides, empty[:1])
    assert last.weights.tolist() == [2.0] and last.prompts.tolist() == [0]
    padded = rows_of(model, [entry, entry], "subject_to_padding", 1.0)
    assert torch.equal(padded.inputs[:5], full[3:]) and torch.equal(padded.guides[:5], empty[:5])
    assert padded.prompts.tolist() == [0] * 5 + [1] * 5
    whole = rows_of(model, [entry], "all", 1.0)
    assert torch.equal(whole.inputs, full) and torch.equal(whole.guides, empty)
    middle = rows_of(model, [Asked("a red three", 5, "a green three", 7)], "subject_to_padding", 1.0)
    assert torch.equal(middle.inputs, full[2:]) and torch.equal(middle.guides, states(model, "a green three")[0, 2:])


def test_kept_rows_by_hand() -> None:
    model = small_model("text")
    one, empty = states(model, "a red one")[0], states(model, "")[0]
    last = kept_of(model, ["", "a red one"], "last_subject", 0.5)
    expected = 0.5 * (torch.outer(empty[0], empty[0]) + torch.outer(one[3], one[3]))
    assert torch.allclose(last.gram, expected, atol=1e-12) and last.count == 2
    assert kept_of(model, ["a red one"], "subject_to_padding", 1.0).count == 5
    assert torch.allclose(kept_of(model, ["a red one"], "all", 1.0).gram, one.T @ one, atol=1e-12)


@pytest.mark.parametrize("tokens", ["last_subject", "subject_to_padding", "all"])
def test_the_maps_are_the_least_squares_solution_on_encoded_prompts(tokens: Any) -> None:
    """Every request and every kept token is one row of a stacked problem, which lstsq solves for each map."""
    lam, s_e, s_p = 0.3, 2.0, 0.7
    concept = Concept(name="three", anchor="eight", retain=["one", "five"])
    target, result = edited(
        UCE(lam=lam, erase_scale=s_e, preserve_scale=s_p, tokens=tokens, captions=0), with_concepts(concept)
    )
    c, g = states(target, "three")[0], states(target, "eight")[0]
    first = {"last_subject": slice(1, 2), "subject_to_padding": slice(1, None), "all": slice(None)}[tokens]
    start = {"last_subject": slice(0, 1), "subject_to_padding": slice(0, None), "all": slice(None)}[tokens]
    stay = torch.cat([states(target, "")[0, start], *(row[first] for row in states(target, "one", "five"))])
    for name, before in maps(target).items():
        left = torch.cat([s_e**0.5 * c[first], s_p**0.5 * stay, lam**0.5 * torch.eye(16, dtype=torch.float64)])
        right = torch.cat([s_e**0.5 * g[first] @ before.T, s_p**0.5 * stay @ before.T, lam**0.5 * before.T])
        expected = torch.linalg.lstsq(left, right).solution.T
        assert torch.allclose(maps(result)[name], expected, atol=1e-9)
        assert not torch.allclose(maps(result)[name], before, atol=1e-4)  # the control: it is no copy


def test_a_concept_is_treated_as_its_anchor_and_what_is_kept_as_before() -> None:
    """With a small ridge; a large one (the control) leaves the concept where it was."""
    splits = with_concepts(Concept(name="three", anchor="eight", retain=["one"]))

    def distances(lam: float) -> tuple[float, float]:
        target, result = edited(UCE(lam=lam, captions=0), splits)
        c, g, r = (states(target, word)[0, 1] for word in ("three", "eight", "one"))
        gaps = [
            (
                (maps(result)[name] @ c - before @ g).norm() / (before @ (c - g)).norm(),
                (maps(result)[name] @ r - before @ r).norm() / (before @ r).norm(),
            )
            for name, before in maps(target).items()
        ]
        return max(float(gap[0]) for gap in gaps), max(float(gap[1]) for gap in gaps)

    erased, kept = distances(1e-9)
    assert erased < 1e-5 and kept < 1e-5
    assert distances(1e6)[0] > 0.9


def test_the_concepts_picture_becomes_its_anchors() -> None:
    """With every token's row and next to no ridge, the score at "three" is that at "eight"; before, it was not."""
    splits = with_concepts(Concept(name="three", anchor="eight"))
    target, result = edited(UCE(lam=1e-8, preserve_scale=0.0, tokens="all", captions=0), splits)
    x, t = torch.randn(1, 3, 8, 8, dtype=torch.float64), torch.tensor([500])
    with torch.no_grad():
        erased = result.predict(x, t, result.prompts(["three"]))
        anchor = target.predict(x, t, target.prompts(["eight"]))
        before = target.predict(x, t, target.prompts(["three"]))
    assert (erased - anchor).abs().max() < 1e-3 * (before - anchor).abs().max()


@pytest.mark.parametrize(
    "setting",
    [
        {"lam": 0.1},
        {"erase_scale": 0.5},
        {"preserve_scale": 0.1},
        {"tokens": "all"},
        {"preserve_tokens": "all"},
        {"value": "projected"},
        {"captions": 0},
        {"captions": 2},
    ],
    ids=str,
)
def test_every_setting_has_an_effect(setting: dict[str, Any]) -> None:
    usual, other = edited(UCE())[1], edited(UCE(**setting))[1]
    assert any(not torch.equal(weight, maps(other)[name]) for name, weight in maps(usual).items())


def test_projecting_jointly_differs_where_a_prompt_has_several_rows() -> None:
    def result(**given: Any) -> Tensor:
        return torch.cat([weight.flatten() for weight in maps(edited(UCE(**given))[1]).values()])

    assert torch.equal(result(value="projected"), result(value="projected_jointly"))
    assert not torch.equal(result(value="projected", tokens="all"), result(value="projected_jointly", tokens="all"))


def test_sums_over_a_corpus_join_what_stays(tmp_path: Path) -> None:
    """A prior over the same prompts is as if they were retained; another weight is not."""
    words, path = ["one", "five"], tmp_path / "prior.safetensors"
    model = small_model("text")
    collect(model, words).save(path)
    three = Concept(name="three", anchor="eight")
    named = edited(UCE(captions=0), with_concepts(replace(three, retain=words)))[1]
    joined = edited(UCE(captions=0, prior=str(path)), with_concepts(three))[1]
    half = edited(UCE(captions=0, prior=str(path), prior_scale=0.5), with_concepts(three))[1]
    for name, weight in maps(named).items():
        assert torch.allclose(maps(joined)[name], weight, atol=1e-12)
        assert not torch.allclose(maps(half)[name], weight, atol=1e-6)
    other = small_model("text", seed=1)
    with pytest.raises(RecipeError, match="Collect them"):
        UCE(prior=str(path))(other, no_training, small_splits("text"))


@pytest.mark.parametrize("edit", EDITS, ids=["uce", "rece"])
@pytest.mark.parametrize("conditioning", ["class", "dit"])
def test_models_conditioned_on_classes_are_refused(edit: Any, conditioning: Any) -> None:
    with pytest.raises(RecipeError, match="forget=esd"):
        edit(small_model(conditioning), no_training, small_splits(conditioning))


def test_data_without_concepts_and_concepts_beyond_the_prompt_are_refused() -> None:
    model = small_model("text")
    with pytest.raises(RecipeError, match=r"data\.concepts="):
        UCE()(model, no_training, with_concepts())
    long = Concept(name="three", templates=["a red red red red red red {}"])
    with pytest.raises(RecipeError, match="shorter"):
        UCE()(model, no_training, with_concepts(long))


def test_a_singular_system_is_refused_or_regularised() -> None:
    with pytest.raises(RecipeError, match="singular"):
        edited(UCE(lam=0.0, captions=0))
    assert all(
        weight.isfinite().all() for weight in maps(edited(UCE(lam=0.0, captions=0, singular="regularise"))[1]).values()
    )


@pytest.mark.parametrize(
    ("edit", "setting"),
    [(UCE, "lam"), (UCE, "preserve_scale"), (UCE, "captions"), (UCE, "prior_scale"), (RECE, "rounds"), (RECE, "reg")],
)
def test_values_out_of_range_are_refused(edit: Any, setting: str) -> None:
    with pytest.raises(ValueError, match=f"{setting} is -1"):
        edit(**{setting: -1})
    with pytest.raises(ValueError, match="erase_scale is 0"):
        UCE(erase_scale=0)


@pytest.mark.parametrize("edit", EDITS, ids=["uce", "rece"])
def test_adapters_are_left_alone_and_count(edit: Any) -> None:
    """The maps with their adapter get the values that the same maps merged with it get."""
    adapted = small_model("text")
    config = LoraConfig(r=2, lora_alpha=4, target_modules=["to_k", "to_v"], init_lora_weights=False)
    torch.manual_seed(0)
    inject_adapter_in_model(config, adapted)
    adapted.double()
    merged = small_model("text")
    for name, weight in effective(adapted, list(maps(merged))).items():
        merged.get_submodule(name).weight.data.copy_(weight)
    result = edit(adapted, no_training, small_splits("text"))
    expected = edit(merged, no_training, small_splits("text"))
    before, after = adapted.state_dict(), result.state_dict()
    lora = [name for name in before if "lora_" in name]
    assert len(lora) > 8 and all(torch.equal(before[name], after[name]) for name in lora)
    for name, weight in effective(result, list(maps(expected))).items():
        assert torch.allclose(weight, maps(expected)[name], atol=1e-10)
        assert not torch.equal(after[f"{name}.base_layer.weight"], before[f"{name}.base_layer.weight"])


def xl_model() -> Diffusion:
    """A small model of SDXL's layout: two text encoders side by side, and a pooled vector beside their states."""
    small = small_model("text")
    assert small.text is not None
    settings = small.text.encoders[0].config.to_dict() | {"hidden_size": 8, "projection_dim": 12}
    torch.manual_seed(0)
    encoders = [CLIPTextModel(CLIPTextConfig(**settings)), CLIPTextModelWithProjection(CLIPTextConfig(**settings))]
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        cross_attention_dim=16,
        attention_head_dim=8,
        norm_num_groups=8,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=12 + 6 * 4,
    )
    text = TextSide(encoders, small.text.tokenizers * 2)
    return Diffusion(unet, small.scheduler, small.settings, text).double()


@pytest.mark.parametrize("edit", EDITS, ids=["uce", "rece"])
def test_models_of_sdxls_layout_are_edited(edit: Any) -> None:
    """Two transformer blocks a place: (1 down + 1 middle + 2 up) x 2 layers x 2 maps, of both encoders' states."""
    model = xl_model()
    result = edit(model, no_training, small_splits("text"))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, result.state_dict()[name])}
    assert len(changed) == 16 and changed == {f"{name}.weight" for name in keys_and_values(model, "test")}
    x, t = torch.randn(1, 3, 8, 8, dtype=torch.float64), torch.tensor([500])
    with torch.no_grad():
        assert result.predict(x, t, result.prompts(["a red three"])).isfinite().all()


def test_what_was_found_and_the_condition_number_are_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        edited(UCE())
    assert "edited 8 maps (" in caplog.text and "attn2.to_k" in caplog.text
    assert "condition number" in caplog.text and "'a red three' to 'a red eight'" in caplog.text
