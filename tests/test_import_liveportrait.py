"""LivePortrait's published files find their places in our networks, key by key, and what does not fit is said."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import avatar
from engine.types import AvatarError
from tests.conftest import found, require

if found("torch") and found("diffusers"):
    import torch

    from engine.generators.reenact import networks
    from engine.generators.reenact.generator import Reenact
    from engine.generators.reenact.presets import LIVEPORTRAIT, TINY, Preset
    from engine.generators.reenact.running import Desk
    from exporters.published import import_liveportrait as importer

pytestmark = pytest.mark.torch
Shape = tuple[int, ...]
Shapes = dict[str, Shape]
FILES = ("appearance_feature_extractor", "motion_extractor", "warping_module", "spade_generator")
NESTED = {"stitching": "retarget_shoulder", "lip": "retarget_mouth", "eye": "retarget_eye"}


@pytest.fixture(autouse=True, scope="module")
def _installed() -> None:
    require("torch")
    require("diffusers")


# -- the published layout, written out -----------------------------------------------------------------------------------


def layer(key: str, width_in: int, width: int, *sides: int, bias: bool = True, spectral: bool = False) -> Shapes:
    """A linear layer, or a convolution of these sides; with spectral norm its weight is three tensors."""
    weight = (width, width_in, *sides)
    made: Shapes = {f"{key}.bias": (width,)} if bias else {}
    if not spectral:
        return made | {f"{key}.weight": weight}
    return made | {f"{key}.weight_orig": weight, f"{key}.weight_u": (width,), f"{key}.weight_v": (int(np.prod(weight[1:])),)}


def batch_norm(key: str, width: int) -> Shapes:
    return {f"{key}.{name}": (width,) for name in ("weight", "bias", "running_mean", "running_var")} | {f"{key}.num_batches_tracked": ()}


def norm(key: str, width: int) -> Shapes:
    return {f"{key}.weight": (width,), f"{key}.bias": (width,)}


def block(key: str, width_in: int, width: int, *sides: int) -> Shapes:
    return layer(f"{key}.conv", width_in, width, *sides) | batch_norm(f"{key}.norm", width)


def appearance(made: Preset) -> Shapes:
    c = made.channels
    shapes = block("first", 3, c, 3, 3) | block("down_blocks.0", c, 2 * c, 3, 3) | block("down_blocks.1", 2 * c, 4 * c, 3, 3)
    shapes |= layer("second", 4 * c, made.volume[0] * made.volume[1], 1, 1)
    for i in range(made.residuals):
        for j in (1, 2):
            shapes |= batch_norm(f"resblocks_3d.3dr{i}.norm{j}", made.volume[0])
            shapes |= layer(f"resblocks_3d.3dr{i}.conv{j}", made.volume[0], made.volume[0], 3, 3, 3)
    return shapes


def motion(made: Preset) -> Shapes:
    w = made.widths
    shapes = layer("downsample_layers.0.0", 3, w[0], 4, 4) | norm("downsample_layers.0.1", w[0])
    for i in range(3):
        shapes |= norm(f"downsample_layers.{i + 1}.0", w[i]) | layer(f"downsample_layers.{i + 1}.1", w[i], w[i + 1], 2, 2)
    for i, depth in enumerate(made.depths):
        for j in range(depth):
            key = f"stages.{i}.{j}"
            shapes |= layer(f"{key}.dwconv", 1, w[i], 7, 7) | norm(f"{key}.norm", w[i])
            shapes |= layer(f"{key}.pwconv1", w[i], 4 * w[i]) | layer(f"{key}.pwconv2", 4 * w[i], w[i])
            shapes |= {f"{key}.grn.{name}": (1, 1, 1, 4 * w[i]) for name in ("gamma", "beta")}
    shapes |= norm("norm", w[3])
    for head, width in (("kp", 63), ("scale", 1), ("pitch", 66), ("yaw", 66), ("roll", 66), ("t", 3), ("exp", 63)):
        shapes |= layer(f"fc_{head}", w[3], width)
    return {f"detector.{key}": shape for key, shape in shapes.items()}


def warping(made: Preset) -> Shapes:
    dense, glass = "dense_motion_network", "dense_motion_network.hourglass"
    entering = 22 * (made.compressed + 1)
    widths = [entering, *(min(made.widest, made.hourglass * 2 ** (i + 1)) for i in range(made.levels))]
    shapes: Shapes = {}
    for i in range(made.levels):
        shapes |= block(f"{glass}.encoder.down_blocks.{i}", widths[i], widths[i + 1], 3, 3, 3)
    for k, i in enumerate(reversed(range(made.levels))):
        entered = widths[i + 1] * (1 if k == 0 else 2)
        shapes |= block(f"{glass}.decoder.up_blocks.{k}", entered, min(made.widest, made.hourglass * 2**i), 3, 3, 3)
    last = made.hourglass + entering
    shapes |= block(f"{glass}.decoder", last, last, 3, 3, 3)
    shapes |= layer(f"{dense}.mask", last, 22, 7, 7, 7) | layer(f"{dense}.compress", made.volume[0], made.compressed, 1, 1, 1)
    shapes |= batch_norm(f"{dense}.norm", made.compressed) | layer(f"{dense}.occlusion", last * made.volume[1], 1, 7, 7)
    flat, features = made.volume[0] * made.volume[1], 4 * made.channels
    return shapes | block("third", flat, features, 3, 3) | layer("fourth", features, features, 1, 1)


def decoder(made: Preset) -> Shapes:
    told = 4 * made.channels
    shapes = layer("fc", told, 2 * told, 3, 3) | layer("conv_img.0", made.painted, 12, 3, 3)
    blocks = [(f"G_middle_{i}", 2 * told, 2 * told) for i in range(made.middle)] + [("up_0", 2 * told, told), ("up_1", told, made.painted)]
    for key, width_in, width in blocks:
        middle = min(width_in, width)
        modulated = {"norm_0": width_in, "norm_1": middle} | ({"norm_s": width_in} if width_in != width else {})
        shapes |= layer(f"{key}.conv_0", width_in, middle, 3, 3, spectral=True) | layer(f"{key}.conv_1", middle, width, 3, 3, spectral=True)
        shapes |= layer(f"{key}.conv_s", width_in, width, 1, 1, bias=False, spectral=True) if width_in != width else {}
        for name, wide in modulated.items():
            shapes |= layer(f"{key}.{name}.mlp_shared.0", told, made.shared, 3, 3)
            shapes |= layer(f"{key}.{name}.mlp_gamma", made.shared, wide, 3, 3) | layer(f"{key}.{name}.mlp_beta", made.shared, wide, 3, 3)
    return shapes


def perceptron(*widths: int) -> Shapes:
    made: Shapes = {}
    for i, (a, b) in enumerate(zip(widths, widths[1:], strict=False)):
        made |= layer(f"mlp.{2 * i}", a, b)
    return made


def published(made: Preset) -> dict[str, Shapes]:
    files = dict(zip(FILES, (appearance(made), motion(made), warping(made), decoder(made)), strict=True))
    nested = {"stitching": (126, *made.stitching, 65), "lip": (65, *made.lip, 63), "eye": (66, *made.eye, 63)}
    return files | {part: {f"module.{key}": shape for key, shape in perceptron(*widths).items()} for part, widths in nested.items()}


def test_the_layout_has_as_many_tensors_as_was_published() -> None:
    assert [len(shapes) for shapes in published(LIVEPORTRAIT).values()] == [107, 212, 97, 182, 8, 8, 12]


def values(shapes: Shapes) -> dict[str, Any]:
    made = {}
    for key, shape in shapes.items():
        generator = torch.Generator().manual_seed(sum(key.encode()))
        made[key] = torch.tensor(7) if key.endswith("num_batches_tracked") else torch.rand(shape, generator=generator) + 0.1
    return made


@pytest.fixture(scope="module")
def held() -> dict[str, dict[str, Any]]:
    return {name: values(shapes) for name, shapes in published(TINY).items()}


def put(folder: Path, held: dict[str, dict[str, Any]]) -> Path:
    for name in ("base_models", "retargeting_models"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name in FILES:
        torch.save(held[name], folder / "base_models" / f"{name}.pth")
    nested = {inside: held[part] for part, inside in NESTED.items()}
    torch.save(nested, folder / "retargeting_models" / "stitching_retargeting_module.pth")
    return folder


def run(source: Path, out: Path, **more: Any) -> None:
    importer.import_liveportrait(source, out, made=TINY, **more)


# -- what becomes of it --------------------------------------------------------------------------------------------------


def test_every_tensor_arrives(held: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    told: list[str] = []
    run(put(tmp_path / "published", held), tmp_path / "out", tell=told.append)
    made = networks.load(tmp_path / "out")
    arrived = 0
    for name, part in zip(published(TINY), made.parts(), strict=True):
        ours = made.parts()[part].state_dict()
        for key, value in held[name].items():
            key = key.removeprefix("detector.").removeprefix("module.")
            if key.endswith("weight_orig"):
                stem = key.removesuffix("_orig")
                u, v = held[name][f"{stem}_u"], held[name][f"{stem}_v"]
                torch.testing.assert_close(ours[stem], value / (u @ value.flatten(1) @ v))
            elif not key.endswith(("_u", "_v", ".num_batches_tracked")):
                assert torch.equal(ours[key], value), key
                arrived += 1
    assert arrived > 150
    assert any("base_models/spade_generator.pth" in line for line in told)
    assert any("8 weights with spectral norm, folded" in line for line in told)
    manifest = json.loads((tmp_path / "out" / "weights.json").read_text())
    assert manifest["origin"]["system"] == "LivePortrait"
    assert len(manifest["origin"]["retargeting_models/stitching_retargeting_module.pth"]) == 64


def test_the_command_says_how_to_serve(held: dict[str, dict[str, Any]], tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    """From the folder above as well, in half precision."""
    monkeypatch.setattr(importer, "import_liveportrait", partial(importer.import_liveportrait, made=TINY))
    put(tmp_path / "all" / "pretrained_weights" / "liveportrait", held)
    out = tmp_path / "out"
    assert avatar.main(["import", "liveportrait", str(tmp_path / "all"), "-o", str(out), "--precision", "fp16"]) == 0
    assert f"avatar serve --generator reenact --weights {out}" in capsys.readouterr().out
    assert networks.load(out).decoder.fc.weight.dtype == torch.float16


def test_what_does_not_fit_is_named(held: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    cases: tuple[tuple[str, Callable[[dict[str, Any]], object], str], ...] = (
        ("missing", lambda file: file.pop("fc.bias"), r"spade_generator.pth is not LivePortrait's base_models: .* 1 missing \(first 'fc.bias'\)"),
        ("unexpected", lambda file: file.update(other=torch.zeros(2)), r"1 unexpected \(first 'other'\)"),
        ("unfit", lambda file: file.update({"fc.bias": torch.zeros(3)}), r"1 of another kind \(first 'fc.bias', \[3\] float32 instead of \[64\]\)"),
        ("half", lambda file: file.pop("up_0.conv_s.weight_v"), r"a part of 'up_0.conv_s.weight' with spectral norm, and not the rest"),
    )
    for case, change, told in cases:
        file = dict(held["spade_generator"])
        change(file)
        with pytest.raises(AvatarError, match=told):
            run(put(tmp_path / case, held | {"spade_generator": file}), tmp_path / f"{case}_out")
        assert not (tmp_path / f"{case}_out").exists()


def test_what_is_not_there_is_named(held: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(AvatarError, match="is no folder; give the one that LivePortrait's files were downloaded to"):
        run(tmp_path / "none", tmp_path / "out")
    folder = put(tmp_path / "published", held)
    whole = folder / "retargeting_models" / "stitching_retargeting_module.pth"
    torch.save({"retarget_shoulder": held["stitching"]}, whole)
    with pytest.raises(AvatarError, match="holds no network called 'retarget_mouth'"):
        run(folder, tmp_path / "out")
    whole.unlink()
    with pytest.raises(AvatarError, match="has no retargeting_models/stitching_retargeting_module.pth; download it"):
        run(folder, tmp_path / "out")


# -- published ONNX files --------------------------------------------------------------------------------------------------


def graph(folder: Path, name: str, inputs: Mapping[str, Shape], outputs: Mapping[str, Shape], weights: Mapping[str, list[float]]) -> None:
    """A file whose every output is full of the sum of its inputs' means, each times a weight of that output."""
    import onnx
    from onnx import TensorProto, helper

    nodes, constants = [], []
    for key in inputs:
        nodes.append(helper.make_node("ReduceMean", [key], [f"{key}_mean"], keepdims=0))
    for out, shape in outputs.items():
        terms = []
        for key, weight in zip(inputs, weights[out], strict=True):
            constants.append(helper.make_tensor(f"{out}_{key}_w", TensorProto.FLOAT, [], [weight]))
            nodes.append(helper.make_node("Mul", [f"{key}_mean", f"{out}_{key}_w"], [f"{out}_{key}_t"]))
            terms.append(f"{out}_{key}_t")
        constants.append(helper.make_tensor(f"{out}_shape", TensorProto.INT64, [len(shape)], list(shape)))
        nodes.append(helper.make_node("Sum", terms, [f"{out}_sum"]))
        nodes.append(helper.make_node("Expand", [f"{out}_sum", f"{out}_shape"], [out]))
    ports = [[helper.make_tensor_value_info(key, TensorProto.FLOAT, list(shape)) for key, shape in each.items()] for each in (inputs, outputs)]
    model = helper.make_model(helper.make_graph(nodes, name, *ports, constants), opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, folder / f"{name}.onnx")


@pytest.fixture
def release(tmp_path: Path) -> Path:
    require("onnx")
    require("onnxruntime")
    folder = tmp_path / "checkpoints" / "liveportrait_onnx"
    folder.mkdir(parents=True)
    picture, points = {"img": (1, 3, 256, 256)}, {"kp_driving": (1, 21, 3), "kp_source": (1, 21, 3)}
    volume = (1, 32, 16, 64, 64)
    said = {"pitch": (1, 66), "yaw": (1, 66), "roll": (1, 66), "t": (1, 3), "exp": (1, 63), "scale": (1, 1), "kp": (1, 63)}
    graph(folder, "appearance_feature_extractor", picture, {"output": volume}, {"output": [2.0]})
    graph(folder, "motion_extractor", picture, said, {name: [float(k)] for k, name in enumerate(said, 1)})
    graph(folder, "warping_spade", {"feature_3d": volume, **points}, {"out": (1, 3, 512, 512)}, {"out": [0.0, 1.0, 0.1]})
    for name, width, given in (("stitching", 126, 65), ("stitching_lip", 65, 63), ("stitching_eye", 66, 63)):
        graph(folder, name, {"input": (1, width)}, {"output": (1, given)}, {"output": [1.0]})
    return tmp_path


def test_onnx_files_are_taken_as_they_are(release: Path, tmp_path: Path) -> None:
    told: list[str] = []
    run(release, tmp_path / "out", tell=told.append)
    assert any("warping_spade.onnx: takes feature_3d [1, 32, 16, 64, 64], kp_driving [1, 21, 3]" in line for line in told)
    made = Reenact(weights=tmp_path / "out")
    assert (made.backend, made.preset, made.spec.notice) == ("onnxruntime", "liveportrait", "")
    desk = Desk(made._runners)
    grey = np.full((1, 256, 256, 3), 51, np.uint8)  # 0.2
    assert desk("appearance", 1, {"picture": grey})["volume"].mean() == pytest.approx(0.4, rel=1e-4)
    said = desk("motion", 1, {"picture": grey})
    np.testing.assert_allclose(said["pose"], 0.0, atol=1e-3)  # all bins alike: the middle
    assert [float(said[name].flat[0]) for name in ("t", "exp", "scale", "kp")] == pytest.approx([0.8, 1.0, 1.2, 1.4], rel=1e-4)
    source, driven = np.full((1, 21, 3), 0.5, np.float32), np.full((1, 21, 3), 0.25, np.float32)
    picture = desk("render", 1, {"volume": np.zeros((1, 32, 16, 64, 64), np.float32), "source": source, "driven": driven})["picture"]
    assert picture.shape == (1, 512, 512, 3)
    assert int(picture.max()) == pytest.approx(255 * (0.25 + 0.05), abs=1)  # the driven keypoints come first
    points = desk("stitch", 1, {"source": source, "driven": driven})["points"]
    np.testing.assert_allclose(points[0, 0], [0.25 + 0.75, 0.25 + 0.75, 0.25 + 0.375], atol=1e-5)
    moved = desk("retarget", 1, {"source": source, "lips": np.zeros((1, 2), np.float32), "eyes": np.ones((1, 3), np.float32)})
    assert moved["lips_moved"].mean() == pytest.approx(0.5 * 63 / 65, rel=1e-4)
    assert moved["eyes_moved"].mean() == pytest.approx((0.5 * 63 + 3) / 66, rel=1e-4)
    with pytest.raises(AvatarError, match="which ONNX Runtime runs; leave --backend out"):
        Reenact(weights=tmp_path / "out", backend="openvino")
    (tmp_path / "out" / "stitching.onnx").write_bytes(b"other")
    with pytest.raises(AvatarError, match="not the file that its weights.json names"):
        Reenact(weights=tmp_path / "out")


def test_names_that_tell_the_keypoints_apart_count_more_than_places(release: Path, tmp_path: Path) -> None:
    volume, points = {"feature_3d": (1, 32, 16, 64, 64)}, {"kp_source": (1, 21, 3), "kp_driving": (1, 21, 3)}
    graph(release / "checkpoints" / "liveportrait_onnx", "warping_spade", {**volume, **points}, {"out": (1, 3, 512, 512)}, {"out": [0.0, 0.0, 1.0]})
    run(release, tmp_path / "out")
    given = {"volume": np.zeros((1, 32, 16, 64, 64), np.float32), "source": np.zeros((1, 21, 3), np.float32), "driven": np.ones((1, 21, 3))}
    assert int(Desk(Reenact(weights=tmp_path / "out")._runners)("render", 1, given)["picture"].min()) == 255


def test_other_onnx_files_are_refused(release: Path, tmp_path: Path) -> None:
    folder = release / "checkpoints" / "liveportrait_onnx"
    graph(folder, "stitching_eye", {"input": (1, 9)}, {"output": (1, 63)}, {"output": [1.0]})
    with pytest.raises(AvatarError, match=r"not the published stitching_eye.onnx: it takes \[1, 9\] and gives 1 tensors instead of \[1, 66\] and 1"):
        run(release, tmp_path / "out")
    (folder / "stitching_eye.onnx").write_bytes(b"nothing")
    with pytest.raises(AvatarError, match=r"cannot load 'stitching_eye.onnx' .*; download it again"):
        run(release, tmp_path / "out")
    (folder / "stitching_eye.onnx").unlink()
    with pytest.raises(AvatarError, match=r"has not all of LivePortrait's ONNX files: stitching_eye.onnx is missing"):
        run(release, tmp_path / "out")
    assert not (tmp_path / "out").exists()
