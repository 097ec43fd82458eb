"""What tests of the page share: a real server and a real Chromium with a fake camera, in a thread of their own, and how a person goes live."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import pytest
from aiohttp import web

from engine.persona import demo_portrait
from engine.types import UInt8Array
from streaming.api import DESK
from streaming.server import make_app
from streaming.settings import ServerSettings
from streaming.tts import make_synthesizer
from tests.chromium import Browser, Page, chromium, write_camera, write_microphone
from tests.conftest import require

T = TypeVar("T")
CLIP_SECONDS = 8.0
CLIP_FRAMES = round(30 * CLIP_SECONDS)  # one period of the motion, so that the loop has no seam
ROLL_DEGREES = 12.0
SHIFT_PIXELS = 20.0
CAMERA = (640, 480)
STORY_SECONDS = 60.0


def rolling_clip() -> Iterator[UInt8Array]:
    """The built-in portrait before a webcam: it rolls by +-12 degrees and sways, once in 8 s, starting and ending upright."""
    portrait = demo_portrait()
    width, height = CAMERA
    scale = 0.9 * height / portrait.shape[0]
    centre = (portrait.shape[1] / 2, portrait.shape[0] * 0.6)
    for index in range(CLIP_FRAMES):
        phase = 2 * math.pi * index / CLIP_FRAMES
        matrix = cv2.getRotationMatrix2D(centre, ROLL_DEGREES * math.sin(phase), scale)
        matrix[:, 2] += (width / 2 - centre[0] + SHIFT_PIXELS * math.sin(phase), height * 0.6 - centre[1])
        yield cv2.warpAffine(portrait, matrix, CAMERA, borderMode=cv2.BORDER_REPLICATE).astype(np.uint8, copy=False)


@dataclass
class Desk:
    """A server, a browser and the loop they run on, in a thread of their own."""

    loop: asyncio.AbstractEventLoop
    folder: Path
    url: str = ""
    app: web.Application = field(default_factory=web.Application)
    browser: Browser | None = None

    def run(self, story: Coroutine[Any, Any, T], *, seconds: float = STORY_SECONDS) -> T:
        """Live through a story on the loop; afterwards its pages are closed and its sessions ended, however it went."""

        async def whole() -> T:
            try:
                async with asyncio.timeout(seconds):
                    return await story
            finally:
                if self.browser:
                    await self.browser.forget()
                if DESK in self.app:
                    for live in list(self.app[DESK].studio.sessions.values()):
                        await self.app[DESK].end(live)

        future: Future[T] = asyncio.run_coroutine_threadsafe(whole(), self.loop)
        return future.result(2 * seconds)

    async def open(self, **options: Any) -> Page:
        """The page, with its gallery filled."""
        assert self.browser
        page = await self.browser.open(self.url + options.pop("path", "/"), **options)
        await page.wait("document.querySelector('#gallery input:checked') && document.querySelector('#still').complete")
        return page


@contextlib.asynccontextmanager
async def serving(app: web.Application) -> AsyncIterator[str]:
    """An application on a free port of this machine; its address."""
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        assert site._server is not None
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.fixture(name="desk", scope="module")
def given_desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """One server and one browser for all tests of a file."""
    require("chromium")
    folder = tmp_path_factory.mktemp("page")
    camera = write_camera(folder / "camera.mjpeg", rolling_clip())
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="desk")
    thread.start()
    desk = Desk(loop, folder)

    async def arrive() -> contextlib.AsyncExitStack:
        stack = contextlib.AsyncExitStack()
        synthesizer = make_synthesizer()
        pieces = [piece async for piece in synthesizer.speak("One two three four five.")]
        await synthesizer.close()
        quiet = np.zeros(pieces[0].rate, np.float32)
        microphone = write_microphone(folder / "voice.wav", np.concatenate([quiet, *(piece.pcm for piece in pieces), quiet]), pieces[0].rate)
        desk.app = make_app(ServerSettings(max_sessions=1, persona_dir=folder / "personas", resume_seconds=20.0))
        desk.url = await stack.enter_async_context(serving(desk.app))
        desk.browser = await stack.enter_async_context(chromium(camera=camera, microphone=microphone))
        return stack

    try:
        stack = asyncio.run_coroutine_threadsafe(arrive(), loop).result(STORY_SECONDS)
        yield desk
        asyncio.run_coroutine_threadsafe(stack.aclose(), loop).result(STORY_SECONDS)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


LIVE = "document.querySelector('#stage').dataset.state === 'live' && document.querySelector('#card').hidden"


async def go_live(page: Page) -> None:
    """Press Start and wait for the first pictures."""
    await page.click("#start")
    await page.wait(LIVE)


async def view_address(page: Page) -> str:
    """The link for viewers, once the server has said what lets them in."""
    await page.wait("!document.querySelector('#share').hidden")
    return str(await page.evaluate("document.querySelector('#view-url').value"))


async def until(what: Callable[[], object], *, seconds: float = 5.0) -> None:
    """Until it is true of the server."""
    for _ in range(round(seconds / 0.05)):
        if what():
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"not within {seconds} s")


EARS = """(() => {
  const listen = EventTarget.prototype.addEventListener;
  window.deafTo = [];
  RTCDataChannel.prototype.addEventListener = function (type, act, ...rest) {
    if (type !== 'message') return listen.call(this, type, act, ...rest);
    window.hear = (message) => act({ data: JSON.stringify(message) });
    return listen.call(this, type, (event) => window.deafTo.includes(JSON.parse(event.data).type) || act(event));
  };
})()"""
"""Ahead of the page's scripts: hear(message) makes it hear what no server has said, and deafTo names the types that it misses."""


async def hear(page: Page, **message: Any) -> None:
    """A message of the data channel, see EARS."""
    await page.evaluate(f"hear({json.dumps(message)})")
