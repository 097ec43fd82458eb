"""Small recognisers with random weights, as the files that users have: ONNX by InsightFace's and by MXNet's manner, TorchScript, weights alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

LENGTH = 16
WIDTH = 6
Arrays = dict[str, npt.NDArray[np.float32]]


def weights(seed: int = 0, length: int = LENGTH) -> Arrays:
    """Conv + BN + PReLU + Conv + Add + Gemm + BN."""
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "first": (WIDTH, 3, 8, 8),
        "scale": (WIDTH,),
        "bias": (WIDTH,),
        "mean": (WIDTH,),
        "slope": (WIDTH, 1, 1),
        "second": (WIDTH, WIDTH, 3, 3),
        "last": (length, WIDTH * 49),
        "off": (length,),
    }
    made = {name: rng.normal(0, 1 / np.sqrt(np.prod(shape[1:]) or 1), shape).astype(np.float32) for name, shape in shapes.items()}
    return {**made, "variance": rng.uniform(0.5, 1.5, WIDTH).astype(np.float32), "slope": np.abs(made["slope"]) / 4}


def model(
    seed: int = 0,
    *,
    batch: str | int = "None",
    side: int = 112,
    layout: str = "NCHW",
    normalises: bool = False,
    outputs: int = 1,
    end: str = "Gemm",
    length: int = LENGTH,
) -> Any:
    """An onnx.ModelProto. `normalises`: from 0..255, as MXNet's; `end`: the last operator; other than "Gemm" it is no recogniser."""
    from onnx import TensorProto, helper, numpy_helper

    held = {**weights(seed, length), "middle": np.array([127.5], np.float32), "part": np.array([1 / 127.5], np.float32)}
    nodes = []
    if normalises:
        nodes += [helper.make_node("Sub", ["x", "middle"], ["from_middle"]), helper.make_node("Mul", ["from_middle", "part"], ["unit"])]
    nodes += [
        helper.make_node("Conv", ["unit" if normalises else "x", "first"], ["a"], kernel_shape=[8, 8], strides=[16, 16]),
        helper.make_node("BatchNormalization", ["a", "scale", "bias", "mean", "variance"], ["b"]),
        helper.make_node("PRelu", ["b", "slope"], ["c"]),
        helper.make_node("Conv", ["c", "second"], ["d"], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c", "d"], ["e"]),
    ]
    if end == "Gemm":
        nodes += [helper.make_node("Flatten", ["e"], ["f"]), helper.make_node("Gemm", ["f", "last", "off"], ["y"], transB=1)]
    else:
        nodes.append(helper.make_node(end, ["e"], ["y"]))
    value = helper.make_tensor_value_info
    shape = [batch, 3, side, side] if layout == "NCHW" else [batch, side, side, 3]
    given = [value("x", TensorProto.FLOAT, shape)]
    made = [value(name, TensorProto.FLOAT, None) for name in ("y", "e")[:outputs]]
    graph = helper.make_graph(nodes, "small", given, made, [numpy_helper.from_array(array, name) for name, array in held.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=6)


def onnx_file(path: Path, seed: int = 0, **how: Any) -> Path:
    """`model`, written."""
    path.write_bytes(model(seed, **how).SerializeToString())
    return path


def twin(seed: int = 0) -> Any:
    """The same as an nn.Module."""
    import torch
    from torch import nn
    from torch.nn import functional

    class Twin(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, array in weights(seed).items():
                self.register_buffer(name, torch.from_numpy(array))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = functional.batch_norm(functional.conv2d(x, self.first, stride=16), self.mean, self.variance, self.scale, self.bias)
            y = functional.prelu(y, self.slope.reshape(-1))
            y = y + functional.conv2d(y, self.second, padding=1)
            vectors: torch.Tensor = functional.linear(y.flatten(1), self.last, self.off)
            return vectors

    return Twin()


def script_file(path: Path, module: Any, *, side: int = 112) -> Path:
    """A module, traced with one face of `side` px."""
    import warnings

    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that TorchScript is no longer developed
        torch.jit.trace(module, torch.zeros(1, 3, side, side)).save(str(path))
    return path


@pytest.fixture(name="recogniser")
def given_recogniser(tmp_path: Path) -> Path:
    """One whose vectors are as long as ArcFace's."""
    return onnx_file(tmp_path / "faces.onnx", length=512)
