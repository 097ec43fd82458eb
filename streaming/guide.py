"""What a minute of a person must show before a generator can be taught from it, and what is still missing. Knows readings, not pictures.

`Guide.see` is given what each picture shows; nothing counts that the data set's quality filter would drop afterwards. The figures that
are the filter's own are held against it by a test.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from statistics import median
from typing import Any

LONGEST_STEP = 0.5
"""s that one picture may stand for."""
TURN_MOST = (30.0, 22.0, 32.0)
"""Degrees of yaw, pitch and roll beyond which the quality filter drops a picture."""
CUT_OFF, SHARP_SHARE, COVERED, RIVAL = 0.04, 0.6, 0.5, 0.5
"""The filter's too: share of the face outside the picture, of the usual sharpness, of the mouth that is seen, of the face's width."""
SHARP_AFTER = 10
"""Pictures after which the usual sharpness is known."""
SOFT = 5.0
"""Grey levels of sharpness that a lens in focus exceeds: webcams show 10 to 25."""
DARK = 55.0
"""Mean grey level of a face below which a webcam blurs and slows down."""
SMALL = 120.0
"""px of face width in the recorded picture below which a 256 px crop has to be enlarged."""
STEADY = 2
"""Pictures in a row that must agree before a warning comes or goes, so that it does not flicker."""
SETTLE_SECONDS = 2.0
"""s of good pictures before anything is measured against the person's rest, which the driver learns from them."""
SHUT_EYES, OPEN_EYES = 0.35, 0.6
"""Apertures that a blink passes."""
SILENT, LOUDER, FLOOR_SECONDS = 0.008, 2.0, 6.0
"""RMS below which nothing is heard, times the quietest moment of the last seconds that is a voice, and those seconds."""
PAUSE_SECONDS = 0.6
"""s between two syllables that are still one speech."""
SPOKEN, MOVING_SECONDS = 0.05, 1.2
"""Change of the lip gap (inter-ocular distances), and the s within which it comes, that make a mouth that speaks."""

WARNINGS = {
    "dark": "It is too dark to see you: put a lamp or a window in front of you.",
    "no face": "Your face is not in the picture: look towards the camera.",
    "two faces": "There is a second face in the picture: only you may be seen.",
    "cut off": "Your face is cut off by the edge: move to the middle.",
    "blurred": "The picture is blurred: move more slowly.",
    "extreme pose": "That is too far: come back a little.",
    "mouth covered": "Something covers your mouth: take your hand away.",
}
"""Why what is seen now does not count; the first that holds is told."""
ADVICE = {
    "dim": "Your face is rather dark: a lamp or a window in front of you makes the picture better.",
    "far": "You are rather far away: come nearer to the camera.",
    "soft": "The picture is soft: clean the lens, or check that the camera is in focus.",
}
"""What makes a recording worth less; it counts all the same."""
SENTENCES = (
    "The beige hue on the waters of the loch impressed all, including the French queen, before she heard that symphony again. "
    "Five wise old wolves jumped over the fence and watched my father's boat vanish in the yellow moonshine."
)
"""To be read aloud: every sound of English, so that the mouth takes every shape."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What one picture shows, and what was heard since the one before. Without a face only `time`, `light` and `loud` mean something."""

    time: float  # s, any origin
    face: bool = True
    width: float = 300.0  # px of the face in the recorded picture
    head: tuple[float, float, float] = (0.0, 0.0, 0.0)  # degrees of yaw, pitch, roll from rest, as in `Motion.head`
    eyes: float = 1.0  # mean aperture: 0 closed, 1 as at rest
    brows: float = 0.0  # mean lift, inter-ocular distances
    gap: float = 0.0  # of the lips, inter-ocular distances
    wider: float = 0.0  # the mouth's width over its width at rest, less 1
    mouth: float = 1.0  # 0..1 how well the lips are seen
    outside: float = 0.0  # share of the face that lies outside the picture
    others: float = 0.0  # width of another face as a share of this one's
    sharp: float = 20.0  # grey levels
    light: float = 120.0  # mean grey level
    loud: float = 0.0  # RMS 0..1 of the microphone


@dataclass(frozen=True, slots=True)
class Task:
    """One thing to do. `amount` of a reading is 1 where it is done enough; `need` counts seconds, or times where `times`."""

    key: str
    title: str
    say: str
    need: float
    amount: Callable[[Reading], float] = lambda reading: 0.0
    times: bool = False


def _rest(reading: Reading) -> float:
    still = max(abs(angle) for angle in reading.head) < 8.0
    return float(still and reading.gap < 0.04 and reading.eyes > OPEN_EYES and abs(reading.wider) < 0.12)


TASKS = (
    Task("rest", "Look straight ahead", "Look straight into the camera, relaxed, with your mouth closed", 2.0, _rest),
    # yaw > 0 moves the nose to the picture's right, which is the person's left
    Task("left", "Turn left", "Turn your head slowly to your left", 0.8, lambda reading: reading.head[0] / 18.0),
    Task("right", "Turn right", "Turn your head slowly to your right", 0.8, lambda reading: -reading.head[0] / 18.0),
    Task("up", "Look up", "Lift your chin: your head looks up a little", 0.8, lambda reading: -reading.head[1] / 10.0),
    Task("down", "Look down", "Lower your chin: your head looks down a little", 0.8, lambda reading: reading.head[1] / 10.0),
    Task("jaw", "Mouth wide open", "Open your mouth wide, as at the dentist's", 0.8, lambda reading: reading.gap / 0.45),
    Task("teeth", "Show your teeth", "Smile wide and show your teeth", 1.0, lambda reading: min(reading.wider / 0.12, reading.gap / 0.04)),
    Task("eyes", "Eyes wide open", "Open your eyes as wide as you can", 0.6, lambda reading: (reading.eyes - 1.0) / 0.1),
    Task("brows", "Raise your eyebrows", "Raise your eyebrows high", 0.6, lambda reading: reading.brows / 0.05),
    Task(
        "blinks",
        "Blink five times",
        "Close your eyes for a moment and open them again, five times",
        5.0,
        lambda reading: 1.0 - reading.eyes,
        times=True,
    ),
    Task("read", "Read aloud", "Read this aloud, or say something as long in your own language", 10.0),
    Task("minute", "A minute in all", "Now talk about anything, and look around a little as you do when you talk", 60.0),
)
KEYS = tuple(task.key for task in TASKS)


def problem(reading: Reading, usual_sharpness: float | None) -> str | None:
    """Why a picture does not count: a key of WARNINGS, or None. `usual_sharpness`: grey levels, None where it is not known yet."""
    if not reading.face:
        return "dark" if reading.light < DARK / 2 else "no face"
    tests = {
        "two faces": reading.others > RIVAL,
        "cut off": reading.outside > CUT_OFF,
        "blurred": usual_sharpness is not None and reading.sharp < SHARP_SHARE * usual_sharpness,
        "extreme pose": any(abs(angle) > most for angle, most in zip(reading.head, TURN_MOST, strict=True)),
        "mouth covered": reading.mouth < COVERED,
    }
    return next((reason for reason, holds in tests.items() if holds), None)


def advice(reading: Reading, usual_sharpness: float | None) -> str | None:
    """What would make it better: a key of ADVICE, or None."""
    if not reading.face:
        return None
    tests = {"dim": reading.light < DARK, "far": reading.width < SMALL, "soft": usual_sharpness is not None and usual_sharpness < SOFT}
    return next((reason for reason, holds in tests.items() if holds), None)


@dataclass(slots=True)
class Guide:
    """One recording's progress. `done` and `seconds`: what earlier recordings of the same person have shown; `sound`: whether one is heard."""

    done: Collection[str] = ()
    seconds: float = 0.0
    sound: bool = True
    have: dict[str, float] = field(default_factory=dict)  # seconds or times of every task, by key, with those of earlier recordings
    now: dict[str, float] = field(default_factory=dict)  # 0..1 how far each is done at this moment
    dropped: dict[str, float] = field(default_factory=dict)  # s that do not count, by reason
    warning: str | None = None  # key of WARNINGS
    hint: str | None = None  # key of ADVICE
    _before: dict[str, float] = field(default_factory=dict)  # `have` at the start
    _last: float | None = None
    _doubt: tuple[str | None, int] = (None, 0)  # the newest problem, and how many pictures in a row had it
    _good: float = 0.0  # s of pictures that count
    _closed: bool = False
    _sharp: deque[float] = field(default_factory=lambda: deque(maxlen=600))
    _gaps: deque[tuple[float, float]] = field(default_factory=deque)  # time, lip gap
    _levels: deque[tuple[float, float]] = field(default_factory=deque)  # time, RMS

    def __post_init__(self) -> None:
        self.have = {task.key: task.need if task.key in self.done else 0.0 for task in TASKS}
        self.have["minute"] = max(self.have["minute"], self.seconds)
        self._before = dict(self.have)
        self.now = dict.fromkeys(KEYS, 0.0)

    def see(self, reading: Reading) -> None:
        """The next picture; they come in the order of their times."""
        step = 0.0 if self._last is None else min(LONGEST_STEP, max(0.0, reading.time - self._last))
        self._last = reading.time
        usual = median(self._sharp) if len(self._sharp) >= SHARP_AFTER else None
        found = problem(reading, usual)
        if reading.face:
            self._sharp.append(reading.sharp)
        self._settle(found)
        self.hint = advice(reading, usual)
        speaks = self._speaks(reading)
        if found is not None:
            self.dropped[found] = self.dropped.get(found, 0.0) + step
            self.now = dict.fromkeys(KEYS, 0.0)
            return
        self._good += step
        settled = self._good >= SETTLE_SECONDS
        for task in TASKS:
            self.now[task.key] = min(1.0, max(0.0, task.amount(reading)))
            if self.now[task.key] >= 1.0 and not task.times and (settled or task.key == "rest"):
                self.have[task.key] += step
        self.now["read"] = float(speaks)
        self.have["read"] += step * speaks
        self.now["minute"] = 1.0
        self.have["minute"] += step
        if settled:
            self._blink(reading.eyes)

    def _settle(self, found: str | None) -> None:
        before, times = self._doubt
        self._doubt = (found, times + 1 if found == before else 1)
        if self._doubt[1] >= STEADY:
            self.warning = found

    def _blink(self, eyes: float) -> None:
        if eyes < SHUT_EYES:
            self._closed = True
        elif eyes > OPEN_EYES and self._closed:
            self._closed = False
            self.have["blinks"] += 1.0

    def _speaks(self, reading: Reading) -> bool:
        """Whether a voice is heard while the mouth moves."""
        for kept, value, span in ((self._gaps, reading.gap, MOVING_SECONDS), (self._levels, reading.loud, FLOOR_SECONDS)):
            kept.append((reading.time, value))
            while kept[0][0] < reading.time - span:
                kept.popleft()
        gaps = [gap for _, gap in self._gaps]
        floor = min(level for _, level in self._levels)
        heard = max(level for time, level in self._levels if time > reading.time - PAUSE_SECONDS)
        return self.sound and heard > max(SILENT, LOUDER * floor) and max(gaps) - min(gaps) > SPOKEN

    def missing(self) -> list[str]:
        """Keys of what has not been shown yet, in the order it is asked for."""
        return [task.key for task in TASKS if self.have[task.key] < task.need]

    def shown(self) -> list[str]:
        """Keys of what this recording alone has shown, in the order it is asked for."""
        return [task.key for task in TASKS if self._own(task.key) >= task.need]

    def of_use(self) -> float:
        """s of this recording that count."""
        return self._own("minute")

    def _own(self, key: str) -> float:
        return self.have[key] - self._before[key]

    def told(self) -> dict[str, Any]:
        """All of it for a page."""
        return {
            "tasks": [
                {"key": task.key, "share": round(min(1.0, self.have[task.key] / task.need), 3), "now": round(self.now[task.key], 2)} for task in TASKS
            ],
            "missing": self.missing(),
            "seconds": round(self.have["minute"], 1),
            "warning": WARNINGS[self.warning] if self.warning else None,
            "advice": ADVICE[self.hint] if self.hint else None,
        }


def described() -> list[dict[str, Any]]:
    """The tasks for a page: key, title, what to say, and the text to read where there is one."""
    return [{"key": task.key, "title": task.title, "say": task.say, "read": SENTENCES if task.key == "read" else None} for task in TASKS]


__all__ = ["ADVICE", "KEYS", "SENTENCES", "TASKS", "WARNINGS", "Guide", "Reading", "Task", "advice", "described", "problem"]
