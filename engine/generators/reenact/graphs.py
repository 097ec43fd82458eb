"""Every network of the generator as a backend sees it: the single truth for export and parity checks.

`graphs(networks)` lists them. Once a portrait: `appearance`, and `motion` of its crop. Live: `motion` of the driver's crop, `retarget` where
a motion comes without a picture, `stitch`, and `render`, the only one that costs much.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engine.generators.reenact.formulas import BIN_DEGREES, BINS, FIRST_BIN
from engine.generators.reenact.networks import Networks
from engine.generators.reenact.presets import KEYPOINTS
from engine.types import GraphSpec

FP32 = ("motion", "retarget", "stitch")
"""Graphs that stay in fp32 whatever the precision: half precisions move keypoints by what shows (found by every published port)."""

NARROWED = ("render",)
"""Graphs of which an export makes a narrower one where that is asked for: the one that costs. `appearance` runs once a portrait."""
PLACES = r"(^|/|\.)warping/|dense_motion_network(\.shifts)?/"
"""Nodes of `render` that compute places and look them up: half precisions cannot tell places a fraction of a cell apart."""
MOTIONS = r"(^|/|\.)warping/|dense_motion_network|conv_img"
"""Nodes of `render` that 8 bits lose most of: all that finds out where a cell comes from, and the last convolution."""


def graphs(networks: Networks, *, rows: int = 1) -> dict[str, GraphSpec]:
    """All of them by name, for `rows` sessions at once."""
    makers = (appearance_spec, motion_spec, retarget_spec, stitch_spec, render_spec)
    return {spec.name.split()[-1]: spec for spec in (make(networks, rows=rows) for make in makers)}


def appearance_spec(networks: Networks, *, rows: int = 1) -> GraphSpec:
    """`picture` uint8 [N, side, side, 3] -> `volume` [N, C, D, h, w]."""
    made = networks.preset
    return GraphSpec(f"{made.name} appearance", {"picture": _picture(networks, rows)}, ("volume",), lambda: AppearanceGraph(networks))


def motion_spec(networks: Networks, *, rows: int = 1) -> GraphSpec:
    """`picture` uint8 [N, side, side, 3] -> `kp` [N, 21, 3]; `pose` [N, 3] degrees of pitch, yaw and roll; `t` [N, 3]; `exp` [N, 21, 3];
    `scale` [N, 1]."""
    made = networks.preset
    outputs = ("kp", "pose", "t", "exp", "scale")
    return GraphSpec(f"{made.name} motion", {"picture": _picture(networks, rows)}, outputs, lambda: MotionGraph(networks))


def retarget_spec(networks: Networks, *, rows: int = 1) -> GraphSpec:
    """`source` [N, 21, 3]; `lips` [N, 2] and `eyes` [N, 3], ratios of the portrait and then the one asked for -> `lips` and `eyes` `_moved`
    [N, 21, 3], to be added to keypoints."""
    inputs = {"source": _points(rows), "lips": ((rows, 2), "float32"), "eyes": ((rows, 3), "float32")}
    return GraphSpec(f"{networks.preset.name} retarget", inputs, ("lips_moved", "eyes_moved"), lambda: RetargetGraph(networks))


def stitch_spec(networks: Networks, *, rows: int = 1) -> GraphSpec:
    """`source` and `driven` [N, 21, 3] -> `points` [N, 21, 3] that leave the shoulders where they are."""
    inputs = {"source": _points(rows), "driven": _points(rows)}
    return GraphSpec(f"{networks.preset.name} stitch", inputs, ("points",), lambda: StitchGraph(networks))


def render_spec(networks: Networks, *, rows: int = 1) -> GraphSpec:
    """`volume` [N, C, D, h, w], `source` and `driven` [N, 21, 3] -> `picture` uint8 [N, 2 side, 2 side, 3]."""
    made = networks.preset
    inputs = {"volume": ((rows, *made.volume, made.cells, made.cells), "float32"), "source": _points(rows), "driven": _points(rows)}
    return GraphSpec(f"{made.name} render", inputs, ("picture",), lambda: RenderGraph(networks))


def _picture(networks: Networks, rows: int) -> tuple[tuple[int, ...], str]:
    side = networks.preset.side
    return (rows, side, side, 3), "uint8"


def _points(rows: int) -> tuple[tuple[int, ...], str]:
    return (rows, KEYPOINTS, 3), "float32"


# Each graph holds the networks it runs and no other: whatever traces it walks through all that it holds.


class AppearanceGraph(nn.Module):
    """See `appearance_spec`."""

    def __init__(self, networks: Networks) -> None:
        super().__init__()
        self.appearance = networks.appearance

    def forward(self, picture: Tensor) -> Tensor:
        """The volume, in fp32."""
        return self.appearance(_unit(picture, self.appearance.second.weight.dtype)).float()


class MotionGraph(nn.Module):
    """See `motion_spec`."""

    def __init__(self, networks: Networks) -> None:
        super().__init__()
        self.motion = networks.motion
        self.register_buffer("degrees", FIRST_BIN + BIN_DEGREES * torch.arange(BINS, dtype=torch.float32), persistent=False)

    def forward(self, picture: Tensor) -> tuple[Tensor, ...]:
        """In the order of the spec's outputs."""
        kp, pitch, yaw, roll, t, exp, scale = self.motion(_unit(picture, torch.float32))
        pose = torch.stack([pitch, yaw, roll], 1).softmax(2) @ self.degrees
        return kp.reshape(-1, KEYPOINTS, 3), pose, t, exp.reshape(-1, KEYPOINTS, 3), scale


class RetargetGraph(nn.Module):
    """See `retarget_spec`."""

    def __init__(self, networks: Networks) -> None:
        super().__init__()
        self.lip, self.eye = networks.lip, networks.eye

    def forward(self, source: Tensor, lips: Tensor, eyes: Tensor) -> tuple[Tensor, Tensor]:
        """(lips', eyes' shifts)."""
        flat = source.flatten(1)
        return self.lip(torch.cat([flat, lips], 1)).reshape(source.shape), self.eye(torch.cat([flat, eyes], 1)).reshape(source.shape)


class StitchGraph(nn.Module):
    """See `stitch_spec`, and `formulas.stitched`."""

    def __init__(self, networks: Networks) -> None:
        super().__init__()
        self.stitching = networks.stitching

    def forward(self, source: Tensor, driven: Tensor) -> Tensor:
        """The driven keypoints, each moved, and all of them in x and y."""
        said = self.stitching(torch.cat([source.flatten(1), driven.flatten(1)], 1))
        each, every = said[:, : 3 * KEYPOINTS].reshape(driven.shape), said[:, None, 3 * KEYPOINTS :]
        return driven + each + torch.cat([every, torch.zeros_like(every[..., :1])], 2)


class RenderGraph(nn.Module):
    """See `render_spec`."""

    def __init__(self, networks: Networks) -> None:
        super().__init__()
        self.warping, self.decoder = networks.warping, networks.decoder

    def forward(self, volume: Tensor, source: Tensor, driven: Tensor) -> Tensor:
        """Rounded to bytes."""
        painted = self.decoder(self.warping(volume.to(self.decoder.fc.weight.dtype), source, driven))
        return (painted.float().permute(0, 2, 3, 1) * 255 + 0.5).clamp(0, 255).to(torch.uint8)


def _unit(picture: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 [N, h, w, 3] -> [N, 3, h, w] 0..1."""
    return (picture.permute(0, 3, 1, 2).float() / 255).to(dtype)


__all__ = ["FP32", "MOTIONS", "NARROWED", "PLACES", "AppearanceGraph", "MotionGraph", "RenderGraph", "RetargetGraph", "StitchGraph", "graphs"]
