"""Received packets -> encoded pictures and sound, in order, as soon as they are whole.

Upstream (jitterbuffer.py): a video picture is released when the first packet of the next one arrives, whatever the marker
bit says: one frame interval of latency, always (measured at 512 px: 50 ms against 21 ms with nothing else changed). One
release an arrival, so that a backlog after a repaired loss never shrinks in a stream of one packet a picture. A lost packet
that nobody repairs blocks the stream until 512 packets have piled up. Sound: after one lost packet the buffer sits full at
16 packets for ever, 320 ms behind (aiortc issue 543).

Here: video leaves at the marker; everything that is whole leaves at once; a gap is waited for GIVE_UP at most, then the
stream goes on at the next key picture, which is asked for. Padding-only packets (Chrome's bandwidth probes: no payload, an old
timestamp, after the marker) fill their place in the order and nothing else: an empty packet given to FFmpeg's H264 decoder
flushes it, and every later decode fails.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from aiortc.jitterbuffer import JitterFrame
from aiortc.rtp import RtpPacket

GIVE_UP = 0.4
"""s a missing packet is waited for: a retransmission over a 200 ms round trip with one more loss fits in."""
MAX_SPAN = 1.0
"""s of media behind a gap above which it is given up at once: after an outage the past is not worth repairing."""
KEY_PATIENCE = 3.0
"""s without a recognisable key picture after which anything is passed on and the decoder decides."""
MAX_MISORDER = 100
"""Packets this far behind mean that the stream has started anew."""
MAX_PACKETS = 1024
BEGIN_PACKETS = 64
"""Packets within which a new stream must show a key picture; then the search goes on as after a loss."""
AUDIO_GIVE_UP = 0.06
"""s a missing packet of sound is waited for."""
AUDIO_AHEAD = 3
"""... or until this many later ones are there."""
H264_SPS, H264_IDR = 7, 5


class Frame(JitterFrame):
    """One encoded picture or packet of sound; `payload_type` says its codec."""

    def __init__(self, data: bytes, timestamp: int, payload_type: int) -> None:
        super().__init__(data, timestamp)
        self.payload_type = payload_type


def content(packet: RtpPacket) -> bytes:
    """What aiortc's receiver has depayloaded; empty for a padding-only packet."""
    data: bytes = getattr(packet, "_data")  # noqa: B009
    return data


def starts_key_picture(packet: RtpPacket, codec: str) -> bool:
    """Whether a depayloaded packet begins a picture that can be decoded on its own. `codec`: "H264", "VP8"."""
    data = content(packet)
    if not data:
        return False
    if codec == "VP8":
        # RFC 7741: S = 1 and partition 0 begin a frame; the lowest bit of the frame tag is 0 in a key frame.
        return bool(packet.payload) and packet.payload[0] & 0x17 == 0x10 and data[0] & 1 == 0
    kinds = {part[0] & 0x1F for part in data.split(b"\x00\x00\x00\x01")[1:] if part}
    return bool(kinds & {H264_SPS, H264_IDR})


class _Buffer:
    """Packets by unwrapped sequence number, and the next one to release."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._packets: dict[int, RtpPacket] = {}
        self._next: int | None = None  # unwrapped
        self._newest = 0
        self._blocked_since: float | None = None
        self._blocked_on: int | None = None
        self._ready: deque[Frame] = deque()
        self._begun = False  # something was released, so that nothing older is of use
        self.given_up = 0  # gaps that were not repaired in time
        self.withheld = 0  # pictures passed over because no key picture had come yet

    def _unwrap(self, sequence: int) -> int:
        return self._newest + ((sequence - self._newest + 0x8000) & 0xFFFF) - 0x8000

    def _insert(self, packet: RtpPacket) -> bool:
        """Put a packet in its place; False where it is too late or a duplicate. A stream that starts anew empties the buffer."""
        if self._next is None:
            self._next = self._newest = packet.sequence_number
        sequence = self._unwrap(packet.sequence_number)
        if sequence < self._next:
            if self._next - sequence >= MAX_MISORDER:
                self._restart(sequence)
            elif self._begun:
                return False
            else:
                self._next = sequence
        if sequence in self._packets:
            return False
        self._newest = max(self._newest, sequence)
        self._packets[sequence] = packet
        return True

    def _restart(self, sequence: int) -> None:
        self._packets.clear()
        self._next = self._newest = sequence
        self._blocked_since = None

    def _note_block(self) -> None:
        """Remember since when the very packet that comes next is missing while later ones are here."""
        if self._next in self._packets or not self._packets:
            self._blocked_since = None
        elif self._blocked_since is None or self._blocked_on != self._next:
            self._blocked_since, self._blocked_on = self._now(), self._next

    def _blocked_for(self) -> float:
        return 0.0 if self._blocked_since is None else self._now() - self._blocked_since

    def pop(self) -> Frame | None:
        """The next whole picture or packet of sound, if there is one."""
        return self._ready.popleft() if self._ready else None

    def __len__(self) -> int:
        return len(self._packets)


class VideoBuffer(_Buffer):
    """Releases pictures at the marker; see the file's text."""

    def __init__(self, *, codec_of: Callable[[int], str], now: Callable[[], float] = time.monotonic) -> None:
        """`codec_of`: payload type -> codec name."""
        super().__init__(now)
        self._codec_of = codec_of
        self._parts: list[bytes] = []
        self._timestamp: int | None = None  # of the picture being put together
        self._last_timestamp: int | None = None  # of the last one released
        self._key_wanted_since: float | None = None
        self._await_key = True  # a stream begins with a key picture

    @property
    def await_key(self) -> bool:
        """Whether pictures are being withheld until a key picture comes."""
        return self._await_key

    @property
    def first_missing(self) -> int | None:
        """Sequence number (16 bit) of the oldest packet that is still of use."""
        return None if self._next is None else self._next & 0xFFFF

    def add(self, packet: RtpPacket) -> tuple[bool, Frame | None]:
        """Take a packet (its `_data` depayloaded) -> (ask for a key picture, a whole picture or None). `pop` gives further ones."""
        restarted = self._next is not None
        newest = self._newest
        if not self._insert(packet):
            return False, self.pop()
        restarted = restarted and self._newest < newest
        if restarted:
            self._forget_picture()
        lost = restarted or self._expire()
        self._assemble()
        self._note_block()
        return lost, self.pop()

    def expire(self) -> bool:
        """Give a gap up that was waited for too long -> whether to ask for a key picture. Called regularly."""
        given_up = self.given_up
        lost = self._expire()
        if self.given_up > given_up:
            self._assemble()
            self._note_block()
        return lost

    def want_key(self) -> None:
        """The decoder has lost its reference (its queue overflowed): withhold pictures until a key picture."""
        self._forget_picture()

    def _expire(self) -> bool:
        assert self._next is not None or not self._packets
        too_long = self._blocked_for() > GIVE_UP or len(self._packets) > MAX_PACKETS
        if not too_long and self._blocked_since is not None and self._last_timestamp is not None:
            newest = self._packets[max(self._packets)]
            span = (newest.timestamp - self._last_timestamp) & 0xFFFFFFFF
            too_long = MAX_SPAN * 90_000 < span < 1 << 31
        if not too_long:
            return False
        self.given_up += 1
        self._forget_picture()
        # Go on at the newest key picture that is here, or behind everything.
        starts = [s for s, p in self._packets.items() if starts_key_picture(p, self._codec_of(p.payload_type))]
        self._next = max(starts) if starts else self._newest + 1
        self._packets = {s: p for s, p in self._packets.items() if s >= self._next}
        self._blocked_since = None
        return not starts

    def _forget_picture(self) -> None:
        self._parts, self._timestamp = [], None
        self._await_key, self._key_wanted_since = True, None

    def _assemble(self) -> None:
        """Move every whole picture to `_ready`."""
        if not self._begun:
            self._find_begin()
        while self._begun and self._next in self._packets:
            packet = self._packets.pop(self._next)
            self._next += 1
            data = content(packet)
            if not data:
                continue
            if self._parts and packet.timestamp != self._timestamp:
                self._release()  # the marker was missing
            if self._await_key and not self._parts and not self._key_found(packet):
                self.withheld += packet.marker
                continue
            self._parts.append(data)
            self._timestamp, self._payload_type = packet.timestamp, packet.payload_type
            if packet.marker:
                self._release()

    def _find_begin(self) -> None:
        """The stream begins at its first key picture; packets before and around it may still come in any order."""
        starts = [s for s, p in self._packets.items() if starts_key_picture(p, self._codec_of(p.payload_type))]
        if starts:
            self._begun, self._next = True, min(starts)
            self._packets = {s: p for s, p in self._packets.items() if s >= self._next}
        elif len(self._packets) >= BEGIN_PACKETS:
            self._begun = True

    def _key_found(self, packet: RtpPacket) -> bool:
        if starts_key_picture(packet, self._codec_of(packet.payload_type)):
            self._await_key, self._key_wanted_since = False, None
        elif self._key_wanted_since is None:
            self._key_wanted_since = self._now()
        elif self._now() - self._key_wanted_since > KEY_PATIENCE:
            self._await_key, self._key_wanted_since = False, None
        return not self._await_key

    def _release(self) -> None:
        assert self._timestamp is not None
        self._ready.append(Frame(b"".join(self._parts), self._timestamp, self._payload_type))
        self._last_timestamp = self._timestamp
        self._parts, self._timestamp = [], None


class AudioBuffer(_Buffer):
    """Releases sound in order at once; a missing packet is waited for AUDIO_GIVE_UP or AUDIO_AHEAD packets.

    No prefetch: what listens here (a ring of sound, a lip driver) smooths arrivals itself, and waiting costs 80 ms.
    """

    def __init__(self, *, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__(now)

    def add(self, packet: RtpPacket) -> tuple[bool, Frame | None]:
        """Take a packet -> (False, the next packet of sound or None). `pop` gives further ones."""
        if self._insert(packet):
            self._assemble()
            if self._packets and (len(self._packets) >= AUDIO_AHEAD or self._blocked_for() > AUDIO_GIVE_UP):
                self.given_up += 1
                self._next = min(self._packets)
                self._assemble()
            self._note_block()
        return False, self.pop()

    def _assemble(self) -> None:
        self._begun = True
        while self._next in self._packets:
            packet = self._packets.pop(self._next)
            self._next += 1
            if content(packet):
                self._ready.append(Frame(content(packet), packet.timestamp, packet.payload_type))
