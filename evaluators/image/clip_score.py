"""CLIP score: how well samples match their prompts, by a CLIP model that the user provides."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from os.path import expanduser
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from unlearn.core.distributed import map_ids
from unlearn.core.errors import RecipeError
from unlearn.core.validation import PositiveInt
from unlearn.data.base import Split
from unlearn.evaluators.base import Evaluation, EvaluationResult, Evaluator, Metric
from unlearn.evaluators.sampling import (
    conditioned_data,
    grey_levels,
    is_conditional,
    sampled_clusters,
    sampled_items,
    samples,
)
from unlearn.models.capabilities import Samples
from unlearn.models.feature_extractors.clip import Clip

SCORE = Metric(
    name="clip_score",
    label="clip score",
    formula="mean over samples of max(100 cos(image, caption), 0) by the CLIP model at `path`; the caption is that "
    "of the item whose condition the sample has. Student's t interval",
    direction={"forget": "lower", "retain": "higher"},
    source="Hessel et al. 2021, section 3",
)


@dataclass(frozen=True, kw_only=True)
class ClipScore(Evaluator[Samples]):
    """Mean of max(100 cos(image, caption), 0) over samples of forget items, and over samples of retain items.

    The caption is that of the item the sample is conditioned on; a note says how many are longer than the model
    reads, which are cut there. No CLIP model is packaged; figures are comparable only for the same weights, whose
    hash is in each record.

    Args:
        path: folder of a CLIP model of transformers with its tokenizer.
        samples: samples per subject and split.
        batch_size: samples at once; does not change the result.

    Reference:
        Hessel et al., CLIPScore: A Reference-free Evaluation Metric for Image Captioning, 2021, section 3, with 100 in
        place of 2.5, as is usual for generated images. arXiv:2104.08718
    """

    path: str = ""
    samples: PositiveInt = 200
    batch_size: PositiveInt = 64

    metrics: ClassVar = (SCORE,)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.path:
            raise ValueError("path is empty; it must be the folder of a CLIP model of transformers")

    @override
    def check(self, splits: Mapping[str, Split]) -> None:
        folder = Path(expanduser(self.path))
        if not (folder / "config.json").is_file():
            raise RecipeError(f"evaluate.clip_score.path: {self.path} holds no model (config.json is missing).")
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
        if kind != "clip" or not (folder / "tokenizer_config.json").is_file():
            raise RecipeError(
                f"evaluate.clip_score.path: {self.path} holds a model of type {kind}; it must be a CLIP model (clip) "
                "with its tokenizer (tokenizer_config.json)."
            )
        if not is_conditional(splits["forget"]):
            raise RecipeError(
                "evaluate.clip_score compares samples with their prompts, and this model is unconditional. "
                "Type evaluate.clip_score=null."
            )

    @override
    def __call__(self, evaluation: Evaluation[Samples]) -> EvaluationResult:
        self.check(evaluation.splits)
        folder = Path(expanduser(self.path))
        clip, detector = Clip(folder), {"name": folder.name, "sha256": _sha256(folder)}
        clip.model.to(evaluation.device)
        data, levels = conditioned_data(evaluation.splits), grey_levels(evaluation)
        records, said = [], set[str]()
        for subject in evaluation.models:
            for split in ("forget", "retain"):
                items = sampled_items(evaluation, split, self.samples)
                images = samples(evaluation, subject, split, self.samples, self.batch_size) / (levels - 1)
                captions = [data.captions[item] for item in items.tolist()]
                said.update(captions)
                score = partial(similarity, clip, images, captions)
                cosines = map_ids(score, torch.arange(len(images)), self.batch_size).cpu()
                clusters = sampled_clusters(evaluation, split, self.samples)
                add = partial(evaluation.record, clusters=clusters, detector=detector)
                records.append(add(SCORE, subject, split, cosines))
        long = clip.cut(sorted(said))
        note = (
            f"clip_score: {folder.name} reads {clip.length} tokens; {len(long)} of {len(said)} captions are cut there."
        )
        return EvaluationResult(records, notes=[note] if long else [])


def similarity(clip: Clip, images: Tensor, captions: Sequence[str], rows: Tensor) -> Tensor:
    """Return max(100 cos, 0) of some rows (b,) of images (n, C, H, W) in [0, 1] and their captions, (b,)."""
    pixels = clip.pixels(images[rows].to(clip.model.device))
    found = clip.model(**clip.tokens([captions[row] for row in rows.tolist()]), pixel_values=pixels)
    cosine: Tensor = (found.image_embeds * found.text_embeds).sum(dim=1)  # both of length 1
    return (100 * cosine).clamp(min=0)


def _sha256(folder: Path) -> str:
    content = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: content)  # in pieces; it continues the hash of the files before
    return content.hexdigest()
