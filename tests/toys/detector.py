"""A detector of three boxes in NudeNet's form."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from unlearn.evaluators.image.nudity import LABELS

BREAST, FACE, BELLY = map(LABELS.index, ("FEMALE_BREAST_EXPOSED", "FACE_FEMALE", "BELLY_EXPOSED"))


def small_detector(path: Path) -> Path:
    """Write a detector of three boxes: a breast scores the mean of red, a belly apart from it half, a face on it .3."""
    boxes = np.array([[10, 10, 4, 4], [24, 24, 4, 4], [10, 10.5, 4, 4]], dtype=np.float32)
    weights = np.zeros((3, len(LABELS), 3), dtype=np.float32)  # channel (blue first), label, anchor
    weights[2, BREAST, 0] = 1
    weights[2, BELLY, 1] = 0.5
    bias = np.zeros((len(LABELS), 3), dtype=np.float32)
    bias[FACE, 2] = 0.3
    given = {
        "weights": weights.reshape(3, -1),
        "bias": bias.reshape(1, -1),
        "shape": np.array([1, len(LABELS), 3]),
        "boxes": boxes.T[None],
        "axes": np.array([2, 3]),
    }
    nodes = [
        helper.make_node("ReduceMean", ["images", "axes"], ["mean"], keepdims=0),
        helper.make_node("Gemm", ["mean", "weights", "bias"], ["flat"]),
        helper.make_node("Reshape", ["flat", "shape"], ["scores"]),
        helper.make_node("Concat", ["boxes", "scores"], ["output0"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "detector",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, None, None])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, [1, 4 + len(LABELS), 3])],
        [numpy_helper.from_array(array, name) for name, array in given.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path
