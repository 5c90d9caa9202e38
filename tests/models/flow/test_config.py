"""Settings, data and files that a flow refuses."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.toys.flow_kinds import IMAGE, KINDS, VECTOR, items
from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.models.flow.config import CouplingFlowConfig, FlowConfig, GlowConfig, SplineFlowConfig
from unlearn.models.flow.wrapper import Flow

R = Randomness(3)


@pytest.mark.parametrize(
    ("config", "info", "message"),
    [
        (GlowConfig(scales=4), {"shape": (1, 28, 28), "levels": 256}, r"model\.scales=3"),
        (GlowConfig(), {"shape": (3, 7, 8), "levels": 256}, "common factor"),
        (GlowConfig(), VECTOR, "takes images"),
        (SplineFlowConfig(), IMAGE, "takes vectors"),
        (CouplingFlowConfig(), {"shape": (1,), "levels": None}, "2 values or more"),
    ],
)
def test_data_that_does_not_fit(config: FlowConfig, info: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        config.build(info, Randomness(0))


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        (GlowConfig, {"depth": 0}),
        (GlowConfig, {"scales": 0}),
        (GlowConfig, {"alpha": 0.5}),
        (GlowConfig, {"coupling": "cubic"}),
        (GlowConfig, {"temperature": 0.0}),
        (SplineFlowConfig, {"bins": 1}),
        (SplineFlowConfig, {"tail": 0.0}),
    ],
)
def test_settings_out_of_range(config: type[FlowConfig], settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        config(**settings)


def test_batches_that_do_not_fit() -> None:
    config, info = KINDS["glow"]
    flow = config.build(info, Randomness(0))
    with pytest.raises(RecipeError, match=r"'image'.*\(1, 4, 4\).*\(1, 8, 8\)"):
        flow.log_prob(items({"shape": (1, 8, 8), "levels": 17}, 2), R)
    with pytest.raises(RecipeError, match=r"\['id', 'vector'\]"):
        flow.log_prob(items(VECTOR, 2), R)


def saved(folder: Path) -> Path:
    config, info = KINDS["coupling_flow"]
    config.build(info, Randomness(0)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", None, r"config\.json is missing"),
        ("config.json", "{", r"config\.json cannot be read"),
        ("config.json", "[]", r"config\.json holds list"),
        (
            "config.json",
            '{"kind": "glov", "config": {"temperature": 1}, "info": {"shape": [3]}}',
            "'glov'.*Did you mean: glow",
        ),
        ("config.json", '{"kind": "glow", "info": {}}', r"config\.json does not describe"),
        (
            "config.json",
            '{"kind": "coupling_flow", "config": {"depth": 2}, "info": {"shape": [3]}}',
            "temperature",
        ),
        ("model.safetensors", None, r"model\.safetensors is missing"),
        ("model.safetensors", "rubbish" * 9, r"model\.safetensors cannot be read"),
    ],
)
def test_wrong_files_are_named(file: str, content: str | None, message: str, tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_text(content)
    with pytest.raises(RecipeError, match=message):
        Flow.from_pretrained(tmp_path)


def test_truncated_weights_and_other_weights(tmp_path: Path) -> None:
    path = saved(tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(RecipeError, match=r"model\.safetensors cannot be read"):
        Flow.from_pretrained(tmp_path)
    saved(tmp_path)
    about = json.loads((tmp_path / "config.json").read_text())
    for change, message in (
        ({"depth": 4}, r"\d+ weights missing"),
        ({"width": 7}, r"\d+ weights of another"),
    ):
        other = {**about, "config": {**about["config"], **change}}
        (tmp_path / "config.json").write_text(json.dumps(other))
        with pytest.raises(RecipeError, match=message):
            Flow.from_pretrained(tmp_path)
