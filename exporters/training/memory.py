"""Less memory for training: what lies between a block's ends is computed again on the way back instead of being kept; and how much it takes."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from engine.generators.diffusion.attention import SpatialTransformer
from engine.generators.diffusion.audio_attention import AudioModule
from engine.generators.diffusion.networks import Networks
from engine.generators.diffusion.plain import PlainBlock
from engine.generators.diffusion.presets import Preset
from engine.generators.diffusion.temporal import MotionModule

LARGE = 50_000_000
"""Parameters of a denoiser from which memory is worth more than the third of a step that it costs."""
BLOCKS = (ResnetBlock2D, PlainBlock, SpatialTransformer, AudioModule, MotionModule)


def recomputed(networks: Networks, wanted: bool | None = None) -> bool:
    """Let the blocks of denoiser, reference network and ControlNet be computed again on the way back -> whether they are.

    `wanted` None: where the denoiser is LARGE. The numbers stay the same: nothing here is random. Copy networks before, not after.
    """
    if wanted is None:
        wanted = sum(one.numel() for one in networks.denoiser.parameters()) >= LARGE
    if wanted:
        recompute((networks.denoiser, networks.reference), BLOCKS)
        if networks.controlnet is not None:
            networks.controlnet.model.enable_gradient_checkpointing()
    return wanted


def recompute(networks: Iterable[nn.Module], blocks: tuple[type[nn.Module], ...]) -> None:
    """Let all modules of these kinds be computed again on the way back."""
    for network in networks:
        for module in network.modules():
            if isinstance(module, blocks):
                setattr(module, "forward", partial(again, module.forward))  # noqa: B010


def again(forward: Callable[..., Any], *given: Any, **more: Any) -> Any:
    """`forward`, with nothing kept but what it was given; without gradients there is nothing to keep anyway."""
    if not torch.is_grad_enabled():
        return forward(*given, **more)
    return checkpoint(forward, *given, use_reentrant=False, preserve_rng_state=False, **more)


def one_by_one(run: Callable[[Tensor], Tensor], pictures: Tensor) -> Tensor:
    """An autoencoder's half over [N, ..], picture by picture: of many at once its halves need more memory than all the rest."""
    return torch.cat([again(run, pictures[k : k + 1]) for k in range(len(pictures))])


class Forgetful(dict[int, Any]):
    """For the keys and values of a window that nobody streams on with: they would be held until the way back."""

    def __setitem__(self, key: int, value: Any) -> None:
        pass


class Peak(TorchDispatchMode):
    """Bytes of all tensors that are made while it is on and live at once, at their highest."""

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        """`known`: tensors that were there before and stay."""
        super().__init__()
        self.now = self.most = 0
        self._held: set[int] = {one.untyped_storage()._cdata for one in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in tree_leaves(made):
            if isinstance(one, Tensor) and one.layout == torch.strided:
                self._count(one.untyped_storage())
        return made

    def _count(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._held:
            return
        self._held.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._held.discard(key)
        self.now -= size


class Shrink(nn.Module):
    """Stands for an autoencoder whose own needs are counted elsewhere."""

    def __init__(self, made: Preset) -> None:
        super().__init__()
        self._made = made

    def encode(self, picture: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, C, h, w]"""
        small = nn.functional.avg_pool2d(picture, self._made.patch)
        return small.mean(1, keepdim=True).expand(-1, self._made.unet.in_channels, -1, -1)


__all__ = ["Forgetful", "Peak", "Shrink", "again", "one_by_one", "recompute", "recomputed"]
