"""What is said in SDP before and after: codecs, start rates, candidates, and the one way in which offers are answered."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Sequence

from aiortc import RTCPeerConnection, RTCRtpSender, RTCRtpTransceiver, RTCSessionDescription
from aiortc.rtcrtpparameters import RTCRtpCodecCapability

from engine.types import AvatarError
from streaming.rtc.settings import DEFAULTS

VIDEO_CODECS = ("H264", "VP8")
"""Order of preference. H264 first: x264 superfast costs less than aiortc's VP8 at the same PSNR (2.5 against 4.3 ms CPU at 512 px)."""
AUDIO_CODECS = ("opus",)
SETUP_SECONDS = 10.0
"""s for the exchange of descriptions (ICE gathering included)."""
MAX_CANDIDATES = 32
"""Candidates kept of an offer; a browser sends 2 to 12. More only makes the server send STUN where a stranger wants it."""


def prefer_codecs(pc: RTCPeerConnection, *, video: Sequence[str] = VIDEO_CODECS, audio: Sequence[str] = AUDIO_CODECS) -> None:
    """Order the codecs of every transceiver. Call after addTrack or addTransceiver and before setRemoteDescription.

    aiortc ignores preferences that are set on the answering side after the remote description, silently: so this raises then.
    """
    if pc.signalingState == "have-remote-offer":
        raise RuntimeError("prefer_codecs comes before setRemoteDescription: aiortc ignores it afterwards.")
    for transceiver in pc.getTransceivers():
        transceiver.setCodecPreferences(_ordered(transceiver, video if transceiver.kind == "video" else audio))


def _ordered(transceiver: RTCRtpTransceiver, names: Sequence[str]) -> list[RTCRtpCodecCapability]:
    known = RTCRtpSender.getCapabilities(transceiver.kind).codecs
    chosen = [codec for name in names for codec in known if codec.name.lower() == name.lower()]
    return chosen + [codec for codec in known if codec.name.lower() == "rtx"]


async def take_offer(pc: RTCPeerConnection, sdp: str, *, video: Sequence[str] = VIDEO_CODECS, caller: str | None = None) -> None:
    """Make `sdp` the remote and an answer to it the local description. Raises AvatarError, in a sentence, whatever is wrong with it.

    Offers are a stranger's text: aiortc meets a malformed one with nearly every exception there is.
    """
    try:
        async with asyncio.timeout(SETUP_SECONDS):
            await pc.setRemoteDescription(RTCSessionDescription(clean_offer(sdp, caller=caller), "offer"))
            await pc.setLocalDescription(await pc.createAnswer())
    except TimeoutError:
        raise AvatarError("The connection could not be prepared in time: check the server's ICE settings.") from None
    except Exception as error:
        raise AvatarError("The offer is not a session description that this server understands; reload the page.") from error
    assert_codecs(pc, video=video)


def negotiated_codecs(pc: RTCPeerConnection) -> dict[str, str]:
    """After negotiation: {mid: codec name} of what will really be sent, e.g. {"0": "opus", "1": "H264"}."""
    return {str(t.mid): t._codecs[0].name for t in pc.getTransceivers() if t.mid is not None and t._codecs}


def assert_codecs(pc: RTCPeerConnection, *, video: Sequence[str] = VIDEO_CODECS, audio: Sequence[str] = AUDIO_CODECS) -> dict[str, str]:
    """`negotiated_codecs`, or AvatarError where a transceiver ended on a codec that was not asked for."""
    wanted = {"video": {name.lower() for name in video}, "audio": {name.lower() for name in audio}}
    for transceiver in pc.getTransceivers():
        if transceiver.mid is not None and transceiver._codecs and transceiver._codecs[0].name.lower() not in wanted[transceiver.kind]:
            allowed = ", ".join(video if transceiver.kind == "video" else audio)
            raise AvatarError(f"The other side offers no {transceiver.kind} codec of ours; use a browser that speaks {allowed}.")
    return negotiated_codecs(pc)


def tune_answer(sdp: str, *, start_bitrate: int = DEFAULTS.camera_start_bitrate, max_bitrate: int | None = DEFAULTS.camera_max_bitrate) -> str:
    """The answer with Chrome's start and ceiling rates (bit/s) on every video format, so that the camera is not starved.

    Chrome starts at 300 kbit/s and aiortc's estimate grows from what arrives: 250 kbit/s after 2 s, 947 after 23 s, at
    480x360. With x-google-start-bitrate: 1.66 Mbit/s and the full width from second 2. No x-google-min-bitrate: it would
    keep a weak uplink congested for ever.
    """
    extra = f"x-google-start-bitrate={start_bitrate // 1000}"
    if max_bitrate is not None:
        extra += f";x-google-max-bitrate={max_bitrate // 1000}"
    out: list[str] = []
    for section in _sections(sdp):
        out += _tune_section(section, extra) if section[0].startswith("m=video") else section
    return "\r\n".join(out) + "\r\n"


def _tune_section(lines: list[str], extra: str) -> list[str]:
    """x-google-* on every video format of one media section (rtx apart); a format without fmtp gets one."""
    names = {_payload(line): line.split(" ", 1)[1].split("/")[0].lower() for line in lines if line.startswith("a=rtpmap:")}
    with_fmtp = {_payload(line) for line in lines if line.startswith("a=fmtp:")}
    out: list[str] = []
    for line in lines:
        payload = _payload(line)
        video = names.get(payload) not in (None, "rtx", "red", "ulpfec")
        if line.startswith("a=fmtp:") and video and "x-google-start-bitrate" not in line:
            line = f"{line};{extra}"
        out.append(line)
        if line.startswith("a=rtpmap:") and video and payload not in with_fmtp:
            out.append(f"a=fmtp:{payload} {extra}")
    return out


def _payload(line: str) -> str:
    return line.partition(":")[2].partition(" ")[0] if line.startswith(("a=rtpmap:", "a=fmtp:")) else ""


def _sections(sdp: str) -> list[list[str]]:
    """The session's lines, then the lines of each media section."""
    sections: list[list[str]] = [[]]
    for line in sdp.splitlines():
        if line.startswith("m="):
            sections.append([])
        if line:
            sections[-1].append(line)
    return [section for section in sections if section]


def is_global(address: str | None) -> bool:
    """Whether an address is one of the open internet."""
    try:
        return ipaddress.ip_address(address or "").is_global
    except ValueError:
        return False


def clean_offer(sdp: str, *, max_candidates: int = MAX_CANDIDATES, caller: str | None = None) -> str:
    """The offer without `.local` and TCP candidates and with at most `max_candidates` of the rest.

    Who calls from the open internet gets no packet sent to addresses of this machine or its network, which would be a way to
    probe them; such a caller is reached at the address its own checks come from.

    aiortc resolves `.local` names by multicast before it answers: setRemoteDescription took 1.017 s against 14 ms, the
    first frame 1476 against 489 ms. The connection comes up all the same: the peer's own checks are learnt as
    peer-reflexive. TCP candidates are never used by aiortc.
    """
    kept = 0
    out: list[str] = []
    for line in sdp.splitlines():
        if line.startswith("a=candidate:"):
            fields = line.split()
            if len(fields) < 8 or fields[4].lower().endswith(".local") or fields[2].lower() != "udp" or kept >= max_candidates:
                continue
            if is_global(caller) and not is_global(fields[4]):
                continue
            kept += 1
        if line:
            out.append(line)
    return "\r\n".join(out) + "\r\n"
