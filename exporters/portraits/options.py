"""Options of `avatar persona create` about photos; no more than that, so that a parser costs nothing."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_photos(parser: argparse.ArgumentParser, picture: argparse._MutuallyExclusiveGroup) -> None:
    """`picture`: the group that `--portrait` is in."""
    picture.add_argument("--photos", nargs="+", type=Path, metavar="FILE", help="photos of the person; the best for driving becomes the portrait")
    made = parser.add_argument_group("of --photos")
    made.add_argument("--no-relight", action="store_true", help="leave the photo's light as it is, however dark or one-sided")


__all__ = ["add_photos"]
