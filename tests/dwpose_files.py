"""Tiny networks with the inputs and outputs of DWPose's two files: a detector that says what it is told, a pose network that finds bright dots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from engine.drivers.dwpose import DETECTOR, POINTS, POSE
from engine.types import FloatArray

SIDE = 640
"""px of the detector's picture."""
SIZE = (384, 288)
"""(H, W) of the pose network's."""
STRIDES = (8, 16, 32)
CLASSES = 80


def told(*boxes: tuple[float, float, float, float, float, int]) -> FloatArray:
    """[8400, 85] of a detector that sees boxes (x0, y0, x1, y1 in px of its picture, score, class), each in the cell of its middle."""
    out = np.zeros((sum((SIDE // s) ** 2 for s in STRIDES), 5 + CLASSES), np.float32)
    for k, (x0, y0, x1, y1, score, kind) in enumerate(boxes):
        stride = STRIDES[k % len(STRIDES)]
        first = sum((SIDE // s) ** 2 for s in STRIDES if s < stride)
        column, row = int((x0 + x1) / 2 / stride), int((y0 + y1) / 2 / stride)
        cell = out[first + row * (SIDE // stride) + column]
        cell[:2] = (x0 + x1) / 2 / stride - column, (y0 + y1) / 2 / stride - row
        cell[2:4] = np.log((x1 - x0) / stride), np.log((y1 - y0) / stride)
        cell[4], cell[5 + kind] = 1.0, score
    return out


def write_detector(folder: Path, says: FloatArray, *, side: int = SIDE) -> None:
    """It answers `says` whatever it is shown."""
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Mul", ["mean", "nothing"], ["zero"]),
        helper.make_node("Add", ["says", "zero"], ["output"]),
    ]
    constants = [numpy_helper.from_array(says[None], "says"), numpy_helper.from_array(np.zeros(1, np.float32), "nothing")]
    _write(folder / DETECTOR, nodes, constants, {"images": [1, 3, side, side]}, {"output": list(says[None].shape)})


def write_pose(folder: Path, *, size: tuple[int, int] = SIZE, points: int = POINTS, score: float = 0.5) -> None:
    """Point k lies where the picture is brightest in colour k % 3; a score is `score` times the brightness there of a row, or column."""
    height, width = size
    choice = np.zeros((points, 3, 1), np.float32)
    choice[np.arange(points), np.arange(points) % 3] = score
    twice = np.array([1, 1, 2], np.float32)
    nodes, constants = [], [numpy_helper.from_array(choice, "choice"), numpy_helper.from_array(twice, "twice")]
    for name, axis in (("simcc_x", 2), ("simcc_y", 3)):
        nodes += [
            helper.make_node("ReduceMax", ["input"], [f"{name}.lit"], axes=[axis], keepdims=0),
            helper.make_node("Resize", [f"{name}.lit", "", "twice"], [f"{name}.bins"], mode="nearest", coordinate_transformation_mode="asymmetric"),
            helper.make_node("Conv", [f"{name}.bins", "choice"], [name]),
        ]
    outputs = {"simcc_x": ["n", points, 2 * width], "simcc_y": ["n", points, 2 * height]}
    _write(folder / POSE, nodes, constants, {"input": ["n", 3, height, width]}, outputs)


def _write(path: Path, nodes: list[onnx.NodeProto], constants: list[onnx.TensorProto], takes: dict[str, Any], gives: dict[str, Any]) -> None:
    ports = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in given.items()] for given in (takes, gives)]
    graph = helper.make_graph(nodes, path.stem, ports[0], ports[1], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
