"""The operator's "AI" mark."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

TEXT = "AI"
FINER = 4
"""The badge is drawn this much larger and shrunk: smooth letters and corners at any size."""
WIDTH = 1.7
"""In heights."""
LETTERS = 0.86
"""Size of the font, in heights."""
INK, PILL = (255, 255, 255), (16, 18, 24)
PILL_COVER = 0.62
"""How much of the picture the pill hides."""


@lru_cache(maxsize=16)
def badge(height: int) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint16]]:
    """White letters on a dark rounded pill of `height` px -> (colour times cover [h, w, 3], cover [h, w, 1] 0..255)."""
    from PIL import Image, ImageDraw, ImageFont

    tall, wide = height * FINER, round(height * WIDTH) * FINER
    pill, ink = Image.new("L", (wide, tall)), Image.new("L", (wide, tall))
    ImageDraw.Draw(pill).rounded_rectangle((0, 0, wide - 1, tall - 1), radius=tall * 0.3, fill=round(255 * PILL_COVER))
    font = ImageFont.load_default(size=tall * LETTERS)
    ImageDraw.Draw(ink).text((wide / 2, tall / 2), TEXT, font=font, fill=255, anchor="mm", stroke_width=FINER // 3)
    size = (wide // FINER, height)
    under, over = (np.asarray(mask.resize(size, Image.Resampling.BOX)).astype(np.float32)[..., None] / 255.0 for mask in (pill, ink))
    cover = over + under * (1.0 - over)
    colour = over * np.array(INK) + under * (1.0 - over) * np.array(PILL)
    whole = (cover * 255.0 + 0.5).astype(np.uint16)
    return np.minimum(colour * 255.0, whole * 255.0).astype(np.uint16), whole
