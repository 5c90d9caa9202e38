"""Two causal models as one: a base, from whose logits the increase in a reinforced copy is subtracted."""

from copy import deepcopy
from operator import attrgetter
from types import SimpleNamespace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

from unlearn.models.language.verification import Head, HeadForm, Route


class CombinedLogitsConfig(PretrainedConfig):
    """Configurations of both models, and the factor alpha.

    Args:
        base: configuration of the base, as a mapping.
        reinforced: that of the reinforced model; both have the same vocabulary.
        alpha: how strongly raised logits are lowered, >= 0.
        scale: factor after the output layer of both models.
        cap: soft cap after it, null for none.
        stack: dotted name of the part of both models that gives the last hidden states.
    """

    model_type: ClassVar[str] = "unlearn_combined_logits"

    def __init__(
        self,
        base: dict[str, Any] | None = None,
        reinforced: dict[str, Any] | None = None,
        alpha: float = 1.0,
        scale: float = 1.0,
        cap: float | None = None,
        stack: str = "base_model",
        **kwargs: Any,
    ) -> None:
        self.base, self.reinforced, self.alpha = base or {}, reinforced or {}, alpha
        self.scale, self.cap, self.stack = scale, cap, stack
        # by the names that all configurations know; that of a model that also sees has one of its own for text
        text = AutoConfig.for_model(**self.base).get_text_config() if self.base else None
        for name in ("vocab_size", "hidden_size", "bos_token_id", "eos_token_id", "pad_token_id"):
            kwargs.setdefault(name, getattr(text, name, None))
        kwargs["num_hidden_layers"] = 2 * getattr(text, "num_hidden_layers", 0)  # in one cache
        super().__init__(**kwargs)


class CombinedLogits(PreTrainedModel, GenerationMixin):
    """v = v_base - alpha ReLU(v_reinforced - v_base), with the interface of a causal model of transformers.

    The last hidden states are those of both models, concatenated, (..., D_base + D_reinforced); the output layer turns
    them into the combined logits.

    Reference:
        Eldan and Russinovich, Who's Harry Potter? Approximate Unlearning in LLMs, 2023, eq. 1. arXiv:2310.02238
    """

    config_class = CombinedLogitsConfig
    main_input_name = "input_ids"

    def __init__(self, config: CombinedLogitsConfig) -> None:
        super().__init__(config)
        self.base = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config.base))
        self.reinforced = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config.reinforced))
        self.post_init()  # type: ignore[no-untyped-call]

    @classmethod
    def of(cls, base: PreTrainedModel, reinforced: PreTrainedModel, alpha: float, route: Route | None = None) -> Self:
        """Combine two models in memory of one architecture, which are run by a route; they become its parts."""
        route = route or Route()
        form, parts = route.head, (base.config.to_dict(), reinforced.config.to_dict())
        config = CombinedLogitsConfig(*parts, alpha, form.scale, form.cap, route.stack)
        with torch.device("meta"):
            model = cls(config)
        model.base, model.reinforced = base, reinforced
        model.generation_config = deepcopy(base.generation_config)
        return model

    @classmethod
    def is_custom_code(cls) -> bool:
        """Return False: transformers would not fill buffers of the parts that are in no file (Falcon-H1)."""
        return False

    @property
    def base_model(self) -> Any:
        """Callable that returns the last hidden states of both models."""
        return self.states

    def states(self, input_ids: Tensor, past_key_values: Cache | None = None, **kwargs: Any) -> SimpleNamespace:
        """Return ``last_hidden_state`` of both models, (B, T, D_base + D_reinforced)."""
        caches = _split(past_key_values, self.config.num_hidden_layers // 2, self.config.num_hidden_layers)
        found = [
            attrgetter(self.config.stack)(part)(input_ids=input_ids, past_key_values=cache, **kwargs).last_hidden_state
            for part, cache in zip((self.base, self.reinforced), caches, strict=True)
        ]
        return SimpleNamespace(last_hidden_state=torch.cat(found, dim=-1))

    def get_input_embeddings(self) -> nn.Module:
        """Return the base's embeddings."""
        return self.base.get_input_embeddings()  # type: ignore[no-any-return]

    def get_output_embeddings(self) -> nn.Module:
        """Return the module that maps the hidden states of both models to combined logits."""
        return CombinedHead(self)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Return the combined logits, (B, T, V) or those of the last ``logits_to_keep`` positions."""
        states = self.states(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
        ).last_hidden_state
        # 0 keeps all positions, as slice(-0, None) is slice(0, None)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        return CausalLMOutputWithPast(logits=CombinedHead(self)(states[:, kept]), past_key_values=past_key_values)


class CombinedHead(nn.Module):
    """The output layers of both models and the combination of their logits."""

    def __init__(self, model: CombinedLogits) -> None:
        super().__init__()
        form = HeadForm(model.config.scale, model.config.cap)
        self.base, self.reinforced = (
            Head(part.get_output_embeddings(), form) for part in (model.base, model.reinforced)
        )
        self.width: int = model.base.config.get_text_config().hidden_size
        self.alpha: float = model.config.alpha

    def forward(self, states: Tensor) -> Tensor:
        """Return logits (..., V) of hidden states (..., D_base + D_reinforced)."""
        base: Tensor = self.base(states[..., : self.width])
        raised = torch.relu(self.reinforced(states[..., self.width :]) - base)
        return base - self.alpha * raised  # eq. 1


def _split(cache: Cache | None, first: int, both: int) -> tuple[Cache | None, Cache | None]:
    """Return the part of a cache that each model writes its layers to."""
    if cache is None:
        return None, None
    # generation begins with an empty cache; the parts share its layer objects, and so fill it
    while len(cache.layers) < both:
        cache.layers.append(DynamicLayer())
    return Cache(layers=cache.layers[:first]), Cache(layers=cache.layers[first:both])


AutoConfig.register(CombinedLogitsConfig.model_type, CombinedLogitsConfig, exist_ok=True)
AutoModelForCausalLM.register(CombinedLogitsConfig, CombinedLogits, exist_ok=True)
