"""Weights of TensorFlow.js come through the conversion with their values."""

import json
from pathlib import Path

import pytest
import torch

from unlearn.core.errors import RecipeError
from unlearn.experiment.convert_tensorflow_js import QuantisedWeight, main, read_weights, write_weights
from unlearn.models.feature_extractors.networks import stored_values


def test_weights_of_tensorflow_js(tmp_path: Path) -> None:
    """Codes 0, 10, 255 with scale 0.5 and least -1 are -1, 4, 126.5; floats and shapes lie between."""
    manifest = [
        {
            "name": "a/w",
            "shape": [3],
            "dtype": "float32",
            "quantization": {"dtype": "uint8", "scale": 0.5, "min": -1.0},
        },
        {"name": "shape", "shape": [2], "dtype": "int32"},
        {"name": "b", "shape": [2, 1], "dtype": "float32"},
        {"name": "half", "shape": [], "dtype": "float32", "quantization": {"dtype": "float16"}},
    ]
    (tmp_path / "m.json").write_text(json.dumps([{"paths": ["m.bin"], "weights": manifest}]))
    content = bytes([0, 10, 255]) + bytes(8)
    content += torch.tensor([1.5, -2.0]).numpy().tobytes() + torch.tensor([0.25], dtype=torch.half).numpy().tobytes()
    (tmp_path / "m.bin").write_bytes(content)
    main([str(tmp_path / "m.json"), str(tmp_path / "m.bin"), str(tmp_path / "all")])
    assert {name: value.tolist() for name, value in stored_values(tmp_path / "all").items()} == {
        "a/w": [-1, 4, 126.5],
        "b": [[1.5], [-2.0]],
        "half": 0.25,
    }
    main([str(tmp_path / "m.json"), str(tmp_path / "m.bin"), str(tmp_path / "out"), "--only", "a/,b"])
    assert {name: value.tolist() for name, value in stored_values(tmp_path / "out").items()} == {
        "a/w": [-1, 4, 126.5],
        "b": [[1.5], [-2.0]],
    }
    (tmp_path / "m.bin").write_bytes(content[:-1])
    with pytest.raises(RecipeError, match=r"holds 20 bytes|speaks of"):
        read_weights(tmp_path / "m.json", tmp_path / "m.bin")
    many = {str(number): QuantisedWeight(torch.zeros(2_000_000, dtype=torch.uint8), 1.0, 0.0) for number in range(5)}
    assert [path.name for path in write_weights(many, tmp_path / "many")] == [
        f"weights_{number}.safetensors" for number in (1, 2, 3)
    ]
    (tmp_path / "m.json").write_text(json.dumps([{"weights": [{"name": "x", "shape": [1], "dtype": "string"}]}]))
    with pytest.raises(RecipeError, match="is of type 'string'"):
        read_weights(tmp_path / "m.json", tmp_path / "m.bin")
