"""What generators take on the command line beyond what they share; no more than that, so that a parser costs nothing."""

from __future__ import annotations

import argparse

LIPSYNC = ("model", "over", "loop")
"""Options of the lips generator alone."""


def add_lipsync(parser: argparse.ArgumentParser) -> None:
    """`--generator lipsync`."""
    lips = parser.add_argument_group("of the lips generator (with --weights, --backend, --precision and --device as above)")
    lips.add_argument("--model", metavar="NAME", help="wav2lip (default) or musetalk, with random weights; --weights names its own")
    lips.add_argument("--over", metavar="NAME[=DIR]", help="put the lips into another generator's frames (of weights in DIR): head from the camera")
    lips.add_argument("--loop", metavar="FILE", help="a video of the portrait's person, idle, played forth and back (default: the still portrait)")


__all__ = ["LIPSYNC", "add_lipsync"]
