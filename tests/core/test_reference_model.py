"""The reference under an adapter: no path through it reaches the trained weights."""

import copy
from collections import OrderedDict, UserDict, defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from tests.toys.diffusion import small_model, small_splits
from tests.toys.flow import run
from tests.toys.language import encoder, tiny, tiny_splits
from unlearn.core.optim import Optim
from unlearn.core.reference_model import ReferenceModel
from unlearn.models.language.wrapper import Language
from unlearn.models.lora import Lora
from unlearn.objectives.common.training_loss import TrainingLoss
from unlearn.training.build import build_module

FAMILIES: dict[str, Any] = {
    "language": (lambda: Winding(tiny(dtype=torch.float64).model, encoder()), tiny_splits),
    "diffusion": (lambda: small_model("text"), lambda: small_splits("text")),
}


class Pair(NamedTuple):
    layer: nn.Module
    name: str


class Two(tuple[nn.Module, str]):
    """A tuple of a user."""


class Ordered(OrderedDict[str, nn.Module]):
    """A dictionary of a user."""


class Winding(Language):
    """Hands out its first layer's query in the ways that Python has."""

    def query(self, states: Tensor) -> Tensor:
        """Return the queries of the first layer."""
        found: Tensor = self.layers[0].self_attn.q_proj(states)  # type: ignore[operator, union-attr]
        return found

    @property
    def as_function(self) -> Any:
        """A closure."""
        return lambda states: self.query(states)

    def bound(self) -> Any:
        """Return methods and what is made of them."""
        layer = self.layers[0]
        return [self.query, partial(self.query), lambda states: layer.self_attn.q_proj(states)]  # type: ignore[operator, union-attr]

    def containers(self) -> dict[str, Any]:
        """Return the layer in each kind of container."""
        layer = self.layers[0]
        named = {"layer": layer}
        return {
            "items": [Pair(layer, "first"), Two((layer, "first")), deque([layer]), (layer,)],
            "mappings": [defaultdict(list, named), Ordered(named), UserDict(named), MappingProxyType(named)],
            "objects": [
                SimpleNamespace(layer=layer),
                SimpleNamespace(layer=layer, inner=[SimpleNamespace(layer=layer)]),
            ],
            "sets": [{layer}, frozenset({layer})],
            "keys": {layer: "first"},
        }

    @contextmanager
    def opened(self) -> Iterator[Any]:
        """Yield the layer."""
        yield self.layers[0]

    def walk(self) -> Iterator[Any]:
        """Yield a method for each layer, and return the last layer."""
        for _ in self.layers:
            yield self.query
        return self.layers[0]

    async def later(self) -> nn.Module:
        """Return the layer, some time."""
        return self.layers[0]


def winding(model: Any, states: Tensor) -> list[Tensor]:
    """Reach the query of the first layer through what the model's methods and properties return."""
    kept = model.containers()
    layers = [item[0] for item in kept["items"]] + [mapping["layer"] for mapping in kept["mappings"]]
    layers += [found.layer for found in kept["objects"]] + [kept["objects"][1].inner[0].layer]
    layers += [next(iter(found)) for found in (*kept["sets"], kept["keys"])]
    layers += [next(iter(kept["mappings"][1].values())), kept["items"][0].layer, dict(kept["mappings"][2])["layer"]]
    with model.opened() as opened:
        layers.append(opened)
        layers.append(model.route.layers[0])
    queries = [*(layer.self_attn.q_proj for layer in layers), *model.bound(), model.as_function, *model.walk()]
    walk = model.walk()
    with pytest.raises(StopIteration) as end:
        while True:
            next(walk)
    queries.append(end.value.value.self_attn.q_proj)
    return [query(states) for query in queries]


def outputs(family: str, model: Any) -> list[Tensor]:
    """Reach into the submodules in every way that Python offers: a call, an attribute, an item, an iteration."""
    if family == "language":
        tokens = torch.arange(6)[None]
        states = model.model.model.embed_tokens(tokens)
        first = next(layer for layer in model.layers)
        names = dict(model.named_modules())
        query = next(name for name in names if name.endswith("q_proj"))
        return [
            model.model(input_ids=tokens).logits,
            model.layers[0].self_attn.q_proj(states),
            first.self_attn.q_proj(states),
            names[query](states),
            model.get_submodule(query)(states),
            next(iter(model.children()))(input_ids=tokens).logits,
            dict(model.layers[0]._modules.items())["self_attn"].q_proj(states),
            next(iter(model.layers[0]._modules.values())).q_proj(states),
            next(pair for pair in zip(model.layers, names, strict=False))[0].self_attn.q_proj(states),
            *winding(model, states),
        ]
    noise = torch.linspace(-1, 1, 2 * 3 * 8 * 8, dtype=torch.float64).view(2, 3, 8, 8)
    condition = model.encode(model.null(2)).states
    return [model.denoiser(noise, torch.tensor([5, 9]), encoder_hidden_states=condition).sample]


@pytest.mark.parametrize("family", FAMILIES)
def test_submodules_of_the_reference_run_with_the_adapter_off(family: str, tmp_path: Path) -> None:
    model_of, splits_of = FAMILIES[family]
    model, target = model_of(), model_of()
    module = build_module(
        model,
        splits_of(),
        0,
        forget={"training_loss": TrainingLoss()},
        scope=Lora(rank=2),
        optim=Optim(steps=2, batch=4, lr=0.1),
        target=ReferenceModel(lambda: target),
    )
    run(module, tmp_path)
    with torch.no_grad():
        wanted = outputs(family, target)
        seen = outputs(family, module._context("forget/training_loss").reference())
        trained = outputs(family, module.model)
    for found, expected, other in zip(seen, wanted, trained, strict=True):
        torch.testing.assert_close(found, expected)
        assert float((other - expected).abs().max()) > 1e-4  # the control: the trained model differs


def test_the_reference_under_an_adapter_is_not_copied() -> None:
    module = build_module(tiny(), tiny_splits(), 0, retain={"loss": TrainingLoss()}, scope=Lora(rank=2), optim=Optim())
    with pytest.raises(TypeError, match="scope=all"):
        copy.deepcopy(module._context("retain/loss").reference())


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("apply", (print,)),
        ("to", ("cpu",)),
        *((name, ()) for name in ("float", "double", "half", "bfloat16", "cpu", "cuda", "type", "train", "zero_grad")),
        *((name, ()) for name in ("requires_grad_", "share_memory", "compile", "to_empty", "set_submodule")),
        ("load_state_dict", ({},)),
        ("add_module", ("more", nn.Identity())),
        ("register_forward_hook", (print,)),
    ],
)
def test_what_would_change_the_reference_under_an_adapter_is_refused(name: str, given: tuple[Any, ...]) -> None:
    module = build_module(tiny(), tiny_splits(), 0, retain={"loss": TrainingLoss()}, scope=Lora(rank=2), optim=Optim())
    reference = module._context("retain/loss").reference()
    assert callable(getattr(module.model, name))
    with pytest.raises(AttributeError, match=f"which {name} would change. Type scope=all"):
        getattr(reference, name)(*given)
    with pytest.raises(AttributeError, match="which append would change"):
        reference.model.model.layers.append(nn.Identity())
    with pytest.raises(AttributeError, match="which setting encoder would change"):
        reference.encoder = None


def test_what_runs_later_than_the_call_is_refused() -> None:
    model = Winding(tiny().model, encoder())
    module = build_module(model, tiny_splits(), 0, retain={"loss": TrainingLoss()}, scope=Lora(rank=2), optim=Optim())
    with pytest.warns(RuntimeWarning, match="never awaited"), pytest.raises(TypeError, match="no coroutine"):
        module._context("retain/loss").reference().later()
