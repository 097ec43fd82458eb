"""Outlines of a face: which points of MediaPipe's face mesh go around its parts. No code, so that whoever judges or draws faces can import it."""

from __future__ import annotations

# fmt: off
OVAL = (10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377, 152, 148, 176, 149, 150, 136, 172, 58, 132, 93,
        234, 127, 162, 21, 54, 103, 67, 109)
"""Around the face, clockwise in the picture from the middle of the forehead."""
LIPS = (61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291, 375, 321, 405, 314, 17, 84, 181, 91, 146)
"""Around the outer lips, clockwise in the picture from the left corner."""
EYES = (
    (33, 246, 161, 160, 159, 158, 157, 173, 133, 155, 154, 153, 145, 144, 163, 7),
    (362, 398, 384, 385, 386, 387, 388, 466, 263, 249, 390, 373, 374, 380, 381, 382),
)
"""Around the opening of the left and of the right eye in the picture, clockwise from its left corner."""
# fmt: on

__all__ = ["EYES", "LIPS", "OVAL"]
