"""What presets that know of a face read of a portrait beside its pixels: a recogniser's vector, and the masks of the speech's branches."""

from __future__ import annotations

import io
import json
import math
import zipfile
import zlib

import numpy as np
import torch

from engine.conditions.regions import regions
from engine.generators.diffusion.conditions import Anchor, anchor_of, pixels
from engine.generators.diffusion.layout import FACE_TOKENS
from engine.generators.diffusion.networks import UNTRAINED, Face, Networks
from engine.generators.diffusion.presets import Preset
from engine.generators.diffusion.tokens import VECTOR
from engine.recogniser import Recogniser, aligned, check_length
from engine.types import AvatarError, FloatArray, UInt8Array

SYSTEM = "faceid"
"""The identity system, and its variant, that the same projector makes tokens for."""


def seen_face(networks: Networks, portrait: UInt8Array, anchor: Anchor | None, tokens: FloatArray | None = None) -> Face | None:
    """Of a portrait [H, W, 3] and where its face is (None: it is looked for); None for presets that want none.

    `tokens` [2, 4, D]: as `kept_tokens` has them, instead of what the recogniser sees. Untrained networks may have no recogniser, and go without
    a vector. Raises AvatarError where the recogniser does not run, where trained weights have neither it nor tokens, and where no face is found.
    """
    made, branches = networks.preset, networks.preset.unet.speech_in == "branches"
    if not made.recognises and not branches:
        return None
    if made.unet.face_dim and tokens is not None:
        return Face(tokens=torch.from_numpy(tokens[1:]))
    if made.unet.face_dim and networks.recogniser is None:
        if networks.origin == UNTRAINED:
            return None
        how = "import them again with --recogniser w600k_r50.onnx (of buffalo_l), or show a persona that was made with --system faceid and this file"
        raise AvatarError(f"These weights of '{made.name}' read what a face recogniser sees of the portrait, and they came without one; {how}.")
    size = (portrait.shape[0], portrait.shape[1])
    face = pixels(anchor_of(portrait) if anchor is None else anchor, size)
    vector = None
    if made.recognises and networks.recogniser is not None:
        recogniser = Recogniser(networks.recogniser)
        check_length(recogniser, VECTOR, reader=made.name)
        vector = torch.from_numpy(recogniser(aligned(portrait, face)[None]))
    masks = torch.from_numpy(regions(face, size, made.level_sizes))[None] if branches else None
    return Face(vector, masks)


def kept_tokens(networks: Networks, data: bytes) -> FloatArray | None:
    """[2, 4, D] of a persona's `identity.npz`, nobody's and the person's, where it is of the file that the networks' own projector came in; None
    where it is another system's or file's. Raises AvatarError for a damaged one."""
    damaged = AvatarError("The persona's identity.npz is damaged; remove that file, or make the persona again.")
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as held:
            told = json.loads(str(held["manifest"]))
            if (told["system"], told["variant"], told["weights"]) != (SYSTEM, SYSTEM, networks.projector):
                return None
            tokens = np.asarray(held["array.tokens"], np.float32)
    except (ValueError, KeyError, TypeError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise damaged from error
    if tokens.shape != (2, FACE_TOKENS, networks.preset.unet.face_dim) or not np.isfinite(tokens).all():
        raise damaged
    return tokens


def scale_of(made: Preset, asked: float | None) -> float:
    """How much a face's tokens count. Raises AvatarError for what is no such number, and for presets that read none."""
    if asked is not None and not made.unet.face_dim:
        raise AvatarError(f"--identity-scale is for weights whose denoiser reads a face's tokens, and '{made.name}' reads none; leave it out.")
    if asked is not None and not 0 <= asked < math.inf:
        raise AvatarError(
            f"A face's tokens count 0 (not at all), 1 (as published) or anything between or above; --identity-scale {asked:g} is neither."
        )
    return 1.0 if asked is None else asked


__all__ = ["kept_tokens", "scale_of", "seen_face"]
