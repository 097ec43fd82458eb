"""Video encoders whose bitrate moves without being rebuilt.

Upstream (aiortc 1.16, codecs/h264.py and vpx.py): x264 at its default preset, level 3.1 whatever the size, 0.5 to 3 Mbit/s;
both encoders are dropped and made anew whenever the target moves by 10 %, which costs a key picture each time (4 to 12 in
20 s while the estimate settles). Measured at 512 px, 2.5 Mbit/s, CPU a picture: aiortc's H264 12.2 ms, its VP8 4.3 ms, x264
superfast 2.5 ms at the same PSNR as the first.

Here: superfast, zerolatency, constrained baseline, the level x264 finds right, no key pictures but on request. x264 takes a
new bitrate on the open context only where it was opened as constant bitrate (maxrate = bitrate), and never above the rate
it was opened with: so it is opened at twice the ceiling and set to its target before the first picture. It assumes
RATE_FPS pictures a second (told the real durations it would hold each picture back for one more), so the target is scaled
by the measured rate.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import cache

import av
import numpy as np
from aiortc.codecs.h264 import H264Encoder
from aiortc.codecs.vpx import Vp8Encoder, number_of_threads
from aiortc.mediastreams import VIDEO_CLOCK_RATE, VIDEO_TIME_BASE, convert_timebase
from av.frame import Frame
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType

from engine.types import AvatarError
from streaming.rtc.settings import DEFAULTS, RtcSettings

RATE_FPS = 30
"""Pictures a second that x264's rate control assumes."""
HEADROOM = 2
"""The context is opened at HEADROOM times the ceiling, so that 15 fps can still carry all of it."""
VBV_BITS_PER_PIXEL = 1.0
"""Rate control buffer, which bounds the largest picture: 33 kB at 512 px, 115 kB at 720p. A key picture must pass a narrow link."""
VBV_MIN_BITS = 100_000
ENDLESS_GOP = 1_000_000
TWO_THREADS_PIXELS = 1280 * 720
"""From this size on a second slice thread pays where there are cores to spare."""
FPS_SMOOTHING = 0.1
VP8_DOWN, VP8_UP = 0.85, 1.5
"""VP8 is made anew for a target below or above these shares of its present rate."""

X264_OPTIONS = {"preset": "superfast", "tune": "zerolatency", "forced-idr": "1", "sc_threshold": "0"}
NVENC_OPTIONS = {"preset": "p2", "tune": "ull", "rc": "cbr", "delay": "0", "bf": "0", "forced-idr": "1", "profile": "baseline", "no-scenecut": "1"}
"""NVENC: `delay` and B-frames hold pictures back unless switched off; `zerolatency` must not be set with tune ull."""
VP8_OPTIONS = {
    "cpu-used": "-6",
    "deadline": "realtime",
    "lag-in-frames": "0",
    "max-intra-rate": "400",  # percent of a picture's share
    "noise-sensitivity": "4",
    "overshoot-pct": "15",
    "partitions": "0",
    "static-thresh": "1",
    "undershoot-pct": "100",
}


def _open(name: str, width: int, height: int, ceiling: int) -> VideoCodecContext:
    """An open H264 encoder whose bit_rate may then be moved anywhere up to HEADROOM * ceiling."""
    opened = HEADROOM * ceiling
    codec = av.CodecContext.create(name, "w")
    assert isinstance(codec, VideoCodecContext)
    codec.width, codec.height, codec.pix_fmt = width, height, "yuv420p"
    codec.bit_rate = opened
    codec.framerate = Fraction(RATE_FPS)
    codec.time_base = VIDEO_TIME_BASE
    codec.gop_size = ENDLESS_GOP
    codec.max_b_frames = 0
    codec.thread_count = 2 if width * height >= TWO_THREADS_PIXELS and (os.cpu_count() or 1) > 2 else 1
    bits = max(VBV_MIN_BITS, int(width * height * VBV_BITS_PER_PIXEL))
    codec.options = {**(X264_OPTIONS if name == "libx264" else NVENC_OPTIONS), "maxrate": str(opened), "bufsize": str(bits)}
    if name == "libx264":
        codec.profile = "Baseline"
    codec.open()
    return codec


@cache
def nvenc_works() -> bool:
    """Whether a hardware encoder really opens, gives a picture back at once and a decoder can read it. Asked once.

    The PyAV wheel lists h264_nvenc on every machine; without a driver avcodec_open2 fails, and A100, H100, H200 and B200 have
    no encoding unit at all.
    """
    size = 256
    grey = np.broadcast_to(np.linspace(16, 235, size, dtype=np.uint8)[:, None, None], (size, size, 3))
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(grey), format="rgb24")
    frame.pts, frame.time_base = 0, VIDEO_TIME_BASE
    try:
        encoder = _open("h264_nvenc", size, size, DEFAULTS.max_bitrate)
        packets = encoder.encode(frame)
        decoder = av.CodecContext.create("h264", "r")
        assert isinstance(decoder, av.VideoCodecContext)
        decoded = [f for packet in packets for f in decoder.decode(packet)] + list(decoder.decode(None))
    except (av.FFmpegError, OSError, ValueError):
        return False
    return bool(decoded) and float(np.abs(decoded[0].to_ndarray(format="rgb24").astype(np.int16) - grey).mean()) < 8


def h264_name(settings: RtcSettings) -> str:
    """libx264 or h264_nvenc, as the settings ask. Raises AvatarError where NVENC was asked for and does not work."""
    if settings.encoder == "x264":
        return "libx264"
    if nvenc_works():
        return "h264_nvenc"
    if settings.encoder == "nvenc":
        raise AvatarError("NVENC does not work on this machine (no NVIDIA driver, or a GPU without an encoder): use encoder='x264' or 'auto'.")
    return "libx264"


class FrameRate:
    """The rate at which pictures are offered, skipped ones too: were they left out, the encoder would spend on each picture what
    the skipping had saved, and a narrow link would get fewer and fewer, larger and larger pictures."""

    def __init__(self) -> None:
        self.fps = float(RATE_FPS)
        self._last: int | None = None

    def see(self, frame: av.VideoFrame) -> None:
        """A picture is encoded or skipped."""
        pts = int(frame.pts * frame.time_base * VIDEO_CLOCK_RATE) if frame.pts is not None and frame.time_base else None
        if pts is not None and self._last is not None and 0 < pts - self._last < VIDEO_CLOCK_RATE:
            self.fps += FPS_SMOOTHING * (VIDEO_CLOCK_RATE / (pts - self._last) - self.fps)
        self._last = pts

    @property
    def share(self) -> float:
        """What to multiply a target bitrate by for an encoder that believes in RATE_FPS."""
        return RATE_FPS / self.fps


class H264(H264Encoder):
    """One stream's encoder. Not thread-safe; the target may be set from another thread than the one that encodes."""

    def __init__(self, settings: RtcSettings = DEFAULTS) -> None:
        super().__init__()
        self.settings = settings
        self.opened = 0  # contexts made: one, and one more for every change of size
        self.codec: VideoCodecContext | None = None
        self.pace = FrameRate()
        self._name = h264_name(settings)
        self._target = settings.start_bitrate

    @property
    def target_bitrate(self) -> int:
        """bit/s."""
        return self._target

    @target_bitrate.setter
    def target_bitrate(self, bitrate: int) -> None:
        self._target = max(self.settings.min_bitrate, min(int(bitrate), self.settings.max_bitrate))

    def _encode_frame(self, frame: av.VideoFrame, force_keyframe: bool) -> Iterator[bytes]:
        width, height = max(2, frame.width & ~1), max(2, frame.height & ~1)
        if frame.width != width or frame.height != height or frame.format.name != "yuv420p":
            pts, time_base = frame.pts, frame.time_base
            frame = frame.reformat(width=width, height=height, format="yuv420p")
            frame.pts, frame.time_base = pts, time_base
        if self.codec is None or (self.codec.width, self.codec.height) != (width, height):
            self.codec = _open(self._name, width, height, self.settings.max_bitrate)
            self.opened += 1
        self.pace.see(frame)
        self.codec.bit_rate = min(int(self._target * self.pace.share), HEADROOM * self.settings.max_bitrate)
        frame.pict_type = PictureType.I if force_keyframe else PictureType.NONE
        data = b"".join(bytes(packet) for packet in self.codec.encode(frame))
        if data:
            yield from self._split_bitstream(data)


class Vp8(Vp8Encoder):
    """VP8 for receivers without H264. libvpx cannot be re-targeted through FFmpeg: it is made anew, but only for a rate far from
    the present one, and its key pictures are kept small (upstream: 22 kB at 256 px for 300 kbit/s, here 4 kB)."""

    def __init__(self, settings: RtcSettings = DEFAULTS) -> None:
        super().__init__()
        self.settings = settings
        self.opened = 0
        self.pace = FrameRate()
        self._target = settings.start_bitrate
        self._rate = 0.0  # what the open context runs at, bit/s at RATE_FPS
        self._count = 0

    @property
    def target_bitrate(self) -> int:
        """bit/s."""
        return self._target

    @target_bitrate.setter
    def target_bitrate(self, bitrate: int) -> None:
        self._target = max(self.settings.min_bitrate, min(int(bitrate), self.settings.max_bitrate))

    def encode(self, frame: Frame, force_keyframe: bool = False) -> tuple[list[bytes], int]:
        """As upstream: (RTP payloads, timestamp in 1/90000 s)."""
        assert isinstance(frame, av.VideoFrame)
        pts, time_base = frame.pts, frame.time_base
        assert pts is not None
        assert time_base is not None
        if frame.format.name != "yuv420p":
            frame = frame.reformat(format="yuv420p")
            frame.pts, frame.time_base = pts, time_base
        codec = self.codec
        self.pace.see(frame)
        wanted = self._target * self.pace.share
        if codec is None or not VP8_DOWN <= wanted / self._rate <= VP8_UP or (codec.width, codec.height) != (frame.width, frame.height):
            self._rate = wanted
            self.codec = codec = _open_vp8(frame.width, frame.height, int(wanted))
            self.opened += 1
        frame.pict_type = PictureType.I if force_keyframe else PictureType.NONE
        # libvpx is given its own count for a time, since it would spend the bits of skipped pictures on the next one.
        frame.pts, frame.time_base = self._count, codec.time_base
        self._count += 1
        data = b"".join(bytes(packet) for packet in codec.encode(frame))
        frame.pts, frame.time_base = pts, time_base
        payloads = self._packetize(data, self.picture_id)
        self.picture_id = (self.picture_id + 1) % (1 << 15)
        return payloads, convert_timebase(pts, time_base, VIDEO_TIME_BASE)


def _open_vp8(width: int, height: int, bitrate: int) -> VideoCodecContext:
    codec = av.CodecContext.create("libvpx", "w")
    assert isinstance(codec, VideoCodecContext)
    codec.width, codec.height, codec.pix_fmt = width, height, "yuv420p"
    codec.bit_rate = bitrate
    codec.framerate = Fraction(RATE_FPS)
    codec.time_base = Fraction(1, RATE_FPS)
    codec.gop_size = ENDLESS_GOP
    codec.qmin, codec.qmax = 2, 60
    codec.thread_count = number_of_threads(width * height, os.cpu_count() or 1)
    codec.options = {**VP8_OPTIONS, "bufsize": str(bitrate // 2), "minrate": str(bitrate), "maxrate": str(bitrate)}
    return codec


VideoEncoder = H264 | Vp8


def make_video_encoder(name: str, settings: RtcSettings = DEFAULTS) -> VideoEncoder:
    """`name`: a codec's name, "H264" or "VP8"."""
    if name.lower() == "h264":
        return H264(settings)
    if name.lower() == "vp8":
        return Vp8(settings)
    raise AvatarError(f"There is no encoder for {name}: use H264 or VP8.")


_pool: ThreadPoolExecutor | None = None
_pool_lock = threading.Lock()


def encode_pool() -> ThreadPoolExecutor:
    """Threads for encoding alone. Upstream uses the loop's default executor, which every asyncio.to_thread shares, so that a slow file
    or synthesis there would hold up every picture."""
    global _pool
    with _pool_lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(max_workers=max(2, os.cpu_count() or 1), thread_name_prefix="encode")
        return _pool
