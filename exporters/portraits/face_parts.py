"""What ConsistentID tells apart in a face: its parts as pixels, from face parsing's labels, and as words of a description.

The order of the pixels is the labels' and that of the words is its own: the eye is told as the ears and the ear as the eyes. It was trained so,
and so it stays.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from engine.types import UInt8Array

WORDS = ("face", "ears", "eyes", "nose", "mouth")
"""In the order of the description."""
PARTS = ((1, "face"), (4, "eyes"), (5, "eyes"), (7, "ears"), (8, "ears"), (10, "nose"), (12, "mouth"), (13, "mouth"))
"""Label of face parsing -> the word for it, in the order of the labels; of two for one word the first that is seen stands for both."""
MARK = "\0"
"""Behind a word whose token a part is merged into."""
PIECES = re.compile(r"\b\w+\b|[.,;!?]")
PHRASE_ENDS = ",.;"


def regions(labels: npt.NDArray[np.uint8]) -> list[tuple[str, UInt8Array]]:
    """Labels [H, W] -> (word, mask [H, W] of 0 and 255) for each part that is seen; holes are filled, so that the face has its features."""
    made: list[tuple[str, UInt8Array]] = []
    for label, word in PARTS:
        if word in dict(made) or not (labels == label).any():
            continue
        outlines, _ = cv2.findContours(np.asarray(labels == label, np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        mask = np.zeros_like(labels)
        cv2.drawContours(mask, list(outlines), -1, 255, thickness=cv2.FILLED)
        made.append((word, mask))
    return made


def only(picture: UInt8Array, mask: UInt8Array) -> UInt8Array:
    """A picture [h, w, 3] where a mask of any size is, black elsewhere."""
    image = Image.fromarray(picture)
    return np.asarray(Image.composite(image, Image.new("RGB", image.size), Image.fromarray(mask).resize(image.size)), np.uint8)


def described(description: str, seen: Sequence[str]) -> tuple[str, list[str]]:
    """(a description's phrases about the words that are seen, in the order of WORDS, with a MARK behind each word; those words).

    A word counts once; what is said beside them is left out.
    """
    pieces = PIECES.findall(description)
    for word in WORDS:
        places = [k for k, piece in enumerate(pieces) if piece.lower() == word]
        for k in places[1:]:
            pieces[k] = ""
    text = " ".join(pieces)
    words = [word for word in WORDS if word in seen and word in pieces]
    for word in words:
        text = re.sub(rf"\b{word}\b", f"{word} {MARK}{word}{MARK}", text, count=1)
    phrases = []
    for word in words:
        at = text.find(f"{MARK}{word}{MARK}")
        if at < 0:
            continue
        first = max(text.rfind(end, 0, at) for end in PHRASE_ENDS) + 1
        last = min((place for end in PHRASE_ENDS if (place := text.find(end, at)) >= 0), default=len(text))
        phrases.append(text[first:last].strip() + ",")
        text = text[:first] + text[last:]
    return re.sub(rf"{MARK}\w+{MARK}", MARK, " ".join(phrases)), words


__all__ = ["MARK", "PARTS", "WORDS", "described", "only", "regions"]
