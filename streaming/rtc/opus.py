"""The returned voice: opus, mono, 20 ms, with in-band error correction.

Upstream: 96 kbit/s stereo for one voice, no error correction. Here: mono at the settings' rate (40 kbit/s is transparent for speech),
FEC for 10 % loss, so that a lost packet is repaired from the next one by a receiver that knows how (browsers do). The frames must be
s16, mono or stereo; any rate.
"""

from __future__ import annotations

import av
from aiortc.codecs.opus import SAMPLE_RATE, SAMPLES_PER_FRAME, TIME_BASE, OpusEncoder

from streaming.rtc.settings import DEFAULTS

EXPECTED_LOSS = 10
"""Percent of packets that the error correction is made for."""


class Opus(OpusEncoder):
    """aiortc's encoder with its codec and resampler set up for one voice."""

    def __init__(self, bitrate: int = DEFAULTS.audio_bitrate) -> None:
        super().__init__()
        codec = av.CodecContext.create("libopus", "w")
        assert isinstance(codec, av.AudioCodecContext)
        codec.bit_rate = bitrate
        codec.format = "s16"
        codec.layout = "mono"
        codec.sample_rate = SAMPLE_RATE
        codec.time_base = TIME_BASE
        codec.options = {"application": "voip", "frame_duration": "20", "fec": "1", "packet_loss": str(EXPECTED_LOSS)}
        self.codec = codec
        self.resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE, frame_size=SAMPLES_PER_FRAME)
