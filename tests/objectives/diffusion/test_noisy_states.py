"""Where states come from: each x_t is what its source says, at its t, with its item's condition."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.toys.diffusion import Bench, Conditioning, moved, small_model
from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.core.reference_cache import ReferenceCache
from unlearn.data.base import Batch
from unlearn.models.diffusion.wrapper import Diffusion
from unlearn.objectives.base import Context, Objective, Values
from unlearn.objectives.diffusion.noisy_states import AnchorStates, Source, States, StateSource, check_anchors

ALL: list[Conditioning] = ["class", "text", "dit"]


@dataclass(frozen=True, kw_only=True)
class Uses(Objective):
    """Holds a source, as an objective does."""

    source: StateSource

    def prepare(self, model: Any, context: Context) -> None:
        self.source.prepare(model, context)

    def __call__(self, model: Any, batch: Batch, context: Context) -> Values:
        return Values(self.source(model, batch, context).x.flatten(1).mean(1))


def bench(folder: Path, conditioning: Conditioning, split: str = "forget", **settings: Any) -> Bench:
    return Bench(folder, Uses(source=states(**settings)), conditioning, split)


def states(source: Source = "trajectory", steps: int = 4, of_anchor: bool = False, **settings: Any) -> StateSource:
    return (AnchorStates if of_anchor else StateSource)(source=source, steps=steps, **settings)


def draw(own: Bench, step: int = 0, **changed: Any) -> States:
    return own.objective.source(own.model, own.batch(), own.context(step, **changed))  # type: ignore[attr-defined]


def path(model: Diffusion, start: Tensor, condition: Any, guidance: float = 3.0) -> list[Tensor]:
    """The states before each step of a trajectory."""
    with torch.no_grad():
        return [start, *(after for _, after in model.trajectory(start, condition, guidance, 4))]


@pytest.mark.parametrize("conditioning", ALL)
def test_states_lie_on_the_targets_trajectories(conditioning: Conditioning, tmp_path: Path) -> None:
    """Each before the step of its t, on the trajectory of one of the forget items, conditioned on that item."""
    own = bench(tmp_path, conditioning)
    split = own.splits["forget"]
    model, ids = own.target, split.ids
    start = model.noise(ids, Randomness(0, "states/forget"))
    condition = model.condition(split.batch(ids))
    along = torch.stack(path(model, start, condition))  # (5, 8, C, H, W)
    moved(own.model)  # the bank does not follow the model
    found = draw(own)
    seen = set()
    for row in range(len(ids)):
        step = model.times(4).tolist().index(int(found.t[row]))
        distance = (along[step] - found.x[row]).abs().flatten(1).amax(1)
        item = int(distance.argmin())
        assert distance[item] == 0
        assert equal(found.condition[row : row + 1], condition[item : item + 1])
        seen.add((step, item))
    assert len(seen) > 4 and found.noise is None
    assert equal(found.anchor, model.condition(split.dataset.form("anchor", ids))) or conditioning == "text"


def equal(first: Any, second: Any) -> bool:
    return all(
        (a is None) == (b is None) and (a is None or torch.equal(a, b))
        for a, b in ((first.classes, second.classes), (first.tokens, second.tokens))
    )


@pytest.mark.parametrize("source", ["trajectory", "student", "generated", "data", "noise"])
def test_states_are_the_items_own_and_the_steps_own(source: Any, tmp_path: Path) -> None:
    """Another order gives the same states; another step gives others; what was computed once is read again."""
    own = bench(tmp_path, "class", source=source)
    found = draw(own)
    order = torch.tensor([5, 2, 7, 0, 1, 3, 6, 4])
    batch = {key: value[order] for key, value in own.batch().items()}
    again = own.objective.source(own.model, batch, own.context())  # type: ignore[attr-defined]
    torch.testing.assert_close(again.x, found.x[order])
    assert torch.equal(again.t, found.t[order])
    others = (draw(own, step=1).x - found.x).flatten(1).abs().amax(1)
    assert int((others > 1e-3).sum()) >= 6  # the same state may be drawn twice
    resumed = bench(tmp_path, "class", source=source)
    resumed.reference_cache = ReferenceCache(tmp_path)
    assert torch.equal(draw(resumed).x, found.x)


def test_the_models_own_trajectories_are_those_of_the_model_as_it_is(tmp_path: Path) -> None:
    """At most ``walks`` trajectories, no further than the last state asks for, and new ones at each step."""
    own = bench(tmp_path, "class", source="student", walks=2)
    moved(own.model)
    passes: list[int] = []
    handle = own.model.denoiser.register_forward_pre_hook(lambda _, given: passes.append(len(given[0])))
    found = draw(own)
    handle.remove()
    steps = [own.model.times(4).tolist().index(t) for t in found.t.tolist()]
    context = own.context()
    walks = context.randomness.child("walk").integers(own.batch()["id"], 2)
    assert passes == [2 * len(walks.unique())] * max(steps)  # guidance in one pass
    start = own.model.noise(walks, context.randomness.child("start"))
    assert len(found.x[torch.tensor(steps) == 0].unique(dim=0)) <= 2
    for model, same in ((own.model, True), (own.target, False)):
        along = torch.stack(path(model, start, found.condition))
        wanted = along[torch.tensor(steps), torch.arange(8)]
        late = torch.tensor(steps) > 0
        assert torch.allclose(found.x[late], wanted[late], atol=1e-6) == same and late.any()
    assert not torch.isin(draw(own, step=1).x, found.x).any()


def test_the_averages_trajectories_are_those_of_the_average(tmp_path: Path) -> None:
    """Within the context that gives the model the average of its weights, and with the model's own weights after."""
    own = bench(tmp_path, "class", source="student")
    with pytest.raises(RecipeError, match=r"Type optim\.ema"):
        StateSource(source="average").prepare(own.model, own.context())
    moved(own.model)

    @contextmanager
    def averaged() -> Iterator[None]:
        kept = {name: value.clone() for name, value in own.model.state_dict().items()}
        own.model.load_state_dict(own.target.state_dict())
        yield
        own.model.load_state_dict(kept)

    source = StateSource(source="average", steps=4)
    source.prepare(own.model, own.context(averaged=averaged))
    found = source(own.model, own.batch(), own.context(averaged=averaged))
    own.model = own.target
    torch.testing.assert_close(found.x, draw(own).x)


@pytest.mark.parametrize("conditioning", ALL)
def test_generated_items_are_the_ends_of_trajectories_noised_again(conditioning: Conditioning, tmp_path: Path) -> None:
    own = bench(tmp_path, conditioning, source="generated")
    split = own.splits["forget"]
    start = own.target.noise(split.ids, Randomness(0, "states/forget"))
    ends = path(own.target, start, own.target.condition(split.batch(split.ids)))[-1]
    moved(own.model)
    found = draw(own)
    assert ends.abs().max() <= 1 and (found.t.unique()).numel() > 4
    clean = own.model.denoised(found.x, found.t, found.noise)
    distance = (clean[:, None] - ends[None]).abs().flatten(2).amax(2)
    early = found.t < 700  # later the signal is too weak to be recovered in single precision's abar
    assert distance.amin(1)[early].max() < 1e-5 and early.sum() > 3


@pytest.mark.parametrize("conditioning", ALL)
def test_items_of_the_anchor_are_drawn_from_its_words(conditioning: Conditioning, tmp_path: Path) -> None:
    own = bench(tmp_path / "anchor", conditioning, source="generated", of_anchor=True)
    plain = bench(tmp_path / "plain", conditioning, source="generated")
    split = own.splits["forget"]
    start = own.target.noise(split.ids, Randomness(0, "states/forget"))
    anchor = own.target.condition(split.dataset.form("anchor", split.ids))
    ends = path(own.target, start, anchor)[-1]
    ids = split.ids
    assert torch.equal(own.reference_cache.get("forget.generated_of_anchor_4_3_64", ids), ends)
    assert not torch.equal(plain.reference_cache.get("forget.generated_4_3_64", ids), ends)
    assert not equal(draw(own).condition, draw(own).anchor)  # the items are conditioned on the concept all the same


def test_data_is_the_batchs_own_and_noise_has_no_image(tmp_path: Path) -> None:
    own = bench(tmp_path, "class", source="data")
    found = draw(own)
    clean = own.model.latents(own.batch(), own.context().randomness)
    torch.testing.assert_close(own.model.noised(clean, found.noise, found.t), found.x)
    assert equal(found.condition, own.model.condition(own.batch())) and found.anchor.classes.tolist() == [8] * 8
    few = draw(bench(tmp_path, "class", source="data", images=2))
    two = few.x - own.model.noised(torch.zeros_like(few.x), few.noise, few.t)
    assert (
        torch.equal(few.noise, found.noise)
        and len((two / two.amax((1, 2, 3), True)).round(decimals=3).unique(dim=0)) == 2
    )
    noise = draw(bench(tmp_path, "class", source="noise"))
    assert torch.equal(noise.t, found.t) and torch.equal(noise.noise, found.noise)
    start = own.model.noise(own.batch()["id"], own.context().randomness.child("start"))
    torch.testing.assert_close(own.model.noised(start, noise.noise, noise.t), noise.x)


def test_only_so_many_items_have_a_trajectory(tmp_path: Path) -> None:
    own = bench(tmp_path, "text", items=3)
    (file,) = tmp_path.iterdir()
    conditions = {tuple(draw(own, step).condition.tokens[:, 0].flatten().tolist()) for step in range(3)}
    rows = torch.cat([draw(own, step).condition.tokens[:, 0] for step in range(3)]).unique(dim=0)
    assert file.name == "forget.trajectory_4_3_3.safetensors" and len(rows) <= 3 < 8 and len(conditions) > 1
    assert own.reference_cache.get("forget.trajectory_4_3_3", chosen(own)).shape == (3 * 4, 3, 8, 8)


def chosen(own: Bench) -> Tensor:
    ids = own.objective.source._chosen(3, own.context())  # type: ignore[attr-defined]
    assert set(ids.tolist()) <= set(own.splits["forget"].ids.tolist())
    return ids  # type: ignore[no-any-return]


def test_the_time_can_be_drawn_anywhere_within_a_step(tmp_path: Path) -> None:
    """Times of four steps are 750, 500, 250, 0; a state before the step at t then is given t ... t + 249."""
    own = bench(tmp_path / "own", "dit")
    spread = bench(tmp_path / "spread", "dit", spread=True)
    for step in range(5):
        first, second = draw(own, step), draw(spread, step)
        assert torch.equal(first.x, second.x) and set(first.t.tolist()) <= {750, 500, 250, 0}
        more = second.t - first.t
        assert more.min() >= 0 and more.max() < 250 and more.float().std() > 20


def test_what_has_no_anchor_has_none_and_is_refused_where_one_is_asked_for(tmp_path: Path) -> None:
    own = bench(tmp_path, "class", "retain", source="data")
    assert draw(own).anchor is None
    check_anchors(bench(tmp_path, "class", source="data").context())
    with pytest.raises(RecipeError, match=r"12 of the 12 retain items .*Type data\.concepts"):
        check_anchors(own.context())
    with pytest.raises(RecipeError, match=r"Type data\.concepts"):
        AnchorStates().prepare(own.model, own.context())


@pytest.mark.parametrize("source", ["trajectory", "student", "average", "generated"])
def test_more_steps_than_the_model_has_times_are_refused(source: Any, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"forget\.states\.steps is 1001.*Type forget\.states\.steps=20"):
        bench(tmp_path, "class", source=source, steps=1001)
    assert not list(tmp_path.iterdir())
    bench(tmp_path, "class", source="noise", steps=1001)  # has no steps


@pytest.mark.parametrize("wrong", [{"items": 0}, {"steps": 1}, {"walks": 0}, {"images": 0}, {"guidance": -1.0}])
def test_values_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        StateSource(source="data", **wrong)


def test_every_setting_of_a_trajectory_makes_another_bank(tmp_path: Path) -> None:
    """Two terms that ask for the same share it; the control: any other setting is other values."""
    model = small_model("class")
    for index, settings in enumerate([{}, {}, {"guidance": 1.0}, {"steps": 5}, {"items": 2}, {"of_anchor": True}]):
        own = Bench(tmp_path, Uses(source=states(**settings)), "class")  # type: ignore[arg-type]
        assert own.model.dtype == model.dtype and len(list(tmp_path.iterdir())) == max(1, index)
