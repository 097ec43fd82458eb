"""The reenacting generator: its networks' forms, its formulas, its crop, and what drives it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engine import serving
from engine.batch import Batch
from engine.persona import Persona, demo_portrait
from engine.pose import rotation as camera_rotation
from engine.session import Session
from engine.types import AvatarError, FloatArray, Identity, Motion, Signal, VideoFrame, still_motion
from tests.conftest import found, require

if found("torch"):
    import torch
    from torch.nn import functional

    from engine.generators.reenact import driving, formulas, graphs, networks, sampling
    from engine.generators.reenact.blocks import enlarged
    from engine.generators.reenact.crop import DRIVER_SCALE, DRIVER_UP, Paste, Square, eye_ratios, lip_ratio
    from engine.generators.reenact.driving import Drive, Face
    from engine.generators.reenact.formulas import LIPS, Reading
    from engine.generators.reenact.generator import NOTICE, Reenact
    from engine.generators.reenact.presets import LIVEPORTRAIT, TINY

pytestmark = pytest.mark.torch
MESH = 478


@pytest.fixture(autouse=True, scope="module")
def _installed() -> None:
    require("torch")


# -- looking up a volume -------------------------------------------------------------------------------------------------


def test_both_forms_of_sampling_agree_also_outside() -> None:
    torch.manual_seed(0)
    volume, grid = torch.randn(2, 5, 6, 9, 11), torch.rand(2, 4, 7, 8, 3) * 3 - 1.5
    native, gather = (sampling.sampled(volume, grid, form=form) for form in ("native", "gather"))
    assert float((native - gather).abs().max()) < 1e-5
    assert float(native.abs().max()) > 1.0
    with pytest.raises(AvatarError, match="no form of sampling called 'cubic'"):
        sampling.check("cubic")


def test_moved_identity_grids_need_no_sampling() -> None:
    torch.manual_seed(1)
    sizes = (4, 6, 7)
    volume, shifts = torch.randn(2, 3, *sizes), torch.randn(2, 5, 3) * 0.4
    looked = sampling.Shifts(sizes)(volume, shifts)
    for k in range(5):
        grid = sampling.identity_grid(*sizes) + shifts[:, k, None, None, None]
        want = functional.grid_sample(volume, grid, align_corners=False)
        assert float((looked[:, k] - want).abs().max()) < 1e-5


def test_bumps_are_normal_densities() -> None:
    sizes = (4, 6, 7)
    centre = torch.tensor([[[0.2, -0.3, 0.1]]])
    apart = (sampling.identity_grid(*sizes)[0] - centre[0, 0]).square().sum(3)
    torch.testing.assert_close(sampling.Shifts(sizes).bumps(centre, 0.01)[0, 0], torch.exp(-0.5 * apart / 0.01), rtol=1e-5, atol=1e-7)


def test_convolutions_of_repeated_pixels_are_not_repeated() -> None:
    torch.manual_seed(3)
    x, weight, bias = torch.randn(2, 3, 5, 6), torch.randn(4, 3, 3, 3), torch.randn(4)
    for factor in (1, 2, 3, 4):
        grown = functional.interpolate(x, scale_factor=float(factor), mode="nearest")
        want = functional.relu(functional.conv2d(grown, weight, bias, padding=1))
        torch.testing.assert_close(enlarged(x, weight, bias, factor), want, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def tiny() -> Any:
    return networks.build(TINY)


def test_a_warp_is_the_same_in_both_forms_and_moves_with_its_keypoints(tiny: Any) -> None:
    torch.manual_seed(2)
    volume = torch.randn(1, *TINY.volume, TINY.cells, TINY.cells)
    source, driven = torch.rand(1, 21, 3) - 0.5, torch.rand(1, 21, 3) - 0.5
    made = {form: tiny.sampled_as(form).warping(volume, source, driven) for form in ("native", "gather")}
    torch.testing.assert_close(made["native"], made["gather"], rtol=1e-4, atol=1e-5)
    assert float((tiny.warping(volume, source, source) - made["gather"]).abs().max()) > 1e-3
    grid, seen = tiny.warping.dense_motion_network(volume, source, source)
    torch.testing.assert_close(grid, sampling.identity_grid(TINY.volume[1], TINY.cells, TINY.cells))  # nothing moves: all look at themselves
    assert 0.0 < float(seen.min()) <= float(seen.max()) < 1.0


def test_published_sizes() -> None:
    """Values of each network, as published in the speed table: 0.84, 28.12, 45.53, 55.37 and 0.23 million."""
    count = {part: sum(value.numel() for value in module.parameters()) for part, module in networks.empty(LIVEPORTRAIT).parts().items()}
    small = count["stitching"] + count["lip"] + count["eye"]
    assert [round(count[part] / 1e6, 2) for part in ("appearance", "motion", "warping", "decoder")] == [0.84, 28.12, 45.53, 55.37]
    assert small == 45249 + 37311 + 144703


def test_graphs_run_as_their_specs_say(tiny: Any) -> None:
    for rows in (1, 2):
        for name, spec in graphs.graphs(tiny, rows=rows).items():
            given = {key: torch.from_numpy(value) for key, value in spec.examples().items()}
            with torch.no_grad():
                made = spec.build()(*given.values())
            made = (made,) if isinstance(made, torch.Tensor) else made
            assert len(made) == len(spec.outputs), name
            assert all(value.shape[0] == rows for value in made), name
    spec = graphs.graphs(tiny)["render"]
    picture = spec.build()(*(torch.from_numpy(value) for value in spec.examples().values()))
    assert (tuple(picture.shape), picture.dtype) == ((1, TINY.picture, TINY.picture, 3), torch.uint8)


def test_the_motion_graph_says_degrees(tiny: Any) -> None:
    spec = graphs.graphs(tiny)["motion"]
    picture = spec.examples()["picture"]
    said = dict(zip(spec.outputs, (x.numpy() for x in spec.build()(torch.from_numpy(picture))), strict=True))
    raw = tiny.motion(torch.from_numpy(picture).permute(0, 3, 1, 2) / 255)
    np.testing.assert_allclose(said["pose"][0], [formulas.degrees(bins[0]) for bins in raw[1:4]], atol=1e-3)
    sure = np.zeros(66)
    sure[40] = 50.0
    assert formulas.degrees(sure) == pytest.approx(40 * 3 - 97.5, abs=1e-3)


# -- formulas ------------------------------------------------------------------------------------------------------------


def reading(seed: int, **fixed: Any) -> Reading:
    rng = np.random.default_rng(seed)
    said: dict[str, Any] = {
        "kp": rng.normal(0, 0.3, (21, 3)).astype(np.float32),
        "pitch": float(rng.normal(0, 10)),
        "yaw": float(rng.normal(0, 10)),
        "roll": float(rng.normal(0, 10)),
        "t": rng.normal(0, 0.05, 3).astype(np.float32),
        "exp": rng.normal(0, 0.02, (21, 3)).astype(np.float32),
        "scale": float(rng.uniform(1, 1.4)),
    }
    return Reading(**(said | fixed))


def test_a_head_turns_as_the_engine_says() -> None:
    """A point before the face, z < 0: yaw < 0 takes it to the picture's right, pitch > 0 down, roll > 0 clockwise; as `engine.pose` with yaw > 0."""
    nose = np.array([0.0, 0.0, -1.0], np.float32)
    assert (nose @ formulas.rotation(0, -20, 0))[0] > 0.3
    assert (nose @ formulas.rotation(20, 0, 0))[1] > 0.3
    assert (np.array([1.0, 0, 0]) @ formulas.rotation(0, 0, 20))[1] > 0.3
    for turn in ((12.0, 0.0, 0.0), (0.0, 12.0, 0.0), (0.0, 0.0, 12.0)):
        yaw, pitch, roll = turn
        np.testing.assert_allclose(formulas.rotation(pitch, -yaw, roll), camera_rotation(*turn).T, atol=1e-6)


def test_relative_motion_is_the_change_from_the_neutral() -> None:
    source, driver, neutral = reading(0), reading(1), reading(2)
    np.testing.assert_allclose(formulas.relative(source, driver, driver), source.points, atol=1e-6)
    grown = replace(driver, scale=driver.scale * 1.1, t=driver.t + np.float32(0.1))
    want = (source.points - [*source.t[:2], 0]) * 1.1 + [*(source.t[:2] + 0.1), 0]
    np.testing.assert_allclose(formulas.relative(source, grown, driver), want, atol=1e-6)
    whole = formulas.relative(source, driver, neutral)
    turn = driver.turn @ neutral.turn.T @ source.turn
    want = source.scale * driver.scale / neutral.scale * (source.kp @ turn + source.exp + driver.exp - neutral.exp)
    want[:, :2] += (source.t + driver.t - neutral.t)[:2]
    np.testing.assert_allclose(whole, want, atol=1e-6)


def test_regions_move_only_what_they_name() -> None:
    source, driver, neutral = reading(0), reading(1), reading(2)
    named: tuple[tuple[formulas.Region, tuple[int, ...]], ...] = (("lip", LIPS), ("eyes", formulas.EYES))
    for region, points in named:
        for made in (formulas.relative(source, driver, neutral, region=region), formulas.absolute(source, driver, region=region)):
            moved = np.flatnonzero(np.abs(made - source.points).max(1) > 1e-6)
            assert set(moved) == set(points)
    still = formulas.relative(source, replace(driver, exp=neutral.exp), neutral, region="exp")
    np.testing.assert_allclose(still, source.points, atol=1e-6)
    posed = formulas.relative(source, replace(driver, t=neutral.t, pitch=neutral.pitch, yaw=neutral.yaw, roll=neutral.roll), neutral, region="pose")
    np.testing.assert_allclose(posed, source.points, atol=1e-5)
    with pytest.raises(AvatarError, match="no region called 'nose'"):
        formulas.check_region("nose")


def test_absolute_motion_keeps_the_portrait_s_own_shape() -> None:
    flat = {"pitch": 0.0, "yaw": 0.0, "roll": 0.0, "t": np.zeros(3, np.float32)}
    source, driver = reading(0, **flat), reading(1, **flat)
    taken = np.abs((formulas.absolute(source, driver) - source.points) / source.scale) > 1e-6
    want = np.zeros((21, 3), bool)
    want[[1, 2, 6, *range(11, 21)]] = True
    want[3:5, 1] = want[5, 2] = want[8, 2] = want[9, 1:] = True
    np.testing.assert_array_equal(taken, want)


def test_the_multiplier_compares_volumes() -> None:
    points = reading(3).points
    assert formulas.multiplier(points, points) == 1.0
    assert formulas.multiplier(2 * points, points) == pytest.approx(8**0.5, rel=1e-5)
    np.testing.assert_allclose(formulas.friendly(points + 1, points, -points, 2.0), -points + 2, atol=1e-5)


def test_stitching_moves_each_point_and_all_of_them(tiny: Any) -> None:
    rng = np.random.default_rng(0)
    source, driven, said = (rng.normal(size=shape).astype(np.float32) for shape in ((2, 21, 3), (2, 21, 3), (2, 65)))
    made = formulas.stitched(driven, said)
    np.testing.assert_allclose(made[1, 4], driven[1, 4] + said[1, 12:15] + [said[1, 63], said[1, 64], 0], atol=1e-6)
    graph = graphs.graphs(tiny, rows=2)["stitch"].build()
    of_network = tiny.stitching(torch.from_numpy(formulas.beside(source, driven))).numpy()
    np.testing.assert_allclose(graph(torch.from_numpy(source), torch.from_numpy(driven)).numpy(), formulas.stitched(driven, of_network), atol=1e-5)


# -- the crop ------------------------------------------------------------------------------------------------------------


def mesh(*, degrees: float = 0.0, zoom: float = 100.0, at: tuple[float, float] = (300.0, 260.0)) -> FloatArray:
    """A face of a few points, upright in its own axes, turned clockwise, in px."""
    points = np.zeros((MESH, 2), np.float32)
    points[[234, 454]], points[152], points[[105, 334]] = [(-0.5, 0.1), (0.5, 0.1)], (0.0, 0.9), [(-0.2, -0.1), (0.2, -0.1)]
    for at_x, eye in ((-0.22, (33, 159, 133, 145)), (0.22, (362, 386, 263, 374))):
        points[list(eye)] = [(at_x - 0.1, 0), (at_x, -0.03), (at_x + 0.1, 0), (at_x, 0.03)]
    points[[61, 291]], points[[13, 14]] = [(-0.2, 0.5), (0.2, 0.5)], [(0.0, 0.45), (0.0, 0.55)]
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.asarray(zoom * points @ np.array([[c, s], [-s, c]]) + at, np.float32)


def test_a_square_turns_with_the_face_and_ratios_do_not() -> None:
    for degrees in (0.0, 30.0, -50.0):
        points = mesh(degrees=degrees)
        square = Square.around(points, scale=2.3, up=0.125, upright=True)
        assert square.side == pytest.approx(2.3 * 100, rel=1e-5)  # brows to chin
        inside = square.inside(points)
        mouth, eyes = inside[[61, 291]].mean(0), inside[[33, 263]].mean(0)
        np.testing.assert_allclose(mouth[0], eyes[0], atol=1e-5)
        assert mouth[1] > eyes[1]
        np.testing.assert_allclose(inside[[105, 152], 1].mean(), 2 * 0.125, atol=1e-5)  # the box's middle is that far below the square's
        at = square.matrix(64) @ [*points[152], 1]
        np.testing.assert_allclose(at, (inside[152] + 1) * 32, atol=1e-3)
        np.testing.assert_allclose(eye_ratios(points), [0.3, 0.3], atol=1e-4)
        assert lip_ratio(points) == pytest.approx(0.25, abs=1e-4)
    level = Square.around(mesh(degrees=30.0), scale=2.2, up=0.1, upright=False)
    np.testing.assert_array_equal(level.turn, np.eye(2))


def test_what_is_cut_out_and_pasted_back_is_the_picture() -> None:
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.integers(0, 256, (1, 3, 12, 16)).astype(np.float32))
    smooth = functional.interpolate(coarse, size=(240, 320), mode="bicubic")[0].permute(1, 2, 0).clamp(0, 255)
    picture = np.ascontiguousarray(smooth.numpy().astype(np.uint8))
    square = Square.around(mesh(degrees=20.0, zoom=60.0, at=(160.0, 90.0)), scale=2.3, up=0.125, upright=True)
    paste = Paste.of(picture, square, np.ones(2, np.float32), 256)
    cut = square.cut(picture, 512)[::2, ::2]
    assert np.abs(paste(np.ascontiguousarray(cut)).astype(int) - picture).mean() < 2.0
    dark = paste(np.zeros((256, 256, 3), np.uint8))
    x, y = (int(v) for v in square.centre)
    assert dark[y, x].max() == 0
    np.testing.assert_array_equal(dark[-1], picture[-1])
    assert np.abs(np.diff(dark[y].astype(int), axis=0)).max() < 80  # no edge where it ends


# -- what drives ---------------------------------------------------------------------------------------------------------


def face(seed: int = 0) -> Face:
    said = reading(seed, pitch=0.0, yaw=0.0, roll=0.0)
    return Face(said, said.points, np.array([0.3, 0.32], np.float32), 0.01, 1.0, np.zeros(2, np.float32), 0.8)


def motion(**parts: Any) -> Motion:
    return replace(still_motion(), confidence=np.ones(3, np.float32), **{name: np.asarray(value, np.float32) for name, value in parts.items()})


def camera(time: float, said: Motion, *, at: tuple[float, float] = (0.5, 0.5)) -> Signal:
    """A picture of 200 x 100 px with a face in it."""
    points = np.zeros((MESH, 3), np.float32)
    points[:, :2] = mesh(zoom=30.0, at=(200 * at[0], 100 * at[1])) / (200, 100)
    return Signal(time, 1, motion=said, face=points, aspect=2.0, image=np.zeros((100, 200, 3), np.uint8))


NOTHING = np.zeros((21, 3), np.float32), np.zeros((21, 3), np.float32)


def test_no_motion_is_the_portrait() -> None:
    np.testing.assert_allclose(driving.signalled(face(), still_motion()), face().points, atol=1e-6)


def test_signals_move_keypoints_as_they_say() -> None:
    own = face()
    right = driving.signalled(own, motion(head=[0, 0, 0, 0.1, 0, 0])) - own.points
    np.testing.assert_allclose(right, np.broadcast_to([0.08, 0, 0], (21, 3)), atol=1e-6)
    np.testing.assert_allclose(driving.signalled(own, motion(head=[0, 0, 0, 9, 0, 0]))[:, 0], own.points[:, 0] + driving.FURTHEST, atol=1e-6)
    tilted = driving.signalled(own, motion(head=[0, 0, 10, 0, 0, 0])).mean(0) - own.points.mean(0)
    assert tilted[0] > 0.05  # clockwise about the neck, which is below: to the right
    smile = driving.edited(motion(mouth=[0, 0, 0, 1.0]))
    assert smile[14, 1] == pytest.approx(-0.02)
    looks = driving.edited(motion(gaze=[0.2, 0.0]))
    assert looks[15, 0] > 0
    assert driving.edited(motion(gaze=[0.0, 0.2]))[15, 1] > 0
    lips, eyes = driving.asked_of(own, motion(mouth=[0.3, 0, 0, 0], eyes=[0.5, 0.5]))
    np.testing.assert_allclose(lips, [0.01, 0.3], atol=1e-6)
    np.testing.assert_allclose(eyes, [0.3, 0.32, 0.155], atol=1e-6)


def seen(drive: Drive, signal: Signal, said: Reading, own: Face) -> FloatArray:
    square = driving.square_of(signal)
    assert square is not None
    return driving.pictured(drive, own, said, square, signal, region="all", calibrated=True)


def test_a_picture_s_neutral_is_the_portrait_and_its_place_in_the_camera_counts() -> None:
    own, drive, said = face(), Drive(), reading(5)
    np.testing.assert_allclose(seen(drive, camera(0.0, motion()), said, own), own.points, atol=1e-5)
    # The face is elsewhere in the camera's picture; its crop, and so what is read of it, is the same.
    moved = seen(drive, camera(0.1, motion(head=[0, 0, 0, 0.1, 0, 0]), at=(0.53, 0.5)), said, own) - own.points
    side = DRIVER_SCALE * 30.0
    assert moved[:, 0] == pytest.approx(np.full(21, 6.0 * 2 / side), abs=0.1)
    assert moved[:, 0].min() > 0.05
    assert DRIVER_UP == 0.1


def test_the_neutral_is_learnt_from_frames_that_are_near_it() -> None:
    """A driver who begins with an open mouth and a turned head comes to rest: the portrait then does too."""
    own, drive, rest = face(), Drive(), reading(6)
    said = replace(rest, yaw=rest.yaw - 20.0, exp=rest.exp + np.float32(0.05))
    for k in range(10):
        seen(drive, camera(k / 30, motion(head=[20, 0, 0, 0, 0, 0], mouth=[0.5, 0, 0, 0])), said, own)
    early = seen(drive, camera(0.4, motion()), rest, own)
    for k in range(150):
        late = seen(drive, camera(0.5 + k / 30, motion()), rest, own)
    assert np.abs(late - own.points).max() < 0.01
    assert np.abs(early - own.points).max() > 2 * np.abs(late - own.points).max()


def test_pictures_that_show_no_face_are_not_read() -> None:
    assert driving.square_of(Signal(0.0)) is None
    signal = camera(0.0, motion())
    assert driving.square_of(replace(signal, image=np.zeros((2, 2, 3), np.uint8))) is None
    assert driving.square_of(replace(signal, motion=still_motion())) is None  # confidence 0
    assert driving.square_of(signal) is not None


def test_a_picture_and_signals_give_way_to_each_other_softly() -> None:
    own, drive = face(), Drive()
    target = own.points + np.float32(0.2)
    first = driving.mixed(drive, own, camera(0.0, motion()), target, NOTHING)
    np.testing.assert_allclose(first, target, atol=1e-6)
    path = [driving.mixed(drive, own, Signal(k / 30, motion=still_motion()), None, NOTHING) for k in range(1, 15)]
    steps = [float(np.abs(b - a).max()) for a, b in zip([first, *path], path, strict=False)]
    assert max(steps) < 0.2 * (1 / 30) / driving.EASE * 1.1
    np.testing.assert_allclose(path[-1], own.points, atol=1e-6)


def test_a_voice_moves_the_lips_of_a_face_that_the_camera_sees() -> None:
    own = face()
    said = reading(7)
    shouting = replace(said, exp=said.exp + 0.1 * np.isin(np.arange(21), LIPS)[:, None].astype(np.float32))
    spoken = np.zeros((21, 3), np.float32)
    spoken[list(LIPS)] = 0.07
    for share in (1.0, 0.0):
        drive = Drive()
        for k in range(30):
            seen(drive, camera(k / 10, motion()), said, own)
        signal = camera(3.0, motion(expressed=[1.0, share]))
        made = driving.mixed(drive, own, signal, seen(drive, signal, shouting, own), (spoken, NOTHING[1])) - own.points
        want = 0.1 * own.reading.scale if share else 0.07
        assert made[list(LIPS)] == pytest.approx(np.full((6, 3), want), abs=0.02)


# -- the generator -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def generator() -> Any:
    require("torch")
    return Reenact("tiny", mode="eager")


@pytest.fixture(scope="module")
def identity(generator: Any) -> Identity:
    prepared: Identity = generator.prepare(demo_portrait())
    return prepared


def shown(generator: Any, identity: Identity, *signals: Signal) -> Any:
    state = generator.allocate(1)
    generator.admit(state, 0, identity)
    return [generator.step(state, [[signal]])[0][0].rgb for signal in signals][-1]


def test_whoever_watches_untrained_weights_is_told(generator: Any) -> None:
    assert generator.spec.notice == NOTICE
    assert {"motion", "image"} <= set(generator.spec.needs)


def test_a_signal_without_anything_shows_the_portrait_at_rest(generator: Any, identity: Identity) -> None:
    bare = shown(generator, identity, Signal(0.0))
    np.testing.assert_array_equal(bare, shown(generator, identity, Signal(0.0, motion=still_motion())))
    assert np.abs(bare.astype(int) - shown(generator, identity, Signal(0.0, motion=motion(head=[15, 5, 5, 0, 0, 0])))).max() > 10


def test_the_driver_s_picture_moves_the_portrait(generator: Any, identity: Identity) -> None:
    """Another picture behind the same signal is another motion, and the first one is the neutral."""
    rng = np.random.default_rng(0)
    first = camera(0.0, motion())
    other = replace(camera(0.03, motion()), image=rng.integers(0, 256, (100, 200, 3), np.uint8))
    rest = shown(generator, identity, first)
    np.testing.assert_array_equal(rest, shown(generator, identity, first, replace(first, time=0.03)))
    assert np.abs(rest.astype(int) - shown(generator, identity, first, other)).max() > 0


def test_outside_of_the_square_the_portrait_stays(generator: Any, identity: Identity) -> None:
    made = shown(generator, identity, Signal(0.0))
    np.testing.assert_array_equal(made[-20:], identity.portrait[-20:])
    assert made.shape == (*TINY.size, 3)


def test_packed_features_are_the_same_identity(generator: Any, identity: Identity) -> None:
    arrays = generator.pack(identity)
    assert all(array.dtype.kind in "fUi" for array in arrays.values())
    again = generator.unpack(identity.portrait, arrays)
    assert again.key == identity.key
    np.testing.assert_array_equal(shown(generator, again, Signal(0.0)), shown(generator, identity, Signal(0.0)))
    with pytest.raises(AvatarError, match="other weights"):
        generator.unpack(identity.portrait, arrays | {"weights": np.array("others")})


def test_rows_share_nothing_and_leave_nothing(generator: Any, identity: Identity) -> None:
    state = generator.allocate(2)
    for row in range(2):
        generator.admit(state, row, identity)
    generator.step(state, [[camera(0.0, motion())], None])
    assert state.rows[0].drive.time == 0.0
    assert state.rows[1].drive.time is None
    generator.reset(state, 0)
    assert state.rows[0].drive.frame is None
    generator.evict(state, 0)
    generator.evict(state, 1)
    assert not state.desk._kept


def test_numbers_that_are_none_are_forgotten(generator: Any, identity: Identity) -> None:
    wild, still = Signal(0.0, motion=motion(head=[np.nan] * 6)), Signal(0.03, motion=still_motion())
    np.testing.assert_array_equal(shown(generator, identity, wild, still), shown(generator, identity, Signal(0.0)))
    wild = replace(wild, image=np.zeros((100, 200, 3), np.uint8), face=np.full((MESH, 3), np.nan, np.float32))
    np.testing.assert_array_equal(shown(generator, identity, wild, still), shown(generator, identity, Signal(0.0)))


def test_a_session_shows_the_generator_the_camera_s_picture(generator: Any, identity: Identity) -> None:
    scene: Any = SimpleNamespace(body_share=1.0)
    reader: Any = lambda frame: replace(camera(frame.time, motion()), image=None)  # noqa: E731
    session = Session(Batch(generator, rows=1), Persona("someone", scene, identity, {}), face=reader)
    picture = np.zeros((100, 200, 3), np.uint8)
    assert session.track(VideoFrame(picture, 1.0)).image is picture
    due = session.due(1.0)
    assert due is not None
    session.batch.step({session.row: due.signals})
    assert session.batch.state.rows[0].drive.share == 1.0


def test_openvino_paints_the_same(generator: Any, identity: Identity) -> None:
    require("openvino")
    other = Reenact("tiny", backend="openvino")
    asked = Signal(0.0, motion=motion(head=[10, 4, 3, 0.02, 0, 0], mouth=[0.2, 0, 0, 0.3]))
    apart = np.abs(shown(other, identity, asked).astype(int) - shown(generator, identity, asked))
    assert apart.max() <= 1


def test_what_does_not_fit_together_is_told(tmp_path: Path) -> None:
    for options, told in (
        ({"preset": "huge"}, "no preset called 'huge'"),
        ({"preset": "tiny", "backend": "fake"}, "no backend called 'fake'"),
        ({"preset": "tiny", "precision": "int8"}, "no precision called 'int8'"),
        ({"preset": "tiny", "region": "nose"}, "no region called 'nose'"),
        ({"preset": "tiny", "backend": "openvino", "mode": "eager"}, "leave --mode out"),
        ({"preset": "tiny", "backend": "onnxruntime"}, "ONNX Runtime runs exported graphs; export them"),
        ({"preset": "tiny", "size": (0, 5)}, "height and a width above 0"),
        ({"weights": tmp_path / "none"}, "no readable weights.json"),
    ):
        with pytest.raises(AvatarError, match=told):
            Reenact(**options)


# -- weights on disk -----------------------------------------------------------------------------------------------------


def test_weights_come_back_and_tampered_ones_do_not(tiny: Any, tmp_path: Path) -> None:
    networks.save(tiny, tmp_path / "kept", origin={})
    again = networks.load(tmp_path / "kept")
    assert again.preset == TINY
    for name, value in tiny.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert not any(value.is_meta for value in (*again.parameters(), *again.buffers()))
    assert again.origin != networks.UNTRAINED
    path = tmp_path / "kept" / "lip.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(AvatarError, match="not the file that its"):
        networks.load(tmp_path / "kept")
    path.unlink()
    with pytest.raises(AvatarError, match="missing, damaged or of another preset"):
        networks.load(tmp_path / "kept")


def test_weights_of_another_generator_are_told(tmp_path: Path) -> None:
    (tmp_path / "weights.json").write_text(json.dumps({"preset": "compact", "sha256": {}, "origin": {}}))
    with pytest.raises(AvatarError, match="are another generator's"):
        networks.load(tmp_path)


def test_a_persona_is_shown_by_the_generator_whose_weights_it_has(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    networks.save(tiny, tmp_path / "weights", origin={})
    monkeypatch.setattr(serving, "weights_of", lambda persona, folder=None: tmp_path / "weights")
    for asked in (None, "reenact"):
        choice = serving.choose(asked, {}, persona="someone")
        assert (choice.generator, choice.options) == ("reenact", {"weights": tmp_path / "weights"})
    assert serving.choose("puppet", {}, persona="someone").options == {}
    (tmp_path / "weights" / "weights.json").write_text('{"preset": "compact", "sha256": {}, "origin": {}}')
    assert serving.choose("reenact", {}, persona="someone").options == {}
