"""Identity similarity: by brute force, of a generator that moved its identities and of ones that did not."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from weakref import ref

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tests.toys.gan import write_script
from tests.toys.lively_gan import SEEDS, lively, moved, of, pixel_net, sent_away, splits_of
from tests.toys.scripted import evaluation_of, value
from unlearn.core.errors import RecipeError
from unlearn.data.identities import Identity as Person
from unlearn.evaluators.attacks.face_relearning import FaceRelearning
from unlearn.evaluators.attacks.reinversion import Reinversion
from unlearn.evaluators.image.face_verification import (
    FIRST_DRAWN,
    SimilarityScale,
    drawn,
    identity_nets,
    latents,
    strangers,
)
from unlearn.evaluators.image.identity import IdentityMetrics
from unlearn.evaluators.subjects import OneAtATime, trainable_copy
from unlearn.models.capabilities import Model
from unlearn.models.feature_extractors.embedders import Embedder
from unlearn.models.gan.inversion import Inversion
from unlearn.models.gan.latents import latents_of_seeds


class Fails(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.reshape(7, 7)


FEW = {"same_person": 2, "neighbours": 2, "strangers": 6, "shown": 0}


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> str:
    return pixel_net(tmp_path_factory.mktemp("nets"))


def test_the_scale_by_hand() -> None:
    """Corners of a square in order: neighbours are 1 apart, so that m = 1 and the diagonal's similarity 1 - sqrt 2."""
    square = torch.tensor([[0.0, 0], [1, 0], [1, 1], [0, 1]])
    scale = SimilarityScale.of(Embedder("x", "", None, "l2"), square)
    assert (scale.apart, scale.pairs) == (1, 4)
    torch.testing.assert_close(scale.similarity(square, square[[0, 0, 0, 0]]), 1 - torch.tensor([0, 1, 2**0.5, 1]))
    torch.testing.assert_close(scale.nearest(torch.tensor([[0.0, 3], [1, 1]]), square), torch.tensor([-1.0, 1]))


def test_figures_by_brute_force(net: str) -> None:
    """One number a split, reckoned item by item."""
    target = lively()
    unlearned = sent_away(target, reach=1e-3)
    records = IdentityMetrics(features=[net], **FEW)(of(target, unlearned=unlearned)).records
    (judge,) = identity_nets([net], target.image_shape)
    people, pool = latents_of_seeds(target, torch.tensor(SEEDS)), strangers(of(target), 6 + 2 * len(SEEDS))
    faces = judge(drawn(target, pool))
    apart = torch.stack([1 - torch.cosine_similarity(faces[i], faces[i - 1], dim=0) for i in range(len(faces))]).mean()
    assert value(records, "identity_distance") == pytest.approx(apart.item(), rel=1e-5)
    before, after = judge(drawn(target, people)), judge(drawn(target, 2 * target.w_avg - people))
    wanted = (1 - (1 - torch.cosine_similarity(before, after)) / apart).mean().item()
    assert wanted < 0.9
    plain = [record for record in records if "score" not in record.about]
    assert value(plain, "identity_similarity", subject="target", split="forget") == pytest.approx(1, abs=1e-5)
    assert value(plain, "identity_similarity", subject="unlearned", split="forget") == pytest.approx(wanted, abs=1e-5)
    assert value(plain, "identity_similarity", subject="target_latent") == pytest.approx(wanted, abs=1e-5)
    for split in ("same_person", "neighbours", "strangers"):
        assert value(plain, "identity_similarity", subject="unlearned", split=split) == pytest.approx(1, abs=1e-5)
    nearest = torch.stack([torch.cosine_similarity(one[None], faces) for one in before]).sort(dim=1, descending=True)
    close = (1 - (1 - nearest.values[:, :2]) / apart).mean().item()
    found = value(records, "identity_similarity", subject="target", split="neighbours", score="to_person")
    assert found == pytest.approx(close, abs=1e-5)
    for subject, drew in (("target", before), ("unlearned", after)):
        alike = [1 - (1 - torch.cosine_similarity(one[None], faces).max()) / apart for one in drew]
        found = value(records, "identity_similarity", subject=subject, split="forget", score="to_strangers")
        assert found == pytest.approx(torch.stack(alike).mean().item(), abs=1e-5)


def test_what_is_near_and_what_is_everywhere(net: str) -> None:
    """A wide reach takes the other pictures along; moving everybody takes the strangers; the target itself nobody."""
    target = lively()
    found = {}
    for name, model in {
        "wide": sent_away(target, reach=1.0),
        "all": moved(target, lambda ws: 2 * target.w_avg - ws),
        "none": target,
    }.items():
        records = IdentityMetrics(features=[net], **FEW, near=0.05)(of(target, unlearned=model)).records
        found[name] = {
            record.split: record.value
            for record in records
            if record.subject == "unlearned" and "score" not in record.about and record.metric == "identity_similarity"
        }
    assert (
        all(found["none"][split] == pytest.approx(1, abs=1e-5) for split in found["none"]) and len(found["none"]) == 4
    )
    assert found["wide"]["same_person"] < 0.95 and found["wide"]["forget"] < 0.95
    assert found["all"]["strangers"] < 0.95 and found["all"]["strangers"] < found["wide"]["strangers"]


def test_the_forget_term_may_say_where_identities_went(net: str) -> None:
    target = lively()
    aims = target.w_avg.expand(len(SEEDS), target.num_ws, -1)
    told = of(target, unlearned=target, state={"forget": {"target_latents": aims}, "retain": {}})
    given, mirrored = (
        [
            record.value
            for record in IdentityMetrics(features=[net], **FEW)(asked).records
            if record.subject == "target_latent"
        ]
        for asked in (told, of(target, unlearned=target))
    )
    assert all(abs(a - b) > 1e-4 for a, b in zip(given, mirrored, strict=True))


def test_the_judge_looks_at_the_latents_that_were_forgotten(net: str) -> None:
    """The term's own, by its items where it says which; a retain term's are of no account."""
    target = lively()
    ids = of(target).splits["forget"].ids
    own = target.w_avg + torch.randn(len(ids), target.num_ws, len(target.w_avg))
    told = {"identity_latents": own.double(), "identity_ids": ids}
    for state in ({"identity_latents": own}, told):
        found = latents(of(target, state={"forget/a": state}), "target", ids, Inversion())
        torch.testing.assert_close(found, own)
    seen = latents(
        of(target, state={"forget/a": {"identity_latents": own.flip(0), "identity_ids": ids.flip(0)}}),
        "target",
        ids[1:],
        Inversion(),
    )
    torch.testing.assert_close(seen, own[1:])
    plain = latents_of_seeds(target, torch.tensor(SEEDS))
    for state in ({"retain/a": told}, {"forget/a": {"identity_latents": own[:1]}}):
        found = latents(of(target, state=state), "target", ids, Inversion())
        torch.testing.assert_close(found, plain)
    retrained = latents(of(target, retrained=lively(), state={"forget/a": told}), "retrained", ids, Inversion())
    torch.testing.assert_close(retrained, plain)


def test_nobody_is_his_own_neighbour() -> None:
    """A seed of an identity is left out where strangers are drawn beside the data's own."""
    target = lively()
    people = [Person(seed=FIRST_DRAWN), Person(seed=FIRST_DRAWN + 2)]
    splits = splits_of(target, identities=people, test_strangers=3)
    found = strangers(evaluation_of({"target": target}, splits), 6)
    assert len(found) == 6
    drawn_seeds = torch.tensor([FIRST_DRAWN + 1, FIRST_DRAWN + 3, FIRST_DRAWN + 4])
    torch.testing.assert_close(found[3:], latents_of_seeds(target, drawn_seeds))


def test_a_net_that_fails_is_refused_before_the_training(tmp_path: Path) -> None:
    write_script(Fails(), tmp_path / "fails.pt")
    splits = splits_of(lively())
    for evaluator in (
        IdentityMetrics(features=[str(tmp_path / "fails.pt")]),
        Reinversion(features=[str(tmp_path / "fails.pt")]),
    ):
        with pytest.raises(RecipeError, match=r"fails\.pt fails on .*is invalid"):
            evaluator.check(splits)


def test_the_retrained_model_finds_its_own_latents(net: str) -> None:
    """Of the same weights it draws the same face; there are no figures of it where latents do not correspond."""
    target = lively()
    records = IdentityMetrics(features=[net], **FEW)(of(target, unlearned=target, retrained=lively())).records
    own = [record for record in records if record.subject == "retrained"]
    assert {(record.split, record.direction) for record in own} == {("forget", "none")}
    assert own[0].value == pytest.approx(1, abs=1e-5)


def test_each_subject_is_loaded_once_whatever_is_shown(net: str) -> None:
    loaded = []

    def load(name: str, model: Model) -> Model:
        loaded.append(name)
        return model

    evaluation = of(lively(), unlearned=lively(), retrained=lively())
    subjects = {name: partial(load, name, model) for name, model in evaluation.models.items()}
    evaluation = replace(evaluation, models=OneAtATime(subjects, torch.device("cpu")))
    found = IdentityMetrics(features=[net], **FEW | {"shown": 2})(evaluation)
    assert loaded == ["target", "unlearned", "retrained"] and len(found.pictures) == 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_further_pictures_take_the_place_of_near_latents(net: str, tmp_path: Path) -> None:
    """An encoder finds them; the pictures, not latents near the person, are then what is compared."""
    target = lively()

    class Encoder(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1)[:, :5]

    torch.jit.script(Encoder()).save(str(tmp_path / "encoder.pt"))
    for name, grey in (("a", 0), ("b", 100), ("c", 255)):
        Image.fromarray(np.full((8, 8, 3), grey, dtype=np.uint8)).save(tmp_path / f"{name}.png")
    person = Person(image=str(tmp_path / "a.png"), others=[str(tmp_path / f"{name}.png") for name in "bc"])
    splits = splits_of(target, identities=[person, Person(seed=7)])
    evaluation = evaluation_of({"target": target, "unlearned": target}, splits)
    judge = IdentityMetrics(features=[net], encoder=str(tmp_path / "encoder.pt"), **FEW | {"shown": 1})
    found = judge(evaluation)
    assert {record.n for record in found.records if record.split == "same_person"} == {4}
    assert [picture.title for picture in found.pictures] == ["Before and after: a"]
    assert len([row for row in found.items if row["split"] == "same_person" and row["subject"] == "unlearned"]) == 4


def test_faces_are_judged_by_two_nets() -> None:
    assert [net.name for net in identity_nets(None, (3, 64, 64))] == ["mobile_face", "dlib_face"]
    assert [net.name for net in identity_nets(None, (1, 8, 8))] == ["digitnet8"]
    with pytest.raises(RecipeError, match=r"No packaged identity net"):
        IdentityMetrics().check({"forget": replace_shape(splits_of(lively())["forget"], (2, 9, 9))})


def replace_shape(split, shape):  # type: ignore[no-untyped-def]
    return replace(split, dataset=split.dataset.shaped(shape, 256, split.dataset.info["latent"]))


def test_reinversion_finds_whom_the_target_draws_and_not_whom_it_cannot(net: str) -> None:
    """More steps find more; a generator that draws one grey everywhere never gets there."""
    target = lively()
    grey = moved(target, lambda ws: target.w_avg + 0 * ws)
    attack = Reinversion(
        steps=[2, 60], inversion=Inversion(lr=0.1, explore=0.0), features=[net], strangers=8, identities=None
    )
    found = attack(of(target, unlearned=grey))
    figures = {(record.subject, record.about["budget"]): record.value for record in found.records}
    assert figures["target", "60 steps, w"] > figures["target", "2 steps, w"]
    assert figures["target", "60 steps, w"] > 0.7 > 0.3 > figures["unlearned", "60 steps, w"]
    assert figures["unlearned", "60 steps, w"] == pytest.approx(figures["unlearned", "2 steps, w"], abs=1e-5)
    assert {record.n for record in found.records} == {len(SEEDS)} and len(found.pictures) == 1
    hidden = attack(of(target, unlearned=sent_away(target, reach=1e-3)))
    again = {(record.subject, record.about["budget"]): record.value for record in hidden.records}
    assert again["unlearned", "60 steps, w"] > 0.7  # moved, not removed


def test_relearning_brings_back_and_leaves_the_model_alone(net: str) -> None:
    target = lively()
    unlearned = sent_away(target, reach=2.0)
    weights = {name: tensor.clone() for name, tensor in unlearned.state_dict().items()}
    attack = FaceRelearning(pictures=[2], steps=[0, 30], lr=1e-2, near=0.02, features=net, strangers=8, identities=None)
    found = attack(of(target, unlearned=unlearned))
    figures = {(record.subject, record.about["budget"]): record.value for record in found.records}
    assert figures["target", "2 pictures, 0 steps"] == pytest.approx(1, abs=1e-5)
    assert figures["unlearned", "2 pictures, 30 steps"] > figures["unlearned", "2 pictures, 0 steps"] + 0.02
    assert all(torch.equal(tensor, weights[name]) for name, tensor in unlearned.state_dict().items())
    assert found.pictures[0].name == "relearning"


def test_relearning_has_one_copy_at_a_time(net: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[ref[Any]] = []

    def counted(models: Any, subject: str) -> Any:
        assert not any(one() for one in made)  # the former copies are gone
        made.append(ref(copy := trainable_copy(models, subject)))
        return copy

    monkeypatch.setattr("unlearn.evaluators.attacks.face_relearning.trainable_copy", counted)
    FaceRelearning(pictures=[1, 2], steps=[1], features=net, strangers=4)(of(lively(), unlearned=lively()))
    assert len(made) == 4


@pytest.mark.parametrize(
    ("component", "wrong"),
    [
        (IdentityMetrics, {"near": 0.0}),
        (IdentityMetrics, {"features": []}),
        (IdentityMetrics, {"strangers": 3}),
        (Reinversion, {"steps": [0]}),
        (Reinversion, {"steps": [5, 5]}),
        (FaceRelearning, {"pictures": []}),
        (FaceRelearning, {"lr": 0.0}),
    ],
)
def test_settings_out_of_range_are_refused(component: type, wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"must be|name at least one"):
        component(**wrong)
