"""Conditions: one kind at a time, rows, and several behind one another."""

import pytest
import torch

from unlearn.models.conditioning import Condition

TOKENS = torch.arange(12).view(2, 1, 6)
STATES, POOLED = torch.arange(12.0).view(2, 2, 3), torch.arange(8.0).view(2, 4)


def test_rows_repetition_and_concatenation_keep_the_parts_together() -> None:
    both = Condition(states=STATES, pooled=POOLED)
    assert len(both) == 2
    one = both[1:]
    assert torch.equal(one.states, STATES[1:]) and torch.equal(one.pooled, POOLED[1:])
    picked = both[torch.tensor([1, 1, 0])]
    assert torch.equal(picked.pooled, POOLED[[1, 1, 0]])
    again = both.repeat(3)
    assert len(again) == 6 and torch.equal(again.states, STATES.repeat(3, 1, 1))
    joined = Condition.cat([one, both])
    assert torch.equal(joined.states, torch.cat([STATES[1:], STATES])) and joined.pooled.shape == (3, 4)
    assert torch.equal(Condition(tokens=TOKENS).repeat(2).tokens, TOKENS.repeat(2, 1, 1))


def test_a_condition_is_of_one_kind() -> None:
    for parts in ({}, {"classes": torch.zeros(2), "tokens": TOKENS}, {"pooled": POOLED}):
        with pytest.raises(ValueError, match="one of classes, tokens and states"):
            Condition(**parts)
    with pytest.raises(ValueError, match="different kinds"):
        Condition.cat([Condition(tokens=TOKENS), Condition(classes=torch.zeros(2, dtype=torch.int64))])
    with pytest.raises(ValueError, match="different kinds"):
        Condition.cat([Condition(states=STATES), Condition(states=STATES, pooled=POOLED)])


def test_detached_conditions_have_no_gradient() -> None:
    states = STATES.clone().requires_grad_()
    assert Condition(states=states * 2)[:1].states.requires_grad
    assert not Condition(states=states * 2).detach().states.requires_grad
