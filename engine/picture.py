"""Bytes of a picture file -> RGB, safely: whoever sent them may be careless or hostile.

The format is known from the first bytes, never from a name, and the size is read and judged before a pixel is decoded. Pillow's plugins
are called one by one instead of through `Image.open`: that keeps the formats to the ones below and leaves its process-wide bomb limit alone.
"""

from __future__ import annotations

import io
import struct
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from engine.types import AvatarError, UInt8Array

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

BACKDROP = (190, 190, 190)
"""RGB behind transparent pixels: a neutral grey, about half of white's light."""
ORIENTATION_TAG = 0x0112
TURNS = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90"}
"""EXIF orientation -> what to do to see the picture upright (EXIF 2.32, tag 0x0112)."""
HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
FORMATS_TEXT = "JPEG, PNG, WebP, AVIF, GIF, BMP or TIFF"


@dataclass(frozen=True, slots=True)
class PictureLimits:
    """What is accepted, and what comes out."""

    max_bytes: int = 20 * 2**20
    max_pixels: int = 25_000_000  # pixels that are really decoded; a JPEG may be larger, it is decoded at a half, a quarter or an eighth
    max_jpeg_pixels: int = 200_000_000  # pixels of such a JPEG
    min_side: int = 64  # px
    longest_side: int = 2048  # px of the result: larger pictures are shrunk


LIMITS = PictureLimits()
_one_at_a_time = threading.Lock()  # bounds the memory of many uploads, and makes catch_warnings below safe among decoding threads


def read_picture(path: str | Path, *, limits: PictureLimits = LIMITS) -> UInt8Array:
    """A picture file -> [H, W, 3] uint8 RGB. Raises AvatarError with one sentence that says what to do."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            data = file.read(limits.max_bytes + 1)
    except OSError as error:
        raise AvatarError(f"The picture '{path}' cannot be opened ({error.strerror or error}); check its name and permissions.") from None
    return decode_picture(data, limits=limits)


def decode_picture(data: bytes, *, limits: PictureLimits = LIMITS) -> UInt8Array:
    """Bytes of a picture file -> [H, W, 3] uint8 sRGB, upright, at most `limits.longest_side` px long.

    Of an animation the first frame is taken; transparent pixels get BACKDROP; an embedded colour profile is applied. Raises AvatarError,
    with one sentence that says what to do, for anything that is not a sound picture within the limits.
    """
    if not data:
        raise AvatarError("The picture file is empty; choose another one.")
    if len(data) > limits.max_bytes:
        raise AvatarError(f"The picture file is larger than {limits.max_bytes / 2**20:.0f} MB; save it smaller.")
    plugin = _plugin(data)
    try:
        with _one_at_a_time, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a damaged EXIF block and the like: no news for whoever sent the picture
            image = plugin(io.BytesIO(data))
            _judge(image, limits)
            return _pixels(image, limits)
    except AvatarError:
        raise
    except Exception as error:  # decoders fed with damaged bytes raise nearly anything, and all of it means the same to a person
        raise AvatarError("The picture file is damaged or cut short; save or download it again.") from error


def orientation(data: bytes) -> int:
    """EXIF orientation of a picture file that `decode_picture` takes, which it has followed already: 1 upright, 2..8 as in TURNS.

    Raises AvatarError as that does.
    """
    plugin = _plugin(data)
    with _one_at_a_time, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _orientation(plugin(io.BytesIO(data)))


def _plugin(data: bytes) -> type[ImageFile]:
    """The decoder for these bytes, by their first ones."""
    from PIL import AvifImagePlugin, BmpImagePlugin, GifImagePlugin, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin

    if data[4:8] == b"ftyp":
        brands = data[8:64]
        if b"avif" in brands or b"avis" in brands:
            return AvifImagePlugin.AvifImageFile
        if any(brand in brands for brand in HEIF_BRANDS):
            raise AvatarError("HEIC pictures cannot be read here; export it as JPEG or PNG and choose that file.")
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return WebPImagePlugin.WebPImageFile
    heads: tuple[tuple[bytes, type[ImageFile]], ...] = (
        (b"\xff\xd8\xff", JpegImagePlugin.JpegImageFile),
        (b"\x89PNG\r\n\x1a\n", PngImagePlugin.PngImageFile),
        (b"GIF8", GifImagePlugin.GifImageFile),
        (b"BM", BmpImagePlugin.BmpImageFile),
        (b"II*\x00", TiffImagePlugin.TiffImageFile),
        (b"MM\x00*", TiffImagePlugin.TiffImageFile),
    )
    for head, plugin in heads:
        if data.startswith(head):
            return plugin
    raise AvatarError(f"This file is not a picture, whatever its name says; choose a {FORMATS_TEXT} file.")


def _judge(image: ImageFile, limits: PictureLimits) -> None:
    """Refuse by the header's size; ask a large JPEG for fewer pixels."""
    width, height = image.size
    if min(width, height) < limits.min_side:
        raise AvatarError(f"The picture is only {width} x {height} pixels; use one of at least {limits.min_side} on each side.")
    sequential = image.format == "JPEG" and "progressive" not in image.info  # a progressive one is held whole while it is decoded
    if sequential and width * height <= limits.max_jpeg_pixels:
        shrink = limits.longest_side / max(width, height)
        image.draft(None, (max(1, round(width * shrink)), max(1, round(height * shrink))))
    if image.size[0] * image.size[1] > limits.max_pixels:
        raise AvatarError(
            f"The picture has {width} x {height} pixels, more than the {limits.max_pixels / 1e6:.0f} million that are accepted; save it smaller."
        )


def _pixels(image: ImageFile, limits: PictureLimits) -> UInt8Array:
    """Decode, shrink, turn upright, bring to sRGB."""
    from PIL import Image

    turn = TURNS.get(_orientation(image))
    profile = image.info.get("icc_profile")
    image.load()
    picture: Image.Image = _eight_bits(image)
    if picture.mode == "P" or picture.has_transparency_data:
        picture = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    shrink = limits.longest_side / max(picture.size)
    if shrink < 1.0:
        size = (max(1, round(picture.width * shrink)), max(1, round(picture.height * shrink)))
        picture = picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    if turn is not None:
        picture = picture.transpose(Image.Transpose[turn])
    if picture.mode == "RGBA":
        backdrop = Image.new("RGBA", picture.size, (*BACKDROP, 255))
        picture = Image.alpha_composite(backdrop, picture).convert("RGB")
    picture = _to_srgb(picture, profile)
    return np.array(picture.convert("RGB"), np.uint8)


def _orientation(image: ImageFile) -> int:
    """EXIF orientation; 1 (upright) where the tag is missing, or the EXIF block is damaged while the picture itself may be sound."""
    try:
        return int(image.getexif().get(ORIENTATION_TAG, 1))
    except (SyntaxError, ValueError, TypeError, KeyError, OSError, EOFError, struct.error):
        return 1


def _eight_bits(image: Image) -> Image:
    """16 and 32 bits a sample -> 8, keeping the picture's range; other modes as they are."""
    from PIL import Image as Pictures

    if not (image.mode.startswith("I") or image.mode == "F"):
        return image
    samples = np.nan_to_num(np.asarray(image).astype(np.float32))
    top = float(samples.max(initial=0.0))
    full = next(limit for limit in (1.0, 255.0, 65535.0, max(top, 1.0)) if top <= limit)
    return Pictures.fromarray(np.clip(samples * (255.0 / full), 0, 255).astype(np.uint8))


def _to_srgb(picture: Image, profile: bytes | None) -> Image:
    """Apply an embedded colour profile. One that is damaged or made for another kind of picture changes nothing."""
    if not profile or picture.mode not in ("RGB", "L", "CMYK"):
        return picture
    from PIL import ImageCms

    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(source).lower():
            return picture
        return ImageCms.profileToProfile(picture, source, ImageCms.createProfile("sRGB"), outputMode="RGB") or picture
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return picture
