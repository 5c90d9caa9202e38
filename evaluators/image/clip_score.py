"""CLIP score: how well samples match their prompts, by a CLIP model that the user provides."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from unlearn.core.distributed import map_ids
from unlearn.core.errors import RecipeError
from unlearn.core.validation import PositiveInt
from unlearn.data.base import Split
from unlearn.evaluators.base import Evaluation, EvaluationResult, Evaluator, Metric
from unlearn.evaluators.sampling import conditioned_data, grey_levels, is_conditional, sampled_items, samples
from unlearn.models.capabilities import Samples
from unlearn.models.feature_extractors.clip import MEAN, STD

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

    The caption is that of the item the sample is conditioned on. No CLIP model is packaged; figures are comparable only
    for the same weights, whose hash is in each record.

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
        folder = Path(self.path).expanduser()
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
        scorer = Scorer(Path(self.path).expanduser(), evaluation.device)
        data = conditioned_data(evaluation.splits)
        levels = grey_levels(evaluation)
        records = []
        for subject in evaluation.models:
            for split in ("forget", "retain"):
                items = sampled_items(evaluation, split, self.samples)
                images = samples(evaluation, subject, split, self.samples, self.batch_size)
                captions = [data.captions[item] for item in items.tolist()]
                cosines = scorer(images, captions, levels, self.batch_size)
                records.append(evaluation.record(SCORE, subject, split, cosines, detector=scorer.detector))
        return EvaluationResult(records)


class Scorer:
    """A CLIP model, read from a folder.

    Args:
        folder: holds the model and its tokenizer.
        device: the device to move it to.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        from transformers import AutoTokenizer, CLIPModel

        self.model: Any = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval().to(device)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        about = folder / "preprocessor_config.json"
        given = json.loads(about.read_text(encoding="utf-8")) if about.is_file() else {}
        self.mean = torch.tensor(given.get("image_mean", MEAN), device=device)[:, None, None]
        self.std = torch.tensor(given.get("image_std", STD), device=device)[:, None, None]
        self.detector = {"name": folder.name, "sha256": _sha256(folder)}

    def __call__(self, images: Tensor, captions: Sequence[str], levels: int, batch_size: int) -> Tensor:
        """Return max(100 cos, 0) of images (n, C, H, W) uint8 and their captions, (n,)."""

        def score(rows: Tensor) -> Tensor:
            chosen = [captions[row] for row in rows.tolist()]
            length = self.model.config.text_config.max_position_embeddings
            words = self.tokenizer(chosen, padding=True, truncation=True, max_length=length, return_tensors="pt")
            pixels = self.inputs(images[rows.cpu()].to(self.model.device), levels)
            found = self.model(**words.to(self.model.device), pixel_values=pixels)
            cosine: Tensor = (found.image_embeds * found.text_embeds).sum(dim=1)  # both of length 1
            return (100 * cosine).clamp(min=0)

        return map_ids(score, torch.arange(len(images)), batch_size).cpu()

    def inputs(self, images: Tensor, levels: int) -> Tensor:
        """Return images (b, C, H, W) uint8 as the model's input: three channels, its size, normalised."""
        side = self.model.config.vision_config.image_size
        scaled = (images.float() / (levels - 1)).expand(-1, 3, -1, -1)
        resized = F.interpolate(scaled, size=(side, side), mode="bicubic", antialias=True).clamp(0, 1)
        return (resized - self.mean) / self.std


def _sha256(folder: Path) -> str:
    content = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: content)  # in pieces; it continues the hash of the files before
    return content.hexdigest()
