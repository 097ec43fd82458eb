"""A headless Chromium, driven over its DevTools protocol with aiohttp alone: real input events, a fake camera and microphone.

async with chromium(camera=clip, microphone=sound) as browser:
    page = await browser.open("http://127.0.0.1:8010/")
    await page.click("#start")
    await page.wait("document.querySelector('#stage').dataset.state === 'live'")
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import re
import tempfile
import wave
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import aiohttp
import cv2
import numpy as np

from engine.types import FloatArray, UInt8Array
from tests.conftest import require

SCREENSHOTS = Path(__file__).parent / "screenshots"
START_SECONDS = 20.0
CALL_SECONDS = 30.0
CLOSE_SECONDS = 10.0
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--remote-debugging-port=0",
    "--use-fake-device-for-media-stream=fps=30",
    "--autoplay-policy=no-user-gesture-required",
    "--mute-audio",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--no-default-browser-check",
    "--hide-scrollbars",
)
KEYS = {"Enter": ("\r", 13), "Tab": ("", 9), "Escape": ("", 27), "ArrowRight": ("", 39), "ArrowLeft": ("", 37), " ": (" ", 32)}
"""Keys that are not characters: text they produce, virtual key code."""
GRAB = """(() => {
  const grab = (id) => {
    const video = document.getElementById(id), canvas = document.createElement('canvas');
    canvas.width = video.videoWidth; canvas.height = video.videoHeight;
    if (!canvas.width) return '';
    canvas.getContext('2d').drawImage(video, 0, 0);
    return canvas.toDataURL('image/jpeg', 0.92).split(',')[1];
  };
  return IDS.map(grab).concat(performance.now());
})()"""


class PageError(AssertionError):
    """The page raised, or did not come to the state that was waited for."""


class Page:
    """One tab."""

    def __init__(self, browser: Browser, session: str, context: str) -> None:
        self.browser = browser
        self.session = session
        self.context = context
        self.errors: list[str] = []  # console errors, uncaught exceptions, failed loads, in the order they came
        self._loaded = asyncio.Event()

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One DevTools command to this tab."""
        return await self.browser.call(method, session=self.session, **params)

    def notice(self, method: str, params: dict[str, Any]) -> None:
        """Collect what a developer would see in red."""
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description") or details.get("text", ""))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            self.errors.append(" ".join(str(arg.get("value", arg.get("description", ""))) for arg in params["args"]))
        elif method == "Page.loadEventFired":
            self._loaded.set()
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")

    async def go(self, method: str, **params: Any) -> None:
        """Page.navigate or Page.reload, until the new document is loaded: a script that is sent between the two may never be answered."""
        self._loaded.clear()
        await self.call(method, **params)
        await asyncio.wait_for(self._loaded.wait(), CALL_SECONDS)

    async def evaluate(self, script: str) -> Any:
        """The value of an expression; promises are awaited."""
        answer = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True)
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise PageError(f"{script[:120]}: {details.get('exception', {}).get('description') or details['text']}")
        return answer["result"].get("value")

    async def wait(self, script: str, *, seconds: float = 15.0) -> None:
        """Until the expression is true."""
        deadline = asyncio.get_running_loop().time() + seconds
        while not await self.evaluate(f"Boolean({script})"):
            if asyncio.get_running_loop().time() > deadline:
                state = await self.evaluate("[document.querySelector('#stage')?.dataset.state, document.body.innerText.slice(0, 400)]")
                raise PageError(f"not within {seconds} s: {script}; the page says {state}; errors {self.errors}")
            await asyncio.sleep(0.05)

    async def text(self, selector: str) -> str:
        """What is written there, or "" where it is hidden."""
        return str(await self.evaluate(f"document.querySelector({selector!r})?.innerText || ''")).strip()

    async def click(self, selector: str) -> None:
        """Scroll there, move the mouse there and press it, as a person would; raises where something covers it."""
        await self.evaluate(f"document.querySelector({selector!r}).scrollIntoViewIfNeeded()")
        spot = await self.evaluate(
            f"""(() => {{
              const target = document.querySelector({selector!r}), box = target.getBoundingClientRect();
              const x = box.x + box.width / 2, y = box.y + box.height / 2, top = document.elementFromPoint(x, y);
              const reached = box.width && (top === target || target.contains(top) || top?.closest('label')?.contains(target));
              return reached ? [x, y] : `covered by ${{top?.outerHTML.slice(0, 80)}}`;
            }})()"""
        )
        if not isinstance(spot, list):
            raise PageError(f"{selector} cannot be clicked: {spot}")
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            button = {} if kind == "mouseMoved" else {"button": "left", "clickCount": 1}
            await self.call("Input.dispatchMouseEvent", type=kind, x=spot[0], y=spot[1], **button)

    async def press(self, key: str) -> None:
        """One key, down and up."""
        text, code = KEYS.get(key, (key, ord(key.upper()) if len(key) == 1 else 0))
        await self.call("Input.dispatchKeyEvent", type="keyDown", key=key, text=text, windowsVirtualKeyCode=code)
        await self.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    async def type(self, selector: str, text: str) -> None:
        """Click there and write."""
        await self.click(selector)
        await self.call("Input.insertText", text=text)

    async def choose_file(self, selector: str, path: Path) -> None:
        """Give a file input its file."""
        found = await self.call("Runtime.evaluate", expression=f"document.querySelector({selector!r})")
        await self.call("DOM.setFileInputFiles", files=[str(path)], objectId=found["result"]["objectId"])

    async def download(self, selector: str, folder: Path, *, seconds: float = 10.0) -> Path:
        """Click a link that saves a file; the file, once it is whole."""
        before = _files(folder)
        await self.browser.call("Browser.setDownloadBehavior", behavior="allow", browserContextId=self.context, downloadPath=str(folder))
        await self.click(selector)
        for _ in range(round(seconds / 0.1)):
            await asyncio.sleep(0.1)
            if new := _files(folder) - before:
                return new.pop()
        raise PageError(f"{selector} saved nothing")

    async def resize(self, width: int, height: int, *, scale: float = 1.0, mobile: bool = False) -> None:
        """The viewport, in CSS pixels."""
        await self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=mobile)

    async def prefer(self, **features: str) -> None:
        """Media features, for example color_scheme="dark"."""
        chosen = [{"name": f"prefers-{name.replace('_', '-')}", "value": value} for name, value in features.items()]
        await self.call("Emulation.setEmulatedMedia", features=chosen)

    async def screenshot(self, name: str, *, whole: bool = False) -> Path:
        """Save a PNG under tests/screenshots (or at an absolute path)."""
        picture = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        SCREENSHOTS.mkdir(exist_ok=True)
        path = SCREENSHOTS / f"{name}.png"
        path.write_bytes(base64.b64decode(picture["data"]))
        return path

    async def grab(self, *ids: str) -> tuple[list[UInt8Array], float]:
        """What these video elements show at one instant, RGB, and the page's time in ms; raises where one shows nothing."""
        *pictures, now = await self.evaluate(GRAB.replace("IDS", json.dumps(ids)))
        if not all(pictures):
            raise PageError(f"a video of {ids} shows nothing yet")
        decoded = [cv2.imdecode(np.frombuffer(base64.b64decode(picture), np.uint8), cv2.IMREAD_COLOR) for picture in pictures]
        return [np.ascontiguousarray(picture[..., ::-1]).astype(np.uint8, copy=False) for picture in decoded], float(now)


class Browser:
    """A running Chromium."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self.pages: dict[str, Page] = {}
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}

    async def call(self, method: str, *, session: str = "", **params: Any) -> dict[str, Any]:
        """One DevTools command; raises PageError with its message where it fails."""
        number = next(self._ids)
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        await self.socket.send_json({"id": number, "method": method, "params": params, **({"sessionId": session} if session else {})})
        reply = await asyncio.wait_for(answer, CALL_SECONDS)
        if "error" in reply:
            raise PageError(f"{method}: {reply['error'].get('message')}")
        result: dict[str, Any] = reply.get("result", {})
        return result

    async def listen(self) -> None:
        """Sort the answers and events; runs until the socket closes."""
        async for message in self.socket:
            data = json.loads(message.data)
            waiting = self._waiting.pop(data.get("id", 0), None)
            if waiting is not None and not waiting.done():
                waiting.set_result(data)
            elif "method" in data and (page := self.pages.get(data.get("sessionId", ""))):
                page.notice(data["method"], data.get("params", {}))

    async def open(self, url: str, *, width: int = 1440, height: int = 900, before: str = "") -> Page:
        """A tab of its own (own storage) at `url`. `before`: a script that runs ahead of the page's own."""
        context = (await self.call("Target.createBrowserContext"))["browserContextId"]
        target = (await self.call("Target.createTarget", url="about:blank", browserContextId=context))["targetId"]
        session = (await self.call("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
        page = self.pages[session] = Page(self, session, context)
        for domain in ("Page", "Runtime", "Log"):
            await page.call(f"{domain}.enable")
        if before:
            await page.call("Page.addScriptToEvaluateOnNewDocument", source=before)
        await page.resize(width, height)
        await page.go("Page.navigate", url=url)
        return page

    async def forget(self) -> None:
        """Close every tab. One that does not close is told once, by the test that it belongs to, and is no later test's."""
        pages, self.pages = list(self.pages.values()), {}
        for page in pages:
            await self._close(page)

    async def _close(self, page: Page) -> None:
        """A tab whose renderer hangs keeps its context open for ever, so its renderer is ended."""
        gone = asyncio.create_task(self.call("Target.disposeBrowserContext", browserContextId=page.context))
        done, _ = await asyncio.wait({gone}, timeout=CLOSE_SECONDS)
        if not done:
            await self.socket.send_json({"id": next(self._ids), "method": "Page.crash", "sessionId": page.session})
        await gone


@contextlib.asynccontextmanager
async def chromium(*, camera: Path | None = None, microphone: Path | None = None, more: Iterable[str] = ()) -> AsyncIterator[Browser]:
    """Start a Chromium with a fake camera (.mjpeg or .y4m) and microphone (.wav), both looping; nobody is asked."""
    flags = [*FLAGS, "--use-fake-ui-for-media-stream", *more]
    if camera:
        flags.append(f"--use-file-for-fake-video-capture={camera}")
    if microphone:
        flags.append(f"--use-file-for-fake-audio-capture={microphone}")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        process = await asyncio.create_subprocess_exec(
            require("chromium"), *flags, f"--user-data-dir={home}", "about:blank", stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
        )
        try:
            address = await asyncio.wait_for(_address(process), START_SECONDS)
            async with aiohttp.ClientSession() as http, http.ws_connect(address, max_msg_size=0) as socket:
                browser = Browser(socket)
                tasks = [asyncio.create_task(browser.listen()), asyncio.create_task(_drain(process))]
                yield browser
                with contextlib.suppress(PageError, asyncio.TimeoutError, ConnectionError):
                    await browser.call("Browser.close")
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
            await process.wait()


def _files(folder: Path) -> set[Path]:
    """What has been saved there, whole."""
    folder.mkdir(exist_ok=True)
    return {path for path in folder.iterdir() if path.suffix != ".crdownload" and path.stat().st_size}


async def _address(process: asyncio.subprocess.Process) -> str:
    assert process.stderr
    said = ""
    while line := (await process.stderr.readline()).decode(errors="replace"):
        said += line
        if found := re.search(r"DevTools listening on (ws://\S+)", line):
            return found[1]
    raise PageError(f"Chromium did not start: {said[-800:]}")


async def _drain(process: asyncio.subprocess.Process) -> None:
    assert process.stderr
    while await process.stderr.readline():
        pass


def write_camera(path: Path, frames: Iterable[UInt8Array], *, quality: int = 92) -> Path:
    """RGB pictures [H, W, 3] -> a .mjpeg file that Chromium's fake camera plays in a loop at 30 fps."""
    with path.open("wb") as file:
        for frame in frames:
            file.write(cv2.imencode(".jpg", np.ascontiguousarray(frame[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes())
    return path


def write_microphone(path: Path, pcm: FloatArray, rate: int) -> Path:
    """Mono sound [N] in -1..1 -> a 16-bit .wav that Chromium's fake microphone plays in a loop."""
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes((np.clip(pcm, -1.0, 1.0) * 32767).astype("<i2").tobytes())
    return path
