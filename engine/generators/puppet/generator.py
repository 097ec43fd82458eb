"""The puppet: any portrait, no weights, real time on a plain CPU."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from engine.drivers.matte import person_matte
from engine.generators.puppet import body as shoulders
from engine.generators.puppet import eyes, mouth, plate, response, teeth, topology
from engine.generators.puppet import features as feature_arrays
from engine.generators.puppet.features import Features
from engine.generators.puppet.find import find_face
from engine.generators.puppet.mesh import CAMERA, measure, spread_sheet
from engine.generators.puppet.raster import blend, raster, soften
from engine.generators.puppet.refine import apply
from engine.pose import angles, rotation
from engine.types import AvatarError, FloatArray, GeneratorSpec, Identity, Motion, Signal, UInt8Array, VideoFrame, still_motion

VERSION = "1"
PAD = 0.14
"""Padding of the texture, picture sizes: how far the picture goes on, mirrored, beyond its edges."""
LIMITS = {"yaw": 28.0, "pitch": 20.0, "roll": 30.0, "shift": 0.45, "scale": 0.28, "lean": 9.0, "twist": 20.0, "sway": 0.2, "shrug": 0.14, "gap": 0.80}
"""Soft limits: degrees; face widths; log; shoulder widths; ocular distances."""
ASIDE, ASIDE_SHARE = 8.0, 0.5
"""A portrait that itself looks aside by more than ASIDE degrees turns less far: by this share of what it is more."""
EDGE_ROOM = 0.12
"""How far around the face one part of the person may hide another, face widths."""
KNEE = 0.65
"""Motion is untouched up to this part of its limit and compressed beyond."""


RIM_FROM, RIM_TO = 0.04, 0.30
"""How much more a piece of skin must face the camera (cosine) before its sampling starts to slide inwards, and when it has done so."""


def soft(value: float, limit: float) -> float:
    """`value` held within +-limit without a corner."""
    knee = KNEE * limit
    over = abs(value) - knee
    if over <= 0:
        return value
    return float(np.sign(value)) * (knee + (limit - knee) * float(np.tanh(over / (limit - knee))))


@dataclass
class Row:
    """One session's buffers, made when an identity is seated and written in place."""

    features: Features
    points: FloatArray  # [N, 3]
    uv: FloatArray  # [N, 2]
    sampling: FloatArray  # [H, W, 2]
    depth: FloatArray  # [H, W]
    tag: UInt8Array  # [H, W]
    layer: UInt8Array  # [H, W, 4]
    places: npt.NDArray[np.int32]  # [K] edge pixels being softened
    colours: UInt8Array  # [K, 3]


@dataclass
class State:
    """Rows of sessions; None where nobody sits."""

    rows: list[Row | None] = field(default_factory=list)


class Puppet:
    """A 2.5D layered puppet. Input: `Signal.motion`. See `Generator` for the five verbs."""

    def __init__(self, size: tuple[int, int] = (512, 512), *, rest: bool = True, respond: bool = True) -> None:
        """`size` (H, W) px; `rest`: a portrait that smiles or shows its teeth closes its lips at rest;
        `respond`: measure at set-up what a tracker reads back from the portrait, and correct motions by it."""
        self.spec = GeneratorSpec(name="puppet", size=size, fps=30)
        self.rest = rest
        self.respond = respond

    # -- slow, once -----------------------------------------------------------------------------------------------------

    def prepare(self, portrait: UInt8Array) -> Identity:
        """Portrait [H, W, 3] of any size -> Identity. Raises AvatarError where no face is found."""
        height, width = self.spec.size
        shrinking = portrait.shape[0] > height
        rgb = cv2.resize(portrait, (width, height), interpolation=cv2.INTER_AREA if shrinking else cv2.INTER_CUBIC)
        landmarks = find_face(rgb)
        key = hashlib.sha256(np.ascontiguousarray(portrait).tobytes() + f"puppet {VERSION} {self.spec.size}".encode()).hexdigest()
        features = self._features(rgb, landmarks)
        if self.respond:
            row = self._seat(features)
            features = replace(features, response=response.listen(lambda motion: self._frame(row, Signal(0.0, motion=motion)).rgb))
        return Identity(key, rgb, features)

    def _features(self, rgb: UInt8Array, landmarks: FloatArray) -> Features:
        size = self.spec.size
        head = measure(landmarks)
        pad = int(PAD * max(size))
        sheet = spread_sheet(landmarks, head, size, pad)
        matte = person_matte(rgb).astype(np.float32) / 255.0
        carry = plate.ring(matte, *(share * size[1] for share in plate.CARRY))
        lips, lids = mouth.weigh(head), eyes.weigh(head)
        torso = shoulders.weigh(sheet.flat, landmarks, head, size)
        inside = teeth.draw(rgb, landmarks, head)
        patches = [eyes.draw(rgb, landmarks, side) for side in range(2)]
        as32 = np.float32
        return Features(
            rest=sheet.rest, uv=(sheet.flat + pad).astype(as32), triangles=sheet.triangles, tags=sheet.tags,
            texture=plate.texture(rgb, plate.pack_matte(carry, matte), pad), plate=plate.background(rgb, matte, clear=plate.CLEAR * size[1]),
            frame=head.frame, turn=head.turn, pivot=head.pivot, eyes_middle=head.eyes_middle, width=np.array(head.width, as32), ocular=np.array(head.ocular, as32),
            parents=sheet.parents, weights=sheet.weights, rim_index=sheet.rim.index, rim_shift=sheet.rim.shift, rim_normal=sheet.rim.normal,
            head_weight=sheet.head_weight, follow=sheet.follow,
            jaw=lips.jaw, upper=lips.upper, lower=lips.lower, lip_gap=lips.lip_gap, corners=lips.corners, spread=lips.spread, pucker=lips.pucker,
            smile_rest=lips.smile_rest, mouth_patch=inside.box, upper_teeth=inside.upper, lower_teeth=inside.lower, dark=inside.dark, shade=inside.shade,
            lid_upper=lids.lid_upper, lid_lower=lids.lid_lower, eye_patch=np.stack([p.box for p in patches]),
            eyeballs=_stack([p.ball for p in patches]), lids=_stack([p.lid for p in patches]), lash=np.stack([p.lash for p in patches]),
            iris=np.stack([p.iris for p in patches]), eye_axis=np.stack([p.axis for p in patches]), brow=lids.brow,
            body=torso.body, shrug=torso.shrug, shoulders=torso.shoulders, response=response.NO_RESPONSE,
        )  # fmt: skip

    @staticmethod
    def pack(identity: Identity) -> dict[str, npt.NDArray[Any]]:
        """What `np.savez` can keep of an identity, without pickle."""
        return {**feature_arrays.pack(identity.features), "key": np.array(identity.key)}

    @staticmethod
    def unpack(portrait: UInt8Array, arrays: dict[str, npt.NDArray[Any]]) -> Identity:
        """The inverse of `pack`; `portrait` is `identity.portrait`."""
        return Identity(str(arrays["key"]), portrait, feature_arrays.unpack(arrays))

    # -- fast, many -----------------------------------------------------------------------------------------------------

    def allocate(self, rows: int) -> State:
        """A State for `rows` sessions. The first one loads (or compiles, once a machine) the hot loops, so that no step waits for them."""
        warm()
        return State([None] * rows)

    def admit(self, state: State, row: int, identity: Identity) -> None:
        """Seat an identity in a row."""
        state.rows[row] = self._seat(identity.features)

    def _seat(self, features: Features) -> Row:
        height, width = self.spec.size
        return Row(
            features,
            points=np.empty_like(features.rest),
            uv=features.uv.copy(),
            sampling=np.empty((height, width, 2), np.float32),
            depth=np.empty((height, width), np.float32),
            tag=np.empty((height, width), np.uint8),
            layer=np.empty((height, width, 4), np.uint8),
            places=np.empty(height * width // 16, np.int32),
            colours=np.empty((height * width // 16, 3), np.uint8),
        )

    def reset(self, state: State, row: int) -> None:
        """The puppet has no past."""

    def step(self, state: State, signals: Sequence[Sequence[Signal] | None]) -> list[list[VideoFrame] | None]:
        """One frame for every signal of every row."""
        made: list[list[VideoFrame] | None] = []
        for row, chunk in zip(state.rows, signals, strict=True):
            if chunk is None:
                made.append(None)
                continue
            if row is None:
                raise AvatarError("A signal came for a row where no portrait is seated; admit an identity first.")
            made.append([self._frame(row, signal) for signal in chunk])
        return made

    def _frame(self, row: Row, signal: Signal) -> VideoFrame:
        features = row.features
        motion = corrected(features, signal.motion or still_motion())
        places = self._pose(row, motion)
        pad = float(features.uv[0, 0] - flatten(features.rest[:1], features)[0, 0])
        raster(row.points, row.uv, features.triangles, features.tags, row.sampling, row.depth, row.tag)
        cv2.remap(features.texture, row.sampling, None, cv2.INTER_LINEAR, dst=row.layer, borderMode=cv2.BORDER_CONSTANT, borderValue=(0, 0, 0, 0))
        self._fill(row, motion, places)
        height, width = self.spec.size
        rgb, alpha = np.empty((height, width, 3), np.uint8), np.empty((height, width), np.uint8)
        blend(row.layer, row.sampling, pad, features.plate, rgb, alpha)
        soften(rgb, row.sampling, bounds(row.points[list(topology.OVAL)], EDGE_ROOM * float(features.width)), row.places, row.colours)
        return VideoFrame(rgb, signal.time, signal.id, alpha)

    def _pose(self, row: Row, motion: Motion) -> tuple[FloatArray, FloatArray, float]:
        """Write the vertices of one motion into `row.points`. -> (turned, jaw): the face [478, 2] as the skull has it, the jaw's way [2] px,
        how far the lips are from the portrait's own."""
        features = row.features
        count = topology.SKIN_POINTS + 10
        face = features.rest[:count].copy()
        brows_expressed, mouth_expressed = (0.0, 0.0) if motion.expression is None else (float(x) for x in motion.expressed)
        if motion.expression is not None:
            face += gate(features, motion.expression)
        aperture = np.clip(motion.eyes, 0.0, 1.5)
        eyes.move(features, face, aperture, motion.brows, expressed=brows_expressed)
        lips = np.array(motion.mouth, np.float32)
        lips[0] = max(0.0, soft(float(lips[0]), LIMITS["gap"]))
        _, jaw_way = mouth.move(features, face, lips, expressed=mouth_expressed, rest=self.rest)
        offset = face - features.rest[:count]
        everything = features.rest.copy()
        everything[:count] = face
        fine = count + len(features.parents)
        everything[count:fine] = apply(features.parents, features.weights, face)
        everything[fine:] += features.follow @ offset[list(topology.OVAL)]
        head = motion.head
        aside = max(0.0, abs(angles(features.turn.astype(np.float64))[0]) - ASIDE)
        most = (LIMITS["yaw"] - ASIDE_SHARE * aside, LIMITS["pitch"], LIMITS["roll"])
        held = (soft(float(way), limit) for way, limit in zip(head[:3], most, strict=True))
        turn = rotation(*held).astype(np.float32)
        width = float(features.width)
        scale = float(np.exp(soft(float(head[5]), LIMITS["scale"])))
        shift = np.array([soft(float(head[3]), LIMITS["shift"]) * width, soft(float(head[4]), LIMITS["shift"]) * width, 0.0], np.float32)
        slide_rim(row, turn)
        self._carry(row, everything, turn * scale, shift, shoulders.follow(motion))
        skull = flatten((features.rest[:count] - features.pivot) @ (turn * scale).T + features.pivot + shift, features)
        jaw = (turn * scale @ (features.frame[:, 1] * jaw_way))[:2]
        return skull, jaw, mouth.freshness(features, face)

    def _carry(self, row: Row, points: FloatArray, turn: FloatArray, shift: FloatArray, body: FloatArray) -> None:
        """Linear blend of the head's turn and the shoulders' motion, projected into `row.points`."""
        features = row.features
        turned = (points - features.pivot) @ turn.T + features.pivot + shift
        still = flatten(points, features)
        moved = still + shoulders.displace(features, still, _limited(body))
        hold = features.head_weight[:, None]
        row.points[:, :2] = hold * flatten(turned, features) + (1 - hold) * moved
        row.points[:, 2] = turned[:, 2]

    def _fill(self, row: Row, motion: Motion, places: tuple[FloatArray, FloatArray, float]) -> None:
        """Eyeballs and the mouth's inside under the skin."""
        features = row.features
        skull, jaw, fresh = places
        points = row.points
        flat = features.uv - features.uv[0] + flatten(features.rest[:1], features)
        for side in range(2):
            near = [*topology.UPPER_LID[side], *topology.LOWER_LID[side], *topology.EYE_CORNERS[side]]
            back = affine(skull[near], flat[near])
            half = features.eye_axis[side, 2:]
            gaze = np.clip(motion.gaze, -0.35, 0.35) * 2 * float(np.hypot(*half))
            shift = gaze[0] * half / np.hypot(*half) + gaze[1] * np.array([-half[1], half[0]]) / np.hypot(*half)
            aperture = float(motion.eyes[side])
            shut = float(np.clip((eyes.SHUT_FROM - aperture) / (eyes.SHUT_FROM - eyes.SHUT_TO), 0.0, 1.0))
            edge = points[eyes.lid_curve(side), :2]
            eyes.paint(
                row.layer, row.tag, row.sampling, float(features.uv[0, 0] - flat[0, 0]), side,
                bounds(points[[*near, *topology.UPPER_CREASE[side]]]), back, features.eyeballs[side], features.lids[side], features.eye_patch[side, :2], features.iris[side], features.eye_axis[side],
                shift.astype(np.float32), edge, shut, features.lash[side], eyes.LASH * float(features.ocular),
            )  # fmt: skip
        ring = [*topology.LIP_CORNERS[0], *topology.UPPER_LIP[0], *topology.LOWER_LIP[0]]
        near = [*topology.LIP_CORNERS[3], *topology.UPPER_LIP[3], *topology.LOWER_LIP[3]]
        back = affine(skull[near], flat[near])
        jaw_back = affine(skull[near] + jaw, flat[near])
        teeth.paint(
            row.layer, row.tag, topology.MOUTH_HOLE, bounds(points[ring]), back, jaw_back, features.upper_teeth, features.lower_teeth,
            features.mouth_patch, float(teeth.DETAIL), features.dark, float(features.shade), float(features.ocular), fresh,
        )  # fmt: skip


@lru_cache(maxsize=1)
def warm() -> None:
    """Run every compiled loop once on nothing."""
    puppet = Puppet((8, 8), respond=False)
    puppet._frame(puppet._seat(feature_arrays.blank()), Signal(0.0))


def slide_rim(row: Row, turn: FloatArray) -> None:
    """Where the face's edge turns into view, let it sample skin from further inside: nothing else of that cheek was ever seen."""
    features = row.features
    before, after = -features.rim_normal[:, 2], -(features.rim_normal @ turn[2])
    share = np.clip((after - np.maximum(before, 0.0) - RIM_FROM) / (RIM_TO - RIM_FROM), 0.0, 1.0)
    row.uv[features.rim_index] = features.uv[features.rim_index] + features.rim_shift * share[:, None]


def flatten(points: FloatArray, features: Features) -> FloatArray:
    """[N, 2] picture positions of camera-space points."""
    focal = CAMERA * features.width
    flat: FloatArray = features.pivot[:2] + (points[:, :2] - features.pivot[:2]) * (focal / (focal + points[:, 2:] - features.pivot[2]))
    return flat


def corrected(features: Features, motion: Motion) -> Motion:
    """The motion that a tracker will read as the given one on this portrait."""
    wanted = np.array([*motion.head[:3], motion.mouth[0], *(motion.eyes - 1.0)], np.float32)
    made = response.correct(features.response, wanted)
    head, lips = np.array(motion.head, np.float32), np.array(motion.mouth, np.float32)
    head[:3], lips[0] = made[:3], made[3]
    return replace(motion, head=head, mouth=lips, eyes=np.maximum(made[4:] + 1.0, 0.0))


def affine(source: FloatArray, target: FloatArray) -> FloatArray:
    """[2, 3] the affine map that takes source [N, 2] to target [N, 2] in the least squares sense."""
    design = np.concatenate([source, np.ones((len(source), 1), np.float32)], 1)
    found: FloatArray = np.linalg.lstsq(design, target, rcond=None)[0].T.astype(np.float32)
    return found


def bounds(points: FloatArray, room: float = 2.0) -> FloatArray:
    """[4] x0, y0, x1, y1 with some pixels of room."""
    low, high = points[:, :2].min(0) - room, points[:, :2].max(0) + room
    return np.concatenate([low, high]).astype(np.float32)


def gate(features: Features, expression: FloatArray) -> FloatArray:
    """[478, 3] px in camera space: the driver's expression as far as it may move this portrait."""
    held = expression * features.width
    size = np.linalg.norm(held, axis=1, keepdims=True)
    limit = 0.3 * float(features.width)
    held = held * (limit * np.tanh(size / limit) / np.maximum(size, 1e-6))
    for side in range(2):
        held[[*topology.UPPER_LID[side], *topology.LOWER_LID[side], *topology.EYE_CORNERS[side]]] *= 0.0
        held[[*topology.UPPER_CREASE[side], *topology.LOWER_CREASE[side]]] *= 0.3
        held[list(topology.IRIS[side])] = 0
    moved: FloatArray = (held @ features.turn.T).astype(np.float32)
    return moved


def _stack(pictures: list[UInt8Array]) -> UInt8Array:
    """Pictures of nearly one size in one array, their last rows and columns repeated."""
    height, width = np.max([p.shape[:2] for p in pictures], 0)
    return np.stack([np.pad(p, ((0, height - p.shape[0]), (0, width - p.shape[1]), (0, 0)), mode="edge") for p in pictures])


def _limited(body: FloatArray) -> FloatArray:
    names = ("lean", "twist", "sway", "sway", "shrug", "shrug")
    return np.array([soft(float(b), LIMITS[name]) for b, name in zip(body, names, strict=True)], np.float32)
