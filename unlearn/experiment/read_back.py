"""Holds a saved model against the one in memory: what is measured must be what is saved."""

from pathlib import Path

import torch
from torch import Tensor

from unlearn.core.errors import UnlearnError
from unlearn.core.randomness import Randomness
from unlearn.data.base import Split
from unlearn.evaluators.subjects import precision_of
from unlearn.models.base import ModelConfig, Wrapper
from unlearn.models.capabilities import Denoises, HasLatents, HasLikelihood

ITEMS = 2
"""Number of items whose outputs are compared."""
ROUNDINGS = 64
"""Outputs may differ by so many roundings of the model's precision, relative to the largest of them."""


class ReadBackFailed(UnlearnError):
    """A saved model differs from the one in memory."""


def check_read_back(model: Wrapper, config: ModelConfig, folder: Path, split: Split, device: torch.device) -> None:
    """Read a saved model and compare its tensors, its settings and a few of its outputs with those in memory.

    Args:
        model: the model in memory.
        config: of the recipe, by which the folder is read.
        folder: where the model was saved.
        split: the outputs of its first items are compared.
        device: where outputs are computed, of one model at a time.

    Raises:
        ReadBackFailed: they differ, or the folder cannot be read.
    """
    read = config.load if isinstance(model, config.wrapper) else type(model).from_pretrained
    try:
        again = model.read_again(folder, read).eval()
    except UnlearnError as error:
        raise ReadBackFailed(f"{folder} was saved and cannot be read back: {error}") from error
    found = _tensors_apart(model, again)
    if model.beside_weights() != again.beside_weights():
        found.append(f"settings are {again.beside_weights()} in place of {model.beside_weights()}")
    if not found:
        there, here = (_outputs(one, split, device) for one in (again, model))
        rounding = max(torch.finfo(precision_of(one)).eps for one in (model, again))
        found = [name for name, value in here.items() if not _same(value, there[name], rounding)]
        found = [f"{name} of the same items" for name in found]
    if found:
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise ReadBackFailed(
            f"{folder} is not the model that was unlearned; apart: {'; '.join(found[:3])}{more}. "
            f"{type(model).__name__}.save_pretrained or from_pretrained loses something. The weights are "
            "in checkpoints/."
        )


def _tensors_apart(model: Wrapper, again: Wrapper) -> list[str]:
    """Return what differs between the stored tensors of two models, one description per tensor."""
    here, there = model.state_dict(), again.state_dict()
    found = [f"{name} is missing" for name in here if name not in there]
    found += [f"{name} is new" for name in there if name not in here]
    for name in here.keys() & there.keys():
        ours, theirs = here[name], there[name]
        if not isinstance(ours, Tensor):
            continue
        if ours.shape != theirs.shape:
            found.append(f"{name} has shape {tuple(theirs.shape)} in place of {tuple(ours.shape)}")
        elif not torch.equal(ours.cpu(), theirs.to(device="cpu", dtype=ours.dtype)):
            found.append(f"{name} has other values")
    return sorted(found)


@torch.no_grad()
def _outputs(model: Wrapper, split: Split, device: torch.device) -> dict[str, Tensor]:
    """Return a few outputs by what they are: log-likelihoods, a prediction at fixed noise, images."""
    home = next((parameter.device for parameter in model.parameters()), device)
    model.to(device).eval()
    stream, ids = Randomness(0, "read back"), split.ids[:ITEMS].cpu()
    batch = {key: value.to(device) for key, value in split.dataset.batch(ids).items()}
    found: dict[str, Tensor] = {}
    if isinstance(model, HasLikelihood):
        found["log-likelihood"] = model.log_prob(batch, stream)
    if isinstance(model, Denoises):
        x = model.noise(batch["id"], stream)
        middle = torch.full((len(x),), model.timesteps // 2, device=device)
        found["prediction"] = model.predict(x, middle, model.encode(model.condition(batch)))
        found["images"] = model.images(x)
    if isinstance(model, HasLatents):
        found["images"] = model.synthesis(model.mapping(model.latent(batch["id"], stream)))
    model.to(home)
    return {name: value.double().cpu() for name, value in found.items()}


def _same(ours: Tensor, theirs: Tensor, rounding: float) -> bool:
    room = ROUNDINGS * rounding * float(ours.abs().amax()) if ours.numel() else 0.0
    return bool(((ours - theirs).abs() <= room).all())
