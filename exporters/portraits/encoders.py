"""What sees a face: CLIP's image encoder and a recogniser, from the user's folders, each with the pixels it was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from engine.drivers.portrait import Found
from engine.recogniser import SIDE, Recogniser, fit, five_points
from engine.types import AvatarError, FloatArray, UInt8Array
from exporters.files import CONFIG, SUFFIXES, read_config
from exporters.portraits.photos import Photo

MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of CLIP's pixels, by channel."""
RECOGNISERS = ("glintr100.onnx", "w600k_r50.onnx", "arcface.onnx")
"""Of the folders antelopev2 and buffalo_l, and Arc2Face's own."""
HEAD = 2.0
"""Side of a face crop in face heights: hair and chin, as the face variants of IP-Adapter were trained with."""
BUST = 3.2
"""The same of a crop that shows the person."""


# -- CLIP -----------------------------------------------------------------------------------------------------------------


class ImageEncoder:
    """CLIP's image encoder (a folder with config.json and weights), in fp32."""

    def __init__(self, folder: Path, *, device: str = "cpu") -> None:
        """Raises AvatarError where the folder holds none."""
        from transformers import CLIPVisionModelWithProjection

        kind = read_config(folder).get("model_type")
        if kind not in ("clip_vision_model", "clip"):
            raise AvatarError(f"{folder} holds a '{kind}', not CLIP's image encoder; give the folder image_encoder that the system names.")
        quiet()
        try:
            self.model = CLIPVisionModelWithProjection.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
        except (OSError, ValueError, RuntimeError) as error:
            raise AvatarError(f"The image encoder in {folder} does not load ({str(error).splitlines()[0]}); download it again.") from error
        self.model = self.model.to(device).eval().requires_grad_(False)
        self.side = int(self.model.config.image_size)
        self.width = int(self.model.config.hidden_size)

    def pixels(self, pictures: Sequence[UInt8Array]) -> Tensor:
        """[h, w, 3] each -> [B, 3, side, side]: the shorter side scaled (bicubic), the middle cut out, CLIP's mean and deviation."""
        return torch.from_numpy(np.stack([clip_pixels(picture, self.side) for picture in pictures])).to(self.model.device)

    def pooled(self, pixels: Tensor) -> Tensor:
        """[B, projection] image embeddings."""
        embeds: Tensor = self.model(pixels).image_embeds
        return embeds

    def hidden(self, pixels: Tensor) -> Tensor:
        """[B, 1 + patches, width] the last layer's input."""
        hidden: Tensor = self.model(pixels, output_hidden_states=True).hidden_states[-2]
        return hidden


def quiet() -> None:
    """No bars and warnings of the libraries: a person is told what matters by us."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    for logging in (of_diffusers, of_transformers):
        logging.set_verbosity_error()
        logging.disable_progress_bar()


def clip_pixels(picture: UInt8Array, side: int, *, crop: bool = True) -> FloatArray:
    """[h, w, 3] -> [3, side, side] as CLIP's processor makes it. `crop`: the middle of it; false squashes it."""
    image = Image.fromarray(picture)
    if crop:
        short = min(image.size)
        image = image.resize((int(side * image.width / short), int(side * image.height / short)), Image.Resampling.BICUBIC)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    else:
        image = image.resize((side, side), Image.Resampling.BICUBIC)
    values = np.asarray(image, np.float32) / 255.0
    return np.asarray(((values - np.array(MEAN, np.float32)) / np.array(DEVIATION, np.float32)).transpose(2, 0, 1), np.float32)


def image_encoder(given: Path | None, beside: Path, *, device: str) -> ImageEncoder:
    """The one that was given, or one of a file's neighbours as IP-Adapter and UniPortrait lay it. Raises AvatarError where there is none."""
    home = beside if beside.is_dir() else beside.parent
    inside = (home / "models", home.parent / "models", home / "IP-Adapter" / "models")
    places = [given] if given else [home / "image_encoder", *(folder / "image_encoder" for folder in inside)]
    folder = next((place for place in places if (place / CONFIG).is_file()), None)
    if folder is None:
        raise AvatarError(f"CLIP's image encoder is not in {places[0]}; give its folder with --image-encoder.")
    return ImageEncoder(folder, device=device)


# -- recognisers ----------------------------------------------------------------------------------------------------------


def recogniser(given: Path | None, beside: Path, *, prefer: str) -> Recogniser:
    """The ONNX file that was given, or of a folder the one called `prefer`, else one of RECOGNISERS. Raises AvatarError where there is none."""
    home = beside if beside.is_dir() else beside.parent
    place = given or home
    if place.is_file():
        return Recogniser(place)
    names = [prefer, *(name for name in RECOGNISERS if name != prefer)]
    folders = [place, *(folder for folder in sorted(place.glob("*")) if folder.is_dir())] if place.is_dir() else []
    found = next((folder / name for name in names for folder in folders if (folder / name).is_file()), None)
    if found is None:
        raise AvatarError(f"There is no face recogniser in {place}; give {prefer} with --recogniser, or the folder it lies in.")
    return Recogniser(found)


def vectors(network: Recogniser, photos: Sequence[Photo], *, normed: bool) -> FloatArray:
    """[N, D] one for each photo. `normed`: of length 1, as FaceID and Arc2Face want them; InstantID, PuLID and PhotoMaker want them raw."""
    made = network(np.stack([aligned(photo) for photo in photos]))
    return made / np.linalg.norm(made, axis=1, keepdims=True) if normed else made


def aligned(photo: Photo, side: int = SIDE) -> UInt8Array:
    """[side, side, 3] RGB: the face with its five points on the recognisers' template; black where the picture ends, as InsightFace does it."""
    return aligned_in(photo.rgb, photo.face, side)


def aligned_in(rgb: UInt8Array, face: Found, side: int) -> UInt8Array:
    """The same of a picture [H, W, 3] and a face in it."""
    matrix = fit(five_points(face.points))
    matrix = matrix * np.array([SIDE / side, SIDE / side, 1.0], np.float32)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(rgb, matrix, (side, side), flags=flags, borderValue=0.0), np.uint8)


def square(photo: Photo, sides: float) -> UInt8Array:
    """[s, s, 3]: the photo around the face, `sides` face heights wide where it reaches so far; square, since CLIP cuts off what is not."""
    height, width = photo.rgb.shape[:2]
    side = round(min(sides * photo.face.height, height, width))
    x, y = photo.face.center
    left = round(min(max(x - side / 2, 0), width - side))
    top = round(min(max(y - side / 2, 0), height - side))
    return np.ascontiguousarray(photo.rgb[top : top + side, left : left + side])


# -- the adapter's file ---------------------------------------------------------------------------------------------------


def adapter_file(weights: Path, stems: Sequence[str]) -> Path:
    """The file itself, or the one of a folder whose name begins with one of `stems`. Raises AvatarError where there is none, or several."""
    if weights.is_file():
        return weights
    if not weights.is_dir():
        raise AvatarError(f"{weights} is not there; give the adapter's file, or the folder it lies in.")
    found = [path for path in weights.rglob("*") if path.suffix in SUFFIXES and path.stem.startswith(tuple(stems))]
    found.sort(key=lambda path: (path.stem, SUFFIXES.index(path.suffix)))
    plain = [path for path in found if "lora" not in path.stem]  # what FaceID's LoRA files hold is in the adapters, too
    if not plain:
        raise AvatarError(f"{weights} holds no file called {' or '.join(stems)}; give the adapter's file with --weights.")
    if len({path.stem for path in plain}) > 1:
        raise AvatarError(f"{weights} holds several adapters ({', '.join(path.name for path in plain[:4])}); give one of them with --weights.")
    return plain[0]


def halves(path: Path, first: str, second: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The two parts of an adapter: a nested .bin, or a flat .safetensors with the parts' names before the keys."""
    from exporters import files

    if path.suffix == ".safetensors":
        held = files.read(path)
        parts = [{key[len(part) + 1 :]: value for key, value in held.items() if key.startswith(f"{part}.")} for part in (first, second)]
        if not all(parts):
            raise AvatarError(f"{path} has no '{first}' and '{second}'; it is another system's file.")
        return parts[0], parts[1]
    return files.read(path, part=first), files.read(path, part=second)


def section(path: Path, *names: str) -> dict[str, Tensor]:
    """The part of an adapter that has one of the names, as `halves` takes it."""
    from exporters import files

    if path.suffix == ".safetensors":
        held = files.read(path)
        found = ({key[len(name) + 1 :]: value for key, value in held.items() if key.startswith(f"{name}.")} for name in names)
        part = next((part for part in found if part), None)
        if part is None:
            raise AvatarError(f"{path} has no '{names[0]}'; it is another system's file.")
        return part
    for name in names[:-1]:
        with suppress(AvatarError):
            return files.read(path, part=name)
    return files.read(path, part=names[-1])


def device_of(name: str | None) -> str:
    """The accelerator where there is one."""
    if name:
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def arrays(**tensors: Any) -> dict[str, FloatArray]:
    """Tensors as they are kept."""
    return {name: tensor.detach().float().cpu().numpy() for name, tensor in tensors.items()}


__all__ = [
    *("BUST", "HEAD", "ImageEncoder", "adapter_file", "aligned", "aligned_in", "arrays", "clip_pixels", "device_of", "halves"),
    *("image_encoder", "quiet", "recogniser", "section", "square", "vectors"),
]
