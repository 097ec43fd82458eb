"""A base model and what an identity system adds to it -> portraits, one seed after another.

The base is a folder in diffusers' layout (Stable Diffusion 1.5, SDXL, or FLUX: `pipeline_flux`), opened with diffusers and never looked for
anywhere else. The loop is ours, since systems switch texts half way and show their ControlNet other tokens; without a system it gives what
diffusers' pipeline gives.
"""

from __future__ import annotations

import gc
import inspect
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.types import AvatarError, UInt8Array
from exporters import files
from exporters.portraits.attention import Decoupled, add_low_rank
from exporters.portraits.contract import Attachment, Family, Prompted, System
from exporters.portraits.encoders import quiet

PIPELINES: dict[str, Family] = {"StableDiffusionPipeline": "sd15", "StableDiffusionXLPipeline": "sdxl", "FluxPipeline": "flux"}
"""Class in a base's model_index.json -> its family."""
GRAIN = 8
"""px a latent."""
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

Progress = Callable[[int, int], None]


class Cancelled(AvatarError):
    """Somebody asked to stop, between two steps."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What is asked of a base."""

    prompt: str
    negative: str
    steps: int
    guidance: float  # 1: none
    size: tuple[int, int]  # (H, W) px, multiples of 8

    def __post_init__(self) -> None:
        height, width = self.size
        if height % GRAIN or width % GRAIN or min(height, width) < GRAIN:
            raise AvatarError(f"A portrait of {width} x {height} pixels cannot be made; both must be multiples of {GRAIN}.")
        if self.steps < 1 or self.guidance < 1.0:
            raise AvatarError(f"{self.steps} steps and a guidance of {self.guidance:g} cannot be; give at least 1 of each.")


@dataclass(slots=True, eq=False)
class Base:
    """An opened base."""

    pipe: Any  # diffusers' pipeline: its parts, and how it encodes text
    family: Family
    name: str
    device: str

    @property
    def unet(self) -> Any:
        """The denoiser."""
        return self.pipe.transformer if self.family == "flux" else self.pipe.unet


def _kind(folder: Path) -> str:
    """Which of PIPELINES a folder holds. Raises AvatarError where none."""
    try:
        kind: str = json.loads((folder / "model_index.json").read_text())["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AvatarError(
            f"{folder} has no readable model_index.json; give the folder of a Stable Diffusion 1.5, SDXL or FLUX in diffusers' layout."
        ) from error
    if kind not in PIPELINES:
        raise AvatarError(f"{folder} is a {kind}; identity systems need a Stable Diffusion 1.5, SDXL or FLUX as a base.")
    return kind


def check_base(system: System, folder: Path, *, unet: Path | None) -> None:
    """Raise AvatarError where a base is of another family, or where both bring a UNet. Opens nothing."""
    if unet and system.unet:
        raise AvatarError(f"{system.name} is a UNet itself; leave --unet out.")
    family = PIPELINES[_kind(folder)]
    if family not in system.families:
        raise AvatarError(f"{system.name} is for {' and '.join(system.families)}, and {folder} is {family}; give another --base.")


def open_base(folder: Path, *, unet: Path | None = None, device: str = "cpu", precision: str = "fp32") -> Base:
    """A base in diffusers' layout; `unet`: another UNet for it, a folder or weights alone. Raises AvatarError where it is none."""
    import diffusers

    kind = _kind(folder)
    family, dtype = PIPELINES[kind], PRECISIONS[precision]
    more: dict[str, Any] = {"safety_checker": None, "requires_safety_checker": False} if family == "sd15" else {}
    if unet is not None:
        if family == "flux":
            raise AvatarError("FLUX has no UNet that another could take the place of; leave --unet out.")
        more["unet"] = open_unet(unet, like=folder / "unet").to(dtype)
    quiet()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pipe = getattr(diffusers, kind).from_pretrained(folder, local_files_only=True, torch_dtype=dtype, **more)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise AvatarError(f"The base in {folder} does not load ({str(error).splitlines()[0]}); download the whole folder again.") from error
    pipe = pipe.to(device)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    return Base(pipe, family, folder.name if unet is None else f"{folder.name} with {unet.name}", device)


def open_for(system: System, folder: Path, *, unet: Path | None, device: str = "cpu", precision: str = "fp32") -> Base:
    """The base in `folder` for a system. Raises AvatarError where it is of another family, or where both bring a UNet."""
    if precision not in PRECISIONS:
        raise AvatarError(f"A base is not opened in {precision}; use {', '.join(PRECISIONS)}.")
    check_base(system, folder, unet=unet)
    return open_base(folder, unet=unet or system.unet, device=device, precision=precision)


def open_unet(place: Path, *, like: Path | None = None) -> Any:
    """A UNet's folder, whatever class its config names (CosmicMan's is called UNet2DConditionModel_New and is the usual one), or its weights
    alone, such as sdxl_lightning_4step_unet.safetensors, with the config in `like`."""
    from diffusers import UNet2DConditionModel

    folder, path = place, files.find([place], ["diffusion_pytorch_model", "diffusion_pytorch_model.fp16"])
    if like is not None and place.is_file():
        folder, path = like, place
    config = {**files.read_config(folder), "_class_name": "UNet2DConditionModel"}
    if path is None:
        raise AvatarError(f"{folder} holds no diffusion_pytorch_model; give the folder of a UNet in diffusers' layout.")
    made = UNet2DConditionModel.from_config(config)
    held = files.read(path)
    wanted = made.state_dict()
    unfit = [key for key in {*wanted, *held} if key not in wanted or key not in held or wanted[key].shape != held[key].shape]
    if unfit:
        raise AvatarError(f"{path} does not fit its {files.CONFIG} ({len(unfit)} tensors, such as '{sorted(unfit)[0]}'); download the folder again.")
    made.load_state_dict(held)
    return made


def encoded(base: Base, prompt: str, negative: str) -> Prompted:
    """A prompt as diffusers encodes it."""
    if base.family == "sdxl":
        text, none, pooled, no_pooled = base.pipe.encode_prompt(prompt, negative_prompt=negative or None, device=base.device)
        return Prompted(torch.cat([none, text]), torch.cat([no_pooled, pooled]))
    text, none = base.pipe.encode_prompt(prompt, base.device, 1, True, negative_prompt=negative or None)
    return Prompted(torch.cat([none, text]))


class Maker:
    """A base with a system's additions, ready for many seeds. It keeps the base for itself: the additions cannot be taken off again."""

    def __init__(self, base: Base, attachment: Attachment, ask: Ask) -> None:
        self.base, self._attachment, self._ask = base, attachment, ask
        self._attach()
        if attachment.scheduler:
            base.pipe.scheduler = attachment.scheduler(base.pipe.scheduler)
        with torch.no_grad():
            self._early, self._late = (attachment.text or self._plain)(base, ask.prompt, ask.negative)

    @torch.no_grad()
    def make(self, seed: int, *, progress: Progress | None = None, cancelled: Callable[[], bool] = lambda: False) -> UInt8Array:
        """A portrait [H, W, 3]; the same for the same seed on the same machine. Raises Cancelled between two steps."""
        scheduler = self.base.pipe.scheduler
        generator = torch.Generator("cpu").manual_seed(seed)
        latents = self._begin(generator)
        more = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
        count = len(scheduler.timesteps)  # some schedulers call the denoiser more than once a step
        for i, t in enumerate(scheduler.timesteps):
            if cancelled():
                raise Cancelled(f"Stopped at step {i} of {count}; what was finished before is kept.")
            latents = scheduler.step(self._noise(latents, t, i), t, latents, **more, return_dict=False)[0]
            if progress:
                progress(i + 1, count)
        return self._decoded(latents)

    def close(self) -> None:
        """Give the memory back; nothing can be made any more."""
        del self.base, self._attachment, self._early, self._late
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _attach(self) -> None:
        """Put the additions on the denoiser."""
        attachment, unet = self._attachment, self.base.unet
        unknown = sorted(set(attachment.added) - set(unet.attn_processors))
        if unknown:
            raise AvatarError(f"What the system adds is for another base (it has no '{unknown[0]}').")
        if attachment.between:
            raise AvatarError("What the system adds is for a FLUX; give one with --base.")
        add_low_rank(unet, attachment.weights)
        unet.set_attn_processor(
            {name: Decoupled(attachment.added[name]) if name in attachment.added else old for name, old in unet.attn_processors.items()}
        )

    def _plain(self, base: Base, prompt: str, negative: str) -> tuple[Prompted, Prompted]:
        """The text where the system has none of its own."""
        made = encoded(base, prompt, negative)
        return made, made

    def _begin(self, generator: torch.Generator) -> Tensor:
        """The first latents, and the scheduler set to its beginning."""
        pipe, (height, width) = self.base.pipe, self._ask.size
        shape = (1, pipe.unet.config.in_channels, height // pipe.vae_scale_factor, width // pipe.vae_scale_factor)
        latents = torch.randn(shape, generator=generator).to(self.base.device, pipe.unet.dtype)
        pipe.scheduler.set_timesteps(self._ask.steps, device=self.base.device)
        begun: Tensor = latents * pipe.scheduler.init_noise_sigma
        return begun

    def _noise(self, latents: Tensor, t: Tensor, step: int) -> Tensor:
        """What the denoiser takes for noise at a step, guidance applied."""
        pipe, ask, attachment = self.base.pipe, self._ask, self._attachment
        early = attachment.merge_from > 0 and step <= int(attachment.merge_from * ask.steps)
        prompted = self._early if early else self._late
        rows = slice(None) if ask.guidance > 1.0 else slice(1, 2)
        text = prompted.text[rows]
        given = pipe.scheduler.scale_model_input(latents.expand(len(text), -1, -1, -1), t)
        more: dict[str, Any] = {}
        if prompted.pooled is not None:
            height, width = ask.size
            ids = torch.tensor([[height, width, 0, 0, height, width]], dtype=text.dtype, device=text.device).expand(len(text), -1)
            more["added_cond_kwargs"] = {"text_embeds": prompted.pooled[rows], "time_ids": ids}
        residuals = self._controlled(given, t, text, rows, more)
        noise: Tensor = pipe.unet(given, t, encoder_hidden_states=text, return_dict=False, **more, **residuals)[0]
        if len(noise) == 1:
            return noise
        none, some = noise.chunk(2)
        return none + ask.guidance * (some - none)

    def _controlled(self, given: Tensor, t: Tensor, text: Tensor, rows: slice, more: dict[str, Any]) -> dict[str, Any]:
        """A ControlNet's residuals."""
        control = self._attachment.control
        if control is None:
            return {}
        picture = torch.from_numpy(control.picture.astype(np.float32) / 255.0).permute(2, 0, 1)[None].to(given.device, given.dtype)
        seen = text if control.tokens is None else control.tokens[rows].to(given.device, given.dtype)
        down, middle = control.network(
            given,
            t,
            encoder_hidden_states=seen,
            controlnet_cond=picture.expand(len(given), -1, -1, -1),
            conditioning_scale=control.scale,
            return_dict=False,
            **more,
        )
        return {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}

    def _decoded(self, latents: Tensor) -> UInt8Array:
        vae = self.base.pipe.vae
        if vae.dtype == torch.float16 and vae.config.force_upcast:
            vae.to(torch.float32)  # SDXL's decoder overflows in fp16
        rgb = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor, return_dict=False)[0]
        if not bool(rgb.isfinite().all()):
            raise AvatarError("The base made a picture of no numbers; use --precision fp32 or bf16.")
        values = (rgb[0].float() / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).cpu().numpy()
        return np.asarray(np.round(values * 255), np.uint8)


def maker(base: Base, attachment: Attachment, ask: Ask) -> Maker:
    """The one for a base's family."""
    if base.family == "flux":
        from exporters.portraits.pipeline_flux import FluxMaker

        return FluxMaker(base, attachment, ask)
    return Maker(base, attachment, ask)


__all__ = ["Ask", "Base", "Cancelled", "Maker", "encoded", "maker", "open_base", "open_for", "open_unet"]
