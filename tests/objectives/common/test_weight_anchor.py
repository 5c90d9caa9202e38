"""Distance to the target's parameters."""

import pytest
import torch

from tests.toys.flow_objectives import PixelGaussian, context, pixel_splits
from unlearn.core.errors import RecipeError
from unlearn.objectives.common.weight_anchor import WeightAnchor

SPLITS = pixel_splits([13], [9, 10])


def moved():
    """A model whose mean is 3 and whose log scale is 0.5 away from the target's."""
    target, model = PixelGaussian(), PixelGaussian()
    with torch.no_grad():
        model.mean.add_(3.0)
        model.log_scale.sub_(0.5)
    return model, context(SPLITS, reference=target)


def test_penalty_and_gradient_are_those_of_half_the_squared_distance():
    """0.2 / 2 * (3^2 + 0.5^2) = 0.925; gradients 0.2 * 3 and 0.2 * -0.5; the target gets none."""
    model, here = moved()
    penalty = WeightAnchor(strength=0.2).penalty(dict(model.named_parameters()), here)
    penalty.backward()
    assert penalty.item() == pytest.approx(0.925)
    assert (model.mean.grad.item(), model.log_scale.grad.item()) == pytest.approx((0.6, -0.1))
    assert here.reference().mean.grad is None


def test_only_parameters_that_may_move_count_and_none_at_the_target():
    model, here = moved()
    assert WeightAnchor(strength=0.2).penalty({"mean": model.mean}, here).item() == pytest.approx(0.9)
    assert WeightAnchor().penalty(dict(PixelGaussian().named_parameters()), here).item() == 0


def test_a_parameter_that_the_target_lacks_and_a_strength_of_zero_are_refused():
    model, here = moved()
    with pytest.raises(RecipeError, match=r"'adapter'.*Drop weight_anchor"):
        WeightAnchor().penalty({"adapter": model.mean}, here)
    with pytest.raises(
        RecipeError, match=r"'mean'.*Drop weight_anchor"
    ):  # the target is the model itself, as under an adapter
        WeightAnchor().penalty(dict(here.reference().named_parameters()), here)
    with pytest.raises(ValueError, match="strength"):
        WeightAnchor(strength=0.0)
