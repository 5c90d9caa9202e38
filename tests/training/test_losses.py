"""What an objective returns is checked where it comes in; what is not finite, or does not move anything, is named."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.toys.flow import run, small_module
from unlearn.core.errors import Diverged, RecipeError
from unlearn.core.optim import Optim
from unlearn.objectives.base import Context, Objective, Values
from unlearn.objectives.common.training_loss import TrainingLoss

Change = Callable[[Tensor], Any]


@dataclass(frozen=True, kw_only=True)
class Changed(Objective):
    """The training loss, with what it returns changed."""

    change: Change = field(default=lambda loss: Values(loss))
    weigh: Change = field(default=torch.ones_like)

    def __call__(self, model: Any, batch: dict[str, Tensor], context: Context) -> Values:
        return self.change(model.training_loss(batch, context.randomness))  # type: ignore[no-any-return]

    def sample_weight(self, batch: dict[str, Tensor]) -> Tensor:
        return self.weigh(batch["id"].double())  # type: ignore[no-any-return]


def taken(tmp_path: Path, **settings: Any) -> dict[str, Tensor]:
    return run(small_module({"mine": Changed(**settings)}, {"training_loss": TrainingLoss()}), tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda loss: Values(loss[:, None]), ("shape (16, 1)", "(16,)")),
        (lambda loss: Values(loss.mean()), ("shape ()", "(16,)")),
        (lambda loss: Values(loss[:3]), ("shape (3,)", "(16,)")),
        (lambda loss: Values(loss > 0), ("torch.bool", "floats")),
        (lambda loss: Values(2.0), ("a float", "floats")),  # type: ignore[arg-type]
        (lambda loss: loss, ("a Tensor", "Values(values=...)")),
        (lambda loss: None, ("a NoneType", "Values(values=...)")),
        (lambda loss: Values(loss, {"odd": loss[:2]}), ("'odd'", "(2,)")),
        (lambda loss: Values(loss, {"odd": 1.0}), ("'odd'", "float")),  # type: ignore[dict-item]
    ],
)
def test_values_of_another_kind_are_refused_by_name(change: Change, words: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as refused:
        taken(tmp_path, change=change)
    assert all(word in str(refused.value) for word in ("forget=mine (Changed)", *words))


@pytest.mark.parametrize("weigh", [lambda ids: ids.sum(), lambda ids: ids[:, None], lambda ids: 1.0])
def test_weights_of_another_shape_are_refused_by_name(weigh: Change, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"forget=mine \(Changed\): sample_weight"):
        taken(tmp_path, weigh=weigh)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run_though_its_gradient_is(value: float, tmp_path: Path) -> None:
    with pytest.raises(Diverged, match="the loss of forget=mine is not finite"):
        taken(tmp_path, change=lambda loss: Values(loss + value))
    fine = taken(tmp_path, change=lambda loss: Values(loss + 1.0))
    assert all(weight.isfinite().all() for weight in fine.values())


def test_a_target_that_holds_nan_is_named(tmp_path: Path) -> None:
    module = small_module({"mine": Changed()}, {"training_loss": TrainingLoss()})
    target: Any = module.common.reference()
    name = next(iter(target.named_parameters()))[0]
    for model in (target, module.model):
        torch.nn.init.constant_(dict(model.named_parameters())[name], float("nan"))
    with pytest.raises(Diverged) as stopped:
        run(module, tmp_path)
    assert (
        "The target itself holds" in str(stopped.value)
        and name in str(stopped.value)
        and "lr" not in str(stopped.value)
    )


@pytest.mark.parametrize(
    ("forget", "retain", "words"),
    [
        ({"mine": Changed(change=lambda loss: Values(0 * loss))}, {}, "the loss is exactly 0"),
        ({"mine": Changed(change=lambda loss: Values(0 * loss))}, {"training_loss": TrainingLoss()}, "forget=mine"),
    ],
)
@pytest.mark.parametrize("steps", [2, 4])
def test_first_steps_without_a_gradient_are_a_named_stop(
    forget: dict[str, Objective], retain: dict[str, Objective], words: str, steps: int, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError) as stopped:
        run(small_module(forget, retain, optim=Optim(steps=steps, batch=16)), tmp_path)
    assert words in str(stopped.value) and "exactly 0" in str(stopped.value)


def test_a_gradient_that_comes_late_and_a_weight_of_0_are_no_stop(tmp_path: Path) -> None:
    class Late(Changed):
        def __call__(self, model: Any, batch: dict[str, Tensor], context: Context) -> Values:
            values = super().__call__(model, batch, context).values
            return Values(values * (context.step > 1))

    run(small_module({"mine": Late()}, {"training_loss": TrainingLoss()}), tmp_path / "late")
    run(small_module({"mine": Changed(weight=0.0)}, {"training_loss": TrainingLoss()}), tmp_path / "control")
