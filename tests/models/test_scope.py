"""Scope: what may move, what may not, and errors that help."""

import pytest
import torch
from torch import nn

from unlearn.core.errors import RecipeError
from unlearn.models.scope import All, ByKind, HeldEntries, Pattern, Saliency, scope_table


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Conv1d(4, 2, 1))


def test_selections_by_name_and_kind() -> None:
    model = network()
    assert len(All().select(model)) == 6
    assert Pattern([r"^0\."]).select(model) == ["0.weight", "0.bias"]
    assert Pattern([".*"], ["bias"]).select(model) == ["0.weight", "1.weight", "2.weight"]
    assert ByKind(["normalisation"]).select(model) == ["1.weight", "1.bias"]
    assert ByKind(["linear", "convolution"]).select(model) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    table = scope_table(model, ["0.weight"], {})
    assert sum(row[1] for row in table) == 12 and sum(row[2] for row in table) == 34


def test_a_kind_that_the_wrapper_adds() -> None:
    model = network()
    model.layer_kinds = {"first": (nn.Linear,)}
    assert ByKind(["first"]).select(model) == ["0.weight", "0.bias"]


@pytest.mark.parametrize(
    ("scope", "message"),
    [
        (Pattern(["nothing"]), "matches no parameter"),
        (ByKind(["embedding"]), "matches no parameter"),
        (ByKind(["linaer"]), "Did you mean: linear"),
    ],
)
def test_matching_nothing_is_an_error_with_a_remedy(scope: Pattern | ByKind, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        scope.select(network())


def test_values_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="regular expression"):
        Pattern(["("])
    with pytest.raises(ValueError, match="share"):
        Saliency(share=0.0)


def test_saliency_keeps_the_largest_entries() -> None:
    """Of |gradient| 1 ... 6 over two tensors, half of the entries are those of 4, 5 and 6."""
    masks = Saliency(share=0.5).masks({"a": torch.tensor([1.0, -6.0, 3.0]), "b": torch.tensor([[5.0, 2.0, -4.0]])})
    assert masks["a"].tolist() == [False, True, False]
    assert masks["b"].tolist() == [[True, False, True]]
    with pytest.raises(RecipeError, match="no gradient"):
        Saliency().masks({"a": torch.zeros(4)})
    mostly_zero = Saliency(share=0.9).masks({"a": torch.tensor([0.0, 0.0, 1.0])})
    assert mostly_zero["a"].tolist() == [False, False, True]  # entries that the loss does not see stay held


def test_held_entries_come_back_after_weight_decay_and_momentum() -> None:
    model = nn.Linear(4, 1, bias=False)
    first = model.weight.detach().clone()
    mask = torch.tensor([[True, False, True, False]])
    held = HeldEntries({"weight": model.weight}, {"weight": mask})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        model.weight.grad = torch.ones_like(model.weight)
        optimizer.step()
        assert not torch.equal(model.weight[~mask], first[~mask])  # the control: the optimizer alone moves them
        held.restore()
    assert torch.equal(model.weight[~mask], first[~mask])
    assert not torch.isclose(model.weight[mask], first[mask]).any()
