"""The page that records a minute, as a person uses it: a real Chromium, a fake camera that acts, and the file that is left."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import shlex
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from engine.media import probe
from engine.types import UInt8Array
from exporters.data.footage import listen, pictures
from exporters.data.storage import find_videos
from streaming.guide import KEYS, WARNINGS
from streaming.server import make_app
from streaming.settings import ServerSettings
from streaming.takes_api import TAKES
from tests.chromium import Browser, Page, chromium, write_camera, write_microphone
from tests.conftest import require
from tests.faces import scene
from tests.pages import serving
from tests.takes import camera

pytestmark = pytest.mark.chromium

RATE = 48_000
STATE = "document.querySelector('#stage').dataset.state"
DONE = "[...document.querySelectorAll('#tasks li[data-done=true]')].map((row) => row.dataset.key)"
DENY = "navigator.mediaDevices.getUserMedia = async () => { throw new DOMException('no', '%s') }"
ONLY_PICTURE = """navigator.mediaDevices.getUserMedia = async ({ video }) => {
  if (!video) throw new DOMException('no', 'NotFoundError');
  const canvas = document.createElement('canvas'), image = new Image();
  image.src = 'data:image/jpeg;base64,%s';
  await image.decode();
  [canvas.width, canvas.height] = [image.width, image.height];
  setInterval(() => canvas.getContext('2d').drawImage(image, 0, 0), 40);
  return canvas.captureStream(25);
}"""
"""A camera that shows one picture, and no microphone."""
WHOLE = "(({ clientWidth, scrollWidth, clientHeight, scrollHeight }) => scrollWidth <= clientWidth && scrollHeight <= clientHeight)(command)"
"""Whether nothing of the command is scrolled out of sight."""
NO_TASKS = """const ask = fetch;
window.cut = true;
window.fetch = (path, ...rest) => (cut && String(path) === '/studio/tasks' ? Promise.reject(new TypeError('no')) : ask(path, ...rest));"""
"""A line that is cut just where the page asks for its tasks."""
ENDINGS = """const set = setTimeout, clear = clearTimeout;
window.endings = new Set();
window.setTimeout = (then, after, ...rest) => {
  const ends = after === 1200, id = set(then, ends ? 1e6 : after, ...rest); // DONE_MS in studio.js; never while the test runs
  if (ends) endings.add(id);
  return id;
};
window.clearTimeout = (id) => (endings.delete(id), clear(id));"""
"""Keeps count of the recordings that are about to end by themselves."""


@dataclass
class Place:
    """A server, a browser, and the loop they run on, in a thread of their own."""

    loop: asyncio.AbstractEventLoop
    folder: Path
    url: str
    browser: Browser
    takes: Any

    def run(self, story: Coroutine[Any, Any, None]) -> None:
        """Live through a story; afterwards its pages are closed and its recordings given up."""

        async def whole() -> None:
            try:
                async with asyncio.timeout(180):
                    await story
            finally:
                await self.browser.forget()
                await asyncio.to_thread(self.takes.close)

        asyncio.run_coroutine_threadsafe(whole(), self.loop).result(200)

    async def open(self, **options: Any) -> Page:
        """The page, with its tasks."""
        page = await self.browser.open(self.url + "/studio#minute", **options)
        await page.wait("document.querySelectorAll('#tasks li').length")
        return page

    def left(self) -> list[str]:
        """What lies on the disk."""
        return sorted(path.name for path in (self.folder / "recordings").rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """One server and one browser for all tests of this file."""
    require("chromium")
    folder = tmp_path_factory.mktemp("record")
    clip = write_camera(folder / "camera.mjpeg", camera(acts=3))
    at = np.arange(4 * RATE) / RATE
    voice = write_microphone(folder / "voice.wav", (0.3 * np.sin(2 * np.pi * 180 * at) * (np.sin(9 * at) > 0)).astype(np.float32), RATE)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="place")
    thread.start()

    @contextlib.asynccontextmanager
    async def living() -> AsyncIterator[Place]:
        app = make_app(ServerSettings(max_sessions=1, persona_dir=folder / "personas"))
        async with serving(app) as url, chromium(camera=clip, microphone=voice) as browser:
            yield Place(loop, folder, url, browser, app[TAKES])

    life = living()
    try:
        yield asyncio.run_coroutine_threadsafe(life.__aenter__(), loop).result(60)
        asyncio.run_coroutine_threadsafe(life.__aexit__(None, None, None), loop).result(60)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def begin(page: Page, name: str = "me") -> None:
    """Say who, agree, and press the button."""
    await page.evaluate(f"document.querySelector('#name').value = {json.dumps(name)}")
    if not await page.evaluate("document.querySelector('#consent').checked"):
        await page.click("#consent")
    await page.click("#record")
    await page.wait(f"{STATE} === 'recording'", seconds=30)


def test_a_minute_is_guided_kept_and_ready_to_train_from(place: Place) -> None:
    """Shorter than a minute: what is missing then is said, and asked for in the next one."""

    async def story() -> None:
        page = await place.open()
        assert await page.evaluate("document.querySelector('#record').disabled"), "nothing without consent"
        assert "permission" in await page.text("#why-not")
        await page.screenshot("record-setup")
        await begin(page)
        assert "straight" in await page.text("#say-text")
        await page.wait(f"['rest', 'left'].every((key) => {DONE}.includes(key))", seconds=90)
        assert await page.evaluate("document.querySelector('[aria-current=step]').dataset.key") not in ("rest", "left")
        before = await page.text("#say-text")
        await page.click("#pass")
        await page.wait(f"document.querySelector('#say-text').textContent !== {json.dumps(before)}")
        await page.screenshot("record-recording")
        await page.click("#record")
        await page.wait(f"{STATE} === 'done'", seconds=30)
        assert "missing" in await page.text("#result-title")
        assert "A minute in all" in await page.text("#lacking-list")
        assert "Look straight" not in await page.text("#lacking-list")
        await page.evaluate("navigator.clipboard.writeText = async (text) => { window.copied = text }")
        await page.click("#copy")
        agreed = await page.text("#consent-text")
        train = ["avatar", "train", "--video", f"{place.folder}/recordings/me", "--out", "me", "--consent", agreed]
        assert shlex.split(await page.evaluate("copied")) == train
        assert await page.evaluate(WHOLE), "the whole command is seen"
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        await page.screenshot("record-done", whole=True)
        await page.call("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=1, mobile=False)
        assert await page.evaluate(WHOLE), "on a phone too"
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        await page.screenshot("record-done-phone", whole=True)
        await page.call("Emulation.clearDeviceMetricsOverride")
        await page.click("#again")
        await page.wait(f"{STATE} === 'recording'", seconds=30)
        assert {"rest", "left"} <= set(await page.evaluate(DONE)), "what is there is not asked again"
        await page.click("#discard")
        assert "Nothing" in await page.text("#card-text")
        assert page.errors == []

    place.run(story())
    assert place.left() == ["me-1.json", "me-1.webm"]
    (video,) = find_videos([place.folder / "recordings" / "me"])
    clip, beside = probe(video), json.loads(video.with_suffix(".json").read_text())
    assert "permission" in beside["consent"]["statement"]
    assert {"rest", "left"} <= set(beside["shows"])
    assert clip.duration > beside["seconds"] - 0.2, "the sound may begin before the pictures"
    seen = [frame for _, frame in pictures(video) if frame is not None]
    assert seen[-1].time - seen[0].time == pytest.approx(beside["seconds"], abs=0.3)
    assert len({frame.id for frame in seen}) > 0.5 * beside["pictures"], "pictures at their own times find their place on the grid"
    assert seen[0].rgb.shape == (480, 640, 3)
    _, heard = listen(video, np.arange(10, dtype=np.float32))
    assert heard, "Opus"


@pytest.mark.parametrize(
    ("name", "error", "title", "advice"),
    [("denied", "NotAllowedError", "not allowed", "Allow"), ("missing", "NotFoundError", "no camera", "Plug a camera in, then try again")],
)
def test_a_camera_that_does_not_open_is_explained(place: Place, name: str, error: str, title: str, advice: str) -> None:
    async def story() -> None:
        page = await place.open(before=DENY % error)
        await page.click("#consent")
        await page.click("#record")
        await page.wait(f"{STATE} === 'failed'")
        assert title in await page.text("#card-title")
        assert advice in await page.text("#card-text")
        await page.screenshot(f"record-{name}")
        assert page.errors == []

    before = place.left()
    place.run(story())
    assert place.left() == before


def test_tasks_that_did_not_come_are_asked_for_again(place: Place) -> None:
    async def story() -> None:
        page = await place.browser.open(place.url + "/studio#minute", before=NO_TASKS)
        await page.wait(f"{STATE} === 'failed'")
        assert "cannot be reached" in await page.text("#card-title")
        await page.click("#consent")
        await page.click("#record")
        await page.wait("document.querySelector('#card-action').textContent === 'Try again' && !document.querySelector('#card').hidden")
        assert await page.evaluate(STATE) == "failed", "it does not record without knowing what to ask for"
        assert "cannot be reached" in await page.text("#card-title")
        await page.evaluate("window.cut = false")
        await page.click("#card-action")
        await page.wait(f"{STATE} === 'recording'", seconds=30)
        assert await page.evaluate("document.querySelectorAll('#tasks li').length") == len(KEYS)
        said = await page.text("#say-text")
        assert said, "it asks for the first thing that it has not seen"
        assert "all but what was skipped" not in said
        await page.click("#discard")
        assert page.errors == []

    place.run(story())


def test_tasks_that_did_not_come_need_no_consent_to_be_asked_for(place: Place) -> None:
    async def story() -> None:
        page = await place.browser.open(place.url + "/studio#minute", before=NO_TASKS)
        await page.wait(f"{STATE} === 'failed'")
        await page.evaluate("window.cut = false")
        await page.click("#card-action")
        await page.wait("document.querySelectorAll('#tasks li').length")
        assert await page.evaluate(STATE) == "setup", "nobody has agreed to be recorded"
        assert await page.text("#card-title") == ""
        assert page.errors == []

    place.run(story())


def test_a_recording_that_is_discarded_ends_no_later_one(place: Place) -> None:
    async def story() -> None:
        page = await place.open(before=ENDINGS)
        await begin(page)
        await page.evaluate(f"for (let skipped = 0; skipped < {len(KEYS)}; skipped++) document.querySelector('#pass').click()")
        await page.wait("endings.size")
        assert "all but what was skipped" in await page.text("#say-text")
        await page.click("#discard")
        assert await page.evaluate("endings.size") == 0
        assert page.errors == []

    place.run(story())


def test_a_second_person_and_a_missing_microphone_are_told(place: Place) -> None:
    async def story() -> None:
        page = await place.open(before=ONLY_PICTURE % encoded(scene((180, 260, 340), (470, 260, 320))), width=390, height=844)
        await page.prefer(color_scheme="dark")
        await begin(page, "two")
        await page.wait(f"document.querySelector('#hint').textContent === {json.dumps(WARNINGS['two faces'])}", seconds=40)
        assert await page.evaluate(DONE) == []
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        await page.screenshot("record-two-phone", whole=True)
        await page.click("#discard")
        assert page.errors == []

    place.run(story())

    async def alone() -> None:
        page = await place.open(before=ONLY_PICTURE % encoded(scene((320, 260, 440))))
        await begin(page, "silent")
        await page.wait("document.querySelector('#hint').textContent.includes('no sound is recorded')", seconds=40)
        await page.wait("parseInt(document.querySelector('#chip-use').textContent) >= 4", seconds=60)
        await page.screenshot("record-silent")
        await page.click("#record")
        await page.wait(f"{STATE} === 'done'", seconds=30)
        assert "without sound" in await page.text("#result-text")
        assert "Read aloud" in await page.text("#lacking-list")
        assert page.errors == []

    place.run(alone())


def encoded(picture: UInt8Array) -> str:
    """A JPEG for a data address."""
    return base64.b64encode(cv2.imencode(".jpg", np.ascontiguousarray(picture[..., ::-1]))[1].tobytes()).decode()


def test_a_page_that_is_left_in_the_middle_leaves_nothing_and_says_so(place: Place) -> None:
    async def story() -> None:
        page = await place.open(before="addEventListener('beforeunload', (event) => event.stopImmediatePropagation())")
        await begin(page)
        await asyncio.sleep(1.5)
        await page.go("Page.reload")
        await page.wait("document.querySelector('#card-title')?.textContent === 'Broken off'")
        assert "nothing of it was kept" in await page.text("#card-text")
        async with asyncio.timeout(10):
            while len(place.takes):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        await page.screenshot("record-broken-off")

    before = place.left()
    place.run(story())
    assert place.left() == before


def test_a_server_that_goes_away_is_told(place: Place) -> None:
    """A recording that the server has given up: nothing is claimed to be kept."""

    async def story() -> None:
        page = await place.open()
        await begin(page)
        await asyncio.to_thread(place.takes.close)
        await page.wait(f"{STATE} === 'failed'")
        assert "nothing of it was kept" in await page.text("#card-text")

    place.run(story())


def test_every_control_has_a_name(place: Place) -> None:
    async def story() -> None:
        page = await place.open()
        nodes = (await page.call("Accessibility.getFullAXTree"))["nodes"]
        spoken = ("button", "checkbox", "textbox", "combobox", "link", "progressbar")
        found = [node for node in nodes if not node.get("ignored") and node["role"]["value"] in spoken]
        assert len([node for node in found if node["role"]["value"] == "progressbar"]) == len(KEYS)
        assert [node["role"]["value"] for node in found if not node["name"].get("value")] == []

    place.run(story())
