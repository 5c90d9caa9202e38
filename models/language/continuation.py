"""Greedy continuation of prompts: by transformers' generation, or by a model's own forward where that goes wrong."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import GenerationConfig, PreTrainedModel

from unlearn.core.boundary import described
from unlearn.models.language.verification import LONG, SHORT, are_close, run, trial_batch


def find_fault(model: PreTrainedModel, tokens: list[int]) -> str:
    """Return what is wrong with transformers' generation for a model; empty where nothing is.

    Two prompts, the shorter one padded on the left, are continued by two tokens, the second with a cache. Both logits
    must be those of the model's own forward. Wrong are models that take no mask, or positions that a mask shifts.

    Args:
        model: with its weights; one on the meta device is not tried.
        tokens: at least one token of an ordinary text.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        return ""
    prompts, mask = trial_batch(model, tokens)
    ends, rows = torch.tensor([LONG, SHORT], device=mask.device), torch.arange(2, device=mask.device)
    try:
        found = _by_transformers(model, prompts, mask, 2, [])
        first, second = found.logits
        whole, real = pad(prompts, (0, 1)), pad(mask, (0, 1))
        whole[rows, ends], real[rows, ends] = found.sequences[:, -2], True
        with torch.no_grad():
            own = run(model, whole, attention_mask=real.long()).logits
    except Exception as error:  # whatever a model raises where transformers generates
        return described(error)
    if not are_close(first, own[rows, ends - 1]):
        return "behind padding it predicts something else"
    return "" if are_close(second, own[rows, ends]) else "with a cache it predicts something else"


def continued(
    model: PreTrainedModel, tokens: Tensor, mask: Tensor, new_tokens: int, ends: list[int], by_forward: bool = False
) -> Tensor:
    """Return prompts (B, T), padded on the right, continued greedily: (B, new_tokens) int64, -1 from an end on.

    The model's own generation settings (beams, penalties) are ignored.

    Args:
        model: causal.
        tokens: (B, T) int64.
        mask: (B, T) bool, True at real tokens.
        new_tokens: most tokens.
        ends: tokens that end an answer.
        by_forward: compute every token from the whole text before it, without padding on the left or a cache.
    """
    if by_forward:
        new = _by_forward(model, tokens, mask, new_tokens, torch.tensor(ends, device=tokens.device))
    else:
        new = _by_transformers(model, tokens, mask, new_tokens, ends).sequences[:, tokens.shape[1] :]
    # the sum is above 0 from the first end token on, padding included
    ended = torch.isin(new, torch.tensor(ends, device=new.device)).cumsum(dim=1) > 0
    result = torch.full((len(tokens), new_tokens), -1, dtype=torch.int64, device=tokens.device)
    result[:, : new.shape[1]] = new.masked_fill(ended, -1)
    return result


def _by_transformers(model: PreTrainedModel, tokens: Tensor, mask: Tensor, new_tokens: int, ends: list[int]) -> Any:
    # generation appends on the right, so the padding goes to the left
    tokens, mask = _padded_left(tokens, mask)
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=new_tokens,
        pad_token_id=0,
        eos_token_id=ends or None,
        use_cache=True,
        return_dict_in_generate=True,
        output_logits=not ends,
    )
    continue_: Any = model.generate
    own = model.generation_config
    model.generation_config = GenerationConfig()  # transformers fills what is not set from the model's own
    try:
        return continue_(input_ids=tokens, attention_mask=mask.long(), generation_config=settings)
    finally:
        model.generation_config = own


@torch.no_grad()
def _by_forward(model: PreTrainedModel, tokens: Tensor, mask: Tensor, new_tokens: int, ends: Tensor) -> Tensor:
    rows, start = torch.arange(len(tokens), device=tokens.device), mask.sum(dim=1)
    tokens = pad(tokens, (0, new_tokens))
    mask = pad(mask, (0, new_tokens))
    ended = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
    for step in range(new_tokens):
        width = int((start + step).max())
        wanted, place = torch.unique(start + step - 1, return_inverse=True)
        given = {"attention_mask": mask[:, :width].long(), "logits_to_keep": wanted}
        logits = run(model, tokens[:, :width], **given).logits
        kept = logits if logits.shape[1] == len(wanted) else logits[:, wanted]  # some take no logits_to_keep
        tokens[rows, start + step] = kept[rows, place].argmax(dim=-1)
        mask[rows, start + step] = True
        ended |= torch.isin(tokens[rows, start + step], ends)
        if ended.all():
            break
    return tokens.gather(1, start[:, None] + torch.arange(new_tokens, device=tokens.device))


def _padded_left(tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return tokens and mask with the padding moved from the right to the left."""
    missing = mask.shape[1] - mask.sum(dim=1, keepdim=True)
    # position j takes what stood at j - missing; the padding at the end wraps round to the beginning
    place = (torch.arange(mask.shape[1], device=mask.device) - missing) % mask.shape[1]
    return tokens.gather(1, place), mask.gather(1, place)
