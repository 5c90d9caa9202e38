"""Text-to-Unlearn with a scorer that is trained in the test to tell bright images from dark ones by words."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.toys.gan import Bench, Words, face_splits, rounded, small_gan, write_script
from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.models.feature_extractors.clip import text_image_net
from unlearn.objectives.gan.perceptual_loss import PerceptualLoss
from unlearn.objectives.gan.text_to_unlearn import TextToUnlearn, embedded

PIXELS = PerceptualLoss(pixels=1.0, features=0.0, perceptual=0.0, identity=0.0)


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Trained by cross-entropy of cosines on images of the small generator, brighter or darker than the median."""
    model = small_gan(dtype=torch.float32)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        images = model.synthesis(model.mapping(model.latent(torch.arange(300), Randomness(0, "train"))))
        level = images.mean(dim=(1, 2, 3))
        labels = (level > level.median()).long()
        net = Words()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        cosine = (
            F.normalize(net.embed_images(images), dim=1) @ F.normalize(net.embed_texts(["dark", "bright"]), dim=1).T
        )
        F.cross_entropy(10 * cosine, labels).backward()
        optimizer.step()
    path = tmp_path_factory.mktemp("scorer") / "words.pt"
    write_script(net, path)
    return str(path)


def term(scorer: str, **settings: object) -> TextToUnlearn:
    given = {"path": scorer, "words": "bright", "mapper_steps": 30, "likeness": PIXELS, **settings}
    return TextToUnlearn(**given)  # type: ignore[arg-type]


def test_the_mapper_adds_what_the_words_name(scorer: str, tmp_path: Path) -> None:
    """Images of w + m are nearer to the word than those of w; the control, the other word, is not."""
    net = text_image_net(scorer)
    nearer = []
    for words in ("bright", "dark"):
        bench = Bench(tmp_path / words, term(scorer, words=words))
        w = bench.target.mapping(bench.target.latent(torch.arange(20), Randomness(0, "check")))
        wanted = F.normalize(net.texts(["bright"])[0], dim=0)
        with torch.no_grad():
            shown, plain = (
                embedded(net, bench.target.synthesis(place)) @ wanted
                for place in (w[:, None] + bench.state["offset"], w[:, None].expand(-1, bench.target.num_ws, -1))
            )
        nearer.append(float((shown - plain).mean()))
        assert bench.state["direction"].norm() == pytest.approx(1.0)
        assert bench.state["offset"].shape == (bench.target.num_ws, 5)
        assert all(torch.equal(a, b) for a, b in zip(bench.model.parameters(), bench.target.parameters(), strict=True))
    assert nearer[0] > 0.1 > nearer[1]


def test_values_written_out(scorer: str, tmp_path: Path) -> None:
    bench = Bench(tmp_path, term(scorer, direction=0.7)).moved()
    context, net = bench.context(step=2), text_image_net(scorer)
    found = bench.objective(bench.model, bench.batch(), context)
    for row, item in enumerate(bench.splits["forget"].ids):
        w = bench.target.mapping(bench.target.latent(item[None], context.randomness))[:, None]
        shown = w + bench.state["offset"]
        drawn, before = bench.model.synthesis(shown), bench.target.synthesis(shown)
        moved = embedded(net, drawn) - embedded(net, before)
        cosine = F.cosine_similarity(moved, -bench.state["direction"][None])
        keep = rounded(drawn - bench.target.synthesis(w.expand(-1, bench.target.num_ws, -1))).mean()
        torch.testing.assert_close(found.values[row], (0.7 * (1 - cosine) + keep)[0].double(), rtol=1e-4, atol=1e-5)
    found.values.sum().backward()
    moving = [parameter for parameter in bench.model.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in moving)


def test_the_first_step_has_a_gradient_and_training_takes_the_words_away(scorer: str, tmp_path: Path) -> None:
    """Scores with the word at w + m fall; the control is trained for the other word."""
    net = text_image_net(scorer)
    wanted = F.normalize(net.texts(["bright"])[0], dim=0)
    scores = []
    for words in ("bright", "dark"):
        bench = Bench(tmp_path / words, term(scorer, words=words, mapper_steps=10))
        shown = Bench(tmp_path / f"{words}s", term(scorer, mapper_steps=10)).state["offset"]
        optimizer = torch.optim.Adam([p for p in bench.model.parameters() if p.requires_grad], lr=1e-2)
        for step in range(60):
            loss = bench.objective(bench.model, {"id": torch.arange(6)}, bench.context(step)).values.mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        w = bench.target.mapping(bench.target.latent(torch.arange(30, 50), Randomness(0, "check")))[:, None]
        with torch.no_grad():
            after, before = (embedded(net, one.synthesis(w + shown)) @ wanted for one in (bench.model, bench.target))
        scores.append(float((after - before).mean()))
    assert scores[0] < -0.1 and scores[0] < scores[1] - 0.1


def test_words_without_change_the_reference(scorer: str, tmp_path: Path) -> None:
    one = Bench(tmp_path / "1", term(scorer)).state["offset"]
    two = Bench(tmp_path / "2", term(scorer, without="dark")).state["offset"]
    assert not torch.equal(one, two)


def test_a_clip_model_is_a_scorer(tmp_path: Path) -> None:
    """The embeddings are those of transformers' own forward pass."""
    from tests.toys.clip import small_clip

    net = text_image_net(str(small_clip(tmp_path)))
    images = torch.rand(3, 3, 16, 16) * 2 - 1
    given = net.tokenizer(["a red three", "a blue"], padding=True, return_tensors="pt")  # type: ignore[attr-defined]
    pixels = ((images + 1) / 2 - net.mean) / net.std  # type: ignore[attr-defined]
    with torch.no_grad():
        whole = net.model(**given, pixel_values=pixels)  # type: ignore[attr-defined]
    torch.testing.assert_close(embedded(net, images), whole.image_embeds)
    torch.testing.assert_close(F.normalize(net.texts(["a red three", "a blue"]), dim=1), whole.text_embeds)


def test_what_is_no_scorer_is_refused(scorer: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="path or words"):
        TextToUnlearn(path=scorer)
    with pytest.raises(RecipeError, match="no scorer at"):
        TextToUnlearn(path="nowhere.pt", words="a").check(face_splits(), "forget")
    wrong = tmp_path / "wrong.pt"
    write_script(nn.Linear(2, 2), wrong)
    with pytest.raises(RecipeError, match="embed_images"):
        TextToUnlearn(path=str(wrong), words="a").check(face_splits(), "forget")
