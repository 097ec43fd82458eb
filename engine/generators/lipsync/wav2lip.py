"""Wav2Lip (Prajwal et al., ACM MM 2020): its mel, its networks with the published keys, and which part of the sound a frame is made from.

mel: pre-emphasis y[n] = x[n] - 0.97 x[n-1] at 16 kHz; magnitude of 800-sample Hann windows, one centred on every 200th sample; librosa's 80
Slaney triangles from 55 to 7600 Hz; 20 log10(max(m, 1e-5)) - 20 dB; -100..0 dB laid on -4..4 and clipped. A frame at t seconds of the clip
reads columns int(80 t) to int(80 t) + 15: from 25 ms before t to REACH after it.

What lies before the sound is silence, as in the published code with the librosa of today (0.7, which it pins, mirrors the sound there).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from engine.generators.lipsync.sizes import Wav2LipSize
from engine.types import FloatArray

RATE = 16_000  # Hz
FFT = 800  # samples of a window: 50 ms
HOP = 200  # samples: 12.5 ms, 80 columns a second
COLUMNS = 16  # that a frame reads: 200 ms
BANDS = 80
SIDE = 96  # px of the face's crop
LOWEST, HIGHEST = 55.0, 7600.0  # Hz
PRE_EMPHASIS = 0.97
LEAST = 1e-5  # magnitude: -100 dB
REFERENCE = 20.0  # dB taken off
DEEPEST = -100.0  # dB that become -SPAN; 0 dB become SPAN
SPAN = 4.0
PER_SECOND = RATE / HOP
REACH = ((COLUMNS - 1) * HOP + FFT / 2) / RATE
"""s after a frame's time that the last of its windows reaches: 212.5 ms."""
PAST = (HOP + FFT / 2 + 1) / RATE
"""s before a frame's time that the first may: its column may lie a hop earlier, and pre-emphasis takes one sample more."""
EPSILON = 1e-6
"""Columns by which a time on the grid may miss it by rounding."""


# -- sound ------------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _tables() -> tuple[FloatArray, FloatArray]:
    """(Hann window [800], mel filters [80, 401])."""
    from librosa.filters import mel

    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FFT) / FFT)  # periodic, as librosa's
    return hann.astype(np.float32), mel(sr=RATE, n_fft=FFT, n_mels=BANDS, fmin=LOWEST, fmax=HIGHEST)


def emphasised(pcm: FloatArray) -> FloatArray:
    """Samples [N] after a first one -> [N - 1] with their highs raised."""
    raised: FloatArray = (pcm[1:] - PRE_EMPHASIS * pcm[:-1].astype(np.float64)).astype(np.float32)
    return raised


def columns(raised: FloatArray) -> FloatArray:
    """Emphasised samples [(N - 1) * 200 + 800] -> mel [80, N], -4..4."""
    hann, filters = _tables()
    windows = np.lib.stride_tricks.sliding_window_view(raised, FFT)[::HOP]
    magnitude = np.abs(np.fft.rfft(windows * hann, axis=1)).astype(np.float32)
    # einsum and not @: BLAS would wake its threads for little, and they keep a core busy while they wait for more.
    level = 20 * np.log10(np.maximum(LEAST, np.einsum("tf,bf->tb", magnitude, filters))) - REFERENCE
    laid: FloatArray = np.clip(2 * SPAN * (level - DEEPEST) / -DEEPEST - SPAN, -SPAN, SPAN).astype(np.float32).T
    return laid


def melspectrogram(pcm: FloatArray) -> FloatArray:
    """A whole clip at 16 kHz [N] -> [80, N // 200 + 1]."""
    half = np.zeros(FFT // 2, np.float32)
    return columns(np.concatenate([half, emphasised(np.concatenate([np.zeros(1, np.float32), pcm])), half]))


def clip_windows(mel: FloatArray, *, fps: float) -> FloatArray:
    """All frames that the published code makes of a clip's mel [80, T]: [N, 80, 16]. The last one reads the end, wherever its time is."""
    starts: list[int] = []
    while (start := int(len(starts) * PER_SECOND / fps)) + COLUMNS <= mel.shape[1]:
        starts.append(start)
    return np.stack([mel[:, start : start + COLUMNS] for start in (*starts, mel.shape[1] - COLUMNS)])


def span(time: float) -> tuple[int, int]:
    """First and last (exclusive) sample that the frame at `time` s of the sound is made from."""
    first = int(np.floor(time * PER_SECOND + EPSILON)) * HOP - FFT // 2 - 1
    return first, first + 1 + (COLUMNS - 1) * HOP + FFT


def heard(pcm: FloatArray) -> FloatArray:
    """The samples of a `span` -> mel [80, 16]."""
    return columns(emphasised(pcm))


# -- networks ---------------------------------------------------------------------------------------------------------------


class Conv(nn.Module):
    """Convolution, batch norm, ReLU; a residual one adds its input before the ReLU."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int | tuple[int, int] = 1, padding: int = 1, *, residual: bool = False
    ) -> None:
        super().__init__()
        self.conv_block = nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, padding), nn.BatchNorm2d(outputs))
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, h, w] -> [N, outputs, h', w']"""
        made = self.conv_block(x)
        return torch.relu(made + x if self.residual else made)


class Up(nn.Module):
    """Transposed convolution, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, padding: int) -> None:
        super().__init__()
        conv = nn.ConvTranspose2d(inputs, outputs, 3, stride, padding, output_padding=stride - 1)
        self.conv_block = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, h, w] -> [N, outputs, h', w']"""
        return torch.relu(self.conv_block(x))


def _row(first: nn.Module, width: int, residuals: int) -> list[nn.Module]:
    return [first, *(Conv(width, width, 3, residual=True) for _ in range(residuals))]


FACE = ((32, 2), (64, 3), (128, 2), (256, 2), (512, 1))
"""(channels, residual convolutions) of the face encoder where it halves the picture, 96 px to 3."""
SOUND: tuple[tuple[int, int | tuple[int, int], int], ...] = ((32, 1, 2), (64, (3, 1), 2), (128, 3, 2), (256, (3, 2), 1))
"""(channels, stride, residual convolutions) of the sound encoder, 80 x 16 to 3 x 3."""
DECODER = ((512, 1, 0, 1), (512, 2, 1, 2), (384, 2, 1, 2), (256, 2, 1, 2), (128, 2, 1, 2), (64, 2, 1, 2))
"""(channels, stride, padding, residual convolutions) of the decoder after its first block, 1 px to 96."""
STEM, WIDEST, LAST = 16, 512, 32
LOWER = 44
"""First row of the picture that is shown of an answer: what the mask's soft edge still reaches above the middle."""
CUT = (0, 0, 0, 3, 9, 20, 43)
"""For each block of the decoder, whose pictures are 1, 3, 6, 12, 24, 48 and 96 px: the first row that rows from LOWER on are made of.

A convolution takes one row more, since its first output row sees the cut; a transposed one of stride 2 takes half as many: 43 = 44 - 1,
20 <= (43 - 2) / 2, and 9 and 3 likewise. Constants and no shapes: a trace would see numbers there that are no keys."""


class Wav2Lip(nn.Module):
    """The generator: a U-Net over the face whose bottleneck is the sound."""

    def __init__(self, size: Wav2LipSize) -> None:
        super().__init__()

        def width(channels: int) -> int:
            return channels // size.thinner

        stem, widest, last = width(STEM), width(WIDEST), width(LAST)
        face, before = [nn.Sequential(Conv(6, stem, 7, padding=3))], stem
        skips = [stem]
        for channels, residuals in FACE:
            face.append(nn.Sequential(*_row(Conv(before, width(channels), 3, 2), width(channels), residuals)))
            before = width(channels)
            skips.append(before)
        face.append(nn.Sequential(Conv(before, widest, 3, padding=0), Conv(widest, widest, 1, padding=0)))
        self.face_encoder_blocks = nn.ModuleList(face)

        sound, before = [], 1
        for channels, stride, residuals in SOUND:
            sound += _row(Conv(before, width(channels), 3, stride), width(channels), residuals)
            before = width(channels)
        self.audio_encoder = nn.Sequential(*sound, Conv(before, widest, 3, padding=0), Conv(widest, widest, 1, padding=0))

        decoder, before = [nn.Sequential(Conv(widest, widest, 1, padding=0))], 2 * widest
        for (channels, stride, padding, residuals), skip in zip(DECODER, reversed(skips), strict=True):
            decoder.append(nn.Sequential(*_row(Up(before, width(channels), stride=stride, padding=padding), width(channels), residuals)))
            before = width(channels) + skip
        self.face_decoder_blocks = nn.ModuleList(decoder)
        self.output_block = nn.Sequential(Conv(before, last, 3), nn.Conv2d(last, 3, 1), nn.Sigmoid())

    def forward(self, mel: Tensor, face: Tensor) -> Tensor:
        """mel [N, 1, 80, 16], face [N, 6, 96, 96] BGR 0..1 (its lower half black, then whole) -> the same face speaking [N, 3, 96, 96] BGR 0..1."""
        made: Tensor = self.output_block(self._decoded(mel, face, cut=False))
        return made

    def lower(self, mel: Tensor, face: Tensor) -> Tensor:
        """As `forward`, rows from LOWER on alone [N, 3, 96 - LOWER, 96]: the same values, for three quarters of the work."""
        made: Tensor = self.output_block(self._decoded(mel, face, cut=True))
        return made[:, :, LOWER - CUT[-1] :]

    def _decoded(self, mel: Tensor, face: Tensor, *, cut: bool) -> Tensor:
        skips, x = [], face
        for block in self.face_encoder_blocks:
            x = block(x)
            skips.append(x)
        x, first = self.audio_encoder(mel), 0
        for block, kept in zip(self.face_decoder_blocks, CUT, strict=True):
            made, skip = block(x), skips.pop()
            start, first = 2 * first, kept if cut else 0  # row that `made` begins with, and that it goes on with
            x = torch.cat((made[:, :, first - start :], skip[:, :, first:]), 1)
        return x


class Live(nn.Module):
    """A frame as the engine has it: RGB bytes in, RGB out, the masking between; rows above LOWER are the face's own."""

    def __init__(self, network: Wav2Lip) -> None:
        super().__init__()
        self.network = network

    def forward(self, face: Tensor, mel: Tensor) -> Tensor:
        """face uint8 [N, 96, 96, 3] RGB, mel [N, 80, 16] -> float32 [N, 96, 96, 3] RGB 0..255."""
        kind = self.network.output_block[1].weight.dtype
        bgr = face.permute(0, 3, 1, 2).flip(1).to(kind) / 255.0
        upper = torch.cat((bgr[:, :, : SIDE // 2], torch.zeros_like(bgr[:, :, SIDE // 2 :])), 2)
        made = self.network.lower(mel.to(kind)[:, None], torch.cat((upper, bgr), 1))
        return torch.cat((bgr[:, :, :LOWER], made), 2).flip(1).permute(0, 2, 3, 1).float() * 255.0


__all__ = ["COLUMNS", "LOWER", "PAST", "RATE", "REACH", "SIDE", "Live", "Wav2Lip", "clip_windows", "columns", "heard", "melspectrogram", "span"]
