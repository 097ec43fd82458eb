"""UniAnimate as one of the systems of the generator `video`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from engine.conditions.ease import Ease
from engine.conditions.place import Anchor, Placed, place
from engine.conditions.skeleton import joints_of, paint_skeleton, with_feet
from engine.generators.video import networks as weights_of
from engine.generators.video.clips import How, Known, Published, placed, placed_next
from engine.generators.video.networks import DECODED, UNTRAINED, Portrait
from engine.generators.video.presets import UNIANIMATE, preset
from engine.generators.video.render import DEFAULT, Settings, as_read, render
from engine.generators.video.rolling import Call, UniAnimateSteps, unianimate_call
from engine.generators.video.sampling import COLOURS, Progress, levels
from engine.types import AvatarError, Signal, UInt8Array, still_motion

NOTICE = "These weights are untrained: the clip shows that the engine runs, not what it can do. Import UniAnimate's and give --weights."


class UniAnimateClips:
    """Skeletons with feet and without a face, painted with the portrait's proportions."""

    needs: tuple[str, ...] = ("motion", "face", "body", "hands")
    maps: tuple[str, ...] = ()
    more_maps: tuple[str, ...] = ()
    layers = 3

    def __init__(self, name: str | None, weights: Path | None, seed: int) -> None:
        """Raises AvatarError for a misfit."""
        made = None if name is None else preset(name)
        self.networks = weights_of.build(made or UNIANIMATE, seed=seed) if weights is None else weights_of.load(weights, made=made)
        made = self.networks.made
        self.name, self.size, self.latent = made.name, made.size, (made.latent, *made.latent_size)
        self.origin, self.taught = self.networks.origin, self.networks.taught
        self.notice = NOTICE if self.origin == UNTRAINED else ""
        steps = len(levels(DEFAULT.steps))
        self.frames = self.networks.frames
        self.published = Published(self.frames, steps, 2 * steps)

    def place(self, device: torch.device, dtype: torch.dtype) -> None:
        """See `clips.System`."""
        self.networks.to(device, dtype)

    def check(self, how: How) -> None:
        """See `clips.System`."""
        if how.first_guidance is not None:
            raise AvatarError("UniAnimate has the same guidance for all frames; leave --first-guidance out.")
        how.windows(self.frames, DEFAULT.overlap)

    def check_clip(self, how: How) -> None:
        """See `clips.System`."""
        levels(DEFAULT.steps if how.steps is None else how.steps)

    def prepare(self, portrait: UInt8Array, anchor: Anchor) -> tuple[UInt8Array, Portrait]:
        """See `clips.System`."""
        made = self.networks.prepare(portrait)
        return made.picture, made

    def render(self, made: Portrait, anchor: Anchor, signals: Sequence[Signal], *, how: How, state: Path, progress: Progress | None) -> UInt8Array:
        """See `clips.System`."""
        poses = np.stack([painted(each, self.size) for each in placed(signals, anchor, self.size, kind="unianimate")])
        size, overlap = how.windows(self.frames, DEFAULT.overlap)
        guidance = DEFAULT.guidance if how.guidance is None else how.guidance
        settings = Settings(guidance=guidance, steps=how.steps or DEFAULT.steps, size=size, overlap=overlap)
        return render(self.networks, made, self._own(anchor), poses, settings=settings, state=state, progress=progress)

    def _own(self, anchor: Anchor) -> UInt8Array:
        """The portrait's own pose, [H, W, 3] RGB."""
        return painted(place(Signal(0.0, motion=still_motion()), anchor, self.size), self.size)

    # -- live -----------------------------------------------------------------------------------------------------------

    def steps(self, count: int) -> UniAnimateSteps:
        """See `clips.System`."""
        return UniAnimateSteps.few(count)

    def known_shapes(self) -> dict[str, tuple[int, ...]]:
        """See `clips.System`."""
        made = self.networks.made
        return {
            "portrait": (1, *self.latent),
            "tokens": (1, made.text + made.tokens, made.context),
            "first": (1, made.joined, *made.latent_size),
        }

    def known(self, made: Portrait, anchor: Anchor) -> Known:
        """See `clips.System`."""
        given = self.networks.given(made, as_read(self._own(anchor)))
        held = {"portrait": made.latents[None], "tokens": given.guided, "first": given.first}
        return Known(made.latents.float().cpu(), {name: tensor.float().cpu() for name, tensor in held.items()})

    def condition(self, signal: Signal, anchor: Anchor, ease: Ease) -> UInt8Array:
        """See `clips.System`."""
        return as_read(painted(placed_next(ease, signal, anchor, self.size, kind="unianimate"), self.size))

    def rest(self, signal: Signal, anchor: Anchor) -> UInt8Array:
        """See `clips.System`."""
        return as_read(self._own(anchor))

    def parts(self) -> list[nn.Module]:
        """See `clips.System`."""
        coder = self.networks.autoencoder
        return [self.networks.denoiser, coder.post_quant_conv, coder.decoder]

    def call(self, steps: UniAnimateSteps, pictures: Tensor, given: Mapping[str, Tensor]) -> Call:
        """See `clips.System`."""
        network = self.networks.denoiser
        dtype = network.out[2].weight.dtype
        poses = network.poses(pictures.permute(0, 1, 4, 2, 3).to(dtype) / COLOURS, self.networks.made.latent_size)
        return unianimate_call(network, steps, tokens=given["tokens"].to(dtype), first=given["first"].to(dtype), poses=poses)

    def seen(self, latents: Tensor) -> Tensor:
        """See `clips.System`."""
        return torch.cat([self.networks.seen(few) for few in latents.split(DECODED)])


def painted(points: Placed, size: tuple[int, int]) -> UInt8Array:
    """The points of a frame as UniAnimate's skeleton [H, W, 3] RGB: body, feet and hands, without a face."""
    return paint_skeleton(size, with_feet(joints_of(points.face, points.body), points.body), points.hands, None)


__all__ = ["UniAnimateClips", "painted"]
