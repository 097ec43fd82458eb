"""Footage of a person who was never filmed: the puppet of the public-domain portrait, acting and speaking, under a light that stays in the
room, with wrinkles, made-up lids, other teeth and a book shelf behind. None of that is in the puppet's own frames, so there is something to learn.

    python -m exporters.training.demo DIR && cp -r DIR/taught engine/assets/
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from engine.drivers.idle import IdleDriver, smoothstep
from engine.drivers.resample import RATE
from engine.drivers.speech import SpeechDriver
from engine.generators.puppet import topology
from engine.generators.puppet.generator import Puppet, State
from engine.media import Writer, audio_samples
from engine.persona import demo_portrait
from engine.pose import rotation
from engine.types import AudioChunk, AvatarError, FloatArray, Motion, Signal, UInt8Array, VideoFrame
from exporters.data.dataset import Dataset, collect
from exporters.data.storage import SCENE

SIDE, FPS, SECONDS, QUALITY = 512, 25, 72.0, 14
"""px, frames a second, s, and x264's CRF."""
SPEECH = (
    "Hello, and welcome. I am a portrait that somebody taught to speak. Nobody ever filmed me. Every morning I watch the blue sky above the sea, "
    "and I wonder what moves behind it. Five or six weeks from now, we shall know much more. Thank you for having me, and for all your questions. "
    "What a beautiful evening. Please show me the other picture, the one with the boat. Oh, very good. Who would have thought of that?"
)
VOICE, WORDS_PER_MINUTE = "en-us+f3", "165"
MINUTES, TOLD_EVERY = 15.0, 0.05
"""Of training the network, and the share of them from one line of progress to the next."""
ACT = 8.0
"""s: speaking and acting take turns."""

# -- what she does ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Gesture:
    """One thing a guided recording asks for, held and let go within GESTURE s."""

    head: tuple[float, float, float] = (0.0, 0.0, 0.0)  # yaw, pitch, roll, degrees
    eyes: float = 1.0
    brows: float = 0.0
    mouth: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)


GESTURE = 2.0
GESTURES = (
    Gesture(head=(14, 0, 3)),
    Gesture(head=(-14, 0, -3)),
    Gesture(mouth=(0.45, 0.0, 0.0, 0.0)),
    Gesture(mouth=(0.12, 0.14, 0.0, 0.7), eyes=0.85),
    Gesture(eyes=1.45, brows=0.12),
    Gesture(mouth=(0.0, -0.1, 0.9, 0.0)),
    Gesture(head=(4, 9, 0)),
    Gesture(head=(-4, -8, 0), mouth=(0.25, 0.05, 0.0, 0.2)),
    Gesture(mouth=(0.0, 0.12, 0.0, 0.8), head=(8, 2, 5)),
    Gesture(eyes=0.0),
    Gesture(brows=-0.06, mouth=(0.0, 0.0, 0.2, -0.6)),
    Gesture(mouth=(0.3, -0.05, 0.6, 0.0), head=(-9, 0, 4)),
)
"""In turn; between two of them she is herself."""


def _spoken() -> FloatArray:
    """SPEECH at RATE Hz. The program runs in a process of its own: it is GPL."""
    program = shutil.which("espeak-ng")
    if program is None:
        raise AvatarError("Her voice comes from espeak-ng, which is missing; install it (apt install espeak-ng) and start again.")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "voice.wav"
        subprocess.run([program, "-v", VOICE, "-s", WORDS_PER_MINUTE, "-w", str(path), SPEECH], check=True, stdin=subprocess.DEVNULL)
        return audio_samples(path, rate=RATE)


def voice() -> FloatArray:
    """Her voice [SECONDS · RATE] at RATE Hz, quiet while she acts. Raises AvatarError where espeak-ng is missing."""
    said = _spoken()
    out, turn = np.zeros(round(SECONDS * RATE), np.float32), round(ACT * RATE)
    for number, start in enumerate(range(0, len(out), 2 * turn)):
        part = said[number * turn : (number + 1) * turn][: len(out) - start]
        out[start : start + len(part)] = part
    return out


def motions(sound: FloatArray) -> Iterator[tuple[float, Motion]]:
    """(s, motion) of every frame."""
    speech, idle = SpeechDriver(), IdleDriver(seed=5)
    step, heard = RATE // FPS, 0
    for k in range(round(SECONDS * FPS)):
        time = k / FPS
        while heard < min(len(sound), (k + 8) * step):
            speech.hear(AudioChunk(sound[heard : heard + step], RATE, heard / RATE))
            heard += step
        reading = speech.at(time)
        motion = idle.at(time, speaking=reading.voiced)
        motion = replace(motion, head=motion.head * np.array([1.5, 1.5, 1.5, 1, 1, 1], np.float32), mouth=reading.mouth)
        yield time, motion if int(time / ACT) % 2 == 0 else _acted(motion, time)


def _acted(motion: Motion, time: float) -> Motion:
    """With the gesture of the moment."""
    number, since = divmod(time, GESTURE)
    gesture = GESTURES[int(number) % len(GESTURES)]
    much = smoothstep(since / 0.5) * (1.0 - smoothstep((since - GESTURE + 0.5) / 0.5))
    head = motion.head.copy()
    head[:3] += much * np.array(gesture.head, np.float32)
    return replace(
        motion,
        head=head,
        eyes=motion.eyes * np.float32(1.0 + much * (gesture.eyes - 1.0)),
        brows=motion.brows + np.float32(much * gesture.brows),
        mouth=(motion.mouth * (1 - much) + much * np.array(gesture.mouth)).astype(np.float32),
    )


# -- how she looks ----------------------------------------------------------------------------------------------------------

LIGHT, AMBIENT, BRIGHTEST, DIM = np.array([-0.62, -0.42, -0.66]), 0.5, 1.22, 0.25
"""Where the light comes from (x right, y down, z away from the camera), how much of it comes from everywhere, by how much it brightens at
most, and how much darker than the portrait the unlit side is."""
FOREHEAD = ((103, 67, 109, 10, 338, 297, 332), (104, 69, 108, 151, 337, 299, 333))
FOLDS = ((129, 203, 206, 216, 212), (358, 423, 426, 436, 432))
"""Points that the lines of a raised brow and of a smile follow."""
SHADOW = np.array([118, 74, 84], np.float32)
"""Colour of the lids, RGB."""


class Look:
    """Dresses the puppet's frames."""

    def __init__(self, puppet: Puppet, state: State) -> None:
        """`state`: she sits in its first row."""
        row = state.rows[0]
        assert row is not None
        row.features = replace(row.features, upper_teeth=_whiter(row.features.upper_teeth), shade=np.float32(0.5) * row.features.shade)
        self._puppet, self._state = puppet, state
        oval = (row.features.uv - (row.features.texture.shape[1] - SIDE) / 2)[list(topology.OVAL)]
        self._middle, self._radius = (oval.min(0) + oval.max(0)) / 2, 0.62 * (oval.max(0) - oval.min(0))
        self._shelf = _shelf()

    def frame(self, time: float, motion: Motion) -> UInt8Array:
        """[SIDE, SIDE, 3] what a camera would have seen."""
        made = self._puppet.step(self._state, [[Signal(time, motion=motion)]])[0]
        assert made is not None
        assert made[0].alpha is not None
        frame, points = made[0], self._puppet.points(self._state, 0)
        person = frame.rgb.astype(np.float32) * self._lit(self._puppet.guide(self._state, 0, frame), motion)[..., None]
        person *= 1.0 - _lines(points, FOREHEAD, 3.5 * max(0.0, float(motion.brows.mean())))
        person *= 1.0 - _lines(points, FOLDS, 0.45 * max(0.0, float(motion.mouth[3])))
        for side in range(2):
            lid = _lid(points, side) * float(np.clip(1.2 - motion.eyes[side], 0.0, 1.0)) * 0.55
            person += lid[..., None] * (SHADOW - person)
        cover = made[0].alpha.astype(np.float32)[..., None] / 255
        shown: UInt8Array = np.clip(np.rint(person * cover + self._shelf * (1 - cover)), 0, 255).astype(np.uint8)
        return shown

    def _lit(self, guide: UInt8Array, motion: Motion) -> FloatArray:
        """[H, W] how much brighter a place is than in the portrait: Lambert's law on an ellipsoid that turns with the head."""
        at = (guide[..., :2].astype(np.float32) - 1.0) * np.float32((SIDE - 1) / 254)
        out = (at - self._middle.astype(np.float32)) / self._radius.astype(np.float32)
        far = np.sqrt((out**2).sum(2))
        out /= np.maximum(1.0, far / 0.97)[..., None]
        normal = np.concatenate([out, -np.sqrt(np.maximum(0.0, 1.0 - (out**2).sum(2, keepdims=True)))], 2)
        turned = normal @ rotation(*(float(x) for x in motion.head[:3])).T.astype(np.float32)
        before, now = (AMBIENT + np.maximum(0.0, n @ LIGHT.astype(np.float32)) for n in (normal, turned))
        ratio = np.clip(now / before, 0.55, BRIGHTEST) * (1.0 - DIM + DIM * now)
        on_head = np.clip((1.5 - far) / 0.4, 0.0, 1.0) * (guide[..., 0] > 0)
        lit: FloatArray = cv2.GaussianBlur((1.0 + on_head * (ratio - 1.0)).astype(np.float32), (0, 0), 3.0)
        return lit


def _whiter(teeth: UInt8Array) -> UInt8Array:
    """[h, w, 4] with more contrast between the teeth."""
    colour = teeth[..., :3].astype(np.float32)
    mean = colour[teeth[..., 3] > 128].mean(0) if (teeth[..., 3] > 128).any() else np.float32(128)
    strong = np.clip((colour - mean) * 1.8 + mean * 1.25, 0, 255)
    return np.concatenate([strong.astype(np.uint8), teeth[..., 3:]], 2)


def _lines(points: FloatArray, lines: tuple[tuple[int, ...], ...], depth: float) -> FloatArray:
    """[H, W, 1] 0..1: soft dark lines through face points."""
    if depth < 0.01:
        return np.zeros((1, 1, 1), np.float32)
    mask = np.zeros((SIDE, SIDE), np.uint8)
    cv2.polylines(mask, [np.rint(points[list(line)]).astype(np.int32) for line in lines], False, 255, 3, cv2.LINE_AA)
    soft: FloatArray = cv2.GaussianBlur(mask, (0, 0), 2.5).astype(np.float32)[..., None] / 255 * np.float32(min(depth, 0.6))
    return soft


def _lid(points: FloatArray, side: int) -> FloatArray:
    """[H, W] 0..1 between the upper lid's edge and its crease."""
    outline = [*topology.UPPER_LID[side], *topology.UPPER_CREASE[side][::-1]]
    mask = np.zeros((SIDE, SIDE), np.uint8)
    cv2.fillPoly(mask, [np.rint(points[outline]).astype(np.int32)], (255,))
    soft: FloatArray = cv2.GaussianBlur(mask, (0, 0), 2.0).astype(np.float32) / 255
    return soft


def _shelf() -> FloatArray:
    """[SIDE, SIDE, 3] books, a little out of focus."""
    rng = np.random.default_rng(11)
    wall = np.full((SIDE, SIDE, 3), (74, 58, 44), np.uint8)
    for top in range(-20, SIDE, 132):
        x = -4
        while x < SIDE:
            wide, high = int(rng.integers(20, 44)), int(rng.integers(84, 118))
            colour = tuple(int(c) for c in 38 + 0.5 * rng.integers(20, 130) + 0.4 * rng.integers(20, 110, 3))
            cv2.rectangle(wall, (x, top + 120 - high), (x + wide - 2, top + 120), colour, -1)
            cv2.rectangle(wall, (x + 2, top + 134 - high), (x + wide - 5, top + 139 - high), tuple(min(255, c + 60) for c in colour), -1)
            x += wide
        cv2.rectangle(wall, (0, top + 120), (SIDE, top + 131), (122, 92, 62), -1)
    blurred: FloatArray = cv2.GaussianBlur(wall, (0, 0), 5.0).astype(np.float32)
    return blurred


# -- the film ---------------------------------------------------------------------------------------------------------------


def film(out: Path) -> None:
    """Write SECONDS of her, in about 4 minutes of CPU. Raises AvatarError where espeak-ng is missing or the file cannot be written."""
    sound = voice()
    puppet = Puppet((SIDE, SIDE))
    state = puppet.allocate(1)
    puppet.admit(state, 0, puppet.prepare(demo_portrait()))
    look = Look(puppet, state)
    with Writer(out, audio_rate=RATE, quality=QUALITY) as writer:
        for number, (time, motion) in enumerate(motions(sound)):
            writer.write_frame(VideoFrame(look.frame(time, motion), time))
            start = number * RATE // FPS
            writer.write_audio(AudioChunk(sound[start : start + RATE // FPS], RATE, time))


def build(out: Path, *, minutes: float = MINUTES, tell: Callable[[str], None] = print) -> Path:
    """The film, a data set of it, and what that teaches the puppet and a network -> the folder to put into `engine/assets`. Goes on where it was
    stopped."""
    if importlib.util.find_spec("torch") is None:
        raise AvatarError("Her network needs PyTorch, which is not installed: make torch.")
    video, home = out / "demo.mp4", out / "taught"
    out.mkdir(parents=True, exist_ok=True)
    if not video.exists():
        tell(f"Filming {SECONDS:.0f} s ...")
        film(video)
    tell("Learning ...")
    data = collect([video], out / "data")
    for sentence in data.report["sentences"]:
        tell(sentence)
    told = {name: f"{one.crop_db:.1f} / {one.features_db:.1f} dB" for name, one in data.stages.items()}
    origin = {"made_by": "python -m exporters.training.demo", "footage": "exporters/training/demo.py", **told}
    _network(data, out, home / "weights", origin, minutes=minutes, tell=tell)
    shutil.copy(out / "data" / SCENE, home / "portrait.png")
    return home


def _network(data: Dataset, out: Path, weights: Path, origin: dict[str, str], *, minutes: float, tell: Callable[[str], None]) -> None:
    """Train it in `out` and put its weights, with what the puppet was taught and where both come from, into `weights`."""
    from engine.generators.diffusion import networks
    from exporters.training.train import Budget, Report, train

    told = [0.0]

    def progress(report: Report) -> None:
        if report.judged is not None or report.share - told[0] >= TOLD_EVERY:
            told[0] = report.share
            tell(f"{report.share:4.0%}  update {report.updates}, loss {report.loss:.4f}")

    tell(f"Training the network for {minutes:g} minutes ...")
    judged = train(data, out / "run", budget=Budget(minutes=minutes), progress=progress)
    trained = networks.load(out / "run" / "weights")
    found = {f"after {count} step{'s' * (count > 1)}": f"{one.crop_db:.1f} / {one.features_db:.1f} dB" for count, one in judged.made.items()}
    shutil.rmtree(weights, ignore_errors=True)
    networks.save(trained, weights, origin={**origin, "steps": str(trained.preset.steps), **found}, taught=trained.taught)


def main() -> None:
    """The command."""
    told = "Make the demo persona: its footage, and what that teaches."
    parser = argparse.ArgumentParser(prog="python -m exporters.training.demo", description=told)
    parser.add_argument("out", type=Path, help="a folder for all of it; its 'taught' goes into engine/assets")
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"of training the network (default: {MINUTES:g})")
    options = parser.parse_args()
    try:
        print(f"Wrote {build(options.out, minutes=options.minutes)}.")
    except AvatarError as error:
        raise SystemExit(str(error)) from None
    except KeyboardInterrupt:
        raise SystemExit("Stopped; the same command goes on from here.") from None


if __name__ == "__main__":
    main()


__all__ = ["FPS", "SECONDS", "SIDE", "Gesture", "Look", "build", "film", "motions", "voice"]
