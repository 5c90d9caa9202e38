"""Learning rates as a function of the step."""

import pytest
import torch

from unlearn.core.optim import Optim, learning_rate


def test_closed_values() -> None:
    """Half-way a cosine and a line stand at lr / 2; a warm-up of 4 of 8 steps rises by fifths."""
    assert learning_rate(Optim(lr=2.0, steps=10), 7) == 2.0
    assert learning_rate(Optim(lr=2.0, steps=10, schedule="cosine"), 5) == pytest.approx(1.0)
    assert learning_rate(Optim(lr=2.0, steps=10, schedule="linear"), 5) == pytest.approx(1.0)
    warm = Optim(lr=1.0, steps=8, warmup=0.5)
    assert [learning_rate(warm, step) for step in range(4)] == pytest.approx([0.2, 0.4, 0.6, 0.8])


@pytest.mark.parametrize("steps", [1, 2, 10, 100])
def test_onecycle_is_pytorchs(steps: int) -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for step in range(steps):
        ours = learning_rate(Optim(lr=3e-3, steps=steps, schedule="onecycle"), step)
        assert ours == pytest.approx(theirs.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        theirs.step()
