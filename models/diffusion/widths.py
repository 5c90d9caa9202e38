"""Whether the parts of a diffusion model fit each other: told from their configurations, without weights."""

from pathlib import Path
from typing import Any

import torch
from diffusers import DiTTransformer2DModel, UNet2DConditionModel
from torch import nn

from unlearn.core.boundary import described
from unlearn.core.errors import RecipeError, some
from unlearn.models.conditioning import Condition
from unlearn.models.diffusion.autoencoder import latent_shape
from unlearn.models.diffusion.denoiser import Denoiser, call_denoiser
from unlearn.models.diffusion.settings import DiffusionSettings
from unlearn.models.diffusion.text_encoder import TextSide

Pair = tuple[str, Any, str, Any]
"""What has a number, the number, what it must be the same as, and the number of that."""


def sides(denoiser: Denoiser) -> tuple[int, int]:
    """Return height and width of what a denoiser takes. Raises RecipeError where its configuration has none."""
    stated = _config(denoiser).sample_size
    pair = (stated, stated) if isinstance(stated, int) else tuple(stated or ())
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise RecipeError(
            f"The {type(denoiser).__name__} has sample_size={stated!r}, so the size of its images is not known. "
            "Write sample_size into its config.json: the sides of its images or latents."
        )
    return pair


def check_parts(denoiser: Denoiser, text: TextSide | None, vae: Any, settings: DiffusionSettings, folder: Path) -> None:
    """Refuse parts that do not fit each other, with both numbers, and a denoiser that asks for more than is given.

    Args:
        denoiser: see DiffusionParts, as for the next three.
        text: text encoders.
        vae: autoencoder.
        settings: of the images.
        folder: that they come from, for the message.
    """
    latents, config = latent_shape(vae, settings.shape), _config(denoiser)
    pairs: list[Pair] = []
    if vae is not None:
        for key in ("in_channels", "out_channels"):
            pairs.append((f"{key} of the autoencoder", vae.config[key], "channels of images", settings.shape[0]))
    source = "the autoencoder's latent_channels" if vae is not None else "channels of images"
    pairs.append(("in_channels of the denoiser", config.in_channels, source, latents[0]))
    made = config.out_channels or config.in_channels
    if not isinstance(denoiser, DiTTransformer2DModel) or made != 2 * latents[0]:  # DiT predicts a variance too
        pairs.append(("out_channels of the denoiser", made, source, latents[0]))
    pairs.append(("sample_size of the denoiser", sides(denoiser), "sides of its input by the settings", latents[1:]))
    if text is not None:
        pairs += _text_pairs(denoiser, text)
    for what, number, other, wanted in pairs:
        if number != wanted:
            raise RecipeError(
                f"{folder}: {what} is {number}, {other} {'are' if other[-1] == 's' else 'is'} {wanted}; they must be "
                "the same. The folder mixes parts of different models; copy the right ones."
            )
    if text is not None:
        _check_tokens(text, folder)
    _try(denoiser, text, latents, settings, folder)


def empty_condition(denoiser: Denoiser, text: TextSide | None) -> Condition:
    """Return the condition of one item on the meta device."""
    if text is None or not isinstance(denoiser, UNet2DConditionModel):
        return Condition(classes=torch.zeros(1, dtype=torch.int64, device="meta"))
    configs: list[Any] = [encoder.config for encoder in text.encoders]
    states = torch.empty(1, text.length, sum(config.hidden_size for config in configs), device="meta")
    pooled = torch.empty(1, configs[-1].projection_dim, device="meta") if len(configs) == 2 else None
    return Condition(states=states, pooled=pooled)


def _text_pairs(denoiser: Denoiser, text: TextSide) -> list[Pair]:
    config = _config(denoiser)
    configs: list[Any] = [encoder.config for encoder in text.encoders]
    width = sum(each.hidden_size for each in configs)
    key = "encoder_hid_dim" if config.encoder_hid_dim else "cross_attention_dim"
    found = [
        (f"{key} of the denoiser", each, "width of the text encoders", width)
        for each in (config[key] if isinstance(config[key], list | tuple) else [config[key]])
    ]
    needs = "text_time" if len(configs) == 2 else None
    found.append(("addition_embed_type of the denoiser", config.addition_embed_type, "that of such a pipeline", needs))
    if needs == config.addition_embed_type == "text_time":
        # the pooled prompt, and sizes and corner of the image (Podell et al., SDXL, 2023, section 2.2)
        added = configs[-1].projection_dim + 6 * (config.addition_time_embed_dim or 0)
        found.append(
            (
                "projection_class_embeddings_input_dim of the denoiser",
                config.projection_class_embeddings_input_dim,
                "projection_dim of the second text encoder and 6 times addition_time_embed_dim",
                added,
            )
        )
    return found


def _check_tokens(text: TextSide, folder: Path) -> None:
    for encoder, tokenizer in zip(text.encoders, text.tokenizers, strict=True):
        config: Any = encoder.config
        largest = max(tokenizer.get_vocab().values(), default=0)
        for what, number, limit in (
            ("model_max_length of the tokenizer", int(tokenizer.model_max_length), config.max_position_embeddings),
            ("largest token of the tokenizer", largest, config.vocab_size - 1),
        ):
            if number > limit:
                raise RecipeError(
                    f"{folder}: {what} is {number}, and its text encoder takes at most {limit}. "
                    "Copy the tokenizer of this text encoder, or mend tokenizer_config.json."
                )
        if len(text.encoders) == 1 and getattr(config, "use_attention_mask", False):
            raise RecipeError(
                f"{folder}: the text encoder asks for a mask (use_attention_mask), which is not given here."
            )


def _try(
    denoiser: Denoiser, text: TextSide | None, latents: tuple[int, ...], settings: DiffusionSettings, folder: Path
) -> None:
    """Run the denoiser on the meta device, as it is called here: its result must fit, and all of its weights count."""
    kind: Any = type(denoiser)  # diffusers does not type its calls
    name = kind.__name__
    with torch.device("meta"):
        twin = kind.from_config(_config(denoiser)).eval()
    ran: set[nn.Module] = set()
    for module in twin.modules():
        module.register_forward_hook(lambda module, *_: ran.add(module))
    x, t = torch.empty(1, *latents, device="meta"), torch.zeros(1, dtype=torch.int64, device="meta")
    try:
        with torch.no_grad():
            found = call_denoiser(twin, x, t, empty_condition(denoiser, text), settings.shape[1:])
    except Exception as error:  # whatever a network raises for what it was not built for
        raise RecipeError(
            f"{folder}: its {name} cannot be run on items of {latents} with what it is told here "
            f"({described(error)}). Type the folder of a model that is read whole."
        ) from error
    if found.shape != x.shape:
        raise RecipeError(
            f"{folder}: its {name} makes {tuple(found.shape[1:])} of items of {latents}; both must agree."
        )
    idle = [place for place, module in twin.named_modules() if any(True for _ in module.parameters(recurse=False))]
    if unused := [place for place in idle if twin.get_submodule(place) not in ran]:
        raise RecipeError(
            f"{folder}: its {name} has weights that act on more than noise, time and the prompt or class, and that "
            f"would not be used: {some(unused)}. Type the folder of a model without them."
        )


def _config(denoiser: Any) -> Any:
    return denoiser.config  # which diffusers does not type
