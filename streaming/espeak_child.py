"""Runs espeak-ng's library in a process of its own: espeak-ng is GPL, so nothing else of this project loads it.

Started as `python -I -S espeak_child.py LIBRARY DATA VOICE WORDS_PER_MINUTE`. Reads sentences (4 bytes little-endian length, then
UTF-8) from stdin and answers on stdout with messages of 1 byte kind, 4 bytes length, payload: R rate (Hz as 4 bytes), P
16-bit mono samples, E the sentence is over, X a sentence that says what went wrong, L the same where the library does not load. Ends with its stdin.
"""

import ctypes
import struct
import sys

RETRIEVAL, SYNCHRONOUS_ONLY = 1, 0x8000  # espeak_AUDIO_OUTPUT; espeakINITIALIZE_DONT_EXIT
RATE_PARAMETER = 1  # espeakRATE
UTF8_TEXT, END_PAUSE = 1, 0x1000  # espeakCHARS_UTF8, espeakENDPAUSE
BUFFER_MS = 60  # of sound per callback
CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


def send(kind: bytes, payload: bytes = b"") -> None:
    """One message to the parent."""
    sys.stdout.buffer.write(kind + struct.pack("<I", len(payload)) + payload)
    sys.stdout.buffer.flush()


def read() -> bytes | None:
    """The next sentence, None at the end."""
    head = sys.stdin.buffer.read(4)
    return sys.stdin.buffer.read(struct.unpack("<I", head)[0]) if len(head) == 4 else None


def main(library: str, data: str, voice: str, words_per_minute: str) -> int:
    """Speak until stdin ends."""
    try:
        espeak = ctypes.CDLL(library)
    except OSError as error:
        send(b"L", f"The package espeakng-loader does not work on this machine ({error}).".encode())
        return 1
    rate = espeak.espeak_Initialize(RETRIEVAL, BUFFER_MS, data.encode(), SYNCHRONOUS_ONLY)
    if rate <= 0:
        send(b"X", f"espeak-ng does not start with the data in {data}; reinstall the package espeakng-loader.".encode())
        return 1

    def heard(samples: "ctypes._Pointer[ctypes.c_short]", count: int, _events: int) -> int:
        if count > 0:
            send(b"P", ctypes.string_at(samples, 2 * count))
        return 0

    callback = CALLBACK(heard)  # kept by name, or it would be collected while espeak calls it
    espeak.espeak_SetSynthCallback(callback)
    espeak.espeak_SetParameter(RATE_PARAMETER, int(words_per_minute), 0)
    if espeak.espeak_SetVoiceByName(voice.encode()) != 0:
        send(b"X", f"espeak-ng has no voice '{voice}'; use a language such as en-us, de or fr, with +f3 or +m3 for another speaker.".encode())
        return 1
    send(b"R", struct.pack("<I", rate))
    while (text := read()) is not None:
        body = text + b"\0"
        espeak.espeak_Synth(body, ctypes.c_size_t(len(body)), 0, 0, 0, UTF8_TEXT | END_PAUSE, None, None)
        espeak.espeak_Synchronize()
        send(b"E")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:5]))
    except BrokenPipeError:  # the parent has stopped listening: nothing is left to say
        sys.stdout = None  # or its flush at exit would complain
        sys.exit(0)
