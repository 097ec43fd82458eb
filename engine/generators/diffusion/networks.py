"""All networks of one preset in one place, what they make of a portrait, and their weights on disk."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from engine.backends.artifact import sha256
from engine.generators.diffusion.attention import KeyValue, Recognising, Sources
from engine.generators.diffusion.autoencoder import KL, Tiny, TinyDecoded, autoencoder
from engine.generators.diffusion.controlnet import ControlNet
from engine.generators.diffusion.guidance_encoder import guider
from engine.generators.diffusion.layout import FACE_TOKENS
from engine.generators.diffusion.listening import listener
from engine.generators.diffusion.presets import Decoder, Preset, check, preset_in
from engine.generators.diffusion.temporal import Window
from engine.generators.diffusion.text import ConstantText
from engine.generators.diffusion.tokens import VECTOR, face_tokens, image_encoder, speech_tokens
from engine.generators.diffusion.unet import Denoiser, ReferenceNet, reading_blocks, spatial_blocks
from engine.types import AvatarError

if TYPE_CHECKING:
    from engine.generators.diffusion.adapters import Adapter
    from engine.generators.diffusion.taught import Taught

MANIFEST = "weights.json"
"""Beside the .safetensors files: which preset they are for and where they come from."""
UNTRAINED = "untrained"
NOTICE = "These weights are untrained: the picture shows that the engine runs, not what it can do. Give trained ones with --weights."
MANY_STEPS = "These weights were made for {}; in {} the picture is soft until they are distilled."
ALONE = " Their norms saw all frames of a window at once; live each frame is normalised by itself, which differs from what they were trained for."
AS_PUBLISHED = (
    " As published a picture leaves {:.1f} s after its motion at the earliest, since {} frames are made at once, and takes {} evaluations of the "
    "network; here it waits for none and takes {}. `avatar render --offline` does it as published."
)
"""Delay of the published mode: a frame waits for the last one of its window."""
NO_GUIDANCE = "These weights were made for {}; a live stream has no guidance, so the picture is paler and less like the portrait than published ones."
RECOGNISER = "recogniser.onnx"
"""The file of a face recogniser, in the folder of weights that read its vectors."""
PROJECTOR = "faceid"
"""In the origin of weights, the sha256 of the published file that a face's tokens and their projections are from."""
TINY_PART = "tiny"
"""The file of a tiny decoder, in the folder of weights whose latents it decodes."""


@dataclass(frozen=True, slots=True)
class Cache:
    """What is computed once for an identity, by spatial block of the denoiser; one row."""

    reference: list[KeyValue]  # [1, L, C] keys and values of the reference's bank, projected; where it is read at every step, step by step
    identity: list[KeyValue]  # [1, T, C] of the identity's tokens, a face's last; empty for presets without
    regions: Tensor | None = None  # [1, 3, R] masks of the speech's branches (`Face.regions`); None for presets without
    latents: Tensor | None = None  # [1, C, h, w] of the portrait, where clips at leisure read pictures beside it
    tokens: Tensor | None = None  # [1, T, D] of the identity, likewise
    face: Tensor | None = None  # [1, 4, D] tokens of a face, where the denoiser reads some beside the identity's

    def to(self, device: torch.device | str) -> Cache:
        """The same on a device."""
        pairs = ([(k.to(device), v.to(device)) for k, v in kept] for kept in (self.reference, self.identity))
        return Cache(*pairs, *(None if x is None else x.to(device) for x in (self.regions, self.latents, self.tokens, self.face)))


@dataclass(frozen=True, slots=True)
class Face:
    """What some presets know of a portrait's face beside the picture. What is not given is as where no face is found."""

    vector: Tensor | None = None  # [1, 512] a recogniser's; else zeros, as published
    regions: Tensor | None = None  # [1, 3, R] 0..1 surroundings, face, lips, the cells of all levels one after the other; else all ones
    tokens: Tensor | None = None  # [1, 4, D] that FaceID's projector made of such a vector before; instead of it


class Networks(nn.Module):
    """Reference network, denoiser, guider, autoencoder, and the encoders of tokens that the preset has."""

    def __init__(self, made: Preset) -> None:
        super().__init__()
        check(made)
        self.preset = made
        self.reference, self.denoiser, self.guider = ReferenceNet(made.unet), Denoiser(made.unet), guider(made)
        self.denoiser.guidance = made.guidance
        self.autoencoder = autoencoder(made)
        self.image = image_encoder(made)
        self.controlnet = ControlNet(made) if made.controlnet else None
        self.speech = speech_tokens(made)
        self.listener = listener(made.ears)
        self.face = face_tokens(made)
        self.identity_scale = 1.0  # how much the denoiser's attention to a face's tokens counts
        self.projector = ""  # sha256 of the published file that these tokens' networks came in, while they are as they were
        self.made_for = ""  # what the weights want and a live stream does not give, in words ...
        self.made_steps = 0  # ... and how many steps of it; 0 where that is not known
        self.recogniser: Path | None = None  # of faces, for presets that read its vectors
        self.taught: Taught | None = None  # what the generator whose frames are the condition was taught before
        self.origin = UNTRAINED  # sha256 of the weights' manifest, once there are any
        self.adapters: tuple[Adapter, ...] = ()  # LoRAs that are part of the weights in memory (`adapters.fuse`), and of no file

    @torch.inference_mode()
    def remember(self, picture: Tensor, at: Tensor | None = None, *, face: Face | None = None) -> Cache:
        """Portrait [1, 3, H, W] -1..1 -> what every frame reads of it. `at` [S]: the steps' noise levels, which some presets read it at; `face`:
        for presets that know of one."""
        return self.look(picture, at, face=face)

    def look(self, picture: Tensor, at: Tensor | None = None, *, face: Face | None = None) -> Cache:
        """As `remember`, for whatever traces or trains it."""
        vector = None if face is None else face.vector
        known = self.known(face)
        cache = replace(self.cached(*self.read(picture, at, vector=vector), known), face=known)
        if self.preset.unet.speech_in == "branches":
            regions = None if face is None else face.regions
            cache = replace(cache, regions=picture.new_ones(len(picture), 3, self.preset.cells) if regions is None else regions.to(picture))
        if self.preset.sampling.carried:
            cache = replace(cache, latents=self.encode(picture), tokens=self.tokens(picture, vector))
        return cache

    def encode(self, picture: Tensor) -> Tensor:
        """Pictures [N, 3, H, W] -1..1 -> latents [N, C, h, w] as the denoiser has them."""
        latents: Tensor = self.autoencoder.encode(picture) * self.preset.gain
        return latents

    def tokens(self, picture: Tensor, vector: Tensor | None = None) -> Tensor | None:
        """Portrait [1, 3, H, W] -1..1, or the `vector` of its face [1, 512] -> the identity's tokens [1, T, D]; None for presets without."""
        if self.preset.image_encoder == "face":
            picture = picture.new_zeros(len(picture), VECTOR) if vector is None else vector.to(picture)
        return self.image(picture) if self.image is not None else None

    def known(self, face: Face | None = None) -> Tensor | None:
        """[1, 4, D] tokens of a face, nobody's where none is known; None for presets whose denoiser reads none beside the identity's."""
        if self.face is None:
            return None
        weight = self.face.norm.weight
        if face is not None and face.tokens is not None:
            return face.tokens.to(weight)
        made: Tensor = self.face(weight.new_zeros(1, VECTOR) if face is None or face.vector is None else face.vector.to(weight.device))
        return made

    def nobody(self) -> Tensor | None:
        """[1, T, D] tokens of a face that nobody has, which the unguided half is told; None where that half is told nothing."""
        return self.tokens(next(self.denoiser.parameters()).new_zeros(1, 1), None) if self.preset.image_encoder == "face" else None

    def read(self, picture: Tensor, at: Tensor | None = None, *, vector: Tensor | None = None) -> tuple[list[Tensor], Tensor | None]:
        """Portrait [1, 3, H, W] -1..1 -> (what the reference network's blocks read, [1, L, C] each; the identity's tokens [1, T, D], if any).

        Raises AvatarError where the preset reads at every step and nothing says at which levels.
        """
        tokens, latents = self.tokens(picture, vector), self.encode(picture)
        if not self.preset.reference_each:
            return self.reread(latents, tokens), tokens
        if at is None:
            raise AvatarError(f"The preset '{self.preset.name}' reads its portrait anew at every step, which this cannot do; use another preset.")
        return [read for t in at for read in self.reread(latents, tokens, t)], tokens

    def reread(self, latents: Tensor, tokens: Tensor | None, t: Tensor | None = None) -> list[Tensor]:
        """Latents [N, C, h, w] of pictures, the tokens [N, T, D] that come with each, and the noise level t [] or [N] to read them at (default 0)
        -> what the blocks read, [N, L, C] each."""
        bank: list[Tensor] = self.reference(latents, self._read(self.reference, tokens), t)
        return bank

    def nothing(self) -> list[KeyValue]:
        """What the denoiser's blocks read of latents that are all zero, and were read with a token that is zero."""
        made, weight = self.preset, next(self.denoiser.parameters())
        tokens = weight.new_zeros(1, 1, made.unet.image_dim) if made.unet.image_dim else None
        return self.project(self.reread(weight.new_zeros(1, made.unet.in_channels, *made.latent_size), tokens))

    def identity(self, tokens: Tensor | None, known: Tensor | None = None) -> list[KeyValue]:
        """The identity's tokens as keys and values for the denoiser's blocks, and with them those of a face, by default nobody's."""
        return self._with_face(self._read(self.denoiser, tokens), known)

    def unknown(self, identity: list[KeyValue]) -> list[KeyValue]:
        """Such keys and values with nobody's face instead of the one that is in them."""
        return identity if self.face is None else self._with_face([(k[:, :-FACE_TOKENS], v[:, :-FACE_TOKENS]) for k, v in identity], None)

    def _with_face(self, pairs: list[KeyValue], known: Tensor | None) -> list[KeyValue]:
        face = self.known() if known is None else known
        if face is None:
            return pairs
        blocks = spatial_blocks(self.denoiser)
        return [cast(Recognising, block.attn2).with_face(pair, face, self.identity_scale) for block, pair in zip(blocks, pairs, strict=True)]

    def denoise(self, x: Tensor, t: Tensor, hint: Tensor, sources: Sources, window: Window) -> Tensor:
        """One call of the denoiser, of which a ControlNet is part: x [N, C, h, w], t [N], hint [N, C0, h, w] -> prediction [N, C, h, w]."""
        if self.controlnet is None:
            return self.denoiser(x, t, hint, sources, window)
        more = sources.residuals or self.residuals(x, t, hint)
        return self.denoiser(x, t, None, replace(sources, residuals=more), window)

    def residuals(self, x: Tensor, t: Tensor, hint: Tensor) -> list[Tensor]:
        """What a ControlNet adds in such a call, for `Sources.residuals`; empty where there is none."""
        return self.controlnet(x, t, hint, cast(ConstantText, self.image)(x)) if self.controlnet is not None else []

    def cached(self, bank: list[Tensor], tokens: Tensor | None, known: Tensor | None = None) -> Cache:
        """The same as keys and values for the denoiser's blocks, by the denoiser's own projections. `known`: as `known` makes it."""
        return Cache(self.project(bank), self.identity(tokens, known))

    def project(self, bank: list[Tensor]) -> list[KeyValue]:
        """What the reference network's blocks read -> keys and values for the denoiser's, by the denoiser's own projections."""
        blocks = reading_blocks(self.denoiser)
        assert len(bank) % len(blocks) == 0, "as many for every step"
        return [blocks[i % len(blocks)].attn1.project(read) for i, read in enumerate(bank)]

    @staticmethod
    def _read(network: ReferenceNet | Denoiser, tokens: Tensor | None) -> list[KeyValue]:
        return [] if tokens is None else [block.attn2.project(tokens) for block in spatial_blocks(network) if not block.last]

    def decode_by(self, tiny: Tiny) -> None:
        """From here on frames go through a tiny decoder; what is made of a portrait stays the same."""
        assert isinstance(self.autoencoder, KL)
        self.autoencoder = TinyDecoded(self.autoencoder, tiny, scale=self.preset.scale)
        self.preset = replace(self.preset, latent="tiny")

    def parts(self) -> dict[str, nn.Module]:
        """The networks that have weights, by the name of their file."""
        named = {name: module for name, module in self.named_children() if module is not None}
        return {name: module for name, module in named.items() if any(True for _ in module.parameters())}


def build(made: Preset, *, seed: int = 0, decoder: Decoder | None = None) -> Networks:
    """Networks with seeded random weights, whose last layers are zero where training would have begun so."""
    _check_decoder(made, decoder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        networks = Networks(made)
        if decoder == "tiny":
            networks.decode_by(Tiny())
    faces = [one.to_v_ip for one in networks.denoiser.modules() if isinstance(one, Recognising)]
    for zero in (*networks.guider.last(), networks.denoiser.conv_out, *faces):
        for parameter in zero.parameters():
            nn.init.zeros_(parameter)
    networks.eval().requires_grad_(False)
    return networks


def save(networks: Networks, folder: Path, *, origin: dict[str, str], taught: Taught | None = None) -> None:
    """One .safetensors a network, what the condition's generator was taught, and the manifest last: a folder without one is not whole."""
    folder.mkdir(parents=True, exist_ok=True)
    hashes = {}
    for name, module in networks.parts().items():
        path = folder / f"{name}.safetensors"
        save_file({key: value.contiguous() for key, value in module.state_dict().items()}, path)
        hashes[name] = sha256(path)
    manifest: dict[str, Any] = {"preset": networks.preset.name, "sha256": hashes, "origin": origin}
    if networks.recogniser is not None:
        if networks.recogniser != folder / RECOGNISER:
            shutil.copyfile(networks.recogniser, folder / RECOGNISER)
        manifest["recogniser"] = sha256(folder / RECOGNISER)
    if taught is not None:
        from engine.generators.diffusion.taught import write

        manifest["assets"] = write(folder, taught)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


def empty(made: Preset) -> Networks:
    """Networks whose parameters have shapes but no values: they cost neither memory nor the time of an initialisation."""
    with torch.device("meta"):
        return Networks(made)


def _check_decoder(made: Preset, decoder: str | None) -> None:
    """Raise AvatarError for a decoder that does not exist or that a preset cannot have."""
    if decoder is not None and decoder not in get_args(Decoder):
        raise AvatarError(f"There is no decoder called '{decoder}'; choose one of: {', '.join(get_args(Decoder))}.")
    if decoder is not None and made.latent != "kl":
        raise AvatarError(f"The preset '{made.name}' works on pixels and has no decoder to choose; leave --decoder out.")


def load(folder: Path, *, decoder: Decoder | None = None) -> Networks:
    """The networks of a folder that `save` or an importer wrote, in the precision of the files. Raises AvatarError for anything else.

    `decoder` tiny: the one that was imported beside them decodes the frames.
    """
    try:
        text = (folder / MANIFEST).read_text()
        manifest = json.loads(text)
        hashes, origin = dict(manifest["sha256"]), dict(manifest["origin"])
        made_for, made_steps = str(origin.get("made_for", "")), int(origin.get("steps", 0))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AvatarError(f"{folder} holds no weights of this engine: it has no readable {MANIFEST}; import or train them first.") from error
    networks = empty(preset_in(manifest, folder))
    _check_decoder(networks.preset, decoder)
    parts, tiny = networks.parts(), None
    if decoder == "tiny":
        if TINY_PART not in hashes:
            how = "avatar import animate-anyone DIR --tiny-vae TAESD_DIR -o OUT"
            raise AvatarError(f"The weights in {folder} have no tiny decoder; leave --decoder out, or import them again with one: {how}.")
        with torch.device("meta"):
            parts[TINY_PART] = tiny = Tiny()
    for part, module in parts.items():
        path = folder / f"{part}.safetensors"
        if path.is_file() and sha256(path) != hashes.get(part):
            raise AvatarError(f"{path} is not the file that its {MANIFEST} names; import or train the weights again.")
        try:
            # Read, not mapped: a file that is written again must not change what runs.
            module.load_state_dict(load_file(folder / f"{part}.safetensors", backend="pread"), assign=True)
        except Exception as error:  # whatever a broken file raises
            what = f"{folder / part}.safetensors is missing, damaged or of another version of '{networks.preset.name}'"
            raise AvatarError(f"{what}; import or train it again.") from error
    if tiny is not None:
        networks.decode_by(tiny)
    _number(networks)
    networks.made_for, networks.made_steps, networks.projector = made_for, made_steps, str(origin.get(PROJECTOR, ""))
    if "recogniser" in manifest:
        networks.recogniser = folder / RECOGNISER
        if not networks.recogniser.is_file() or sha256(networks.recogniser) != manifest["recogniser"]:
            raise AvatarError(f"{networks.recogniser} is not the file that its {MANIFEST} names; import the weights again.")
    if "assets" in manifest:
        from engine.generators.diffusion.taught import read

        networks.taught = read(folder, manifest["assets"])
    networks.origin = hashlib.sha256(text.encode()).hexdigest()
    networks.eval().requires_grad_(False)
    return networks


def notice(networks: Networks, steps: int) -> str:
    """What whoever watches these weights live, at so many steps, must be told; empty where there is nothing."""
    if networks.origin == UNTRAINED:
        return NOTICE
    if not networks.made_for:
        return ""
    made = networks.preset
    how = made.sampling
    enough = 0 < networks.made_steps <= steps
    said = NO_GUIDANCE.format(networks.made_for) if enough else MANY_STEPS.format(networks.made_for, steps)
    said += ALONE if made.unet.joined_norms else ""
    evaluations = networks.made_steps * (1 if how.guidance == 1.0 else 2)
    return said + AS_PUBLISHED.format((how.window - 1) / made.fps, how.window, evaluations, steps) if evaluations else said


def _number(networks: Networks) -> None:
    """Fill what no file keeps: transformers' encoders count their patches in a buffer [1, P]."""
    for name, buffer in list(networks.named_buffers()):
        if buffer.is_meta:
            owner, _, own = name.rpartition(".")
            if own != "position_ids":
                raise AvatarError(f"This version of transformers or diffusers keeps '{name}' beside the weights; install the pinned versions.")
            networks.get_submodule(owner).register_buffer(own, torch.arange(buffer.shape[1])[None], persistent=False)


__all__ = ["PROJECTOR", "RECOGNISER", "TINY_PART", "UNTRAINED", "Cache", "Face", "Networks", "build", "empty", "load", "notice", "save"]
