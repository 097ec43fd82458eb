"""Denoiser and reference network: one definition for every preset. Layout and key names are those of Stable Diffusion 1.5's UNet, or plain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from diffusers.models.downsampling import Downsample2D
from diffusers.models.embeddings import TimestepEmbedding
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from torch.nn import functional

from engine.generators.diffusion.attention import Sources, SpatialBlock, SpatialTransformer
from engine.generators.diffusion.audio_attention import AudioModule, carried_on
from engine.generators.diffusion.plain import PlainBlock, PlainDown, PlainUp
from engine.generators.diffusion.presets import UNet
from engine.generators.diffusion.resnet import JoinedResnet, joined
from engine.generators.diffusion.temporal import MotionModule, Window

NORM_EPS = 1e-5
"""Of the GroupNorms in resnets and before the last convolution."""
LONGEST_PERIOD = 10_000.0
"""Of the sinusoids that a noise level is written in."""


class _Counter:
    """Numbers the attentions in the order of the data, which is the order caches and rings are listed in."""

    def __init__(self, config: UNet, *, motion: bool) -> None:
        self.config, self.motion = config, motion
        self.branches = motion and config.speech_in == "branches" and config.speech_dim > 0
        self.spatial = self.temporal = 0

    def attention(self, width: int) -> SpatialTransformer:
        c = self.config
        self.spatial += 1
        second = c.speech_gain if c.speech_in == "second" and c.speech_dim else 0.0
        heard = 0 if c.speech_in == "branches" else c.speech_dim
        tokens = {"image_dim": c.image_dim, "face_dim": c.face_dim, "speech_dim": heard}
        return SpatialTransformer(width, c.heads, c.groups, index=self.spatial - 1, second=second, **tokens)

    def audio(self, width: int, inner: int, depth: int) -> AudioModule:
        """`inner`: channels that come into its block; the published networks compute with as many."""
        return AudioModule(width, inner, self.config, depth=depth)

    def module(self, width: int) -> MotionModule:
        self.temporal += 1
        return MotionModule(width, self.config.heads, self.config.groups, index=self.temporal - 1)

    def resnet(self, width_in: int, width: int) -> nn.Module:
        c = self.config
        if c.plain:
            return PlainBlock(width, c.time_dim)
        kind = JoinedResnet if c.joined_norms and self.motion else ResnetBlock2D
        return kind(in_channels=width_in, out_channels=width, temb_channels=c.time_dim, groups=c.groups, eps=NORM_EPS)


class Level(nn.Module):
    """Resnets of one resolution, each with its attention and its motion module where the level has them."""

    def __init__(
        self, widths: list[tuple[int, int]], count: _Counter, *, attention: bool, motion: bool, inner: Sequence[int] = (), depth: int = 0
    ) -> None:
        """`inner`, `depth`: of the audio modules, a width each, and which level this is."""
        super().__init__()
        resnets, attentions, motions, audio = [], [], [], []
        for k, (width_in, width) in enumerate(widths):
            resnets.append(count.resnet(width_in, width))
            if attention:
                attentions.append(count.attention(width))
                if count.branches:
                    audio.append(count.audio(width, inner[k], depth))
            if motion and count.motion:
                motions.append(count.module(width))
        self.resnets = nn.ModuleList(resnets)
        if attentions:
            self.attentions = nn.ModuleList(attentions)
        if audio:
            self.audio_modules = nn.ModuleList(audio)
        if motions:
            self.motion_modules = nn.ModuleList(motions)
        self.has_attention, self.has_audio, self.has_motion = bool(attentions), bool(audio), bool(motions)

    def resnet(self, k: int, x: Tensor, level: Tensor, sources: Sources) -> Tensor:
        """Resnet number k."""
        made: Tensor = self.resnets[k](x, level, sources.joined) if sources.joined > 1 else self.resnets[k](x, level)
        return made

    def run(self, k: int, x: Tensor, level: Tensor, sources: Sources, window: Window | None) -> Tensor:
        """Resnet, attention and motion module number k."""
        x = self.resnet(k, x, level, sources)
        if self.has_attention:
            x = self.attentions[k](x, sources)
        if self.has_audio and sources.speech is not None:
            x = self.audio_modules[k](x, sources)
        if self.has_motion and window is not None:
            module, carried = self.motion_modules[k], sources.carried
            x = carried_on(module, x, window, carried[self.attentions[k].transformer_blocks[0].index]) if carried else module(x, window)
        return x


class Down(Level):
    """On the way down: every resnet's product, and the smaller picture that follows, go onto `skips`."""

    def forward(self, x: Tensor, level: Tensor, sources: Sources, window: Window | None, skips: list[Tensor]) -> Tensor:
        """[N, C, h, w] -> [N, C', h / 2, w / 2], or the same size at the bottom."""
        for k in range(len(self.resnets)):
            x = self.run(k, x, level, sources, window)
            skips.append(x)
        if hasattr(self, "downsamplers"):
            x = self.downsamplers[0](x)
            skips.append(x)
        return x


class Up(Level):
    """On the way up: every resnet reads one of `skips` beside what comes from below."""

    def forward(self, x: Tensor, level: Tensor, sources: Sources, window: Window | None, skips: list[Tensor]) -> Tensor:
        """[N, C', h, w] -> [N, C, 2 h, 2 w], or the same size at the top."""
        for k in range(len(self.resnets)):
            x = self.run(k, torch.cat([x, skips.pop()], 1), level, sources, window)
        if hasattr(self, "upsamplers"):
            x = self.upsamplers[0](x)
        return x


class Middle(Level):
    """Resnet, attention, motion module, resnet."""

    def forward(self, x: Tensor, level: Tensor, sources: Sources, window: Window | None) -> Tensor:
        """[N, C, h, w] -> [N, C, h, w]"""
        return self.resnet(1, self.run(0, x, level, sources, window), level, sources)


class Backbone(nn.Module):
    """What denoiser and reference network share. `motion`: with temporal modules; `tail`: with the last norm and convolution."""

    def __init__(self, config: UNet, *, motion: bool, tail: bool) -> None:
        super().__init__()
        self.config = config
        count, widths = _Counter(config, motion=motion), config.channels
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(widths[0], config.time_dim, cond_proj_dim=(tail and config.guidance_dim) or None)
        self.guidance = 1.0  # what a network with guidance distilled into it is told
        self.register_buffer("_told", None, persistent=False)
        (self._plain if config.plain else self._stable_diffusion)(count)
        blind = len(spatial_blocks(self.down_blocks)) if config.bank == "mid_up" else 0
        for block in spatial_blocks(self):
            block.reads = block.index - blind
        if tail:
            self.conv_norm_out = nn.Identity() if config.plain else nn.GroupNorm(config.groups, widths[0], eps=NORM_EPS)
            self.conv_out = nn.Conv2d(widths[0], config.in_channels, 3, padding=1)
        self.tail = tail
        self.spatial_blocks, self.temporal_attentions = count.spatial, 2 * count.temporal

    def _stable_diffusion(self, count: _Counter) -> None:
        """The levels as published weights have them."""
        config, widths, layers = self.config, self.config.channels, self.config.layers
        down: list[Level] = []
        skips = [widths[0]]
        for i, width in enumerate(widths):
            ins = [widths[max(0, i - 1)], *[width] * (layers - 1)]
            level: Level = Down([(a, width) for a in ins], count, attention=config.attention[i], motion=config.motion[i], inner=ins, depth=i)
            skips += [width] * layers
            if i < len(widths) - 1:
                level.downsamplers = nn.ModuleList([Downsample2D(width, use_conv=True, out_channels=width, name="op")])
                skips.append(width)
            down.append(level)
        self.down_blocks = nn.ModuleList(down)
        self._middle(count)
        up: list[Level] = []
        below = widths[-1]
        for i, width in reversed(list(enumerate(widths))):
            ins = [(below if k == 0 else width) + skips.pop() for k in range(layers + 1)]
            inner = [widths[max(0, i - 1)]] * (layers + 1)
            level = Up([(a, width) for a in ins], count, attention=config.attention[i], motion=config.motion[i], inner=inner, depth=i)
            if i > 0:
                level.upsamplers = nn.ModuleList([Upsample2D(width, use_conv=True, out_channels=width)])
            up.append(level)
            below = width
        self.up_blocks = nn.ModuleList(up)

    def _plain(self, count: _Counter) -> None:
        """The levels of `plain`."""
        widths, time = self.config.channels, self.config.time_dim
        pairs = list(zip(widths, widths[1:], strict=False))
        self.down_blocks = nn.ModuleList([*(PlainDown(width, below, time) for width, below in pairs), PlainDown(widths[-1], None, time)])
        self._middle(count)
        self.up_blocks = nn.ModuleList([PlainUp(below, width, time) for width, below in reversed(pairs)])

    def _middle(self, count: _Counter) -> None:
        last = self.config.channels[-1]
        # The second resnet comes after attention and motion, which belong to the first.
        depth = len(self.config.channels) - 1
        self.mid_block = Middle([(last, last)], count, attention=True, motion=self.config.motion_middle, inner=[last], depth=depth)
        self.mid_block.resnets.append(count.resnet(last, last))

    def body(self, x: Tensor, t: Tensor, hint: Tensor | None, sources: Sources, window: Window | None) -> Tensor:
        """x [N, C, h, w], t [N] noise levels 0..999, hint [N, C0, h, w] is added after the first convolution -> [N, C or C0, h, w]."""
        told = None
        if self.tail and self.config.guidance_dim:
            told = self._told if self._told is not None else embed_guidance(self.guidance, self.config.guidance_dim).to(x)
        level = self.time_embedding(embed(t, self.config.channels[0]).to(x.dtype), told)
        x = self.conv_in(x)
        if hint is not None:
            x = x + hint
        skips = [x]
        for block in self.down_blocks:
            x = block(x, level, sources, window, skips)
        x = self.mid_block(x, level, sources, window)
        if sources.residuals:
            skips = [skip + more for skip, more in zip(skips, sources.residuals[:-1], strict=True)]
            x = x + sources.residuals[-1]
        for block in self.up_blocks:
            x = block(x, level, sources, window, skips)
        if self.tail:
            x = self.conv_out(functional.silu(joined(self.conv_norm_out, x, sources.joined)))
        return x


class ReferenceNet(Backbone):
    """Reads the portrait. Its only product is what its attentions read: the bank."""

    def __init__(self, config: UNet) -> None:
        # Published weights have a second attention there that nothing reads, where the denoiser's own hears. A face's tokens are the denoiser's
        # alone: this one looks at the very picture that the recogniser looked at, and FaceID adapts the network that makes pictures.
        speech = config.speech_dim if config.speech_in == "own" else 0
        super().__init__(replace(config, speech_dim=speech, face_dim=0), motion=False, tail=False)
        if config.reference_cut:
            self.up_blocks[-1].attentions[-1].cut()

    def forward(self, latents: Tensor, tokens: list[tuple[Tensor, Tensor]], t: Tensor | None = None) -> list[Tensor]:
        """latents [N, C, h, w] without noise, the identity's tokens by block (or none), noise level t (default 0) -> by reading block [N, L, C]."""
        bank: list[Tensor] = []
        level = torch.zeros(len(latents), device=latents.device) if t is None else t.expand(len(latents))
        self.body(latents, level, None, Sources(identity=tokens, bank=bank), None)
        return bank


class Denoiser(Backbone):
    """One denoising step of a chunk of frames. Pure: the past and the caches come in, what they grow by goes out."""

    def __init__(self, config: UNet) -> None:
        super().__init__(config, motion=True, tail=True)

    def forward(self, x: Tensor, t: Tensor, hint: Tensor | None, sources: Sources, window: Window) -> Tensor:
        """x [N, C, h, w], t [N], hint [N, C0, h, w], or None where the sources have a ControlNet's residuals -> prediction [N, C, h, w].

        `window.new` receives the chunk's keys and values.
        """
        return self.body(x, t, hint, sources, window)

    def freeze(self, length: int) -> None:
        """Work out what depends on weights alone; they must not change afterwards."""
        for attention in temporal_attentions(self):
            attention.freeze(length)
        if self.config.guidance_dim:
            self._told = embed_guidance(self.guidance, self.config.guidance_dim).to(self.conv_in.weight)


def spatial_blocks(network: nn.Module) -> list[SpatialBlock]:
    """In the order of their indices."""
    return sorted((m for m in network.modules() if isinstance(m, SpatialBlock)), key=lambda m: m.index)


def reading_blocks(network: nn.Module) -> list[SpatialBlock]:
    """Those of them that read the reference."""
    return [block for block in spatial_blocks(network) if block.reads >= 0]


def temporal_attentions(network: Backbone) -> list[nn.Module]:
    """In the order of their indices."""
    from engine.generators.diffusion.temporal import TemporalAttention

    return sorted((m for m in network.modules() if isinstance(m, TemporalAttention)), key=lambda m: m.index)


def embed(t: Tensor, width: int) -> Tensor:
    """[N] -> [N, width]: cosines, then sines (Stable Diffusion's order) of t · 10000^(-i / (width / 2))."""
    rate = torch.exp(torch.arange(width // 2, device=t.device, dtype=torch.float32) * (-2 * math.log(LONGEST_PERIOD) / width))
    angle = t.float()[:, None] * rate
    return torch.cat([torch.cos(angle), torch.sin(angle)], 1)


def embed_guidance(scale: float, width: int) -> Tensor:
    """[1, width]: sines, then cosines of the scale above 1, times 1000 (Luo et al. 2023, arXiv 2310.04378, as published)."""
    half = width // 2
    rate = torch.exp(torch.arange(half, dtype=torch.float32) * (-math.log(LONGEST_PERIOD) / (half - 1)))
    angle = 1000.0 * (scale - 1.0) * rate
    return torch.cat([torch.sin(angle), torch.cos(angle)])[None]


__all__ = ["Backbone", "Denoiser", "ReferenceNet", "embed", "embed_guidance", "reading_blocks", "spatial_blocks", "temporal_attentions"]
