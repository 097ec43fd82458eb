"""Camera picture -> DWPose's 133 whole-body points, with the user's own two ONNX files: body, hands, feet and 68 points of the face.

A person detector (YOLOX-L, 640²) finds boxes, a pose network (RTMPose/DWPose-L, 384 x 288, SimCC) reads each. What goes in and what is made of
what comes out is as published with the networks (IDEA-Research/DWPose, `onnxdet.py`, `onnxpose.py`, `wholebody.py`; Yang et al. 2023, arXiv
2307.15880; SimCC: Li et al. 2022, arXiv 2107.03332), so that weights trained on its skeletons see the same ones. Pictures go in as
BGR, as they do in Moore-AnimateAnyone and UniAnimate. Slow without a GPU. The drivers that stand where MediaPipe's do are in `dwpose_drivers`.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from engine.drivers.align import Skeleton
from engine.types import AvatarError, FloatArray, MissingPart, UInt8Array

Floats = npt.NDArray[np.floating[Any]]

DETECTOR, POSE = "yolox_l.onnx", "dw-ll_ucoco_384.onnx"
GIVE = f"give a folder that holds DWPose's two files, {DETECTOR} and {POSE}"
POINTS = 133
"""COCO-WholeBody's: 17 of the body, 6 of the feet, 68 of the face, 21 of each hand (Jin et al. 2020, arXiv 2007.11858)."""
FACE, LEFT_HAND, RIGHT_HAND = slice(23, 91), slice(91, 112), slice(112, 133)
LEFT_FOOT, RIGHT_FOOT = (17, 18), (20, 21)
"""Big and small toe; 19 and 22 are the heels."""
SHOULDERS = (5, 6)
FROM_COCO = (0, -1, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)
"""OpenPose's 18 joints; the neck is none of COCO's."""
SCORED = 0.3
"""Score above which a point, or a box, counts."""
BOX_SCORE, BOX_OVERLAP = 0.1, 0.45
"""YOLOX's: boxes under the first are nothing, those that share more than the second with a better one are the same."""
PERSON = 0
STRIDES = (8, 16, 32)
GREY = 114
"""Of the margin that a picture is padded with for the detector."""
AROUND = 1.25
"""A box grows by this before the pose network looks at it."""
MEAN, DEVIATION = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
SPLIT = 2.0
"""SimCC's bins a px."""
KEPT = 4
"""Pictures whose answer is remembered: body and hands of one frame are asked for one after the other."""


@dataclass(frozen=True, slots=True, eq=False)
class Whole:
    """One person, as the pose network saw them."""

    points: FloatArray  # [133, 2] px
    scores: FloatArray  # [133] from 0 to about 1


class DWPose:
    """The two networks. One serves any number of sessions, one picture at a time."""

    def __init__(self, folder: str | Path, *, threads: int = 0) -> None:
        """`threads` 0 lets ONNX Runtime choose. Raises AvatarError for files that are missing, damaged, or other networks."""
        if importlib.util.find_spec("onnxruntime") is None:
            raise MissingPart("DWPose needs ONNX Runtime, which is not installed; pip install 'avatar-engine[onnx]'.")
        detector, pose = files(folder)
        self._detector, self._pose = _session(detector, threads), _session(pose, threads)
        self._detector_input, self._detector_size = _taken(detector, self._detector)
        self._pose_input, self._pose_size = _taken(pose, self._pose)
        height, width = self._pose_size
        cells = sum((self._detector_size[0] // stride) * (self._detector_size[1] // stride) for stride in STRIDES)
        _gives(detector, self._detector, ((1, cells, None),))
        _gives(pose, self._pose, ((1, POINTS, round(SPLIT * width)), (1, POINTS, round(SPLIT * height))))
        self._lock = threading.Lock()
        self._known: list[tuple[UInt8Array, Whole]] = []
        try:
            self.people(np.zeros((*self._pose_size, 3), np.uint8))
        except Exception as error:  # whatever a graph raises that says too little of itself
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise AvatarError(f"The networks in '{folder}' cannot be run ({said}); {GIVE}.") from error

    def __call__(self, rgb: UInt8Array) -> Whole:
        """Picture [H, W, 3] RGB -> the person whose body is seen best. Where no box is found the whole picture is read, with low scores."""
        with self._lock:
            for picture, answer in self._known:
                if picture is rgb:
                    return answer
            people = self.people(rgb)
            answer = max(people, key=lambda person: float(skeleton_scores(person).mean()))
            self._known = [*self._known[1 - KEPT :], (rgb, answer)]
            return answer

    def people(self, rgb: UInt8Array) -> list[Whole]:
        """Everybody in the picture, the surest box first; at least one, of the whole picture."""
        bgr = np.ascontiguousarray(rgb[..., ::-1])
        boxes = self._boxes(bgr)
        return [self._read(bgr, box) for box in (boxes if len(boxes) else [np.array([0.0, 0.0, rgb.shape[1], rgb.shape[0]])])]

    def _boxes(self, bgr: UInt8Array) -> Floats:
        picture, ratio = letterbox(bgr, self._detector_size)
        told = self._detector.run(None, {self._detector_input: picture})[0][0]
        return (people_in(told, self._detector_size) / np.float32(ratio)).astype(np.float64) if len(told) else np.zeros((0, 4))

    def _read(self, bgr: UInt8Array, box: Floats) -> Whole:
        picture, centre, extent = cut_out(bgr, box, self._pose_size)
        across, down = self._pose.run(None, {self._pose_input: picture})[:2]
        points, scores = decoded(across[0], down[0])
        height, width = self._pose_size
        placed = points / (width, height) * extent + centre - extent / 2
        return Whole(placed.astype(np.float32), scores)


def files(folder: str | Path) -> tuple[Path, Path]:
    """The detector and the pose network in a folder. Raises AvatarError where one is missing."""
    missing = [name for name in (DETECTOR, POSE) if not (Path(folder) / name).is_file()]
    if missing:
        raise AvatarError(f"There is no {' and no '.join(missing)} in '{folder}'; {GIVE}.")
    return Path(folder) / DETECTOR, Path(folder) / POSE


def skeleton_of(whole: Whole) -> Skeleton:
    """The 18 joints (the neck between the shoulders, seen where both are), hands, feet (the middle of the toes) and face, px."""
    points, scores = whole.points, whole.scores
    joints = np.concatenate([points[list(FROM_COCO)], skeleton_scores(whole)[:, None]], 1).astype(np.float32)
    joints[1, :2] = points[list(SHOULDERS)].mean(0)
    parts = np.concatenate([points, scores[:, None]], 1).astype(np.float32)
    feet = np.stack([(*points[list(foot)].mean(0), scores[list(foot)].min()) for foot in (LEFT_FOOT, RIGHT_FOOT)]).astype(np.float32)
    return Skeleton(joints, np.stack([parts[LEFT_HAND], parts[RIGHT_HAND]]), face=parts[FACE], feet=feet)


def skeleton_scores(whole: Whole) -> FloatArray:
    """[18] scores of OpenPose's joints; the neck's is 1 where both shoulders are seen, else 0."""
    scores = whole.scores[list(FROM_COCO)].astype(np.float32)
    scores[1] = float((whole.scores[list(SHOULDERS)] > SCORED).all())
    return scores


# -- into the networks and out of them -----------------------------------------------------------------------------------


def letterbox(bgr: UInt8Array, size: tuple[int, int]) -> tuple[FloatArray, float]:
    """Picture [H, W, 3] -> ([1, 3, h, w] 0..255 in the upper left corner of grey, px of it a px of the picture)."""
    ratio = min(size[0] / bgr.shape[0], size[1] / bgr.shape[1])
    height, width = int(bgr.shape[0] * ratio), int(bgr.shape[1] * ratio)
    padded = np.full((*size, 3), GREY, np.uint8)
    padded[:height, :width] = cv2.resize(bgr, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(padded.transpose(2, 0, 1)[None], np.float32), ratio


def people_in(told: Floats, size: tuple[int, int]) -> Floats:
    """What the detector says of its cells [N, 5 + classes], finest stride first -> boxes [M, 4] x0, y0, x1, y1 px of its picture."""
    cells = [np.stack(np.meshgrid(np.arange(size[1] // s), np.arange(size[0] // s)), 2).reshape(-1, 2) for s in STRIDES]
    stride = np.concatenate([np.full((len(cell), 1), s) for cell, s in zip(cells, STRIDES, strict=True)])
    middle = ((told[:, :2] + np.concatenate(cells)) * stride).astype(np.float32)
    half = (np.exp(told[:, 2:4]) * stride).astype(np.float32) / np.float32(2.0)
    score = told[:, 4] * told[:, 5 + PERSON]
    boxes = np.concatenate([middle - half, middle + half], 1)
    valid = score > BOX_SCORE
    boxes, score = boxes[valid], score[valid]
    kept = _apart(boxes, score)
    found: Floats = boxes[[at for at in kept if score[at] > SCORED]]
    return found


def _apart(boxes: Floats, score: Floats) -> list[int]:
    """Which boxes [N, 4] are not another, better one's; the best first. Edges count as px, as in the published code."""
    area = (boxes[:, 2:] - boxes[:, :2] + 1).prod(1)
    order, kept = score.argsort()[::-1], []
    while order.size:
        best, rest = order[0], order[1:]
        kept.append(int(best))
        shared = np.maximum(0.0, np.minimum(boxes[best, 2:], boxes[rest, 2:]) - np.maximum(boxes[best, :2], boxes[rest, :2]) + 1).prod(1)
        order = rest[shared / (area[best] + area[rest] - shared) <= BOX_OVERLAP]
    return kept


def cut_out(bgr: UInt8Array, box: Floats, size: tuple[int, int]) -> tuple[FloatArray, Floats, Floats]:
    """A box's surroundings at `size` (h, w) -> ([1, 3, h, w] normalised, their centre [2] and their width and height [2] in the picture, px)."""
    height, width = size
    aspect, centre, sides = width / height, (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) * AROUND
    extent = np.maximum(sides, sides[::-1] * np.array([aspect, 1.0 / aspect], box.dtype))
    # By three points in single precision, as published: a matrix that is better by a rounding shifts what is interpolated.
    corner = np.array([(0.0, 0.0), (0.0, -0.5), (-0.5, -0.5)])
    there, here = (centre + extent[0] * corner).astype(np.float32), ((width / 2, height / 2) + width * corner).astype(np.float32)
    seen = cv2.warpAffine(bgr, cv2.getAffineTransform(there, here), (width, height), flags=cv2.INTER_LINEAR)
    normal = (seen - np.array(MEAN)) / np.array(DEVIATION)
    return np.ascontiguousarray(normal.transpose(2, 0, 1)[None], np.float32), centre, extent


def decoded(across: Floats, down: Floats) -> tuple[Floats, FloatArray]:
    """SimCC's rows [133, bins] of x and of y -> (points [133, 2] px of the network's picture, scores [133]); -1 / SPLIT where nothing is."""
    points = np.stack([across.argmax(1), down.argmax(1)], 1).astype(np.float32)
    scores = np.minimum(across.max(1), down.max(1)).astype(np.float32)
    points[scores <= 0.0] = -1.0
    return points / SPLIT, scores


# -- files of somebody else ------------------------------------------------------------------------------------------------


def _session(path: Path, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the generator shares the cores
    fast = [name for name in ("CUDAExecutionProvider",) if name in onnxruntime.get_available_providers()]
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=[*fast, "CPUExecutionProvider"])
    except Exception as error:  # whatever a damaged or foreign file raises
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise AvatarError(f"ONNX Runtime cannot load '{path}' ({said}); download it again.") from error


def _taken(path: Path, session: Any) -> tuple[str, tuple[int, int]]:
    """(name of the input, its height and width). Raises AvatarError where it takes something else than one picture."""
    ports = session.get_inputs()
    shape = list(ports[0].shape) if ports else []
    sides = [side for side in shape[1:] if isinstance(side, int)]
    if len(ports) != 1 or len(shape) != 4 or len(sides) != 3 or sides[0] != 3 or shape[0] not in (1, None) and isinstance(shape[0], int):
        raise AvatarError(f"'{path}' takes {_said([port.shape for port in ports])} and not one picture of 3 colours; {GIVE}.")
    return str(ports[0].name), (sides[1], sides[2])


def _gives(path: Path, session: Any, wanted: Sequence[tuple[int | None, ...]]) -> None:
    """Raise AvatarError where the outputs cannot be of these shapes."""
    shapes = [port.shape for port in session.get_outputs()]
    fits = len(shapes) >= len(wanted) and all(
        len(shape) == len(want) and all(not isinstance(has, int) or w is None or has == w for has, w in zip(shape, want, strict=True))
        for shape, want in zip(shapes, wanted, strict=False)
    )
    if not fits:
        raise AvatarError(f"'{path}' gives {_said(shapes)} and not {_said(wanted)}, so it is not DWPose's; {GIVE}.")


def _said(shapes: Sequence[Sequence[Any]]) -> str:
    return " and ".join(" x ".join(str(side) if isinstance(side, int) else "any" for side in shape) for shape in shapes) or "nothing"


__all__ = ["DETECTOR", "POINTS", "POSE", "DWPose", "Whole", "files", "skeleton_of"]
