"""What a session measures about itself: times by stage, drops by cause, rates; read by /stats, /metrics and the page.

Everything is written on the event loop or with single atomic appends, so no lock is needed.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

WINDOW = 300
"""Samples a stage remembers: 10 s at 30 fps."""
RATE_WINDOW = 2.0
"""s over which rates are counted."""
QUANTILES = (50, 95, 99)
STAGES = ("uplink", "wait", "track", "body", "hands", "step", "compose", "handoff", "pace", "total", "shown")
"""uplink: capture -> arrival; wait: arrival -> tracker free; track; body; hands; step: the generator; compose: mixing, compositing;
handoff: worker -> event loop; pace: rendered -> sent; total: capture -> sent; shown: capture -> displayed, as the page saw it. All ms."""


def quantiles(values: Iterable[float]) -> dict[str, float]:
    """{"p50", "p95", "p99"} by the nearest-rank rule; empty for no values."""
    ordered = sorted(values)
    if not ordered:
        return {}
    return {f"p{q}": ordered[min(len(ordered) - 1, int(len(ordered) * q / 100))] for q in QUANTILES}


@dataclass(slots=True)
class Rate:
    """Events a second over the last RATE_WINDOW."""

    _times: deque[float] = field(default_factory=lambda: deque(maxlen=512))

    def hit(self, now: float) -> None:
        """One event."""
        self._times.append(now)

    def value(self, now: float) -> float:
        """Events a second."""
        while self._times and now - self._times[0] > RATE_WINDOW:
            self._times.popleft()
        return len(self._times) / RATE_WINDOW


@dataclass(slots=True)
class Stats:
    """Of one session."""

    stages: dict[str, deque[float]] = field(default_factory=lambda: {name: deque(maxlen=WINDOW) for name in STAGES})  # ms
    drops: Counter[str] = field(default_factory=Counter)  # cause -> count
    counts: Counter[str] = field(default_factory=Counter)  # what passed: camera, tracked, rendered, sent
    camera: Rate = field(default_factory=Rate)
    sent: Rate = field(default_factory=Rate)
    av_offset: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))  # ms, sound minus picture at the instant of leaving
    started: float = 0.0
    first_sent: float | None = None
    _totals: Counter[str] = field(default_factory=Counter)  # of `drop_total`, at the last look

    def stage(self, name: str, seconds: float) -> None:
        """One measured duration, in seconds."""
        self.stages[name].append(1000.0 * seconds)

    def drop(self, cause: str, count: int = 1) -> None:
        """Something was thrown away, and why."""
        if count > 0:
            self.drops[cause] += count

    def drop_total(self, cause: str, total: int) -> None:
        """A count that somebody else keeps: what it grew by since the last look is added; one that fell has begun anew."""
        before, self._totals[cause] = self._totals[cause], total
        self.drop(cause, total - before if total >= before else total)

    def snapshot(self, now: float) -> dict[str, Any]:
        """A JSON-ready picture of the last seconds; ms to two places."""
        stages = {name: {key: round(value, 2) for key, value in quantiles(list(values)).items()} for name, values in self.stages.items() if values}
        offset = {key: round(value, 2) for key, value in quantiles(list(self.av_offset)).items()}
        return {
            "fps": round(self.sent.value(now), 1),
            "camera_fps": round(self.camera.value(now), 1),
            "stages": stages,
            "drops": dict(self.drops),
            "counts": dict(self.counts),
            "av_offset_ms": offset,
            "age_s": round(now - self.started, 1),
            "start_to_first_frame_s": None if self.first_sent is None else round(self.first_sent - self.started, 3),
        }


def _digits(value: float) -> str:
    """All of them: a counter that is rounded to six digits stands still for a while and then jumps."""
    return str(int(value)) if isinstance(value, int) else repr(float(value))


def prometheus(server: dict[str, float], sessions: dict[str, dict[str, Any]]) -> str:
    """Text exposition format 0.0.4. `server`: plain gauges; `sessions`: short id -> snapshot."""
    lines: list[str] = []

    def family(name: str, kind: str, text: str, samples: list[tuple[str, float]]) -> None:
        if samples:
            lines.extend((f"# HELP avatar_{name} {text}", f"# TYPE avatar_{name} {kind}"))
            lines.extend(f"avatar_{name}{labels} {_digits(value)}" for labels, value in samples)

    for name, value in server.items():
        kind = "counter" if name.endswith("_total") else "gauge"
        family(name, kind, name.replace("_", " ").capitalize() + ".", [("", value)])
    per = sessions.items()
    family("fps", "gauge", "Avatar frames sent a second.", [(f'{{session="{sid}"}}', s["fps"]) for sid, s in per])
    family("camera_fps", "gauge", "Camera frames received a second.", [(f'{{session="{sid}"}}', s["camera_fps"]) for sid, s in per])
    family(
        "ladder_rung",
        "gauge",
        "How far the session was stepped down (0: everything).",
        [(f'{{session="{sid}"}}', s.get("ladder", {}).get("rung", 0)) for sid, s in per],
    )
    family(
        "stage_milliseconds",
        "gauge",
        "Duration of a stage over the last frames.",
        [
            (f'{{session="{sid}",stage="{stage}",quantile="0.{q[1:]}"}}', v)
            for sid, s in per
            for stage, qs in s["stages"].items()
            for q, v in qs.items()
        ],
    )
    family(
        "av_offset_milliseconds",
        "gauge",
        "Sound minus picture when they leave.",
        [(f'{{session="{sid}",quantile="0.{q[1:]}"}}', v) for sid, s in per for q, v in s["av_offset_ms"].items()],
    )
    family(
        "drops_total",
        "counter",
        "Things thrown away, by cause.",
        [(f'{{session="{sid}",cause="{c}"}}', n) for sid, s in per for c, n in s["drops"].items()],
    )
    family(
        "passed_total",
        "counter",
        "Things that passed a stage.",
        [(f'{{session="{sid}",what="{c}"}}', n) for sid, s in per for c, n in s["counts"].items()],
    )
    return "\n".join(lines) + "\n"
