"""Trains single entries of parameters: computes the masks of a scope that needs the forget loss's gradient."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning import Callback, Trainer
from torch import Tensor
from typing_extensions import override

from unlearn.core.boundary import named, promised
from unlearn.core.errors import RecipeError
from unlearn.models.scope import HeldEntries, Scope, scope_table
from unlearn.objectives.common.training_loss import TrainingLoss
from unlearn.training.module import UnlearningModule

_MOST_BATCHES = 50


class EntryMasks(Callback):
    """Computes the masks at the target's weights, and restores the masked-out entries after every step.

    Args:
        scope: makes the masks from the gradient (``needs_gradient``).
        say: prints the table of what is trained.

    Attributes:
        masks: by parameter, True where an entry is trained. They are in the checkpoint.
    """

    def __init__(self, scope: Scope, say: Callable[[str], None]) -> None:
        self.scope, self.say = scope, say
        self.masks: dict[str, Tensor] = {}

    @override
    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        parameters = module.primary.parameters
        if self.masks:
            kept = self._checked(self.masks, parameters)
            self.masks = {name: mask.to(parameters[name].device) for name, mask in kept.items()}
        else:
            steps = trainer.train_dataloader.dataset  # type: ignore[union-attr]
            passes = max(1, len(steps.splits["forget"]) // steps.sizes["forget"])
            batches = [steps[index] for index in range(min(passes, _MOST_BATCHES))]
            terms = {"training_loss": TrainingLoss()} if self.scope.by_training_loss else None
            gradients = module.forget_gradient(batches, terms)
            self.masks = self._checked(self.scope.masks(gradients), gradients)
            self.say(scope_lines(module, self.masks))
        held = HeldEntries(parameters, self.masks)
        # right after the optimizer's step, before the weights enter the EMA
        optimizer: torch.optim.Optimizer = module.plain_optimizers()[module.phases.index(module.primary)]
        optimizer.register_step_post_hook(lambda *_: held.restore())

    def _checked(self, masks: dict[str, Tensor], parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return masks. Raises RecipeError where one is no mask of a trained parameter."""
        who = f"{named('scope', self.scope)}: masks"
        for name, mask in promised(masks, dict, who).items():
            fits = isinstance(mask, Tensor) and mask.dtype == torch.bool and name in parameters
            if not fits or mask.shape != parameters[name].shape:
                raise RecipeError(f"{who}[{name!r}] must be bools of the shape of a trained parameter of that name.")
        return masks

    @override
    def state_dict(self) -> dict[str, Any]:
        return self.masks

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.masks = state_dict


def entry_masks(scope: Scope, say: Callable[[str], None]) -> list[EntryMasks]:
    """Return the callback that a scope needs, or none."""
    return [EntryMasks(scope, say)] if scope.needs_gradient else []


def scope_lines(module: UnlearningModule, masks: dict[str, Tensor] | None = None) -> str:
    """Return the table of what is trained, as text."""
    rows = scope_table(module.model, module.primary.parameters, masks or {})
    free, total = sum(row[1] for row in rows), sum(row[2] for row in rows)
    lines = [f"  {place:<40} {trained:>12,} of {all_:>12,}" for place, trained, all_ in rows if trained]
    return "\n".join((f"trained: {free:,} of {total:,} parameters", *lines))
