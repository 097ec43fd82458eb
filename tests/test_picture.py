"""Good and bad picture files: every bad one is answered with one sentence."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from engine.picture import BACKDROP, LIMITS, PictureLimits, decode_picture, read_picture
from engine.types import AvatarError, UInt8Array

PORTRAIT = Path(__file__).parent.parent / "engine" / "assets" / "portrait.jpg"


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def scene(width: int = 96, height: int = 80) -> Image.Image:
    """Red above blue, green on the right: every turn is visible."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, :, 0] = 200
    pixels[height // 2 :, :, 2] = 200
    pixels[:, width * 3 // 4 :] = (0, 200, 0)
    return Image.fromarray(pixels)


def close(picture: UInt8Array, expected: Image.Image, *, within: float = 6.0) -> bool:
    wanted = np.asarray(expected.convert("RGB"))
    return picture.shape == wanted.shape and float(np.abs(picture.astype(int) - wanted).mean()) < within


def png_header(width: int, height: int) -> bytes:
    """A PNG that says it is large and carries next to nothing: a bomb's shape."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF"])
def test_formats_without_loss(kind: str) -> None:
    assert close(decode_picture(encoded(scene(), kind)), scene(), within=0.5)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "AVIF"])
def test_formats_with_loss(kind: str) -> None:
    assert close(decode_picture(encoded(scene(), kind, quality=95)), scene())


@pytest.mark.parametrize(("mode", "within"), [("L", 1.0), ("1", 1.0), ("P", 1.0), ("CMYK", 4.0), ("RGBA", 1.0), ("LA", 1.0), ("YCbCr", 3.0)])
def test_colour_modes(mode: str, within: float) -> None:
    source = scene().convert(mode)
    kind = {"CMYK": "TIFF", "YCbCr": "TIFF"}.get(mode, "PNG")
    assert close(decode_picture(encoded(source, kind)), source.convert("RGB"), within=within)


def test_cmyk_jpeg() -> None:
    assert close(decode_picture(encoded(scene().convert("CMYK"), "JPEG", quality=95)), scene().convert("CMYK").convert("RGB"), within=10)


def test_palette_with_transparency() -> None:
    source = scene().convert("P")
    red = source.getpixel((1, 1))
    picture = decode_picture(encoded(source, transparency=red))
    assert tuple(picture[2, 2]) == BACKDROP
    assert np.abs(picture[-2, 2].astype(int) - (0, 0, 200)).max() < 60  # Pillow's palette is coarse


def test_alpha_is_laid_on_the_backdrop() -> None:
    source = scene().convert("RGBA")
    source.putalpha(0)
    assert (decode_picture(encoded(source)) == BACKDROP).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_keep_their_shades(kind: str) -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(64, 0)
    picture = decode_picture(encoded(Image.fromarray(ramp), kind))
    assert np.abs(picture[0, :, 0].astype(int) - np.arange(256)).max() <= 1


def test_float_samples() -> None:
    picture = decode_picture(encoded(Image.fromarray(np.full((64, 64), 0.5, np.float32)), "TIFF"))
    assert abs(int(picture[0, 0, 0]) - 127) <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_the_picture_upright(orientation: int) -> None:
    undo = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90", 7: "TRANSVERSE", 8: "ROTATE_270"}
    stored = scene() if orientation == 1 else scene().transpose(Image.Transpose[undo[orientation]])
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert close(decode_picture(encoded(stored, "JPEG", quality=95, exif=exif)), scene())


def test_damaged_exif_does_not_spoil_a_sound_picture() -> None:
    assert close(decode_picture(encoded(scene(), "JPEG", quality=95, exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x7f junk")), scene())


def test_embedded_profile_becomes_srgb() -> None:
    linear = ImageCms.createProfile("LAB")
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    grey = Image.new("RGB", (64, 64), (128, 64, 200))
    assert close(decode_picture(encoded(grey, icc_profile=srgb)), grey, within=1.5)
    assert close(decode_picture(encoded(grey, icc_profile=ImageCms.ImageCmsProfile(linear).tobytes())), grey, within=0.5)  # not for RGB: ignored
    assert close(decode_picture(encoded(grey, icc_profile=b"nonsense")), grey, within=0.5)


def linear_profile() -> bytes:
    """A small ICC profile: the primaries of sRGB with a straight tone curve (ICC.1:2001-04, sections 6.1 to 6.5)."""

    def xyz(*values: float) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, 256) + b"\0\0"  # one entry: a gamma of 256 / 256
    tags = {
        b"wtpt": xyz(0.9642, 1.0, 0.8249),
        b"rXYZ": xyz(0.4361, 0.2225, 0.0139),
        b"gXYZ": xyz(0.3851, 0.7169, 0.0971),
        b"bXYZ": xyz(0.1431, 0.0606, 0.7141),
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve),
    }
    table, body = struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        table += name + struct.pack(">II", 128 + 4 + 12 * len(tags) + len(body), len(data))
        body += data
    head = struct.pack(">I4xI4s4s4s12x4s28xiii", 128 + len(table) + len(body), 0x02400000, b"mntr", b"RGB ", b"XYZ ", b"acsp", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + table + body


def test_a_profile_with_another_tone_curve_is_applied() -> None:
    data = encoded(Image.new("RGB", (64, 64), (55, 55, 55)), icc_profile=linear_profile())
    ideal = 255 * (1.055 * (55 / 255) ** (1 / 2.4) - 0.055)  # IEC 61966-2-1
    assert np.abs(decode_picture(data).astype(float) - ideal).max() < 3


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_is_taken(kind: str) -> None:
    frames = [Image.new("RGB", (64, 64), colour) for colour in ((200, 0, 0), (0, 200, 0))]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {}))
    assert close(decode_picture(data), frames[0], within=1.0)


def test_large_jpeg_is_shrunk_while_it_is_decoded() -> None:
    big = Image.new("RGB", (12_000, 9_000), (120, 90, 60))
    picture = decode_picture(encoded(big, "JPEG", quality=50))
    assert picture.shape == (LIMITS.longest_side * 3 // 4, LIMITS.longest_side, 3)
    assert close(picture, Image.new("RGB", (picture.shape[1], picture.shape[0]), (120, 90, 60)))


def test_result_is_writable_and_owned() -> None:
    picture = decode_picture(PORTRAIT.read_bytes())
    picture[0, 0] = 1
    assert picture.shape == (768, 768, 3)
    assert picture.flags.c_contiguous


WHOLE_JPEG = encoded(scene(400, 300), "JPEG", quality=90)
WHOLE_PNG = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 80, 3), dtype=np.uint8)))
PROGRESSIVE = encoded(Image.new("RGB", (7000, 5000)), "JPEG", quality=20, progressive=True)

BAD = {
    "empty": (b"", "empty"),
    "text named .png": (b"Dear portrait, this is only a letter.", "not a picture"),
    "html": (b"<!doctype html><html></html>", "not a picture"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture"),
    "pdf": (b"%PDF-1.7", "not a picture"),
    "heic": (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic", "HEIC"),
    "video": (b"\x00\x00\x00\x18ftypisom\x00\x00\x02\x00isomiso2", "not a picture"),
    "small": (encoded(Image.new("RGB", (20, 20))), "only 20 x 20"),
    "thin": (encoded(Image.new("RGB", (5000, 1))), "only 5000 x 1"),
    "large png": (png_header(12_000, 9_000), "12000 x 9000"),
    "bomb": (png_header(60_000, 60_000), "60000 x 60000"),
    "large progressive jpeg": (PROGRESSIVE, "7000 x 5000"),
    "truncated jpeg": (WHOLE_JPEG[: len(WHOLE_JPEG) // 2], "damaged or cut short"),
    "jpeg header only": (WHOLE_JPEG[:300], "damaged or cut short"),
    "truncated png": (WHOLE_PNG[: len(WHOLE_PNG) // 2], "damaged or cut short"),
    "truncated webp": (encoded(scene(300, 300), "WEBP")[:200], "damaged or cut short"),
    "truncated gif": (encoded(scene(300, 300), "GIF")[:400], "damaged or cut short"),
    "png without pixels": (png_header(100, 100), "damaged or cut short"),
    "signature alone": (b"\x89PNG\r\n\x1a\n", "damaged or cut short"),
    "too many bytes": (b"\xff\xd8\xff" + bytes(LIMITS.max_bytes), "larger than 20 MB"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_get_one_sentence(name: str) -> None:
    data, says = BAD[name]
    with pytest.raises(AvatarError, match=says) as caught:
        decode_picture(data)
    sentence = str(caught.value)
    assert sentence[0].isupper()
    assert sentence.endswith(".")
    assert "\n" not in sentence


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"]), st.integers(0, 10_000), st.binary(min_size=1, max_size=12), st.booleans())
def test_damage_anywhere_is_a_picture_or_one_sentence(kind: str, where: int, junk: bytes, cut: bool) -> None:
    data = FUZZED[kind]
    at = where % len(data)
    data = data[:at] + junk + (b"" if cut else data[at + len(junk) :])
    try:
        picture = decode_picture(data, limits=PictureLimits(max_pixels=100_000))
    except AvatarError:
        return
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3


FUZZED = {kind: encoded(scene(), kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP")}


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "letter.png"
    with pytest.raises(AvatarError, match="cannot be opened"):
        read_picture(path)
    with pytest.raises(AvatarError, match="cannot be opened"):
        read_picture(tmp_path)
    path.write_text("only a letter")
    with pytest.raises(AvatarError, match="not a picture"):
        read_picture(path)
    assert read_picture(PORTRAIT).shape == (768, 768, 3)
