"""Attacks on weights: rounding by hand, and training that brings back what was hidden but not what was never there."""

from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from typing import Any
from weakref import ref

import pytest
import torch
from torch import nn

from tests.models.language.test_architectures import small
from tests.toys.language import encoder, tiny, tiny_dataset, tiny_splits
from tests.toys.one_model import OneLives
from tests.toys.scripted import value
from tests.toys.trained_language import RETAINED, fit, remembering
from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.data.base import Split
from unlearn.evaluators.attacks.answer_relearning import AnswerRelearning
from unlearn.evaluators.attacks.base.extraction import memorised
from unlearn.evaluators.attacks.quantization import (
    Quantization,
    all_codes,
    codes,
    codes_changed,
    linear_weights,
    quantized,
    scales,
)
from unlearn.evaluators.base import Evaluation
from unlearn.models.language.config import Language


def evaluation(**models: Any) -> Evaluation:
    return Evaluation(models, tiny_splits(), Randomness(0, "evaluate"), torch.device("cpu"))


@cache
def hidden() -> Language:
    """A model that knew everything, then climbed a capped loss on the forget items while it went on with the others."""
    model, data = deepcopy(remembering()), tiny_dataset()
    forget, retain = (data.batch(torch.tensor(ids)) for ids in ((0, 1, 2, 3, 10), RETAINED))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with torch.enable_grad():
        for _ in range(40):
            kept = model.training_loss(retain, Randomness(0)).mean()
            loss = kept - model.training_loss(forget, Randomness(0)).clamp(max=6).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


def test_codes_by_hand() -> None:
    """4 bits: s = 1/7, so 1, -.4, .24 become 7, round(-2.8), round(1.68). 8 bits: s = 1/127: 127, -50.8, 30.48."""
    weight = torch.tensor([[1.0, -0.4, 0.24], [0.0, 0.0, 0.0], [-200.0, 100.0, 10.0]])
    assert codes(weight, 4).tolist() == [[7, -3, 2], [0, 0, 0], [-7, 4, 0]]
    assert codes(weight, 8).tolist() == [[127, -51, 30], [0, 0, 0], [-127, 64, 6]]
    assert scales(weight, 4).flatten().tolist() == pytest.approx([1 / 7, 0, 200 / 7])
    assert codes(weight.T, 4, channel=1).tolist() == codes(weight, 4).T.tolist()


def test_each_output_channel_has_its_own_scale() -> None:
    """A large row leaves the codes of the others; with one scale for all (the control) they would be 0."""
    weight = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    larger = weight.clone()
    larger[0] *= 1000
    assert torch.equal(codes(weight, 4), codes(larger, 4))
    assert not codes(larger.flatten()[None], 4).view(4, 5)[1:].any()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_rounding_is_to_the_nearest_and_only_once(bits: int) -> None:
    weight = torch.randn(8, 16, generator=torch.Generator().manual_seed(1))
    rounded = scales(weight, bits) * codes(weight, bits)
    assert ((rounded - weight).abs() <= scales(weight, bits) / 2 * 1.0001).all()
    assert torch.equal(codes(rounded, bits), codes(weight, bits))
    assert codes(weight, bits).abs().max() == 2 ** (bits - 1) - 1


@pytest.mark.parametrize("tied", [False, True])
def test_embeddings_and_norms_stay(tied: bool) -> None:
    """The output layer is rounded where it has weights of its own, and kept where they are the embeddings'."""
    model = tiny()
    if tied:
        model.model.lm_head.weight = model.model.model.embed_tokens.weight
    before = {name: value.clone() for name, value in model.named_parameters()}
    changed = {name for name, value in quantized(model, 4).named_parameters() if not torch.equal(value, before[name])}
    expected = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert changed == (expected - {"model.lm_head.weight"} if tied else expected)
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
    assert not any("norm" in name or "embed" in name for name in changed)


def test_gpt2s_turned_layers_are_rounded_by_output_channel() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=11, n_positions=8))
    found = {name: (weight.shape, axis) for name, weight, axis in linear_weights(model)}
    assert found["transformer.h.0.attn.c_attn"] == ((8, 24), 1) and "lm_head" not in found  # tied


EXPERTS = {"mixtral": 1, "olmoe": 1, "gpt_oss": 2, "llama4_text": 2, "aria_text": 2, "jetmoe": 1}
"""Model type -> axis of the output channels in the weights of its experts: (E, out, in), or (E, in, out)."""


@pytest.mark.parametrize(("kind", "axis"), EXPERTS.items())
@pytest.mark.filterwarnings("ignore")
def test_each_expert_is_rounded_as_a_layer_of_its_own(kind: str, axis: int) -> None:
    model = Language(small(kind), encoder())
    weights = {name: (weight, channel) for name, weight, channel in linear_weights(model)}
    experts = {name: each for name, each in weights.items() if each[0].ndim == 3}
    three_axes = {id(parameter) for parameter in model.parameters() if parameter.ndim == 3}
    assert {id(weight) for weight, _ in experts.values()} == three_axes
    rounded, found = dict(quantized(model, 4).named_parameters()), all_codes(model, 4)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    sides = {weight.shape[channel] for weight, channel in experts.values()}
    assert sides - {16} == {96, 32}  # two halves of 48; the width; JetMoE's attention has experts, too
    for name, (weight, channel) in experts.items():
        assert channel == axis
        alone = codes(weight[1], 4, channel - 1)
        assert torch.equal(found[name][1], alone)
        assert torch.equal(rounded[names[id(weight)]][1], scales(weight[1], 4, channel - 1) * alone)
    assert sum(code.numel() for code in found.values()) > sum(weight.numel() for weight, _ in experts.values())


def changed_codes(target: nn.Module, model: nn.Module, bits: int) -> tuple[float, int] | None:
    return codes_changed(all_codes(target, bits), all_codes(model, bits))


def test_the_share_of_changed_codes() -> None:
    """Nothing changed is 0. Three weights moved by a whole step of 8 bits are 3 of N; of 4 bits they are none.

    They are zeros before, and far from the largest of their row, so that no scale moves.
    """
    target, model = tiny(), tiny()
    weight, same = model.model.lm_head.weight, target.model.lm_head.weight
    with torch.no_grad():
        for held in (weight, same):
            held[:3, 0] = 0
            held[:3, 1] = 1  # the largest of the row, as the others are below
            held[:3, 2:].clamp_(-0.9, 0.9)
        assert changed_codes(target, model, 8) == (0.0, 9920)
        weight[:3, 0] = 1 / 127
    assert changed_codes(target, model, 8) == (3 / 9920, 9920)
    assert changed_codes(target, model, 4) == (0.0, 9920)
    assert changed_codes(target, tiny(width=32), 8) is None


def test_what_moved_less_than_half_a_step_comes_back() -> None:
    """Weights on the 4-bit grid, moved by at most 0.4 of a step: rounding undoes it, to the last bit of the answers.

    The largest weight of each row is held, as it makes the scale. The control moves by up to two steps.
    """
    target = quantized(remembering(), 4)
    near, far = deepcopy(target), deepcopy(target)
    stream = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for moved, reach in ((near, 0.4), (far, 2.0)):
            for _, weight, _ in linear_weights(moved):
                step = scales(weight, 4)
                noise = step * reach * (2 * torch.rand(weight.shape, generator=stream) - 1)
                inside = codes(weight, 4).abs() < 5
                weight += noise * inside
    batch = tiny_dataset().batch(torch.arange(4))
    logits = [quantized(model, 4).answers(batch).logits for model in (target, near, far)]
    assert torch.allclose(logits[0], logits[1], atol=1e-4) and not torch.allclose(logits[0], logits[2], atol=1.0)
    assert not torch.allclose(target.answers(batch).logits, near.answers(batch).logits, atol=0.1)
    records = Quantization(bits=[4])(evaluation(target=target, unlearned=near, retrained=far)).records
    assert value(records, "codes_changed", subject="unlearned") == 0
    assert value(records, "codes_changed", subject="retrained") > 0.3
    assert value(records, "attack_quantization", subject="unlearned", score="exact_memorization") == value(
        records, "attack_quantization", subject="target", score="exact_memorization"
    )


def test_quantization_reports_every_subject_and_width() -> None:
    records = Quantization()(evaluation(target=remembering(), unlearned=tiny(1), retrained=tiny(2))).records
    assert {(r.subject, r.about["budget"]) for r in records if r.metric == "attack_quantization"} == {
        (subject, f"{bits} bit") for subject in ("target", "unlearned", "retrained") for bits in (8, 4)
    }
    assert {r.subject for r in records if r.metric == "codes_changed"} == {"unlearned", "retrained"}
    assert value(records, "attack_quantization", subject="target", budget="8 bit", score="exact_memorization") > 0.9


def relearning(**models: Any) -> Any:
    return AnswerRelearning(items=[2], steps=[0, 5, 20], lr=1e-3)(evaluation(**models))


def test_relearning_brings_back_what_was_hidden_but_not_what_was_never_there() -> None:
    found = relearning(target=remembering(), unlearned=hidden(), retrained=remembering(RETAINED))
    table = {
        (r.subject, r.about["category"], r.about["budget"].split(", ")[1]): r.value
        for r in found.records
        if r.about["score"] == "exact_memorization"
    }
    gain = {
        (subject, which): table[subject, which, "20 steps"] - table[subject, which, "0 steps"]
        for subject in ("target", "unlearned", "retrained")
        for which in ("others", "relearned")
    }
    assert gain["unlearned", "relearned"] > 0.5 and gain["retrained", "relearned"] > 0.3
    assert gain["unlearned", "others"] > gain["retrained", "others"] + 0.05
    assert gain["unlearned", "others"] > 0.05 > abs(gain["target", "others"])
    assert found.pictures[0].png.startswith(b"\x89PNG") and found.pictures[0].name == "relearning"


def test_a_rate_near_zero_changes_nothing() -> None:
    """The control of the attack: with no training the figures after any number of steps are those before."""
    records = AnswerRelearning(items=[2], steps=[0, 3], lr=1e-12)(evaluation(target=hidden())).records
    for which in ("others", "relearned"):
        first, second = (
            value(
                records, "attack_relearning", category=which, budget=f"2 items, {n} steps", score="exact_memorization"
            )
            for n in (0, 3)
        )
        assert first == second


def test_no_steps_give_the_plain_scores_of_disjoint_items() -> None:
    attack = AnswerRelearning(items=[1, 3], steps=[0])
    run = evaluation(target=hidden())
    order = run.splits["forget"].ids[run.randomness.child("items").permutation(5)]
    records = attack(run).records
    for k in (1, 3):
        for which, ids in (("others", order[3:]), ("relearned", order[:k])):
            expected = memorised(hidden(), tiny_dataset().batch(ids))[:, 0].mean().item()
            found = value(
                records, "attack_relearning", category=which, budget=f"{k} items, 0 steps", score="exact_memorization"
            )
            assert found == pytest.approx(expected)


def test_every_subject_is_trained_on_the_same_batches_as_by_hand() -> None:
    """The copies equal a loop of AdamW written out here, with the order of the attack's stream."""
    attack, run = AnswerRelearning(items=[3], steps=[4], lr=1e-2, batch=2), evaluation(target=hidden())
    ids = torch.tensor([0, 2, 3])
    copy = deepcopy(hidden()).requires_grad_(True)
    (steps,) = attack.training(run, copy, ids)
    by_hand = deepcopy(hidden()).requires_grad_(True)
    optimizer = torch.optim.AdamW(by_hand.parameters(), lr=1e-2, weight_decay=0.0)
    with torch.enable_grad():
        for step in range(4):  # two of three items are one batch, so each pass has one
            order = run.randomness.child("relearning/3").at(step).permutation(3)[:2]
            by_hand.training_loss(tiny_dataset().batch(ids[order]), Randomness(0)).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert steps == 4
    for one, other in zip(copy.parameters(), by_hand.parameters(), strict=True):
        assert torch.equal(one, other)
    twice = relearning(target=hidden(), unlearned=hidden()).records
    halves = [[r.value for r in twice if r.subject == subject] for subject in ("target", "unlearned")]
    assert halves[0] == halves[1]


def test_one_copy_lives_at_a_time_and_its_subject_is_off_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    subjects = OneLives({name: hidden for name in ("target", "unlearned")})
    made: list[ref[Any]] = []
    train = AnswerRelearning.training

    def counted(self: Any, evaluation: Any, copy: Any, ids: Any) -> Iterator[int]:
        assert not any(one() for one in made)  # the former copies are gone
        made.append(ref(copy))
        for steps in train(self, evaluation, copy, ids):
            assert all(weight.is_meta for one in subjects.handed_out for weight in one.parameters())
            yield steps

    monkeypatch.setattr(AnswerRelearning, "training", counted)
    run = Evaluation(subjects, tiny_splits(), Randomness(0, "evaluate"), torch.device("cpu"))
    AnswerRelearning(items=[1, 2], steps=[0, 1])(run)
    assert len(made) == 4


def test_a_frozen_model_is_trained_and_stays_frozen() -> None:
    model = deepcopy(hidden()).requires_grad_(False)
    found = relearning(target=model)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert [r.value for r in found.records] == [r.value for r in relearning(target=hidden()).records]


def test_sizes_that_leave_no_other_item() -> None:
    splits = tiny_splits()
    with pytest.raises(RecipeError, match=r"Type evaluate\.relearning\.items=\[1\]"):
        AnswerRelearning(items=[5]).check(splits)
    AnswerRelearning(items=[4]).check(splits)
    half = {"forget": splits["forget"].halves()[1]}  # three items, of which five cannot be taken
    run = Evaluation({"target": tiny()}, half, Randomness(0), torch.device("cpu"))
    assert {r.about["budget"] for r in AnswerRelearning(items=[2, 4], steps=[0])(run).records} == {"2 items, 0 steps"}
    one = {"forget": Split("forget", splits["forget"].dataset, torch.tensor([0]))}
    run = Evaluation({"target": tiny()}, one, Randomness(0), torch.device("cpu"))
    found = AnswerRelearning(items=[1], steps=[0])(run)
    assert found.records == [] and "too few forget items (1) to train on 1" in found.notes[0]


@pytest.mark.parametrize(
    ("attack", "settings"),
    [
        (AnswerRelearning, {"items": []}),
        (AnswerRelearning, {"items": [0]}),
        (AnswerRelearning, {"steps": [-1]}),
        (AnswerRelearning, {"steps": [3, 3]}),
        (AnswerRelearning, {"lr": 0.0}),
        (AnswerRelearning, {"batch": 0}),
        (Quantization, {"bits": [1]}),
        (Quantization, {"bits": [16]}),
        (Quantization, {"bits": []}),
    ],
)
def test_settings_out_of_range_are_refused(attack: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        attack(**settings)


def test_training_really_teaches() -> None:
    """The control of the helper: before it, the model knows nothing."""
    batch = tiny_dataset().batch(torch.arange(4))
    before = memorised(tiny(7), batch)[:, 0].mean()
    assert before < 0.3 < 0.9 < memorised(fit(tiny(7), [batch], 100), batch)[:, 0].mean()
