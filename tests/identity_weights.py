"""Seeded weights for identity systems' networks under their published names, small: what golden outputs of the published code were made with."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

Arrays = dict[str, npt.NDArray[np.float32]]
Shapes = Mapping[str, tuple[int, ...]]


def seeded(shapes: Shapes, seed: int = 0) -> Arrays:
    """Normal values, in the order of the names; of a size that keeps signals alive."""
    rng = np.random.default_rng(seed)
    made = {}
    for name in sorted(shapes):
        shape = shapes[name]
        fan = shape[-1] if len(shape) > 1 else 4
        values = rng.normal(0.0, 1.0 / np.sqrt(fan), shape)
        made[name] = (values + (1.0 if "norm" in name and name.endswith("weight") else 0.0)).astype(np.float32)
    return made


def signal(*shape: int, seed: int = 7) -> npt.NDArray[np.float32]:
    """Inputs."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    """A layer norm's."""
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def linear(name: str, inputs: int, outputs: int, *, bias: bool = True) -> dict[str, tuple[int, ...]]:
    """A linear layer's."""
    return {f"{name}.weight": (outputs, inputs), **({f"{name}.bias": (outputs,)} if bias else {})}


def perceiver(prefix: str, *, width: int, inner: int, depth: int, multiple: int = 4) -> dict[str, tuple[int, ...]]:
    """`layers.{i}` of a perceiver."""
    made: dict[str, tuple[int, ...]] = {}
    for i in range(depth):
        at, ff = f"{prefix}layers.{i}.0", f"{prefix}layers.{i}.1"
        made |= norm(f"{at}.norm1", width) | norm(f"{at}.norm2", width) | norm(f"{ff}.0", width)
        made |= linear(f"{at}.to_q", width, inner, bias=False) | linear(f"{at}.to_kv", width, 2 * inner, bias=False)
        made |= linear(f"{at}.to_out", inner, width, bias=False)
        made |= linear(f"{ff}.1", width, multiple * width, bias=False) | linear(f"{ff}.3", multiple * width, width, bias=False)
    return made


def resampler(*, features: int, width: int, out: int, queries: int = 4, inner: int = 128, depth: int = 4) -> dict[str, tuple[int, ...]]:
    """IP-Adapter-plus's and InstantID's."""
    made: dict[str, tuple[int, ...]] = {"latents": (1, queries, width)}
    made |= linear("proj_in", features, width) | linear("proj_out", width, out) | norm("norm_out", out)
    return made | perceiver("", width=width, inner=inner, depth=depth)


def plain(*, features: int, out: int, tokens: int = 4) -> dict[str, tuple[int, ...]]:
    """IP-Adapter's."""
    return linear("proj", features, tokens * out) | norm("norm", out)


def full_face(*, features: int, out: int) -> dict[str, tuple[int, ...]]:
    """IP-Adapter-full-face's."""
    return linear("proj.0", features, features) | linear("proj.2", features, out) | norm("proj.3", out)


def faceid(*, features: int, out: int, tokens: int = 4) -> dict[str, tuple[int, ...]]:
    """FaceID's."""
    return linear("proj.0", features, 2 * features) | linear("proj.2", 2 * features, tokens * out) | norm("norm", out)


def faceid_plus(*, features: int, seen: int, out: int) -> dict[str, tuple[int, ...]]:
    """FaceID-Plus's, both versions."""
    made = faceid(features=features, out=out) | linear("perceiver_resampler.proj_in", seen, out)
    made |= linear("perceiver_resampler.proj_out", out, out) | norm("perceiver_resampler.norm_out", out)
    return made | perceiver("perceiver_resampler.", width=out, inner=max(64, out // 64 * 64), depth=4)


def fuse(width: int) -> dict[str, tuple[int, ...]]:
    """PhotoMaker's and ConsistentID's."""
    made = norm("mlp1.layernorm", 2 * width) | linear("mlp1.fc1", 2 * width, width) | linear("mlp1.fc2", width, width)
    made |= norm("mlp2.layernorm", width) | linear("mlp2.fc1", width, width) | linear("mlp2.fc2", width, width)
    return made | norm("layer_norm", width)


def facial(*, features: int, width: int, out: int) -> dict[str, tuple[int, ...]]:
    """ConsistentID's FacialEncoder."""
    inner = resampler(features=features, width=width, out=out, queries=1, inner=128, depth=2)
    made = {f"visual_projection.{key}": shape for key, shape in inner.items()}
    return made | {f"fuse_module.{key}": shape for key, shape in fuse(out).items()}


def perceptron(name: str, inputs: int, outputs: int, *, bias: bool = True) -> dict[str, tuple[int, ...]]:
    """UniPortrait's: twice as wide inside."""
    return linear(f"{name}.0", inputs, 2 * inputs) | linear(f"{name}.2", 2 * inputs, outputs, bias=bias)


def uniportrait(*, who: int, form: int, out: int, queries: int = 4, inner: int = 64, depth: int = 2) -> dict[str, tuple[int, ...]]:
    """UniPortrait's resampler."""
    made: dict[str, tuple[int, ...]] = {"latents": (1, queries, out)}
    made |= perceptron("proj_id", who, out) | perceptron("proj_clip", form, out) | linear("proj_out", out, out) | norm("norm_out", out)
    for i in range(depth):
        for k in range(2):
            at = f"layers.{i}.{k}"
            made |= norm(f"{at}.norm1", out) | norm(f"{at}.norm2", out) | linear(f"{at}.to_q", out, inner, bias=False)
            made |= linear(f"{at}.to_kv", out, 2 * inner, bias=False) | linear(f"{at}.to_out", inner, out, bias=False)
        made |= norm(f"layers.{i}.2.0", out)
        made |= linear(f"layers.{i}.2.1", out, 4 * out, bias=False) | linear(f"layers.{i}.2.3", 4 * out, out, bias=False)
    return made


def router(channels: int, *, cross: int, queries: int) -> dict[str, tuple[int, ...]]:
    """UniPortrait's router of one attention."""
    made = perceptron("to_q_router", channels, channels, bias=False) | perceptron("to_k_router", cross, channels, bias=False)
    return made | linear("aggr_router", queries, 1)


def _batch_norm(name: str, width: int, *, affine: bool = True) -> dict[str, tuple[int, ...]]:
    return {**(norm(name, width) if affine else {}), f"{name}.running_mean": (width,), f"{name}.running_var": (width,)}


def curricular(*widths: tuple[int, int], vector: int) -> dict[str, tuple[int, ...]]:
    """CurricularFace's network: (channels, blocks) of each stage."""
    first = widths[0][0]
    made: dict[str, tuple[int, ...]] = {
        "input_layer.0.weight": (first, 3, 3, 3),
        **_batch_norm("input_layer.1", first),
        "input_layer.2.weight": (first,),
    }
    before, at = first, 0
    for width, blocks in widths:
        for _ in range(blocks):
            name = f"body.{at}.res_layer"
            made |= _batch_norm(f"{name}.0", before) | _batch_norm(f"{name}.2", width) | _batch_norm(f"{name}.5", width)
            made |= {f"{name}.1.weight": (width, before, 3, 3), f"{name}.3.weight": (width,), f"{name}.4.weight": (width, width, 3, 3)}
            if before != width:
                made |= {f"body.{at}.shortcut_layer.0.weight": (width, before, 1, 1), **_batch_norm(f"body.{at}.shortcut_layer.1", width)}
            before, at = width, at + 1
    made |= _batch_norm("output_layer.0", before) | linear("output_layer.3", before * 49, vector)
    return made | _batch_norm("output_layer.4", vector, affine=False)
