"""Training of the generator `video`, whose networks see a whole window of frames at once: UniAnimate and VividPose. Here what needs no PyTorch."""

from __future__ import annotations

from engine.generators.video import presets, vividpose_presets
from engine.generators.video.presets import UniAnimate
from engine.generators.video.vividpose_presets import VividPose
from engine.types import AvatarError

PRESETS: dict[str, UniAnimate | VividPose] = {**presets.PRESETS, **vividpose_presets.PRESETS}
"""Every size, by name."""
RECIPES = ("teacher", "appearance")
TINY = "tiny_"
"""What the names of presets for tests begin with, which alone can begin from nothing."""
LIVE, SHARE = 16, 4
"""Frames of a stream's window at most, and how many times as many as the new ones of them: UniAnimate's weights were trained on 16 and 32."""


def check(preset: str, recipe: str, *, started: bool, taught: bool, window: tuple[int, int] | None) -> None:
    """Raise AvatarError for what is not offered. `started`, `taught`: whether there are weights to go on from, and a teacher; `window`: frames,
    and how many of them are past."""
    if recipe not in RECIPES:
        raise AvatarError(f"'{preset}' is taught by --recipe teacher or appearance, not '{recipe}'; give one of these.")
    if taught:
        raise AvatarError(f"No recipe of '{preset}' learns from a teacher: leave --teacher out, and give the weights to go on from with --start.")
    if not started and not preset.startswith(TINY):
        raise AvatarError(f"'{preset}' goes on from imported weights, whose autoencoder and image encoder it keeps: give their folder with --start.")
    if window is not None and not (window[0] >= 2 and 0 <= window[1] < window[0]):
        raise AvatarError(f"A window of {window[0]} frames cannot have {window[1]} of them past; give another --window or --overlap.")


def live_window(frames: int) -> tuple[int, int]:
    """(frames, how many of them are past) of a stream's window, where nobody asks for another; `frames` of those that the weights were trained on."""
    size = min(frames, LIVE)
    return size, past_of(size)


def past_of(size: int) -> int:
    """Frames of a window that are past, where nobody asks for another number."""
    return size - max(1, size // SHARE)


__all__ = ["PRESETS", "RECIPES", "check", "live_window", "past_of"]
