"""Flows and generators are saved tensor by tensor in the types that they came in; what is measured is what is saved."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.models.gan.test_gan import small
from tests.toys.flow import digits_splits, small_glow
from unlearn.models.base import Wrapper

KINDS = (torch.bfloat16, torch.float32, torch.float16)


@pytest.mark.parametrize("family", ["flow", "stylegan2", "dcgan"])
def test_each_weight_is_saved_in_the_type_that_it_came_in(family: str, tmp_path: Path) -> None:
    model: Wrapper = small_glow(digits_splits()).float() if family == "flow" else small(family)
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    given = {
        name: value.to(KINDS[number % 3]) if value.is_floating_point() else value
        for number, (name, value) in enumerate(load_file(path).items())
    }
    save_file(given, path)
    again = type(model).from_pretrained(tmp_path)
    with torch.no_grad():
        for parameter in again.parameters():
            parameter *= 1.0 + 2**-12
    again.round_as_saved()
    again.save_pretrained(tmp_path)
    found = load_file(path)
    assert {name: value.dtype for name, value in found.items()} == {name: value.dtype for name, value in given.items()}
    assert all(torch.equal(value, found[name].to(value.dtype)) for name, value in again.stored.state_dict().items())
    again.save_as_in_memory()
    again.save_pretrained(tmp_path)
    assert {value.dtype for value in load_file(path).values() if value.is_floating_point()} == {torch.float32}
