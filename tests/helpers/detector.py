"""A stand-in for YuNet with its inputs and outputs, that takes magenta for faces."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# From the middle of a face, in sides of its box: eyes, nose, corners of the mouth.
POINTS = np.array([-0.2 - 0.2j, 0.2 - 0.2j, 0.0 + 0.05j, -0.15 + 0.25j, 0.15 + 0.25j])
_STRIDES = 8, 16, 32
_SIDE = 64.0  # of the box, in the pixels of the input, whatever is seen
MAGENTA = 255, 0, 255


def write_detector(path: Path) -> None:
    """Each cell of 32 x 32 pixels that is magenta is a face around its corner nearest to the origin, of a box of 64."""
    nodes, weights, outputs = [], [], []

    def constant(name: str, values: np.ndarray) -> str:
        weights.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    for stride in _STRIDES:
        seen = 1.0 if stride == 32 else 0.0
        points = np.stack([POINTS.real, POINTS.imag], 1).reshape(-1) * _SIDE / stride
        heads = {
            # BGR; green takes away, so that only magenta is above 0.9
            "cls": (np.array([[seen / 510, -seen / 255, seen / 510]]), np.zeros(1)),
            "obj": (np.zeros((1, 3)), np.ones(1)),
            "bbox": (np.zeros((4, 3)), np.array([0, 0, np.log(_SIDE / stride), np.log(_SIDE / stride)])),
            "kps": (np.zeros((10, 3)), points),
        }
        nodes.append(helper.make_node("AveragePool", ["input"], [f"mean{stride}"], kernel_shape=[stride] * 2, strides=[stride] * 2))  # fmt: skip
        for name, (weight, bias) in heads.items():
            out = f"{name}_{stride}"
            inputs = [
                f"mean{stride}",
                constant(f"w_{out}", weight[:, :, None, None]),
                constant(f"b_{out}", bias),
            ]
            shape = numpy_helper.from_array(np.array([1, -1, len(weight)], np.int64), f"s_{out}")
            weights.append(shape)
            nodes += [
                helper.make_node("Conv", inputs, [f"c_{out}"], kernel_shape=[1, 1]),
                helper.make_node("Transpose", [f"c_{out}"], [f"t_{out}"], perm=[0, 2, 3, 1]),
                helper.make_node("Reshape", [f"t_{out}", f"s_{out}"], [out]),
            ]
            cells = (640 // stride) ** 2
            outputs.append(helper.make_tensor_value_info(out, TensorProto.FLOAT, [1, cells, len(weight)]))
    names = [f"{name}_{stride}" for name in ("cls", "obj", "bbox", "kps") for stride in _STRIDES]
    outputs.sort(key=lambda it: names.index(it.name))
    given = [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 640, 640])]
    graph = helper.make_graph(nodes, "detector", given, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
