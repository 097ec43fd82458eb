"""The nouns of the engine and the protocols between its rooms; NumPy only.

Coordinates. Pictures: x right, y down, pixels or 0..1 of width and height. Heads: the same x and y, z away from the camera
(MediaPipe's convention: z shrinks towards the camera, on the scale of x). Times are seconds on the session clock (the
server's monotonic clock). "Left" and "right" always mean the picture's left and right, not the person's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
UInt8Array = npt.NDArray[np.uint8]

FACE_POINTS = 478
"""MediaPipe face mesh with iris: 468 skin points, then 5 for each iris (468..472 the iris of the eye at points 33..133)."""
BODY_POINTS = 33
"""MediaPipe pose landmarks."""
HAND_POINTS = 21
"""MediaPipe hand landmarks: the wrist, then four from root to tip of thumb, index, middle, ring and little finger."""
MEL_BANDS = 80
MEL_ROWS = 16
"""Rows of 10 ms in one Signal: 160 ms of log-mel."""

Drive = Literal["camera", "voice", "auto"]
"""Who moves the face: the camera; the voice (microphone, text or file); or the camera with the voice's lips when they are hidden."""
Grid = Literal["camera", "voice"]
"""What paced a frame: a camera arrival (never held) or the audio clock (sound and picture leave together)."""


class AvatarError(Exception):
    """Bad input or a missing part. The message is one sentence for a person and says what to do about it."""


class MissingPart(AvatarError):
    """Something optional is not installed; the message says how to get it."""


@dataclass(frozen=True, slots=True)
class VideoFrame:
    """One picture."""

    rgb: UInt8Array  # [H, W, 3], RGB 0..255
    time: float  # s; going in: when it was captured; going out: the time of the motion it shows
    id: int = 0
    alpha: UInt8Array | None = None  # [H, W], 255 = the person; None where nothing was matted


@dataclass(frozen=True, slots=True)
class AudioChunk:
    """A span of mono sound."""

    pcm: FloatArray  # [N], -1..1
    rate: int  # Hz
    time: float  # s of pcm[0]

    @property
    def duration(self) -> float:
        """Seconds of sound."""
        return len(self.pcm) / self.rate


@dataclass(frozen=True, slots=True)
class Motion:
    """Motion relative to a calibrated neutral, free of who made it: what any driver says and any portrait can do.

    Zero everywhere (eyes 1, mouth gap 0) is the neutral pose with open eyes and closed lips.
    """

    head: FloatArray
    """[6] yaw, pitch, roll in degrees, then x and y in face widths and the log of the scale, relative to neutral.
    yaw > 0: the nose moves to the picture's right; pitch > 0: the nose moves down; roll > 0: clockwise in the picture;
    scale > 0: nearer to the camera. Rotations are composed by `engine.pose.rotation`."""
    eyes: FloatArray  # [2] aperture of the left and right eye: 0 closed, 1 the neutral's opening, up to 1.6 wide
    gaze: FloatArray  # [2] shift of the irises (x right, y down) from neutral, in eye widths
    brows: FloatArray  # [2] lift of the left and right brow from neutral, in inter-ocular distances, > 0 raised
    mouth: FloatArray
    """[4] gap: inner lip opening in inter-ocular distances (absolute: 0 = lips closed); width: change of the mouth's width
    as a fraction of the neutral's (> 0 wider); round: protrusion 0..1; smile: lift of the corners, -1..1."""
    expression: FloatArray | None = None
    """[478, 3] displacement of every face point from neutral with the head pose removed, in the head's frame, unit: the
    driver's face width. None where the face is not seen (the voice, the idle driver): then the scalars above say all."""
    expressed: FloatArray = field(default_factory=lambda: np.ones(2, np.float32))
    """[2] 0..1: how much of the brows and of the mouth's width, round and smile `expression` carries; the scalars say the rest.
    Below 1 while one source gives way to another, 0 for a mouth that the voice moves in a face the camera sees."""
    body: FloatArray = field(default_factory=lambda: np.zeros(6, np.float32))
    """[6] shoulders relative to neutral: lean (roll of the shoulder line, degrees, > 0 clockwise), twist (yaw, degrees),
    x and y shift in shoulder widths, shrug of the left and right shoulder in shoulder widths (> 0 up)."""
    confidence: FloatArray = field(default_factory=lambda: np.zeros(3, np.float32))
    """[3] 0..1: how much head and eyes, mouth, body are really seen or heard."""


@dataclass(frozen=True, slots=True)
class Signal:
    """All that is known about one instant; any part may be None."""

    time: float  # s of the motion
    id: int = 0  # id of the camera frame it came from, 0 where there is none
    motion: Motion | None = None
    face: FloatArray | None = None  # [478, 3] x, y 0..1 of the picture, z on the scale of x
    aspect: float = 1.0  # width / height of the driving picture, which 0..1 coordinates need to become distances
    head: FloatArray | None = None  # [4, 4] similarity: mean face (face widths, origin between the eyes) -> picture pixels
    body: FloatArray | None = None  # [33, 4] x, y 0..1, z, visibility
    hands: FloatArray | None = None  # [2, 21, 3] left, right hand of the picture: x, y 0..1, z; all zero for one that is not seen
    speech: FloatArray | None = None  # [16, 80] log-mel, 10 ms a row, the last row ends at `time` + the declared look-ahead
    pcm: FloatArray | None = None  # [2560] the same span at 16 kHz
    image: UInt8Array | None = None  # [h, w, 3] RGB, the driving picture
    maps: Mapping[str, UInt8Array] | None = None  # "densepose", "depth", "dwpose", "normal", "semantic", "smplx": [h, w, 3] RGB: drivers.maps
    confidence: Mapping[str, float] = field(default_factory=dict)  # part -> 0..1


@dataclass(frozen=True, slots=True)
class Identity:
    """A portrait made ready by one generator; immutable, shared by every session that shows it."""

    key: str  # sha256 of portrait + generator + weights
    portrait: UInt8Array  # [H, W, 3] RGB at the generator's size
    features: Any  # what the generator computed once; only that generator looks inside


@dataclass(frozen=True, slots=True)
class GeneratorSpec:
    """What a generator declares about itself."""

    name: str
    size: tuple[int, int]  # (H, W) px of its frames
    fps: int  # frames a second it is made for
    chunk: int = 1  # signals a step takes and frames it returns
    delay: int = 0  # frames between a signal and the frame that shows it (structural)
    needs: tuple[str, ...] = ("motion",)  # fields of Signal it reads
    together: bool = False  # one step of all rows is cheaper than a step a row: it runs on an accelerator
    warm_up: int = 1  # steps of the same rows until one takes no longer than all that follow: kernels are chosen, graphs captured
    notice: str = ""  # a sentence that whoever watches must be told
    maps: tuple[str, ...] = ()  # names in Signal.maps that it cannot do without
    more_maps: tuple[str, ...] = ()  # and those that it reads where they are there


@runtime_checkable
class Generator(Protocol):
    """Two verbs: `prepare` is slow and done once a portrait, `step` is fast and done for every frame.

    `State` is the generator's own dataclass: allocated once, fixed shapes, written in place, leading batch row.
    """

    spec: GeneratorSpec

    def prepare(self, portrait: UInt8Array) -> Identity:
        """Portrait [H, W, 3] of any size (already cropped for driving) -> Identity. Raises AvatarError where no face is found."""
        ...

    def allocate(self, rows: int) -> Any:
        """A State for `rows` sessions."""
        ...

    def admit(self, state: Any, row: int, identity: Identity) -> None:
        """Seat an identity in a row and reset it."""
        ...

    def reset(self, state: Any, row: int) -> None:
        """Forget the row's past; the identity stays."""
        ...

    def evict(self, state: Any, row: int) -> None:
        """The row's session has ended: let go of the identity and of whatever was held for it."""
        ...

    def step(self, state: Any, signals: Sequence[Sequence[Signal] | None]) -> list[list[VideoFrame] | None]:
        """`signals[row]` is `spec.chunk` signals, or None for an idle row -> as many frames per row, None for idle rows."""
        ...


class FaceSource(Protocol):
    """What drives a face: pictures -> calibrated signals of one person. MediaPipe's is `drivers/face.py`; a newer tracker, a recording or
    a test takes its place by these verbs. One a session; called from one thread at a time."""

    @property
    def neutral_state(self) -> str:
        """ "searching" until the person's neutral is found, then "set"."""
        ...

    def __call__(self, frame: VideoFrame) -> Signal:
        """A picture -> what is known of its instant; `motion.confidence` is 0 where no face is seen."""
        ...

    def set_neutral(self) -> None:
        """Take the present face as the neutral one."""
        ...

    def reset(self) -> None:
        """Forget the person."""
        ...

    def close(self) -> None:
        """Free the tracker."""
        ...


@dataclass(frozen=True, slots=True)
class Output:
    """What must leave together."""

    frames: list[VideoFrame]
    audio: list[AudioChunk]  # voice grid: the sound of exactly these frames; camera grid: empty
    grid: Grid
    sound_time: float
    """s: the instant of sound that belongs with the first frame. In the camera grid the pacer delays the returned voice so
    that sound of this time leaves with the frame; in the voice grid it is `audio[0].time`."""


@dataclass(frozen=True, slots=True)
class GraphSpec:
    """One network as every backend sees it: the single truth for export, profiles and parity checks."""

    name: str
    inputs: Mapping[str, tuple[tuple[int, ...], str]]  # name -> (shape, dtype)
    outputs: tuple[str, ...]
    build: Any  # () -> the framework's module

    def examples(self, seed: int = 0) -> dict[str, npt.NDArray[Any]]:
        """Seeded random inputs of the declared shapes; whole numbers are 0 to 7, bytes 0 to 255, truth values true."""
        rng = np.random.default_rng(seed)

        def make(shape: tuple[int, ...], dtype: str) -> npt.NDArray[Any]:
            if dtype == "bool":
                return np.ones(shape, bool)
            if dtype == "uint8":
                return rng.integers(0, 256, shape, np.uint8)
            return rng.integers(0, 8, shape).astype(dtype) if dtype.startswith("int") else rng.standard_normal(shape).astype(dtype)

        return {name: make(shape, dtype) for name, (shape, dtype) in self.inputs.items()}


class Runner(Protocol):
    """A compiled graph: one call, dict of arrays -> dict of arrays."""

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Any]: ...


def still_motion() -> Motion:
    """The neutral itself: eyes open, lips closed, nothing moves."""
    zero = np.zeros
    return Motion(
        head=zero(6, np.float32), eyes=np.ones(2, np.float32), gaze=zero(2, np.float32), brows=zero(2, np.float32), mouth=zero(4, np.float32)
    )
