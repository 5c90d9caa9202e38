"""Low-rank adapters: the weights are frozen, and only small added matrices are trained."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from peft import LoraConfig, LoraModel, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from typing_extensions import override

from unlearn.core.errors import RecipeError, some
from unlearn.core.randomness import Randomness
from unlearn.core.validation import above, at_least
from unlearn.models.experts import expert_weights
from unlearn.models.scope import ByKind, Pattern, Scope, trainable

log = logging.getLogger(__name__)

ADAPTED = (nn.Linear, nn.Conv2d, Conv1D)
"""Layers that peft adds an update to, from their inputs to their outputs."""
WEIGHTS = "adapter_model.safetensors"
"""Where peft looks for an adapter's matrices."""


@dataclass(frozen=True)
class Adapter:
    """Matrices of a low-rank update, and their configuration.

    Attributes:
        weights: ``<layer>.lora_A.weight`` and ``<layer>.lora_B.weight`` of each layer.
        config: peft's, which names the layers.
    """

    weights: Mapping[str, Tensor]
    config: LoraConfig

    def inside(self, place: str) -> Adapter | None:
        """Return the part of the module at a place, by the names inside of it; None where there is none."""
        start = f"{place}."
        weights = {name.removeprefix(start): w for name, w in self.weights.items() if name.startswith(start)}
        if not weights:
            return None
        layers = [name.removeprefix(start) for name in self.config.target_modules or () if name.startswith(start)]
        return Adapter(weights, replace(self.config, target_modules=sorted(layers)))

    def write(self, folder: Path) -> None:
        """Write ``adapter_model.safetensors`` and ``adapter_config.json`` of peft into an existing folder."""
        save_file({f"base_model.model.{name}": weight for name, weight in self.weights.items()}, folder / WEIGHTS)
        self.config.save_pretrained(str(folder))


@dataclass(frozen=True)
class Lora(Scope):
    """A low-rank update of linear and convolution layers, W + (alpha / rank) B A; B starts at zero.

    peft adds it to the layers that it knows. A wrapper's own layers and transposed convolutions (its attribute
    ``low_rank_layers``), and linear layers that do more than multiply (masked ones, routers), get it as a
    parametrisation of ``weight``, read as a matrix (first dimension, all others). Weights of experts that are one
    tensor, and layers that peft refuses (``out_proj`` of Mamba), stay as they are, and are named in the log.

    The model without its adapter is the frozen target, so no second copy of it is needed. After the run the update is
    merged into the weights; ``keep_adapter`` also stores it separately in peft's format, if peft knows all its layers.

    Args:
        rank: of the update, >= 1.
        alpha: its scale; null takes twice the rank.
        include: regular expressions searched in the layer's name; any match adapts it.
        exclude: expressions; any match leaves it alone. By default the head, which has one row per token, and the
            autoencoder of a model in latent space, which no loss reaches.
        kinds: adapt only layers with parameters of these kinds (see ``scope=kind``), e.g. ``[cross_attention]``.
        keep_adapter: write ``adapter/`` next to ``model/``: in peft's layout, or for diffusion models that take prompts
            in that of diffusers' ``load_lora_weights``. Refused where peft does not know a layer (as in all GANs):
            there ``python -m unlearn.delta`` keeps what a run changed.

    Reference:
        Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2022, eq. 3. arXiv:2106.09685
    """

    rank: int = 16
    alpha: int | None = None
    include: list[str] = field(default_factory=lambda: [".*"])
    exclude: list[str] = field(default_factory=lambda: ["lm_head", "embed_out", r"^vae\."])
    kinds: list[str] | None = None
    keep_adapter: bool = False

    is_adapter: ClassVar[bool] = True

    def __post_init__(self) -> None:
        at_least(self, rank=1)
        above(self, alpha=0)
        Pattern(self.include, self.exclude)  # refuses what is no regular expression

    def attach(self, model: nn.Module, randomness: Randomness) -> None:
        """Add the matrices to the chosen layers; the model's outputs do not change, as B is zero.

        An adapter that the model came with is part of the target: it is merged first, and so stays on when ours is off.
        """
        merge_adapters(model)
        # a layer is adapted only where a loss can reach its own parameters
        reached = {name.rpartition(".")[0] for name in trainable(model)}
        own: tuple[type[nn.Module], ...] = getattr(model, "low_rank_layers", ())
        layers: dict[str, Any] = {
            name: layer for name, layer in model.named_modules() if isinstance(layer, ADAPTED + own) and name in reached
        }
        chosen = Pattern(self.include, self.exclude).matching(layers)
        if self.kinds is not None:
            places = {name.rpartition(".")[0] for name in ByKind(self.kinds).select(model)}
            chosen = [name for name in chosen if name in places]
        refused = _refused_by_peft(model, chosen)
        chosen = [name for name in chosen if name not in refused]
        if not chosen:
            kinds = "" if self.kinds is None else f" kinds={self.kinds}"
            but = " but those that peft refuses to adapt" if refused else ""
            examples = ", ".join([*layers][:: max(1, len(layers) // 8)])
            raise RecipeError(
                f"scope=lora: include={self.include} exclude={self.exclude}{kinds} matches no linear or convolution "
                f"layer{but}. Their names look like: {examples or 'there is none'}."
            )
        plain = [kind.forward for kind in ADAPTED]
        known = [name for name in chosen if type(layers[name]).forward in plain]
        self._say_what_is_left_out(model, refused)
        others = [name for name in chosen if name not in known]
        if self.keep_adapter and others:
            kind = type(layers[others[0]])
            more = f" and {len(others) - 1} more layers" if others[1:] else ""
            raise RecipeError(
                f"scope=lora keep_adapter=true: peft reads no update of {others[0]} "
                f"({kind.__module__}.{kind.__qualname__}{more}). Drop keep_adapter; "
                "python -m unlearn.delta save RUN FILE keeps what the run changed as one file."
            )
        config = self._config(known)
        with randomness.child("adapter").seeding():  # peft draws A from the global generator
            if known:
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "fan_in_fan_out")  # peft finds out by itself
                    inject_adapter_in_model(config, model)
            for name in others:
                update = LowRank(layers[name].weight, self.rank, config.lora_alpha / self.rank)
                parametrize.register_parametrization(layers[name], "weight", update)

    def _say_what_is_left_out(self, model: nn.Module, refused: list[str]) -> None:
        """Name the weights that the settings choose and that stay as they are: those of experts are no layers."""
        experts = Pattern(self.include, self.exclude).matching(name for name, *_ in expert_weights(model))
        if self.kinds is not None:
            experts = [name for name in experts if name in ByKind(self.kinds).select(model)]
        for names, why in (
            (experts, "weights of experts, which are no layers"),
            (refused, "peft refuses to adapt them"),
        ):
            if names:
                log.warning(
                    f"scope=lora leaves {some(names)} as they are ({why}). scope=all or scope=pattern trains them."
                )

    @override
    def select(self, model: nn.Module) -> list[str]:
        return [name for name, _ in model.named_parameters() if ".lora_" in name]

    @contextmanager
    def off(self, model: nn.Module) -> Iterator[None]:
        """Switch the adapter off while the body runs, which restores the target."""
        layers = [layer for layer in model.modules() if isinstance(layer, (BaseTunerLayer, LowRank))]
        for layer in layers:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in layers:
                layer.enable_adapters(True)

    def detach(self, model: Any, folder: Path) -> None:
        """Merge the update into the weights and remove the matrices; with ``keep_adapter`` write them first."""
        adapted = {name: layer for name, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)}
        own = [
            layer
            for layer in model.modules()
            if parametrize.is_parametrized(layer, "weight") and isinstance(layer.parametrizations.weight[0], LowRank)
        ]
        if self.keep_adapter:
            weights = {
                name.replace(".default", ""): parameter.detach().cpu().clone()
                for name, parameter in model.named_parameters()
                if ".lora_" in name
            }
            (folder / "adapter").mkdir(exist_ok=True)
            model.write_adapter(Adapter(weights, self._config([*adapted])), folder / "adapter")
        for layer in own:
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)  # it becomes W + scale B A
        merge_adapters(model)

    def _config(self, layers: list[str]) -> LoraConfig:
        return LoraConfig(r=self.rank, lora_alpha=self.alpha or 2 * self.rank, target_modules=layers)


def _refused_by_peft(model: nn.Module, layers: list[str]) -> list[str]:
    """Return those layers that peft refuses in their architecture, as the one whose kernel takes the bare weight."""
    rule: Any = LoraModel.__new__(LoraModel)  # the rule reads nothing of the tuner
    found = []
    for place, part in model.named_modules():
        if isinstance(part, PreTrainedModel):
            for name in layers:
                if name.startswith(f"{place}."):
                    try:
                        rule._check_target_module_compatiblity(LoraConfig(), part, name.rpartition(".")[2])
                    except ValueError:
                        found.append(name)
    return list(dict.fromkeys(found))


def has_adapter(model: nn.Module) -> bool:
    """Return whether a model in memory carries an adapter of peft."""
    return bool(_adapters(model))


def _adapters(model: nn.Module) -> dict[str, Any]:
    """Return the layers of peft in a model by their names, without those inside of another one."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules():  # a layer comes before what is in it
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            if not any(name.startswith(f"{outer}.") for outer in found):
                found[name] = module
    return found


def merge_adapters(model: nn.Module) -> None:
    """Merge, in place, all adapters of peft that are active in a model into the layers that they adapt.

    A layer that shares its weights with another one, as a tied head does, has its own from then on where they differ.
    """
    if not has_adapter(model):
        return
    _separate(model)
    for name, adapter in _adapters(model).items():
        parent, _, last = name.rpartition(".")
        if hasattr(adapter, "unload_and_optionally_merge_module"):
            whole = adapter.unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=None)
        else:
            adapter.merge()  # into the base layer, which then takes the adapter's place
            whole = adapter.get_base_layer()
        setattr(model.get_submodule(parent), last, whole)
    for module in model.modules():
        if vars(module).get("_hf_peft_config_loaded"):
            vars(module)["_hf_peft_config_loaded"] = False  # transformers would save the adapter alone
            vars(module).pop("peft_config", None)
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            _tie_again(module)


def _separate(model: nn.Module) -> None:
    """Give layers that share weights with an adapted one their own copies: an update of one is none of the other."""
    adapted = {layer for adapter in _adapters(model).values() for layer in adapter.modules()}
    holders: dict[nn.Parameter, list[tuple[nn.Module, str]]] = {}
    for layer in model.modules():
        for name, weight in layer.named_parameters(recurse=False):
            holders.setdefault(weight, []).append((layer, name))
    for weight, places in holders.items():
        if any(layer in adapted for layer, _ in places):
            for layer, name in places[1:]:
                setattr(layer, name, nn.Parameter(weight.detach().clone(), weight.requires_grad))


def _tie_again(model: PreTrainedModel) -> None:
    """Let a head share its weights with the embedding again where they are equal; say so where they are not."""
    config: Any = model.config.get_text_config()
    head: Any = model.get_output_embeddings()
    if head is None or not getattr(config, "tie_word_embeddings", False):
        return
    embedding: Any = model.get_input_embeddings()
    if torch.equal(embedding.weight, head.weight):
        model.tie_weights()
    else:
        model.config.tie_word_embeddings = config.tie_word_embeddings = False


class LowRank(nn.Module):
    """W -> W + scale B A, for a weight of any shape read as a matrix (first dimension, all others).

    Args:
        weight: W.
        rank: of B A.
        scale: see above.
    """

    def __init__(self, weight: Tensor, rank: int, scale: float) -> None:
        super().__init__()
        rows, columns = weight.shape[0], weight[0].numel()
        self.lora_A = nn.Parameter(weight.new_empty(rank, columns))
        self.lora_B = nn.Parameter(weight.new_zeros(rows, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))  # as peft does; B = 0 makes the first update zero
        self.scale, self.on = scale, True

    def forward(self, weight: Tensor) -> Tensor:
        """Return the updated weight, or W itself where the adapter is off."""
        return weight + self.scale * (self.lora_B @ self.lora_A).view_as(weight) if self.on else weight

    def enable_adapters(self, enabled: bool) -> None:
        """Switch the update on or off."""
        self.on = enabled
