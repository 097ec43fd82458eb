"""The studio's side of photos, as a person uses it: a real Chromium, the real child process, from a photo to a persona that is live."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine.drivers.outlines import LIPS
from engine.persona import demo_portrait, show
from engine.types import AvatarError, UInt8Array
from streaming import child
from streaming.server import make_app
from streaming.settings import ServerSettings
from tests.chromium import Browser, Page, chromium, write_camera
from tests.conftest import require
from tests.faces import scene
from tests.pages import serving
from tests.takes import camera
from tests.test_photos import covered
from tests.test_sittings import Child

pytestmark = pytest.mark.chromium

CARDS = "[...document.querySelectorAll('#photo-list .photo-card')].map((card) => card.dataset.state)"
IDLE = "document.querySelector('#work').hidden"
STATE = "document.querySelector('#stage').dataset.state"
NARROW = "document.documentElement.scrollWidth <= innerWidth"
SLOW = 120.0
"""s for what a child does on a busy machine: it comes after everything else."""


def photo(folder: Path, name: str, rgb: UInt8Array) -> Path:
    """A file."""
    Image.fromarray(rgb).save(folder / name)
    return folder / name


@contextlib.asynccontextmanager
async def studio(folder: Path, *, camera: Path | None = None, settings: ServerSettings | None = None) -> AsyncIterator[tuple[Page, Browser, str]]:
    """A server, a browser, and the page."""
    app = make_app(settings or ServerSettings(max_sessions=1))
    async with serving(app) as url, chromium(camera=camera) as browser:
        page = await browser.open(url + "/studio")
        await page.wait("!document.querySelector('#no-systems').hidden || !document.querySelector('#how').hidden", seconds=30)
        yield page, browser, url


def story(told: Callable[[], Coroutine[None, None, None]]) -> None:
    """Live through it."""

    async def run() -> None:
        async with asyncio.timeout(400):
            await told()

    asyncio.run(run())


async def choose(page: Page, *paths: Path, until: Sequence[str] = ("fit", "refused")) -> None:
    """Give the page photos, and wait until they are judged, or what else is to become of them."""
    found = await page.call("Runtime.evaluate", expression="document.querySelector('#photo-files')")
    await page.call("DOM.setFileInputFiles", files=[str(path) for path in paths], objectId=found["result"]["objectId"])
    await page.wait(f"{CARDS}.length === {len(paths)} && {CARDS}.every((state) => {list(until)}.includes(state))", seconds=SLOW)
    await page.wait("!document.querySelector('#add-photos').disabled", seconds=SLOW)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder of this test alone."""
    require("chromium")
    monkeypatch.setenv("AVATAR_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(child, "NICE", 0)
    return tmp_path / "home"


def kept(home: Path) -> list[str]:
    """What lies there of personas and sittings."""
    return sorted(str(path.relative_to(home)) for part in ("personas", "sittings") for path in (home / part).glob("*/*"))


def test_a_photo_as_it_is_becomes_a_persona_that_is_live(tmp_path: Path, home: Path) -> None:
    good = photo(tmp_path, "Eileen.jpg", demo_portrait())
    masked = covered((LIPS,), (190, 205, 215), (0.4, 0.3))
    photos = [good, photo(tmp_path, "covered.png", masked), photo(tmp_path, "two.png", scene((160, 240, 300), (480, 240, 300)))]
    clip = write_camera(tmp_path / "camera.mjpeg", camera(acts=2))

    async def told() -> None:
        async with studio(tmp_path, camera=clip) as (page, _, _url):
            assert "only to the server you opened" in await page.text("#photos-where")
            assert await page.evaluate("document.querySelector('#use').disabled")
            await page.screenshot("studio-empty")
            await choose(page, *photos)
            assert await page.evaluate(CARDS) == ["fit", "fit", "refused"]
            first, second, third = await page.evaluate("[...document.querySelectorAll('.photo-card')].map((card) => card.innerText)")
            assert "Best" in first
            assert "Mouth visible" in first
            assert "mouth seems to be covered" in second
            assert "more than one face" in third
            drawn = "document.querySelectorAll('.photo-card .kept').length === 2 && document.querySelector('.photo-card image').href.baseVal"
            await page.wait(f"{drawn}.startsWith('blob:') && document.querySelector('#shot-picture').naturalWidth > 0")
            assert "First tick" in await page.text("#use-why")
            await page.click("#persona-consent")
            assert "a name" in await page.text("#use-why")
            await page.type("#persona-name", "demo")
            await page.click("#use")
            await page.wait("document.querySelector('#work-problem').innerText.includes('comes with the program')")
            await page.screenshot("studio-judged", whole=True)
            await page.resize(390, 844)
            assert await page.evaluate(NARROW)
            await page.prefer(color_scheme="dark")
            await page.screenshot("studio-judged-phone", whole=True)
            await page.resize(1440, 900)
            await page.go("Page.reload")
            await page.wait(f"{CARDS}.length === 3", seconds=30)  # what was sent is still there
            await page.type("#persona-name", "Eileen C")
            await page.click("#persona-consent")
            await page.click("#use")
            await page.wait("!document.querySelector('#saved').hidden", seconds=SLOW)
            assert await page.text("#saved-title") == "Eileen C is ready"
            assert "the photo itself" in await page.text("#saved-text")
            await page.wait("document.querySelector('#saved-picture').naturalWidth > 0")
            await page.screenshot("studio-saved")
            mine = [path for path in kept(home) if not path.endswith(".lock")]
            assert mine == [f"personas/Eileen C/{name}" for name in ("manifest.json", "portrait.png", "puppet.npz")]
            assert [error for error in page.errors if "400" not in error] == []  # the name that is taken
            page._loaded.clear()
            await page.click("#go-live")
            await asyncio.wait_for(page._loaded.wait(), 30)
            await page.wait("document.querySelector('#invite-name')?.textContent === 'Eileen C'", seconds=30)
            assert await page.evaluate("location.pathname + location.search") == "/", "asked once"
            await page.click("#start")
            await page.wait(f"{STATE} === 'live'", seconds=60)
            await page.wait("document.querySelector('#avatar').videoWidth > 0", seconds=30)
            (one,), _ = await page.grab("avatar")
            moved = 0.0
            for _ in range(40):
                await asyncio.sleep(0.25)
                (other,), _ = await page.grab("avatar")
                moved = max(moved, float(np.abs(one.astype(int) - other.astype(int)).mean()))
                if moved > 1.5:
                    break
            assert moved > 1.5, "the picture follows the person"
            await page.screenshot("studio-live")

    story(told)
    made = show("Eileen C")
    assert "agrees to being animated" in made["consent"]["statement"]
    assert made["provenance"]["system"] is None
    assert not list((home / "sittings").iterdir()), "nothing is left"


def test_photos_that_nobody_could_look_at_are_looked_at_later(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their child dies; somebody asks again; it dies again, and the page is loaded anew."""
    judge, dies = Child(), [True, True, False, True]

    async def run(arguments: Sequence[str], heard: Callable[[dict[str, Any]], None]) -> None:
        if dies.pop(0):
            raise AvatarError("The work ended unexpectedly.")
        await judge(arguments, heard)

    monkeypatch.setattr(child, "run", run)
    good = photo(tmp_path, "Eileen.jpg", demo_portrait())

    async def told() -> None:
        async with studio(tmp_path) as (page, _, _url):
            await choose(page, good, until=("fit", "new"))
            for left in (3, 2):
                await page.wait("document.querySelector('#photos-problem button')?.innerText === 'Try again'", seconds=30)
                assert len(dies) == left
                assert "ended unexpectedly" in await page.text("#photos-problem")
                assert "Not looked at yet" in await page.text(".photo-card")
                assert "have not been looked at" in await page.text("#use-why")
                if left == 3:
                    await page.click("#photos-problem button")
                    await page.wait("document.querySelector('#photos-problem').hidden")
            await page.screenshot("studio-not-looked-at")
            await page.go("Page.reload")
            await page.wait(f"{CARDS}.join() === 'fit'", seconds=30)
            assert await page.evaluate("document.querySelector('#photos-problem').hidden")

    story(told)


def test_portraits_appear_are_cancelled_resumed_and_one_is_saved(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a tiny base with random weights, whose decoder is made to draw the built-in portrait (tests.portrait_child)."""
    for part in ("torch", "diffusers", "transformers"):
        require(part)
    import avatar
    from tests import tiny_bases
    from tests.tiny_adapters import adapter

    adapter(tmp_path / "adapter" / "ip-adapter_sd15.bin", "plain")
    tiny_bases.image_encoder(tmp_path / "adapter" / "image_encoder")
    base = tiny_bases.base(tmp_path, family="sd15")
    assert avatar.main(["import", "ip-adapter", str(tmp_path / "adapter"), "--base", str(base)]) == 0
    monkeypatch.setattr(child, "PROGRAM", ("-m", "tests.portrait_child"))
    monkeypatch.setenv("PORTRAIT_PAUSE", "1.5")
    good = photo(tmp_path, "Eileen.jpg", demo_portrait())
    shown = "document.querySelectorAll('input[name=candidate]').length"

    async def told() -> None:
        async with studio(tmp_path) as (page, _, _url):
            await choose(page, good)
            await page.click("input[name=how][value=new]")
            assert "ip-adapter" in await page.text("#system")
            assert await page.evaluate("document.querySelector('#prompt').placeholder.length > 10")
            await page.click("#persona-consent")
            await page.type("#prompt", "a photo of a person")
            await page.evaluate("document.querySelector('#count').value = '4'")
            await page.click("#make")
            await page.wait(f"{shown} >= 1", seconds=SLOW)
            await page.screenshot("studio-making", whole=True)
            await page.click("#cancel")
            await page.wait(IDLE)
            had = await page.evaluate(shown)
            assert 1 <= had < 4
            await page.click("#make")
            await page.wait(f"{IDLE} && {shown} === 4", seconds=SLOW)
            assert "Choose the portrait" in await page.text("#pick-why")
            await page.click("input[name=candidate]")
            assert "a name" in await page.text("#pick-why")
            await page.type("#persona-name", "Eileen")
            await page.screenshot("studio-candidates", whole=True)
            nodes = (await page.call("Accessibility.getFullAXTree"))["nodes"]
            spoken = ("button", "checkbox", "textbox", "combobox", "link", "radio", "progressbar")
            unnamed = [n["role"]["value"] for n in nodes if not n.get("ignored") and n["role"]["value"] in spoken and not n["name"].get("value")]
            assert unnamed == []
            await page.resize(390, 844)
            assert await page.evaluate(NARROW)
            await page.resize(1440, 900)
            await page.click("#pick")
            await page.wait("!document.querySelector('#saved').hidden", seconds=SLOW)
            assert "generated portrait" in await page.text("#saved-text")
            assert page.errors == []

    story(told)
    made = show("Eileen")["provenance"]
    assert (made["system"]["system"], made["system"]["seed"], made["system"]["prompt"]) == ("ip-adapter", 0, "a photo of a person")
    assert (home / "personas" / "Eileen" / "identity.npz").is_file()
    assert not list((home / "sittings").iterdir()), "nothing is left"


def test_a_server_with_a_token_asks_for_it(tmp_path: Path) -> None:
    async def told() -> None:
        app = make_app(replace(ServerSettings(max_sessions=1), token="secret"))
        async with serving(app) as url, chromium() as browser:
            page = await browser.open(url + "/studio")
            await page.wait("document.querySelector('#photos-problem button')")
            await page.click("#photos-problem button")
            await page.type("#token", "secret")
            await page.click("#token-dialog .primary")
            await page.wait("document.querySelector('#photos-problem').hidden && !document.querySelector('#no-systems').hidden")
            page = await browser.open(url + "/studio#minute")
            await page.wait("!document.querySelector('#card').hidden")
            assert await page.evaluate("document.querySelector('#by-photos').hidden")

    story(told)
