"""Weights of mixtures of experts, which transformers keep as one tensor for all experts of a layer."""

from collections.abc import Iterator

from torch import nn
from torch.nn.modules.conv import _ConvNd
from transformers import PreTrainedModel

from unlearn.models.capabilities import Model


def expert_weights(model: Model) -> Iterator[tuple[str, nn.Parameter, int]]:
    """Yield (name, weight, axis of its output channels) of the experts' weights, (E, out, in) or (E, in, out).

    transformers marks most modules of experts by ``is_transposed``; of others the weights that read or write hidden
    states are found by their shapes.
    """
    widths = {
        getattr(part.config.get_text_config(), "hidden_size", None)
        for part in model.modules()
        if isinstance(part, PreTrainedModel)
    }
    for place, module in model.named_modules():
        own = [(name, weight) for name, weight in module.named_parameters(recurse=False) if weight.ndim == 3]
        if not own or isinstance(module, _ConvNd):
            continue
        marked = getattr(module, "is_transposed", None)
        if marked is None and not all(len(weight) > 1 and widths & {*weight.shape[1:]} for _, weight in own):
            continue  # tables of positions, learned queries
        turned = _is_turned([weight for _, weight in own], widths) if marked is None else bool(marked)
        for name, weight in own:
            yield f"{place}.{name}", weight, 2 if turned else 1


def _is_turned(weights: list[nn.Parameter], widths: set[int | None]) -> bool:
    """Return whether weights are (E, in, out): the first of several reads hidden states, and the last writes them."""
    if len(weights) == 1:
        return False
    reads, writes = (tuple(side in widths for side in weights[place].shape[1:]) for place in (0, -1))
    return reads == (True, False) or writes == (False, True)
