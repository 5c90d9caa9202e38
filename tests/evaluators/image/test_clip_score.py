"""CLIP score with a small CLIP model of random weights, against the formula."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPModel

from tests.toys.clip import small_clip
from tests.toys.coloured_digits import coloured, on_all, splits_of
from tests.toys.scripted import Obedient, evaluation_of, value
from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.data.base import Selection
from unlearn.data.coloured_digits import COLOURS, DIGIT_WORDS
from unlearn.data.digits import Digits
from unlearn.data.splits import make_splits
from unlearn.evaluators.image.clip_score import ClipScore
from unlearn.evaluators.sampling import sampled_items
from unlearn.models.feature_extractors.clip import MEAN, STD, Clip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_clip(tmp_path_factory.mktemp("models") / "smallclip")


def test_the_score_is_the_cosine_of_image_and_caption(folder: Path) -> None:
    splits = splits_of("three")
    evaluation = evaluation_of({"target": Obedient(coloured())}, splits)
    records = ClipScore(path=str(folder), samples=6, batch_size=4)(evaluation).records
    model, data = CLIPModel.from_pretrained(folder).eval(), coloured()
    items = sampled_items(evaluation, "forget", 6)
    pixels = torch.nn.functional.interpolate(
        data.batch(items)["image"].float() / 16, size=(16, 16), mode="bicubic", antialias=True
    ).clamp(0, 1)
    pixels = (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    words = ["<start>", "<end>", "<unknown>", "a", *COLOURS, *DIGIT_WORDS]
    tokens = torch.tensor([[0, *(words.index(word) for word in data.captions[i].split()), 1] for i in items.tolist()])
    image = model.visual_projection(model.vision_model(pixels).pooler_output)
    text = model.text_projection(model.text_model(tokens).pooler_output)
    expected = (100 * torch.cosine_similarity(image, text)).clamp(min=0).mean().item()
    assert expected > 0
    assert value(records, "clip_score", split="forget") == pytest.approx(expected, rel=1e-4)
    assert value(records, "clip_score", split="retain") != pytest.approx(expected, rel=1e-4)
    assert {r.split: r.direction for r in records} == {"forget": "lower", "retain": "higher"}
    assert records[0].detector["name"] == "smallclip" and len(records[0].detector["sha256"]) == 64
    assert load_file(folder / "model.safetensors")


def test_other_images_have_another_score(folder: Path) -> None:
    models = {"target": Obedient(coloured()), "unlearned": Obedient(coloured(), on_all)}
    records = ClipScore(path=str(folder), samples=6)(evaluation_of(models, splits_of("three"))).records
    found = {r.subject: r.value for r in records if r.split == "forget"}
    assert found["target"] != pytest.approx(found["unlearned"], rel=1e-5)


def test_captions_that_the_model_cuts_are_counted(folder: Path, tmp_path: Path) -> None:
    """The toy reads 8 tokens with <start> and <end>: seven words are one too many, six are not."""
    clip = Clip(folder)
    assert clip.cut([" ".join(["a"] * count) for count in (5, 6, 7, 9)]) == ["a a a a a a a", "a a a a a a a a a"]
    assert clip.cut([]) == [] and clip.length == 8
    with pytest.raises(RecipeError, match="reads 8 tokens, and 'a a a a a a a' is longer"):
        clip.texts(["a a a a a a a"])
    evaluation = evaluation_of({"target": Obedient(coloured())}, splits_of("three"))
    evaluator = ClipScore(path=str(folder), samples=6)
    assert evaluator(evaluation).notes == []
    short = Path(shutil.copytree(folder, tmp_path / "short"))
    config = json.loads((short / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 4
    (short / "config.json").write_text(json.dumps(config))
    weights = load_file(short / "model.safetensors")
    name = "text_model.embeddings.position_embedding.weight"
    save_file({**weights, name: weights[name][:4].clone()}, short / "model.safetensors", {"format": "pt"})
    data = coloured()
    items = [item for split in ("forget", "retain") for item in sampled_items(evaluation, split, 6).tolist()]
    said = {data.captions[item] for item in items}
    long = [caption for caption in said if len(caption.split()) > 2]
    note = f"clip_score: short reads 4 tokens; {len(long)} of {len(said)} captions are cut there."
    assert long and ClipScore(path=str(short), samples=6)(evaluation).notes == [note]


def test_what_is_missing_is_named(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ValueError, match="path is empty"):
        ClipScore()
    with pytest.raises(RecipeError, match=r"evaluate\.clip_score\.path"):
        ClipScore(path=str(tmp_path)).check(splits_of("three"))
    half = tmp_path / "half"
    half.mkdir()
    (half / "config.json").write_text('{"model_type": "clip_text_model"}', encoding="utf-8")
    with pytest.raises(RecipeError, match=r"evaluate\.clip_score\.path.*clip_text_model"):
        ClipScore(path=str(half)).check(splits_of("three"))
    plain = make_splits(Digits().load(), Digits(forget=Selection(label=["3"])), Randomness(0))
    with pytest.raises(RecipeError, match=r"evaluate\.clip_score=null"):
        ClipScore(path=str(folder)).check(plain)
