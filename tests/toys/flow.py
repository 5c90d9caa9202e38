"""A small real job: a two-scale Glow on the 8x8 digits, untrained or trained for a few steps."""

import signal
from pathlib import Path
from typing import Any

import torch

from unlearn.config.schema import Trainer
from unlearn.core.optim import Optim
from unlearn.core.randomness import Randomness
from unlearn.core.reference_model import ReferenceModel
from unlearn.data.base import Selection, Split
from unlearn.data.digits import Digits
from unlearn.data.splits import make_splits
from unlearn.models.base import Wrapper
from unlearn.models.flow.config import GlowConfig
from unlearn.objectives.base import Objective
from unlearn.objectives.surgery import Combination
from unlearn.training.build import build_module
from unlearn.training.fit import fit
from unlearn.training.module import UnlearningModule

GLOW = GlowConfig(scales=1, depth=2, width=8)
MODEL = "{name: glow, scales: 1, depth: 2, width: 8}"


def digits_splits(forget: Selection | None = None) -> dict[str, Split]:
    source = Digits(forget=forget or Selection(label=["3"]))
    return make_splits(source.load(), source, Randomness(0, "splits"))


def small_glow(splits: dict[str, Split], dtype: torch.dtype = torch.float64) -> Wrapper:
    model = GLOW.build(splits["retain"].dataset.info, Randomness(0, "small"))
    model.initialise(splits["retain"].batch(splits["retain"].ids[:128]), Randomness(0, "initialise"))
    with torch.no_grad():  # away from the identity that zero-initialised couplings are
        for index, parameter in enumerate(model.parameters()):
            parameter += (
                0.02 * Randomness(index, "jitter").normal(torch.zeros(1, dtype=torch.int64), tuple(parameter.shape))[0]
            )
    return model.to(dtype)


def small_module(
    forget: dict[str, Objective],
    retain: dict[str, Objective],
    combine: Combination | None = None,
    optim: Optim | None = None,
    splits: dict[str, Split] | None = None,
    **settings: Any,
) -> UnlearningModule:
    splits = splits or digits_splits()
    model, target = small_glow(splits), small_glow(splits)
    return build_module(
        model,
        splits,
        0,
        forget=forget,
        retain=retain,
        combine=combine,
        optim=optim or Optim(steps=4, batch=16, lr=1e-3),
        target=ReferenceModel(lambda: target),
        **settings,
    )


def run(module: UnlearningModule, folder: Path, **settings: Any) -> dict[str, torch.Tensor]:
    trainer = Trainer(accelerator="cpu", precision="64-true", tensorboard=False, **settings)
    fit(module, trainer, folder, "test")
    return {name: value.clone() for name, value in module.model.state_dict().items()}


def stop_at(module: UnlearningModule, step: int) -> None:
    """Ask for the end of the run by a signal, as a user does, in the step before ``step``."""
    take = module.training_step

    def last(*arguments: Any) -> None:
        take(*arguments)
        if module.step_count == step:
            signal.raise_signal(signal.SIGTERM)

    module.training_step = last  # type: ignore[method-assign]
