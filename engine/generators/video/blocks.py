"""Blocks of UniAnimate's UNet, with the published names (`temopral_conv` is spelt so in the weights).

Pictures are [B · F, C, h, w], a clip's frames side by side. Where frames meet (temporal convolutions, temporal transformers) the GroupNorm
goes over all frames of a clip; everywhere else over one frame.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

NORM_EPS, ATTENTION_EPS = 1e-5, 1e-6
"""Of the GroupNorms in resnets, and before attentions."""
STEM_HEADS = 2
"""Of the attention along frames behind every condition stem."""
STEM_WIDTH = 4
"""Channels inside a stem, in channels of the condition."""


@dataclass(frozen=True, slots=True)
class Call:
    """What every block of one call reads beside the picture."""

    frames: int  # F of a clip, the reference included
    time: Tensor  # [B, T] embedding of the noise level
    context: Tensor  # [B, L, D] text and image tokens


class Attention(nn.Module):
    """Multi-head attention; heads may be wider or narrower than the picture."""

    def __init__(self, width: int, heads: int, head: int, *, source: int | None = None) -> None:
        super().__init__()
        self.heads, inner = heads, heads * head
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_k = nn.Linear(source or width, inner, bias=False)
        self.to_v = nn.Linear(source or width, inner, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(inner, width)])

    def forward(self, x: Tensor, source: Tensor | None = None) -> Tensor:
        """x [N, L, C], source [N, K, D] or x itself -> [N, L, C]"""
        source = x if source is None else source
        q, k, v = (each.unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in (self.to_q(x), self.to_k(source), self.to_v(source)))
        made: Tensor = self.to_out[0](functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return made


class _Gated(nn.Module):
    """GEGLU (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        """[.., C] -> [.., inner]"""
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value.mul(functional.gelu(gate))


class _FeedForward(nn.Module):
    def __init__(self, width: int, inner: int, width_out: int, *, gated: bool) -> None:
        super().__init__()
        first = _Gated(width, inner) if gated else nn.Sequential(nn.Linear(width, inner), nn.GELU())
        self.net = nn.Sequential(first, nn.Identity(), nn.Linear(inner, width_out))  # 1 is a dropout when training

    def forward(self, x: Tensor) -> Tensor:
        """[.., C] -> [.., C']"""
        made: Tensor = self.net(x)
        return made


class _Block(nn.Module):
    """Two attentions and a feed-forward. The second reads `context`, where the block was made for one, or the picture again."""

    def __init__(self, width: int, heads: int, head: int, *, context: int | None = None) -> None:
        super().__init__()
        self.attn1 = Attention(width, heads, head)
        self.ff = _FeedForward(width, 4 * width, width, gated=True)
        self.attn2 = Attention(width, heads, head, source=context)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(self, x: Tensor, context: Tensor | None, frames: int) -> Tensor:
        """x [N, L, C]; context [N / frames, K, D] -> [N, L, C]"""
        x = x + self.attn1(self.norm1(x))
        read = self.norm2(x)
        if context is None:
            x = x + self.attn2(read)
        else:  # Queries do not see each other, so all frames of a clip ask at once, and its tokens are projected once.
            x = x + self.attn2(read.unflatten(0, (-1, frames)).flatten(1, 2), context).unflatten(1, (frames, -1)).flatten(0, 1)
        made: Tensor = x + self.ff(self.norm3(x))
        return made


class SpatialTransformer(nn.Module):
    """Every frame by itself: self-attention over its cells, attention to the tokens."""

    def __init__(self, width: int, head: int, groups: int, *, context: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, eps=ATTENTION_EPS)
        self.proj_in, self.proj_out = nn.Linear(width, width), nn.Linear(width, width)
        self.transformer_blocks = nn.ModuleList([_Block(width, width // head, head, context=context)])

    def forward(self, x: Tensor, call: Call) -> Tensor:
        """[N, C, h, w] -> [N, C, h, w]"""
        tokens = self.proj_in(self.norm(x).flatten(2).transpose(1, 2))
        tokens = self.proj_out(self.transformer_blocks[0](tokens, call.context, call.frames))
        made: Tensor = x + tokens.transpose(1, 2).unflatten(2, x.shape[2:])
        return made


class TemporalTransformer(nn.Module):
    """Every cell by itself: two self-attentions along the frames, which carry no positions."""

    def __init__(self, width: int, heads: int, head: int, groups: int) -> None:
        super().__init__()
        inner = heads * head
        self.norm = nn.GroupNorm(groups, width, eps=ATTENTION_EPS)
        self.proj_in, self.proj_out = nn.Conv1d(width, inner, 1), nn.Conv1d(inner, width, 1)
        self.transformer_blocks = nn.ModuleList([_Block(inner, heads, head)])

    def forward(self, x: Tensor, call: Call) -> Tensor:
        """[B · F, C, h, w] -> [B · F, C, h, w]"""
        clip = x.unflatten(0, (-1, call.frames)).transpose(1, 2)  # [B, C, F, h, w]
        cells = self.norm(clip).permute(0, 3, 4, 1, 2).flatten(0, 2)  # [B · h · w, C, F]
        tokens = self.transformer_blocks[0](self.proj_in(cells).transpose(1, 2), None, 1)
        moved = self.proj_out(tokens.transpose(1, 2)).unflatten(0, (clip.shape[0], *x.shape[2:]))  # [B, h, w, C, F]
        made: Tensor = x + moved.permute(0, 4, 3, 1, 2).flatten(0, 1)
        return made


class _TemporalConv(nn.Module):
    """Four convolutions along the frames, added to their picture."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()

        def stage(*, gap: bool) -> nn.Sequential:
            between = [nn.Identity()] if gap else []  # a dropout when training
            return nn.Sequential(
                nn.GroupNorm(groups, width, eps=NORM_EPS), nn.SiLU(), *between, nn.Conv3d(width, width, (3, 1, 1), padding=(1, 0, 0))
            )

        self.conv1 = stage(gap=False)
        self.conv2, self.conv3, self.conv4 = (stage(gap=True) for _ in range(3))

    def forward(self, clip: Tensor) -> Tensor:
        """[B, C, F, h, w] -> [B, C, F, h, w]"""
        made: Tensor = clip + self.conv4(self.conv3(self.conv2(self.conv1(clip))))
        return made


class ResBlock(nn.Module):
    """Two convolutions a frame that know the noise level, then the temporal ones."""

    def __init__(self, width_in: int, width: int, time: int, groups: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(nn.GroupNorm(groups, width_in, eps=NORM_EPS), nn.SiLU(), nn.Conv2d(width_in, width, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time, width))
        norm = nn.GroupNorm(groups, width, eps=NORM_EPS)
        self.out_layers = nn.Sequential(norm, nn.SiLU(), nn.Identity(), nn.Conv2d(width, width, 3, padding=1))  # 2 is a dropout when training
        self.skip_connection = nn.Identity() if width_in == width else nn.Conv2d(width_in, width, 1)
        self.temopral_conv = _TemporalConv(width, groups)

    def forward(self, x: Tensor, call: Call) -> Tensor:
        """[B · F, C, h, w] -> [B · F, C', h, w]"""
        level = self.emb_layers(call.time).repeat_interleave(call.frames, 0)[:, :, None, None]
        made = self.skip_connection(x) + self.out_layers(self.in_layers(x) + level)
        clip: Tensor = self.temopral_conv(made.unflatten(0, (-1, call.frames)).transpose(1, 2))
        return clip.transpose(1, 2).flatten(0, 1)


class Downsample(nn.Module):
    """A convolution of stride 2."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor, call: Call) -> Tensor:
        """[N, C, h, w] -> [N, C, h / 2, w / 2]"""
        made: Tensor = self.op(x)
        return made


class Upsample(nn.Module):
    """Cells doubled, then a convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor, call: Call) -> Tensor:
        """[N, C, h, w] -> [N, C, 2 h, 2 w]"""
        made: Tensor = self.conv(functional.interpolate(x, scale_factor=2, mode="nearest"))
        return made


class Entry(nn.Conv2d):
    """The first convolution; listed among blocks, so it is called as one."""

    def forward(self, x: Tensor, call: Call | None = None) -> Tensor:
        """[N, C, h, w] -> [N, C', h, w]"""
        return super().forward(x)


class Stage(nn.ModuleList):
    """Blocks one after another."""

    def forward(self, x: Tensor, call: Call) -> Tensor:
        """[N, C, h, w] -> whatever its last block makes of it"""
        for block in self:
            x = block(x, call)
        return x


class PictureStem(nn.ModuleDict):
    """Pictures become channels beside the latents. Counted as in the published weights, where 2 is the pooling."""

    def __init__(self, channels: int, inner: int) -> None:
        first, second = nn.Conv2d(3, inner, 3, padding=1), nn.Conv2d(inner, inner, 3, stride=2, padding=1)
        super().__init__({"0": first, "3": second, "5": nn.Conv2d(inner, channels, 3, stride=2, padding=1)})

    def forward(self, picture: Tensor, size: tuple[int, int]) -> Tensor:
        """[N, 3, H, W] 0..1, (h, w) of the latents -> [N, C, h, w]"""
        x = functional.adaptive_avg_pool2d(functional.silu(self["0"](picture)), (4 * size[0], 4 * size[1]))
        made: Tensor = self["5"](functional.silu(self["3"](x)))
        return made


class LatentStem(nn.Sequential):
    """The reference's latents become the channels of frame 0."""

    def __init__(self, latent: int, inner: int, channels: int) -> None:
        first, second = nn.Conv2d(latent, inner, 3, padding=1), nn.Conv2d(inner, inner, 3, padding=1)
        super().__init__(first, nn.SiLU(), second, nn.SiLU(), nn.Conv2d(inner, channels, 3, padding=1))


class _Joint(nn.Module):
    """Attention whose projections lie in one matrix."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.to_qkv = nn.Linear(width, 3 * STEM_HEADS * width, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(STEM_HEADS * width, width)])

    def forward(self, x: Tensor) -> Tensor:
        """[N, L, C] -> [N, L, C]"""
        q, k, v = (each.unflatten(-1, (STEM_HEADS, -1)).transpose(1, 2) for each in self.to_qkv(x).chunk(3, dim=-1))
        made: Tensor = self.to_out[0](functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return made


class _Normed(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.fn = nn.LayerNorm(width), _Joint(width)

    def forward(self, x: Tensor) -> Tensor:
        """[N, L, C] -> [N, L, C]"""
        made: Tensor = x + self.fn(self.norm(x))
        return made


class AlongFrames(nn.Module):
    """One small transformer layer over a clip's frames, every cell by itself; behind a stem."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.ModuleList([_Normed(width), _FeedForward(width, 4 * width, width, gated=False)])])

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """[B · F, C, h, w] -> [B · F, C, h, w]"""
        attention, feed = self.layers[0]
        cells = x.unflatten(0, (-1, frames)).permute(0, 3, 4, 1, 2)  # [B, h, w, F, C]
        tokens = attention(cells.flatten(0, 2))
        tokens = (tokens + feed(tokens)).view(cells.shape)
        return tokens.permute(0, 3, 4, 1, 2).flatten(0, 1)


__all__ = [
    "STEM_WIDTH",
    "AlongFrames",
    "Attention",
    "Call",
    "Downsample",
    "Entry",
    "LatentStem",
    "PictureStem",
    "ResBlock",
    "SpatialTransformer",
    "Stage",
    "TemporalTransformer",
    "Upsample",
]
