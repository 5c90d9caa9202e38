"""Objectives on hidden states."""

from pathlib import Path

import pytest
import torch

from tests.toys.language import tiny, tiny_dataset
from tests.toys.language_objectives import Bench, Bigram, answers_of
from unlearn.objectives.language.embedding_difference import EmbeddingDifference
from unlearn.objectives.language.rmu import RMU


def test_rmus_value_is_the_mean_square_to_the_steering_vector(tmp_path: Path) -> None:
    """Hidden states are e_0 = (1, 0), e_1 = (0, 1). Answer "aab": tokens 1, 1, 0, the question's token is 0.

    |e_1 - c u|^2 = 1 - 2 c u_1 + c^2; the mean over tokens 1, 1, 0 and over the 2 numbers of a state.
    """
    c = 3.0
    for tokens, ones, zeros in (("answer", 2, 1), ("all", 2, 2)):
        own = Bench(tmp_path, Bigram(0.5), answers_of("aab"), RMU(coefficient=c, tokens=tokens))
        u = own.state["steering"]
        assert u.norm().item() == pytest.approx(1) and (u >= 0).all()
        total = ones * (1 - 2 * c * u[1] + c**2) + zeros * (1 - 2 * c * u[0] + c**2)
        assert own.value() == pytest.approx(total.item() / (ones + zeros) / 2)
        summed = Bench(tmp_path, Bigram(0.5), answers_of("aab"), RMU(coefficient=c, tokens=tokens, reduction="sum"))
        assert summed.value() == pytest.approx(2 * own.value())


def test_embedding_differences_value_is_the_mean_square_to_the_target(tmp_path: Path) -> None:
    """e_1 moves by (3, 4): 25 / 2 at each token 1, here two of the answer's three, or of the four of all."""
    for tokens, share in (("answer", 2 / 3), ("all", 2 / 4)):
        own = Bench(tmp_path, Bigram(0.5), answers_of("aab", "b"), EmbeddingDifference(tokens=tokens))
        assert own.values().values.abs().max() == 0
        with torch.no_grad():
            own.model.states[1] += torch.tensor([3.0, 4.0])
        assert own.values().values.tolist() == pytest.approx([share * 12.5, 0.0])
        summed = Bench(
            tmp_path / tokens, Bigram(0.5), answers_of("aab", "b"), EmbeddingDifference(tokens=tokens, reduction="sum")
        )
        with torch.no_grad():
            summed.model.states[1] += torch.tensor([3.0, 4.0])
        assert summed.values().values.tolist() == pytest.approx([share * 25, 0.0])


def test_rmu_drives_the_hidden_norm_to_c_and_the_direction_to_u(tmp_path: Path) -> None:
    """A trained term ends at h = c u; before, it is elsewhere, and another c ends elsewhere."""
    for c in (2.0, 5.0):
        model = tiny(dtype=torch.float64)
        own = Bench(tmp_path, model, tiny_dataset(), RMU(coefficient=c, layer=1))
        before = own.values([0, 1]).diagnostics["norm"]
        assert (before - c).abs().min() > 0.3
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
        for _ in range(150):
            optimizer.zero_grad()
            own.values([0, 1]).values.mean().backward()
            optimizer.step()
        assert own.values([0, 1]).diagnostics["norm"].tolist() == pytest.approx([c, c], rel=0.03)
        batch = own.dataset.batch(torch.tensor([0, 1]))
        hidden = model.hidden(batch, 1)[batch["answer"]]
        assert torch.nn.functional.cosine_similarity(hidden, own.state["steering"][None]).min() > 0.99


def test_the_steering_vector_is_the_seeds(tmp_path: Path) -> None:
    """Drawn once from the run's own stream: never from torch's generator."""
    torch.manual_seed(1)
    first = Bench(tmp_path, tiny(), tiny_dataset(), RMU(layer=1)).state["steering"]
    torch.manual_seed(2)
    second = Bench(tmp_path, tiny(), tiny_dataset(), RMU(layer=1)).state["steering"]
    assert torch.equal(first, second) and first.std() > 0.05


def test_a_coefficient_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="coefficient"):
        RMU(coefficient=0.0)
