"""InstantID (Wang et al. 2024, arXiv 2401.07519): a recogniser's raw vector beside SDXL's text, and a ControlNet that sees five points.

The ControlNet (IdentityNet) reads the person's tokens where others read the text, and never the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from engine.recogniser import five_points
from engine.types import AvatarError, FloatArray, UInt8Array
from exporters.files import CONFIG, sha256
from exporters.portraits import encoders, projectors
from exporters.portraits.attention import keys_and_values, plus
from exporters.portraits.contract import Attachment, Control, Defaults, Family, IdentityTokens, Parts
from exporters.portraits.photos import Photo

STEMS = ("ip-adapter",)
FOLDER = "ControlNetModel"
COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255))
"""RGB of the points: the picture's left eye, right eye, tip of the nose, left and right corner of the mouth."""
NOSE = 2
LIMB, DIMMED, DISC = 4, 0.6, 10
"""px half across a line to the nose, its brightness, and px of a point's radius; the same at every size, as it was trained."""
FACE_SHARE, FACE_AT = 1 / 3.7, (0.5, 0.45)
"""Width of the face as a share of the portrait's short side, and where its middle is: head and shoulders, as the engine frames them."""
CONTROL = 0.8
"""Strength of the ControlNet."""


class InstantId:
    """Tokens beside the text, and a ControlNet."""

    name, variant = "instantid", "instantid"
    families: tuple[Family, ...] = ("sdxl",)
    together = False
    unet = None
    defaults = Defaults(
        30, 5.0, 0.8, "a photo of a person, head and shoulders, looking at the camera", "lowres, blurry, cropped, hands, sunglasses, deformed"
    )

    def __init__(self, parts: Parts, *, device: str) -> None:
        path = encoders.adapter_file(parts.weights, STEMS)
        self._path, self._parts, self._device = path, parts, device
        held, self._attention = encoders.halves(path, "image_proj", "ip_adapter")
        if "latents" not in held:
            raise AvatarError(f"{path.name} is not InstantID's ip-adapter.bin; give the one that lies beside its {FOLDER}.")
        self._project = projectors.loaded(projectors.Resampler(held), held, path.name)
        self._control = parts.control or (path.parent / FOLDER)
        if not (self._control / CONFIG).is_file():
            raise AvatarError(f"InstantID's ControlNet is not in {self._control}; give its folder with --control.")
        self.digest = sha256(path)

    @torch.no_grad()
    def encode(self, photos: Sequence[Photo]) -> IdentityTokens:
        """Of the best photo: the vector as the recogniser gives it, of any length, and the five points."""
        network = encoders.recogniser(self._parts.recogniser, self._path, prefer="glintr100.onnx")
        vector = torch.from_numpy(encoders.vectors(network, photos[:1], normed=False))
        if vector.shape[1] != (wanted := self._project.proj_in.in_features):
            raise AvatarError(f"InstantID reads vectors of {wanted} numbers, and {network.path.name} makes {vector.shape[1]}; give antelopev2's.")
        both = torch.cat([torch.zeros_like(vector), vector])[:, None].to(self._device)
        face = photos[0].face
        five = (five_points(face.points) - np.array(face.center, np.float32)) / face.width
        held = {**encoders.arrays(tokens=self._project.to(self._device)(both)), "five": np.asarray(five, np.float32)}
        return IdentityTokens(self.name, self.variant, held, (photos[0].sha256,), self.digest)

    def attach(self, base: Any, tokens: IdentityTokens, *, scale: float, size: tuple[int, int]) -> Attachment:
        """Keys and values for every cross-attention, and the ControlNet with the five points where a driven face is."""
        given = torch.from_numpy(tokens.arrays["tokens"])
        added = keys_and_values(base.unet, self._attention, given, names=("to_k_ip", "to_v_ip"), mix=plus(scale), what=self._path.name)
        height, width = size
        five = tokens.arrays["five"] * FACE_SHARE * min(size) + np.array([FACE_AT[0] * width, FACE_AT[1] * height], np.float32)
        network = open_control(self._control, base)
        return Attachment(added, control=Control(network, draw_points(five, size), CONTROL, given.to(base.unet.device, base.unet.dtype)))


def draw_points(five: FloatArray, size: tuple[int, int]) -> UInt8Array:
    """Five points [5, 2] px -> [H, W, 3] RGB: a dimmed ellipse from each to the nose, and a disc on each, on black."""
    picture = np.zeros((*size, 3), np.uint8)
    for k in (k for k in range(len(COLOURS)) if k != NOSE):
        x, y, nose_x, nose_y = (float(value) for value in (*five[k], *five[NOSE]))
        length, angle = np.hypot(x - nose_x, y - nose_y), np.degrees(np.arctan2(y - nose_y, x - nose_x))
        middle = (int((x + nose_x) / 2), int((y + nose_y) / 2))
        limb = cv2.ellipse2Poly(middle, (int(length / 2), LIMB), int(angle), 0, 360, 1)
        cv2.fillConvexPoly(picture, limb, COLOURS[k])
    picture = np.asarray(picture * DIMMED, np.uint8)
    for point, colour in zip(five, COLOURS, strict=True):
        cv2.circle(picture, (int(point[0]), int(point[1])), DISC, colour, -1)
    return picture


def open_control(folder: Path, base: Any) -> Any:
    """A ControlNet in diffusers' layout, for a base."""
    from diffusers import ControlNetModel

    encoders.quiet()
    try:
        network = ControlNetModel.from_pretrained(folder, local_files_only=True, torch_dtype=base.unet.dtype)
    except (OSError, ValueError, RuntimeError) as error:
        raise AvatarError(f"The ControlNet in {folder} does not load ({str(error).splitlines()[0]}); download the folder again.") from error
    if network.config.cross_attention_dim != base.unet.config.cross_attention_dim:
        raise AvatarError(f"The ControlNet in {folder} is for another base; give InstantID's, and an SDXL with --base.")
    return network.to(base.device).eval().requires_grad_(False)


def load(parts: Parts, *, device: str) -> InstantId:
    """Of a file, or a folder that holds one."""
    return InstantId(parts, device=device)


__all__ = ["InstantId", "draw_points", "load"]
