"""A network with the inputs and outputs of OpenCV's YuNet that finds red squares of 32 pixels.

YuNet's own file has to be downloaded. Of each cell of 8, 16 and 32 pixels it gives a class and an
objectness score, a box (offset of its middle in cells, logarithm of its sides in cells) and five
landmarks.
"""

import importlib
from pathlib import Path
from typing import Any

import numpy as np

onnx: Any = importlib.import_module("onnx")
OUTPUTS = {"cls": 1, "obj": 1, "bbox": 4, "kps": 10}
STRIDES = (8, 16, 32)


def weights_of(kind: str, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """1x1 convolution on a cell's mean colour, blue first: red scores, all boxes are two cells."""
    weight = np.zeros((OUTPUTS[kind], 3, 1, 1), np.float32)
    bias = np.zeros(OUTPUTS[kind], np.float32)
    if kind in ("cls", "obj"):
        weight[0, 2], weight[0, 1], bias[0] = 0.1, -0.1, -10 if stride == 32 else -1000
    if kind == "bbox":
        bias[:2], bias[2:] = 0.5, np.log(2)
    return weight, bias


def save(path: Path) -> Path:
    """Writes the network and returns its path."""
    helper, nodes, constants, outputs = onnx.helper, [], {}, {}
    for stride in STRIDES:
        cells = f"cells{stride}"
        sides = {"kernel_shape": [stride] * 2, "strides": [stride] * 2}
        nodes.append(helper.make_node("AveragePool", ["input"], [cells], **sides))
        for kind, width in OUTPUTS.items():
            name = f"{kind}_{stride}"
            constants[f"{name}.w"], constants[f"{name}.b"] = weights_of(kind, stride)
            constants[f"{name}.shape"] = np.array([1, -1, width])
            nodes.append(
                helper.make_node("Conv", [cells, f"{name}.w", f"{name}.b"], [f"{name}.map"])
            )
            scores = kind in ("cls", "obj")
            if scores:
                nodes.append(helper.make_node("Sigmoid", [f"{name}.map"], [f"{name}.score"]))
            given = f"{name}.score" if scores else f"{name}.map"
            nodes.append(
                helper.make_node("Transpose", [given], [f"{name}.last"], perm=[0, 2, 3, 1])
            )
            nodes.append(helper.make_node("Reshape", [f"{name}.last", f"{name}.shape"], [name]))
            outputs[name] = [1, None, width]
    floats = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes, "drawn",
        [helper.make_tensor_value_info("input", floats, [1, 3, "height", "width"])],
        [helper.make_tensor_value_info(f"{kind}_{stride}", floats, outputs[f"{kind}_{stride}"])
         for kind in OUTPUTS for stride in STRIDES],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)])
    model.ir_version = 8
    onnx.save(model, str(path))
    return path
