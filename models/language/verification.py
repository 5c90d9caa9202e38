"""How a causal model of transformers is run on text: found by trying it when it is read, not by its names."""

import inspect
import logging
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.generic import ModelOutput

from unlearn.core.boundary import described
from unlearn.core.errors import RecipeError

LONG, SHORT = 12, 5
"""Tokens of the two sequences that are tried; the second is the beginning of the first, and padded."""
FIXED = ("max_target_positions", "max_seq_len")
"""Other names than ``max_position_embeddings`` for the number of positions, beyond which these models cannot count."""
LARGE = 50.0
"""Size of the logits on which the form of the head is tried: a soft cap shows at large ones only."""

logger = logging.getLogger("unlearn")


@dataclass(frozen=True)
class HeadForm:
    """The form of a model's head: its output layer, then a factor, then a soft cap c tanh(logits / c).

    Args:
        scale: the factor.
        cap: c, None for no cap.
    """

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """Return the model's logits of those of its output layer."""
        logits = logits * self.scale if self.scale != 1 else logits
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


class Head(nn.Module):
    """The output layer of a causal model and what follows it.

    Args:
        linear: the output layer.
        form: of what follows.
    """

    def __init__(self, linear: nn.Module, form: HeadForm) -> None:
        super().__init__()
        self.linear, self.form = linear, form

    def forward(self, states: Tensor) -> Tensor:
        """Return logits (N, V) of last hidden states (N, D), which some models keep in a wider type (Mamba)."""
        weight = getattr(self.linear, "weight", None)
        return self.form(self.linear(states if weight is None else states.to(weight.dtype)))


@dataclass(frozen=True)
class Route:
    """The way from tokens to logits.

    Args:
        stack: dotted name of the part of the model that gives the last hidden states; empty where only the model's own
            forward gives the right logits.
        head: what follows.
        layers: the layers that text runs through, in their order; not those of an image encoder beside it.
        beside: dotted names of the parts that text does not enter, outside of these layers.
    """

    stack: str = "base_model"
    head: HeadForm = HeadForm()
    layers: list[nn.Module] = field(default_factory=list)
    beside: tuple[str, ...] = ()


def find_route(model: PreTrainedModel, tokens: list[int]) -> Route:
    """Return how a model is run on text, by running two short sequences, one of them padded.

    The model's own forward, with the mask, gives the log-probabilities that are right. They are compared with those of
    the last hidden states, without a mask, and the head, which are computed at answer tokens only. Where those differ
    by more than the precision's rounding, whatever the reason, the model's own forward is used.

    Args:
        model: with its weights; one on the meta device is not tried.
        tokens: at least one token of an ordinary text.

    Raises:
        RecipeError: the model's own forward cannot be run on text, or is not causal.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        return Route(layers=_outermost(model.modules()))
    trial = _Trial(model, tokens)
    trial.refuse_what_is_not_causal()
    reasons = []
    for name in trial.stacks:
        try:
            return Route(name, trial.head(name), trial.layers, trial.beside)
        except Exception as error:  # whatever a model raises where it is run in another way than its own
            reasons.append(f"{name}: {described(error)}")
    why = "; ".join(reasons) or "no part of it gives last hidden states"
    logger.warning(f"{type(model).__name__} is run by its own forward, which needs more memory ({why})")
    return Route("", HeadForm(), trial.layers, trial.beside)


def run(module: Callable[..., Any], tokens: Tensor, **more: Any) -> Any:
    """Call a module of transformers on tokens (B, T), without a cache; of ``more`` it gets what it takes."""
    taken = inspect.signature(module.forward if isinstance(module, nn.Module) else module).parameters
    anything = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in taken.values())
    given = {"use_cache": False, **more}
    return module(input_ids=tokens, **{name: value for name, value in given.items() if anything or name in taken})


def trial_batch(model: PreTrainedModel, tokens: list[int]) -> tuple[Tensor, Tensor]:
    """Return tokens and mask, (2, LONG), of a sequence and its beginning, which is padded as data are."""
    home, tokens = model.device, (tokens * LONG)[:LONG]
    mask = torch.arange(LONG, device=home) < torch.tensor([[LONG], [SHORT]], device=home)
    return torch.tensor([tokens, tokens[:SHORT] + [0] * (LONG - SHORT)], device=home), mask


def positions(config: Any, model: PreTrainedModel | None = None) -> int | None:
    """Return how many positions a model has, None where its configuration states no number.

    Args:
        config: of the model.
        model: with whose tables of positions the padding has a place, which no token has (RoBERTa).
    """
    stated = [getattr(config.get_text_config(), name, None) for name in ("max_position_embeddings", *FIXED)]
    limit = min((one for one in stated if isinstance(one, int) and one > 0), default=None)
    taken = [table.padding_idx + 1 for table in _tables(model, limit) if table.padding_idx is not None]
    return limit - max(taken, default=0) if limit is not None else None


def check_positions(model: PreTrainedModel, max_length: int) -> None:
    """Refuse a maximum length beyond the positions of a model that cannot count further."""
    limit, config = positions(model.config, model), model.config.get_text_config()
    fixed = _tables(model) or any(hasattr(config, name) for name in FIXED)
    if fixed and limit is not None and max_length > limit:
        raise RecipeError(
            f"The model has {limit} positions, and model.max_length is {max_length}. "
            f"Type model.max_length={limit}, or less."
        )
    steady = _steady_length(config)
    if steady is not None and max_length > steady:
        raise RecipeError(
            f"The model turns its positions otherwise where a batch holds a text of more than {steady} tokens (dynamic "
            f"or long rope), so log p of an item would depend on the others. Type model.max_length={steady}, or less."
        )


def _steady_length(config: Any) -> int | None:
    """Return up to how many tokens rotary positions do not depend on the length of the batch; None for any number."""
    stated = getattr(config, "rope_parameters", None) or {}
    kinds = [each for each in (stated, *stated.values()) if isinstance(each, dict)]  # one, or one per kind of layer
    limits = [positions(config) for each in kinds if each.get("rope_type") == "dynamic"]
    limits += [each.get("original_max_position_embeddings") for each in kinds if each.get("rope_type") == "longrope"]
    return min((limit for limit in limits if limit is not None), default=None)


def _tables(model: PreTrainedModel | None, rows: int | None = None) -> list[nn.Embedding]:
    """Return the embeddings of a model but for that of tokens, or only those of so many rows."""
    found = [each for each in model.modules() if isinstance(each, nn.Embedding)] if model is not None else []
    tables = [each for each in found if model is not None and each is not model.get_input_embeddings()]
    return [each for each in tables if rows in (None, each.num_embeddings)]


def check_vocabulary(model: PreTrainedModel, tokenizer: Any) -> None:
    """Refuse a tokenizer that writes tokens which the model has no embedding for."""
    embedding: Any = model.get_input_embeddings()
    largest = max(tokenizer.get_vocab().values(), default=0)
    if largest >= embedding.weight.shape[0]:
        raise RecipeError(
            f"The tokenizer has tokens up to number {largest}, and the model embeddings of {embedding.weight.shape[0]} "
            "tokens. Type the model's own tokenizer, or save the model after model.resize_token_embeddings(N)."
        )


class _Differs(Exception):
    """Logits that are not the model's own."""


class _Trial:
    """A model's own forward on two short sequences, and what was seen in it."""

    def __init__(self, model: PreTrainedModel, tokens: list[int]) -> None:
        self.model = model.eval()
        self.tokens, self.mask = trial_batch(model, tokens)
        ran: list[nn.Module] = []
        stacks: list[nn.Module] = []

        def see(module: nn.Module, _: Any, output: Any) -> None:
            ran.append(module)
            if module is not model and isinstance(output, ModelOutput) and "last_hidden_state" in output:
                stacks.append(module)

        with _hooked([(module, see) for module in model.modules()]):
            self.logits = self._own()
        names = {module: name for name, module in model.named_modules()}
        # a base that is no module is a combination of models; otherwise the outermost, which ends last, is tried first
        alone: list[str] = [] if isinstance(model.base_model, nn.Module) else ["base_model"]
        self.stacks = list(dict.fromkeys([*alone, *(names[module] for module in reversed(stacks))]))
        self.layers = _outermost(ran) or _longest_list(model, set(ran))
        entered = {part for module in self.layers for part in module.modules()} | set(ran)
        self.beside = tuple(name for name, module in model.named_modules() if entered.isdisjoint(module.modules()))

    @torch.no_grad()
    def _own(self) -> Tensor:
        try:
            logits = run(self.model, self.tokens, attention_mask=self.mask.long()).logits
        except Exception as error:
            raise RecipeError(
                f"{type(self.model).__name__} cannot be run on text alone ({described(error)}). Type a causal model."
            ) from error
        if not isinstance(logits, Tensor) or logits.shape[:2] != self.tokens.shape:
            raise RecipeError(f"{type(self.model).__name__} gives no logits for each token. Type a causal model.")
        return logits

    def refuse_what_is_not_causal(self) -> None:
        """Compare the beginning of the long sequence with the short one, which ends there."""
        if not are_close(self.logits[1, :SHORT], self.logits[0, :SHORT]):
            raise RecipeError(
                f"{type(self.model).__name__} is not causal: what it predicts for a token depends on the tokens after "
                "it, or on padding, so it has no log p of an answer. Type a causal model (a decoder)."
            )

    @torch.no_grad()
    def head(self, name: str) -> HeadForm:
        """Return the head that turns a stack's states into the model's logits. Raises where there is none."""
        stack, linear = attrgetter(name)(self.model), self.model.get_output_embeddings()
        states = run(stack, self.tokens).last_hidden_state
        bare, form = Head(linear, HeadForm()), HeadForm()
        plain = bare(states)
        if isinstance(stack, nn.Module):
            large = states * (LARGE / plain.abs().max().clamp(min=1e-30))
            with _hooked([(stack, lambda _, __, output: _with_states(output, large))]):
                form = _form(bare(large), run(self.model, self.tokens).logits, _numbers(self.model.config))
        if not are_close(form(plain)[self.mask], self.logits[self.mask]):
            raise _Differs("its log-probabilities are not the model's")
        return form


def _with_states(output: ModelOutput, states: Tensor) -> ModelOutput:
    return type(output)(**{**output, "last_hidden_state": states})


def _form(plain: Tensor, logits: Tensor, numbers: list[float]) -> HeadForm:
    """Return the form that makes ``logits`` of ``plain``: a factor, or a cap that the configuration states."""
    caps = [HeadForm(cap=number) for number in numbers if number > 1]
    factor = float((plain.double() * logits.double()).sum() / plain.double().square().sum())
    # the exact number, where the configuration states the factor or its inverse
    stated = min([*numbers, *(1 / number for number in numbers)], key=lambda one: abs(one - factor), default=factor)
    scales = [HeadForm(scale=one) for one in (stated, factor)]
    forms = (HeadForm(), *scales, *caps)
    errors = [_apart(form(plain), logits, shifted=False) for form in forms]
    if min(errors) > _room(plain, logits):
        raise _Differs("its output layer is followed by more than a factor or a soft cap")
    # the first of those that rounding alone tells apart: in half precision a factor of 1.05 is close to none, too
    return next(form for form, error in zip(forms, errors, strict=True) if error <= 1.5 * min(errors))


def _numbers(config: Any) -> list[float]:
    """Return the numbers above 0 that a configuration states, once each."""
    stated = {**config.to_dict(), **config.get_text_config().to_dict()}.values()
    return sorted({float(one) for one in stated if isinstance(one, int | float) and one > 0})


def are_close(ours: Tensor, theirs: Tensor) -> bool:
    """Return whether logits (..., V) give the same probabilities but for rounding."""
    return _apart(ours, theirs) <= _room(ours, theirs)


def _room(*several: Tensor) -> float:
    return math.sqrt(max(torch.finfo(one.dtype).eps for one in several))


def _apart(ours: Tensor, theirs: Tensor, shifted: bool = True) -> float:
    """Return how far logits (..., V) lie apart, relative to their own spread; infinity where they cannot be compared.

    ``shifted`` allows a constant added to all of them, which changes no probability.
    """
    a, b = ours.double(), theirs.double()
    if shifted:
        a, b = a.log_softmax(-1), b.log_softmax(-1)
    if a.shape != b.shape or not bool((a.isfinite() == b.isfinite()).all()):
        return math.inf
    finite = a.isfinite()  # some models give tokens that they never say -inf
    apart, spread = (a - b)[finite], (b - b.mean(-1, keepdim=True))[finite] if finite.all() else b[finite]
    found = float(apart.square().mean().sqrt() / spread.square().mean().sqrt().clamp(min=1e-300))
    return math.inf if math.isnan(found) else found


def _outermost(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """Return the layers among modules, once each, without those inside of others."""
    layers = [module for module in dict.fromkeys(modules) if isinstance(module, GradientCheckpointingLayer)]
    inner = {part for layer in layers for part in layer.modules() if part is not layer}
    return [layer for layer in layers if layer not in inner]


def _longest_list(model: nn.Module, ran: set[nn.Module]) -> list[nn.Module]:
    """Return the longest list of modules of one kind that all ran."""
    lists = [list(module) for module in model.modules() if isinstance(module, nn.ModuleList) and ran.issuperset(module)]
    return max(lists, key=len, default=[])


@contextmanager
def _hooked(hooks: list[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    handles = [module.register_forward_hook(hook) for module, hook in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
