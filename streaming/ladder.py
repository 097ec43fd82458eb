"""What gives way when a session falls behind, in which order, and how it comes back. Pure: no clock.

The rungs, each keeping what the ones before took away: 0 everything · 1 camera frames beyond 24 a second are dropped and
shoulders are tracked half as often · 2 faces are tracked on every second frame, 12 times a second (held between), shoulders once a
second · 3 three quarters of the size · 4 half of it · 5 twelve frames a second, the tracked ones · 6 eight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from engine.config import BODY_EVERY


@dataclass(frozen=True, slots=True)
class Rung:
    """What a session is allowed."""

    name: str
    fps: float = 60.0  # at most so many frames a second
    body_every: int = BODY_EVERY  # camera frames a body tracking
    track_every: int = 1  # camera frames a face tracking
    output_scale: float = 1.0


RUNGS = (
    Rung("everything"),
    Rung("camera frames dropped", fps=24.0, body_every=2 * BODY_EVERY),
    Rung("tracking slowed", fps=24.0, body_every=24, track_every=2),
    Rung("picture at 3/4", fps=24.0, body_every=24, track_every=2, output_scale=0.75),
    Rung("picture at 1/2", fps=24.0, body_every=24, track_every=2, output_scale=0.5),
    Rung("12 frames a second", fps=12.0, body_every=12, output_scale=0.5),
    Rung("8 frames a second", fps=8.0, body_every=8, output_scale=0.5),
)
BEHIND = 0.85
"""Share of the wanted frames below which a second counts as falling behind."""
KEEPING_UP = 0.93
"""Share above which a second counts as keeping up, if the threads have room as well."""
ROOM = 0.65
"""Busy share of the busiest thread below which there is room."""
DOWN_AFTER = 3
"""Seconds behind before stepping down."""
UP_AFTER = 8
"""Seconds of room before stepping up."""
RELAPSE = 15
"""Seconds after a step up within which stepping down again counts as a failed try."""
LONGEST_WAIT = 120
"""Seconds of room asked for at most, after failed tries; each doubles it."""
WARM_UP = 3
"""Seconds at the start and after every step that are not judged."""
SHORTEST_LOOK = 0.5
"""s between two looks that say something."""


@dataclass(frozen=True, slots=True)
class Look:
    """A session's counters at one instant."""

    time: float  # s
    camera: int = 0  # pictures that came
    sent: int = 0  # pictures that were encoded and sent, or left out because the link (not this machine) was full
    worked: Mapping[str, float] = field(default_factory=dict)  # thread or stage -> s of work so far


def overrun(took: float, *, chunk: int, fps: float) -> str:
    """A sentence for whoever watches where making `chunk` pictures takes longer, `took` s, than they last; "" where it does not. `fps`: the
    generator's own rate, which no rung brings back there: the network is too large for this machine."""
    lasts = chunk / fps
    if took <= lasts:
        return ""
    what = f"{chunk} pictures takes {took:.2g} s here, and they last" if chunk > 1 else f"a picture takes {took:.2g} s here, and it lasts"
    return f"Making {what} {lasts:.2g} s. Fewer steps, a smaller network, an exported engine or a GPU would be quicker."


@dataclass(slots=True)
class Ladder:
    """One session's place; `observe` once a second."""

    index: int = 0
    why: str = ""
    steps: int = 0  # taken so far, both ways
    _behind: int = 0
    _room: int = 0
    _patience: int = UP_AFTER
    _since_up: int = RELAPSE
    _grace: int = WARM_UP
    _last: Look | None = None

    @property
    def rung(self) -> Rung:
        """What is allowed now."""
        return RUNGS[self.index]

    def judge(self, look: Look, *, fps: float, follows_camera: bool) -> bool:
        """Compare with the last look, about a second ago -> whether the rung changed. `fps`: of the generator."""
        last = self._last
        if last is not None and look.time - last.time < SHORTEST_LOOK:
            return False
        self._last = look
        if last is None or look.sent < last.sent:  # a new connection counts from 0
            return False
        span = look.time - last.time
        wanted = min(fps, (look.camera - last.camera) / span) if follows_camera else fps
        busy = max((worked - last.worked.get(name, worked) for name, worked in look.worked.items()), default=0.0) / span
        return self.observe(wanted=wanted, made=(look.sent - last.sent) / span, busy=min(1.0, busy))

    def observe(self, *, wanted: float, made: float, busy: float) -> bool:
        """One second has passed: frames wanted and made in it, busy share (0..1) of the busiest thread -> whether the rung changed."""
        self._since_up += 1
        if self._grace > 0:
            self._grace -= 1
            return False
        wanted = min(wanted, self.rung.fps)
        share = made / wanted if wanted > 0 else 1.0
        self._behind = self._behind + 1 if share < BEHIND else 0
        # One frame more or less is how the second was cut; at 10 frames a second that is a tenth.
        self._room = self._room + 1 if made + 1.0 >= KEEPING_UP * wanted and busy < ROOM else 0
        if self._behind >= DOWN_AFTER and self.index < len(RUNGS) - 1:
            if self._since_up < RELAPSE:
                self._patience = min(2 * self._patience, LONGEST_WAIT)
            return self._step(1, f"made {made:.0f} of {wanted:.0f} frames a second")
        if self._room >= self._patience and self.index > 0:
            self._since_up = 0
            return self._step(-1, f"room again: the busiest thread worked {busy:.0%} of the time")
        if self._since_up > LONGEST_WAIT:
            self._patience = UP_AFTER
        return False

    def _step(self, by: int, why: str) -> bool:
        self.index += by
        self.why = why
        self.steps += 1
        self._behind = self._room = 0
        self._grace = WARM_UP
        return True
