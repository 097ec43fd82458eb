"""A whole clip of signals at leisure: conditions, `offline.sample`, and pictures one by one; what was done so far lies on the disk."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from engine.drivers.resample import RATE
from engine.drivers.speech import LOOK_AHEAD
from engine.generators.diffusion.autoencoder import to_pixels, to_unit
from engine.generators.diffusion.face_of import seen_face
from engine.generators.diffusion.features import Features
from engine.generators.diffusion.hearing import log_mel
from engine.generators.diffusion.listening import heard_in
from engine.generators.diffusion.memory import within_memory
from engine.generators.diffusion.networks import Cache, Face
from engine.generators.diffusion.offline import Progress, sample
from engine.generators.diffusion.presets import Sampling
from engine.generators.diffusion.sampler import levels
from engine.generators.diffusion.stream import Recipe, shown
from engine.generators.diffusion.trust import Ask
from engine.types import AvatarError, FloatArray, Identity, Signal, UInt8Array, VideoFrame

if TYPE_CHECKING:
    from engine.generators.diffusion.generator import Diffusion

CONDITIONS, DONE = "conditions.npy", "done.safetensors"
"""Files of the folder that a rendering goes on from."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What every frame is asked for."""

    conditions: npt.NDArray[np.uint8]  # [F, H, W, K], a file's
    speech: FloatArray  # [F, 16, 80], or [F, *`Ears.heard`]
    points: list[FloatArray | None]  # of the puppet's mouth and eyes, where weights are believed only so far
    confidence: list[FloatArray | None]

    def ask(self, number: int) -> Ask:
        """Of one frame."""
        picture = np.array(self.conditions[number])
        return Ask(VideoFrame(picture[..., :3], 0.0), picture, self.points[number], self.confidence[number])


def sampling_of(generator: Diffusion, *, steps: int | None, guidance: float | None) -> Sampling:
    """The preset's for published weights; for those of this project's own training their few steps, into which guidance was distilled."""
    networks = generator.recipe.networks
    how = networks.preset.sampling
    if not networks.made_for:
        how = replace(how, steps=generator.steps, guidance=1.0)
    return replace(how, steps=steps or how.steps, guidance=how.guidance if guidance is None else guidance)


def render(generator: Diffusion, identity: Identity, signals: Sequence[Signal], *, how: Sampling, kept: Path, progress: Progress | None) -> Pictures:
    """All frames of a clip -> what gives them one by one. Raises AvatarError where the disk or the memory does not do."""
    if not signals:
        raise AvatarError("The drive has no frame to render; choose a longer one.")
    made, device = generator.recipe, generator.device
    recipe = Recipe(made.networks, levels(made.preset.noise, how.steps).to(device), False, made.dtype, device)
    try:
        kept.mkdir(exist_ok=True)
        asked = _asked(generator, identity, signals, kept / CONDITIONS)
        held = _Held(kept / DONE, _key(asked, identity, how), generator.precision)
        told = torch.from_numpy(asked.conditions), torch.from_numpy(asked.speech)
        going: dict[str, Any] = {"begun": held.begun(device, recipe.dtype), "keep": held.keep, "progress": progress}
        latents = within_memory(
            "render a whole clip",
            lambda: sample(recipe, _cache(recipe, identity, live=made), *told, sampling=how, **going),
            device=device,
            precision=generator.precision,
            ways=("a shorter clip", "a smaller preset"),
        )
    except OSError as error:
        raise AvatarError(f"{kept} cannot be written ({error.strerror or error}); make room, or name another file with --out.") from error
    return Pictures(recipe, latents, asked)


@dataclass(frozen=True, slots=True)
class Pictures:
    """Of a rendered clip, decoded when they are asked for."""

    recipe: Recipe
    latents: Tensor  # [F, C, h, w]
    asked: Asked

    @torch.inference_mode()
    def __call__(self, number: int) -> UInt8Array:
        """Frame `number` [H, W, 3]."""
        ask = self.asked.ask(number)
        base = torch.from_numpy(ask.picture)[None].to(self.recipe.device)
        picture = shown(self.recipe.networks, self.latents[number : number + 1], base)
        return ask.answered(to_pixels(picture)[0].cpu().numpy()).rgb


@dataclass(frozen=True, slots=True)
class _Held:
    """What a rendering has done, in a file that says of which."""

    path: Path
    key: str
    precision: str

    def begun(self, device: torch.device, dtype: torch.dtype) -> tuple[int, Tensor] | None:
        """(steps done, latents) of the same rendering, if it was begun; another's stays until it is written over."""
        if not self.path.is_file():
            return None
        try:
            with safe_open(self.path, "pt") as held:
                told = held.metadata() or {}
                return (int(told["steps"]), held.get_tensor("latents").to(device, dtype)) if told.get("of") == self.key else None
        except (SafetensorError, KeyError, ValueError):  # ended while it was written: no matter, it is made again
            return None

    def keep(self, steps: int, latents: Tensor) -> None:
        """After every step. Raises AvatarError where the numbers are none: no step after it would mend them."""
        if not latents.isfinite().all():
            other = "import or train them again" if self.precision == "fp32" else "use --precision fp32"
            raise AvatarError(f"These weights make no picture of this clip in {self.precision}: their numbers are not finite; {other}.")
        partial = self.path.with_suffix(".part")
        save_file({"latents": latents.float().cpu().contiguous()}, partial, {"of": self.key, "steps": str(steps)})
        partial.replace(self.path)


def _cache(recipe: Recipe, identity: Identity, *, live: Recipe) -> Cache:
    """What the frames read of the portrait, on the device; anew where it is read at every step, since `live` has other ones."""
    features = cast(Features, identity.features)
    if not recipe.preset.reference_each or torch.equal(recipe.levels.t, live.levels.t):
        return features.cache.to(recipe.device)
    kept = features.cache.face
    face = Face(tokens=kept) if kept is not None else seen_face(recipe.networks, identity.portrait, features.anchor)
    return recipe.remember(to_unit(torch.from_numpy(identity.portrait)[None].to(recipe.device)).to(recipe.dtype), face)


def _key(asked: Asked, identity: Identity, how: Sampling) -> str:
    """Names a rendering by all that it is made of."""
    told = hashlib.sha256(f"{identity.key} {how} {asked.conditions.shape}".encode())
    for number in range(len(asked.conditions)):
        told.update(asked.conditions[number].tobytes())
    told.update(asked.speech.tobytes())
    return told.hexdigest()


def _asked(generator: Diffusion, identity: Identity, signals: Sequence[Signal], path: Path) -> Asked:
    """Signal by signal, as a live session asks: a condition may depend on those before it."""
    asks = generator.asks(identity)
    height, width = generator.spec.size
    shape = (len(signals), height, width, generator.recipe.preset.channels)
    conditions = cast("np.memmap[Any, np.dtype[np.uint8]]", cast(Any, np.lib.format.open_memmap)(path, "w+", np.uint8, shape))
    points, confidence = [], []
    for number, signal in enumerate(signals):
        ask = asks(signal)
        conditions[number] = ask.picture
        points.append(ask.points)
        confidence.append(ask.confidence)
    conditions.flush()
    return Asked(conditions, _heard(generator, signals), points, confidence)


def _heard(generator: Diffusion, signals: Sequence[Signal]) -> FloatArray:
    """What every frame hears; of a listening network it is what that makes of the whole sound, as published."""
    networks = generator.recipe.networks
    if networks.listener is None:
        return log_mel(signals)
    start = signals[0].time
    pcm = np.zeros(round((signals[-1].time - start + LOOK_AHEAD) * RATE) + 1, np.float32)
    for signal in signals:
        if signal.pcm is not None:
            end = round((signal.time - start + LOOK_AHEAD) * RATE)
            known = signal.pcm[max(0, len(signal.pcm) - end) :]
            pcm[end - len(known) : end] = known
    heard = heard_in(networks.listener, pcm, networks.preset).float().cpu().numpy()
    at = np.round([(signal.time - start) * networks.preset.fps for signal in signals]).astype(int)
    found: FloatArray = heard[np.clip(at, 0, len(heard) - 1)]
    return found


__all__ = ["Pictures", "render", "sampling_of"]
