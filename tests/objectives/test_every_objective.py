"""Truths for every registered objective on a small model of its family, with each scope and each combination."""

import copy
import tempfile
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.toys.diffusion import small_model, small_splits
from tests.toys.flow import digits_splits, small_glow
from tests.toys.gan import digit_splits, small_gan, write_words
from tests.toys.language import tiny, tiny_splits
from unlearn.config.compatibility import capabilities_of, has
from unlearn.config.registry import COMPONENTS, names, resolve
from unlearn.core.errors import RecipeError
from unlearn.core.optim import Optim
from unlearn.core.reference_model import ReferenceModel
from unlearn.data.base import Split
from unlearn.models.gan.inversion import Inversion
from unlearn.models.scope import HeldEntries, Scope
from unlearn.objectives.base import Objective
from unlearn.objectives.common.ewc import EWC
from unlearn.objectives.common.training_loss import TrainingLoss
from unlearn.objectives.common.weight_anchor import WeightAnchor
from unlearn.objectives.diffusion.noisy_states import AnchorStates, StateSource
from unlearn.objectives.surgery import Combination, WeightedSum
from unlearn.training.build import build_module
from unlearn.training.dataloader import StepLoader
from unlearn.training.losses import StepLosses
from unlearn.training.module import UnlearningModule

SETTINGS: dict[str, dict[str, Any]] = {
    "debias": {"shares": {"3": 0.3}, "samples": 64},
    "esd": {"states": StateSource(source="trajectory", steps=2)},
    "kpop": {"states": StateSource(source="trajectory", steps=2), "tokens": 2},
    "sdd": {"states": StateSource(source="average", steps=2)},
    "concept_ablation": {"states": AnchorStates(steps=2)},
    "ewc": {"items": 2},
    "guide": {"pool": 2, "inversion": Inversion(steps=2)},
    "sugar": {"pool": 2, "inversion": Inversion(steps=2), "surrogate_steps": 2},
    "global_preservation": {"pool": 4},
    "adapt_then_unlearn": {"adapt_steps": 1, "adapt_items": 2},
    "latent_projection": {"samples": 60, "classifier": "digitnet8", "label": ["7"]},
    "attribute": {"samples": 60, "classifier": "digitnet8", "label": ["7"]},
    "text_to_unlearn": {"words": "bright", "mapper_steps": 2},
}
"""What an objective cannot do without, or what makes it quick."""

ABOVE = ["model.model.norm.weight", "model.lm_head.weight"]
UNREACHED = {"rmu": ABOVE, "embedding_difference": ABOVE}
"""Hidden states after the last layer do not depend on the norm and the head behind it."""

COMBINATIONS, SCOPES = names("combination"), names("scope")
REFUSED = {("gradient_ascent", "gan")}
"""A GAN's training loss is known only to its adversary."""


@dataclass(frozen=True)
class Family:
    """A small model of a family, its data, and the items per step from each split."""

    model: Callable[[], nn.Module]
    splits: Callable[[], dict[str, Split]]
    batch: int = 3


def few_digits() -> dict[str, Split]:
    return {name: Split(name, split.dataset, split.ids[:8]) for name, split in digit_splits().items()}


def questions() -> dict[str, Split]:
    """Questions, as a passage has no refusal, and objectives that need one refuse it."""
    data = tiny_splits()["forget"].dataset
    return {"forget": Split("forget", data, torch.arange(4)), "retain": Split("retain", data, torch.arange(4, 10))}


FAMILIES = {
    "flow": Family(lambda: small_glow(splits_of("flow")), digits_splits, batch=16),
    "language": Family(lambda: tiny(dtype=torch.float64), questions, batch=4),
    "diffusion": Family(small_model, lambda: dict(small_splits("text"))),
    "gan": Family(small_gan, few_digits),
}


@cache
def splits_of(family: str) -> dict[str, Split]:
    return FAMILIES[family].splits()


@cache
def untouched(family: str) -> nn.Module:
    return FAMILIES[family].model()


def cases() -> list[tuple[str, str]]:
    """Return (objective, family): each with the family of its package whose model has what it asks for.

    Those of ``common`` run on every such family; a second name of the same class is left out.
    """
    first = {path: name for name, path in reversed(COMPONENTS["objective"].items())}
    home = {name: path.split(".")[2] for path, name in first.items()}

    def fits(name: str, family: str) -> bool:
        asked = capabilities_of(resolve("objective", name))
        return home[name] in (family, "common") and all(has(type(untouched(family)), each) for each in asked)

    pairs = [(name, family) for name in sorted(home) for family in FAMILIES if fits(name, family)]
    return [pair for pair in pairs if pair not in REFUSED]


def objective(name: str, **settings: Any) -> Objective:
    more = {"path": str(words())} if name == "text_to_unlearn" else {}
    found: Objective = resolve("objective", name)(**SETTINGS.get(name, {}), **more, **settings)
    return found


@cache
def words() -> Path:
    """Return an untrained scorer of images against words."""
    path = Path(tempfile.mkdtemp()) / "words.pt"
    write_words(path)
    return path


def unreached(name: str, family: str, moving: Collection[str]) -> list[str]:
    """Return the parameters that an objective alone leaves: identities are w, behind the mapping network."""
    if family == "gan" and name in ("guide", "sugar", "text_to_unlearn"):
        return [key for key in moving if ".mapping." in key]
    return UNREACHED.get(name, [])


def prepared(family: str, groups: dict[str, dict[str, Objective]], folder: Path, scope: Scope) -> UnlearningModule:
    """Return the module as a run has it once its terms are prepared, then moved: at the target distances are flat."""
    model, target = copy.deepcopy(untouched(family)), copy.deepcopy(untouched(family))
    optim = Optim(steps=1, batch=FAMILIES[family].batch, ema=0.9)
    module = build_module(
        model, splits_of(family), 0, **groups, scope=scope, optim=optim, target=ReferenceModel(lambda: target)
    )
    module.cache_reference_in(folder)
    module.on_fit_start()
    with torch.no_grad():
        for index, parameter in enumerate(module.primary.parameters.values()):
            generator = torch.Generator().manual_seed(index)
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return module


def gradient_of(module: UnlearningModule, combine: Combination) -> dict[str, Tensor]:
    """Return the gradient of one step."""
    module.primary.combine = combine
    sizes = dict.fromkeys(module.primary.groups, module.primary.optim.batch)
    loader = StepLoader(module.common.splits, sizes, module.common.randomness.child("order"))
    module._run_before_step()
    gradients = StepLosses(module.primary, module.model, loader[0], module._context).gradient({}, log=True)
    return dict(zip(module.primary.parameters, [g.clone() for g in gradients], strict=True))


def alone(name: str, family: str, folder: Path, **settings: Any) -> UnlearningModule:
    return prepared(family, {"forget": {name: objective(name, **settings)}}, folder, resolve("scope", "all")())


def test_every_objective_is_found() -> None:
    assert {name for name, _ in cases()} == set(names("objective")) - {"nll"}  # another name of training_loss
    assert COMPONENTS["objective"]["nll"] == COMPONENTS["objective"]["training_loss"]


@pytest.mark.parametrize(("name", "family"), cases())
def test_gradients_reach_every_parameter_and_scale_with_the_weight(name: str, family: str, tmp_path: Path) -> None:
    once, often, never = (
        gradient_of(alone(name, family, tmp_path / str(weight), weight=weight), WeightedSum())
        for weight in (1.0, 4.0, 0.0)  # a power of two, which single precision inside of a model scales exactly
    )
    assert all(gradient.isfinite().all() for gradient in once.values())
    assert [key for key, gradient in once.items() if not gradient.any()] == unreached(name, family, once)
    assert all(torch.allclose(4 * once[key], often[key], atol=1e-9) for key in once)
    assert not any(gradient.any() for gradient in never.values())
    with pytest.raises(ValueError, match="weight"):
        objective(name, weight=-1.0)


def covers() -> list[tuple[str, list[str]]]:
    """Return (scope, combinations): each scope once, and the combinations dealt out among them, so each once too."""
    longest = max(len(SCOPES), len(COMBINATIONS))
    dealt: dict[str, list[str]] = {scope: [] for scope in SCOPES}
    for index in range(longest):
        dealt[SCOPES[index % len(SCOPES)]].append(COMBINATIONS[index % len(COMBINATIONS)])
    return list(dealt.items())


@pytest.mark.parametrize(("name", "family"), cases())
def test_every_objective_with_each_scope_and_with_each_combination(name: str, family: str, tmp_path: Path) -> None:
    """Finite gradients on all that the scope trains, none of them zero; one step changes that and nothing else."""
    for scope, combinations in covers():
        chosen: Scope = resolve("scope", scope)()
        groups = {"forget": {name: objective(name)}, "retain": {"training_loss": TrainingLoss()}}
        if chosen.is_adapter and isinstance(groups["forget"][name], (WeightAnchor, EWC)):
            with pytest.raises(RecipeError, match="the target has no parameter"):  # an adapter's matrices are new
                gradient_of(prepared(family, groups, tmp_path / scope, chosen), WeightedSum())
            continue
        module = prepared(family, groups, tmp_path / scope, chosen)
        start = {key: value.detach().clone() for key, value in module.model.named_parameters()}
        for combine in combinations:
            gradients = gradient_of(module, resolve("combination", combine)())
            assert all(gradient.isfinite().all() for gradient in gradients.values()), (scope, combine)
            zero = {key for key, gradient in gradients.items() if not gradient.any()}
            assert zero <= set(unreached(name, family, gradients)), (scope, combine)
            _check_step(module, chosen, gradients, start)


def _check_step(module: UnlearningModule, scope: Scope, gradients: dict[str, Tensor], start: dict[str, Tensor]) -> None:
    masks = scope.masks(gradients)
    held = HeldEntries(module.primary.parameters, masks)
    with torch.no_grad():
        for key, parameter in module.primary.parameters.items():
            parameter -= 1e-3 * gradients[key]
        held.restore()
        moved = {key for key, value in module.model.named_parameters() if not torch.equal(value, start[key])}
        assert moved and moved <= set(module.primary.parameters)
        for key, mask in masks.items():
            assert torch.equal(module.primary.parameters[key][~mask], start[key][~mask])
        for key, value in module.model.named_parameters():
            value.copy_(start[key])
