"""MUSE's criteria on models of images whose every answer is known, and on the models of each family that ship."""

from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor

from tests.toys.scripted import Copier, Pixels, evaluation_of, value
from unlearn.config.recipe import load
from unlearn.core.randomness import Randomness
from unlearn.core.records import find
from unlearn.data.base import Batch, Dataset, Selection, Split
from unlearn.data.digits import Digits
from unlearn.data.splits import make_splits
from unlearn.evaluators.muse.presence import ImagePresence
from unlearn.evaluators.muse.privacy import ImagePrivacy
from unlearn.evaluators.muse.recalled_items import RecallEvaluator
from unlearn.evaluators.muse.reconstruction import ImageMemorization
from unlearn.evaluators.muse.utility import ImageUtility, harmonic
from unlearn.evaluators.statistics import detected
from unlearn.experiment.inputs import RunInputs, gather_inputs
from unlearn.models.capabilities import Recalls
from unlearn.models.recalled import Recalled

FAMILIES = ["flow/category_digits", "gan/guide_digits", "diffusion/uce_digits"]


@cache
def digits() -> dict[str, Split]:
    """Return the digits, of which the threes are forgotten."""
    return make_splits(Digits().load(), Digits(forget=Selection(label=["3"])), Randomness(0))


class Recaller(Copier):
    """Draws an item again as the item that a rule names; its loss is a function of the item's id."""

    def __init__(self, dataset: Dataset, rule: Callable[[Tensor], Tensor], loss: Callable[[Tensor], Tensor]) -> None:
        super().__init__(dataset, torch.arange(10))
        self.rule, self.loss, self.asked = rule, loss, 0

    def recall(self, batch: Batch, randomness: Randomness) -> Recalled:
        """Copy the items of the rule."""
        self.asked += len(batch["id"])
        return Recalled(self.dataset.batch(self.rule(batch["id"]))["image"][None], self.loss(batch["id"]), ("half",))


def recallers(*rules: tuple[str, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]) -> dict[str, Recaller]:
    data = digits()["forget"].dataset
    return {subject: Recaller(data, rule, loss) for subject, rule, loss in rules}


def unseen(ids: Tensor) -> Tensor:
    """Return a loss that has nothing to do with membership: in the same order on both sides."""
    return (ids * 7919 % 1009).double()


def test_an_item_drawn_again_is_memorised_and_another_item_is_not() -> None:
    """The target gives items back, similarity 1; the retrained model draws other items, about 0 (the mean of pairs)."""
    other = digits()["retain"].ids
    models = recallers(
        ("target", lambda ids: ids, unseen),
        ("unlearned", lambda ids: torch.where(ids % 2 == 0, ids, other[ids % len(other)]), unseen),
        ("retrained", lambda ids: other[ids * 31 % len(other)], unseen),
    )
    found = ImageMemorization(items=60, shown=2)(evaluation_of(models, digits()))

    def of(subject: str, split: str = "forget") -> float:
        return value(found.records, "verbatim_memorization", subject=subject, split=split)

    assert of("target") == pytest.approx(1) == of("target", "holdout")
    assert abs(of("retrained")) < 0.2 and abs(of("retrained", "retain")) < 0.2
    assert 0.35 < of("unlearned") < 0.65
    assert [picture.name for picture in found.pictures] == ["recalled"]
    assert len(found.items) == 3 * (60 + 60 + len(digits()["holdout"]))


def test_privacy_by_hand() -> None:
    """The target's losses are lower on every forget item (AUC 1), the unlearned model's higher (AUC 0).

    PrivLeak is relative to the retrained model's A_r: -100 for the one, 100 (1 - A_r) / A_r for the other, and 0 for a
    model like the retrained one.
    """
    splits = digits()

    def offset(by: float) -> Callable[[Tensor], Tensor]:
        return lambda ids: unseen(ids) + by * torch.isin(ids, splits["forget"].ids)

    models = recallers(
        ("target", lambda ids: ids, offset(-5000)),
        ("unlearned", lambda ids: ids, offset(5000)),
        ("clean", lambda ids: ids, offset(0)),
        ("retrained", lambda ids: ids, offset(0)),
    )
    records = ImagePrivacy(items=None)(evaluation_of(models, splits)).records
    assert value(records, "privacy_auc", subject="target") == 1
    assert value(records, "privacy_auc", subject="unlearned") == 0
    retrained = value(records, "privacy_auc", subject="retrained")
    assert 0.35 < retrained < 0.65
    assert value(records, "privleak", subject="target") == -100
    assert value(records, "privleak", subject="unlearned") == pytest.approx(100 * retrained / (1 - retrained))
    assert value(records, "privleak", subject="clean") == 0
    assert value(records, "tpr_at_1_fpr", subject="target") == 1
    assert value(records, "tpr_at_1_fpr", subject="unlearned") == 0


def test_detected_members_by_hand() -> None:
    """Of 200 others two may score higher; of 50 none may."""
    others = torch.arange(200).double()
    assert detected(torch.tensor([197.0, 197.5, 198.0]), others).tolist() == [False, True, True]
    assert detected(torch.tensor([49.0, 49.5]), others[:50]).tolist() == [False, True]


def test_criteria_share_what_is_recalled() -> None:
    """Each model sees each item once, whatever is asked of it."""
    models = recallers(("target", lambda ids: ids, unseen), ("unlearned", lambda ids: ids, unseen))
    evaluation = evaluation_of(models, digits())
    for evaluator in (ImageMemorization(items=20, shown=0), ImagePrivacy(items=20)):
        evaluator(evaluation)
    assert [model.asked for model in models.values()] == [60, 60]


def test_presence_by_hand() -> None:
    """Of ten samples the target draws two threes, the unlearned model none."""
    splits = digits()
    threes, others = splits["forget"].ids[:2], splits["retain"].ids[:8]
    data = splits["forget"].dataset
    models = {"target": Copier(data, torch.cat([threes, others])), "unlearned": Copier(data, others)}
    records = ImagePresence(samples=10)(evaluation_of(models, splits)).records
    assert value(records, "knowledge_memorization", subject="target") == pytest.approx(0.2)
    assert value(records, "knowledge_memorization", subject="unlearned") == 0


def test_utility_rewards_neither_noise_nor_a_single_image_nor_what_is_forgotten() -> None:
    splits = digits()
    data, kept = splits["forget"].dataset, splits["retain"].ids
    models = {
        "target": Copier(data, kept[torch.randperm(len(kept), generator=torch.Generator().manual_seed(0))]),
        "noise": Pixels(8, 6),
        "single": Copier(data, kept[:1]),
        "unlearned": Copier(data, splits["forget"].ids),
    }
    records = ImageUtility(samples=300, items=300)(evaluation_of(models, splits)).records
    found = {record.subject: record for record in records}
    assert found["target"].value > 0.9
    assert found["noise"].value < 0.02 and found["noise"].ci95[0] < 1e-9
    assert found["single"].value < 0.02
    assert found["unlearned"].value < 0.25
    assert harmonic((0.5, (0.4, 0.6)), (1.0, (0.9, 1.0)))[0] == pytest.approx(2 / 3)
    assert harmonic((0.0, (0.0, 0.1)), (1.0, (0.9, 1.0)))[:1] == (0,)


@cache
def shipped(name: str) -> RunInputs:
    recipe = load(name, [])
    return gather_inputs(recipe, 0, None, recipe.model.data_as_read(recipe.data.load()))


@pytest.mark.parametrize("family", FAMILIES)
def test_models_recall_each_item_alone(family: str) -> None:
    """One by one as in a batch, the same for the same noise; the model is not changed."""
    inputs = shipped(family)
    model, split = inputs.target.shared().eval(), inputs.splits["forget"]
    assert isinstance(model, Recalls)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        whole = model.recall(split.batch(split.ids[:3]), Randomness(0))
        alone = model.recall(split.batch(split.ids[1:2]), Randomness(0))
    assert whole.images.shape == (len(whole.levels), 3, *split.dataset.info["shape"])
    assert whole.loss.shape == (3,)
    torch.testing.assert_close(whole.loss[1:2], alone.loss, rtol=1e-3, atol=1e-5)
    apart = (whole.images[:, 1:2].int() - alone.images.int()).abs()
    assert apart.max() <= 1 and apart.float().mean() < 0.05  # rounding may turn a grey level
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("family", FAMILIES)
def test_doing_nothing_leaks_as_the_target_does_and_a_retrained_model_does_not(family: str) -> None:
    """The target in place of the unlearned model has the target's figures; the retrained one is no leak at all."""
    inputs = shipped(family)
    target, retrained = inputs.target.shared().eval(), inputs.retrained.shared().eval()
    models = {"target": target, "unlearned": target, "again": retrained, "retrained": retrained}
    evaluation = evaluation_of(models, inputs.splits)
    records = [
        *ImagePrivacy(items=24)(evaluation).records,
        *ImageMemorization(items=24, shown=0)(evaluation).records,
        *ImagePresence(samples=100)(evaluation).records,
        *ImageUtility(samples=100, items=100)(evaluation).records,
    ]
    for record in records:
        if record.subject == "unlearned":
            assert record.value == find(records, record.metric, "target", record.split, **record.about).value
    assert value(records, "privleak", subject="again") == 0
    presence = {subject: value(records, "knowledge_memorization", subject=subject) for subject in models}
    assert presence["target"] > presence["retrained"] + 0.02
    assert value(records, "utility", subject="retrained") > 0.3


def test_the_evaluators_share_their_settings() -> None:
    """So that criteria on the same items share their passes."""
    assert {type(one).__mro__[1] for one in (ImageMemorization(), ImagePrivacy())} == {RecallEvaluator}
    assert ImageMemorization().items == ImagePrivacy().items
