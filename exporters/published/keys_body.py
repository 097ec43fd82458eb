"""Published files of the systems that a body drives, by the tables of `keys`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from exporters.published.keys import AUTOENCODER, DENOISER, GUIDER, IMAGE, MOTION, REFERENCE, Drop, Table, same, spatial, temporal

MUSE_POSE, CHAMP, MAGIC_ANIMATE, STABLE_DIFFUSION = "MusePose", "Champ", "MagicAnimate", "Stable Diffusion 1.5"
REENACT = "Moore-AnimateAnyone reenactment"
MAPS = {"depth": "depth", "normal": "normal", "semantic": "semantic_map", "dwpose": "dwpose"}
"""Names of Champ's maps, here and in the names of its files."""
TAIL = ("conv_norm_out", "conv_out")
"""Where a UNet ends."""
EMBEDDING = "controlnet_cond_embedding."
"""What begins the keys of a ControlNet that are the guider here."""
GLOBAL_STEP = "global_step"
"""A number that training left in a file."""
OUTER = "unet."
"""What begins the keys of a file that was saved with more around the UNet."""

MUSE_POSE_TABLES = (
    *(replace(table, system=MUSE_POSE) for table in (GUIDER, DENOISER, REFERENCE)),
    replace(MOTION, system=MUSE_POSE, drops=(Drop(".pos_encoder.pe", "sinusoids", "sinusoids of positions, which are made again", any_length=True),)),
    *(replace(table, system=MUSE_POSE) for table in (AUTOENCODER, IMAGE)),
)
"""As Moore-AnimateAnyone's; its own loader takes no notice of the positions in the file either."""


def _within(start: str) -> Callable[[str], bool]:
    return lambda key: key.startswith(start)


def _without(start: str) -> Callable[[str], bool]:
    return lambda key: not key.startswith(start)


UNUSED = tuple(
    Drop("", "nothing", "which the published network does not use either", prefix=f"{name}.")
    for name in (*(f"attentions.{i}" for i in range(5)), "guidance_attention")
)
"""Of a guidance encoder only the last attention is ever called."""
CHAMP_TABLES = (
    *(
        Table((f"guidance_encoder_{theirs}",), "guider", same, _within(f"encoders.{ours}."), prefix=f"encoders.{ours}.", drops=UNUSED, system=CHAMP)
        for ours, theirs in MAPS.items()
    ),
    *(replace(table, system=CHAMP) for table in (DENOISER, MOTION, REFERENCE, AUTOENCODER, IMAGE)),
)

DOTS = ("upper", "mouth")
"""As the generator names its two pictures of dots."""
READ = "which nothing reads: of this network only what its attentions see"
REENACT_TABLES = (
    *(
        Table((f"pose_guider{i}",), "guider", same, _within(f"encoders.{name}."), prefix=f"encoders.{name}.", system=REENACT)
        for i, name in enumerate(DOTS, 1)
    ),
    Table(("denoising_unet",), "denoiser", same, drops=MOTION.drops, system=REENACT),
    replace(
        REFERENCE,
        drops=tuple(Drop("", "nothing", READ, prefix=f"{tail}.") for tail in TAIL),
        marks=tuple(f"{tail}.{kind}" for tail in TAIL for kind in ("weight", "bias")),
        system=REENACT,
    ),
    *(replace(table, system=REENACT) for table in (AUTOENCODER, IMAGE)),
)
"""Of its face reenactment: one file holds all of the denoiser, and the reference network is a whole one."""

WEIGHTS = ("diffusion_pytorch_model",)
CONTROL_FOLDER = "densepose_controlnet"
APPEARANCE = Table(WEIGHTS, "reference", same, folder="appearance_encoder", system=MAGIC_ANIMATE)
CONTROL_GUIDER = Table(
    WEIGHTS, "guider", lambda key: key.removeprefix(EMBEDDING), takes=_within(EMBEDDING), folder=CONTROL_FOLDER, system=MAGIC_ANIMATE
)
CONTROL = Table(
    WEIGHTS,
    "controlnet",
    same,
    takes=_without(EMBEDDING),
    prefix="model.",
    folder=CONTROL_FOLDER,
    config=("act_fn", "attention_head_dim", "controlnet_conditioning_channel_order", "flip_sin_to_cos", "freq_shift", "norm_eps", "norm_num_groups"),
    system=MAGIC_ANIMATE,
)
TEMPORAL = Table(("temporal_attention",), "denoiser", same, folder="temporal_attention", system=MAGIC_ANIMATE, drops=MOTION.drops)
"""All of the denoiser."""
TEMPORAL_ALONE = replace(TEMPORAL, fills=temporal, takes=temporal)
"""Its motion modules; the rest is Stable Diffusion's own."""
UNET_OPTION = "--unet"
PLAIN_UNET = Table(WEIGHTS, "denoiser", same, spatial, folder="unet", system=STABLE_DIFFUSION, option=UNET_OPTION)
BASE_FOLDER = "stable-diffusion-v1-5"
"""Where the published script puts it."""


def read_temporal(path: Path) -> Mapping[str, Any]:
    """MagicAnimate's denoiser, or its motion modules alone, in any of the forms that its own loader takes."""
    from exporters.files import read

    held = {key.removeprefix("module."): value for key, value in read(path, aside=(GLOBAL_STEP,)).items()}
    if not any(key.startswith(OUTER) for key in held):
        return held
    return {key.removeprefix(OUTER): value for key, value in held.items() if temporal(key)}


def magic_animate(held: Mapping[str, Any]) -> tuple[Table, ...]:
    """Its tables, by what `read_temporal` found."""
    whole = not held or any(spatial(key) for key in held)
    denoiser = (replace(TEMPORAL, read=read_temporal),) if whole else (replace(TEMPORAL_ALONE, read=read_temporal), PLAIN_UNET)
    return (CONTROL_GUIDER, CONTROL, *denoiser, APPEARANCE, replace(AUTOENCODER, system=MAGIC_ANIMATE))


__all__ = [
    "BASE_FOLDER",
    "CHAMP",
    "CHAMP_TABLES",
    "MAGIC_ANIMATE",
    "MUSE_POSE",
    "MUSE_POSE_TABLES",
    "REENACT",
    "REENACT_TABLES",
    "TEMPORAL",
    "UNET_OPTION",
    "magic_animate",
    "read_temporal",
]
