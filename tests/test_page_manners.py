"""The page and its viewers where something is in the way: connections, cameras, servers, tokens, storage, narrow windows."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from engine.persona import demo_portrait
from streaming.api import DESK, PEERS
from streaming.server import make_app
from streaming.settings import ServerSettings
from tests.pages import EARS, LIVE, Desk, given_desk, go_live, hear, serving, until, view_address  # noqa: F401

pytestmark = pytest.mark.chromium


def test_a_viewer_sees_the_picture_alone(desk: Desk) -> None:
    async def story() -> None:
        page = await desk.open()
        await go_live(page)
        assert desk.browser
        viewer = await desk.browser.open(await view_address(page), width=640, height=640)
        await viewer.wait("document.querySelector('#avatar').getVideoPlaybackQuality().totalVideoFrames > 15")
        assert await viewer.text("body") == ""
        assert await viewer.evaluate("getComputedStyle(document.body).backgroundColor") == "rgba(0, 0, 0, 0)"
        assert (await viewer.grab("avatar"))[0][0].shape == (await page.grab("avatar"))[0][0].shape
        await viewer.screenshot("view")
        await page.click("#start")
        await viewer.wait("document.querySelector('#words').innerText", seconds=10)
        await viewer.screenshot("view-waiting")
        assert page.errors == []
        assert [error for error in viewer.errors if "404" not in error] == []

    desk.run(story())


PEERS_KEPT = """const Peer = RTCPeerConnection;
window.peers = [];
RTCPeerConnection = class extends Peer { constructor(...given) { super(...given); window.peers.push(this) } };"""
"""Ahead of the page's scripts: every connection it makes, in `peers`."""


def test_a_hidden_viewer_stays_connected(desk: Desk) -> None:
    """In a hidden tab no frame is displayed; that is no reason to connect again and again."""

    async def story() -> None:
        page = await desk.open()
        await go_live(page)
        assert desk.browser
        viewer = await desk.browser.open(await view_address(page), width=320, height=320, before=PEERS_KEPT)
        await viewer.wait("document.querySelector('#avatar').videoWidth")
        await desk.browser.call("Target.createTarget", url="about:blank", browserContextId=viewer.context)
        await viewer.wait("document.visibilityState === 'hidden'")
        await asyncio.sleep(11)
        assert await viewer.evaluate("[peers.length, peers[0].connectionState]") == [1, "connected"]
        await page.click("#start")

    desk.run(story(), seconds=90)


SLOW_FIRST = """let late = 0;
const ask = fetch;
window.fetch = async (path, how) => {
  const answer = await ask(path, how);
  if (String(path).startsWith('PATH') && how?.method === 'POST' && !late++) {
    window.slow = true;
    await new Promise((resolve) => (window.letGo = resolve));
  }
  return answer;
};"""
"""Ahead of the page's scripts: the first answer from PATH waits, with `slow` set, until letGo()."""
LOSE = "Object.defineProperty(peers[0], 'connectionState', { value: 'failed' }), peers[0].dispatchEvent(new Event('connectionstatechange'))"


def test_an_overtaken_viewer_frees_its_place(desk: Desk) -> None:
    async def story() -> None:
        page = await desk.open()
        await go_live(page)
        address = await view_address(page)
        assert desk.browser
        viewer = await desk.browser.open(address, width=320, height=320, before=PEERS_KEPT + SLOW_FIRST.replace("PATH", "/whep"))
        await viewer.wait("window.slow")
        await viewer.evaluate(LOSE)
        await viewer.wait("document.querySelector('#avatar').videoWidth")
        (broadcast,) = desk.app[DESK].broadcasts.values()
        assert len(broadcast.viewers) == 2
        await viewer.evaluate("letGo()")
        await until(lambda: len(broadcast.viewers) == 1, seconds=3)
        await asyncio.sleep(1)
        assert await viewer.evaluate("peers[1].connectionState") == "connected", "the one that watches keeps its place"
        await viewer.go("Page.navigate", url="about:blank")
        await until(lambda: not broadcast.viewers, seconds=3)
        await page.click("#start")

    desk.run(story())


AUTOPLAY_FORBIDDEN = """let touched = false;
for (const type of ['keydown', 'mousedown']) addEventListener(type, (event) => (touched ||= event.isTrusted), true);
const play = HTMLMediaElement.prototype.play;
HTMLMediaElement.prototype.play = function () {
  return this.muted || touched ? play.call(this) : Promise.reject(new DOMException('no', 'NotAllowedError'));
};"""


def test_a_silent_viewer_says_how_to_hear(desk: Desk) -> None:
    async def story() -> None:
        page = await desk.open()
        await go_live(page)
        address = await view_address(page)
        assert desk.browser
        quiet = await desk.browser.open(address.replace("?", "?quiet&"), width=320, height=320, before=AUTOPLAY_FORBIDDEN)
        viewer = await desk.browser.open(address, width=640, height=640, before=AUTOPLAY_FORBIDDEN)
        await viewer.wait("document.querySelector('#avatar').videoWidth && !document.querySelector('#words').hidden")
        assert "press a key" in await viewer.text("#words")
        await viewer.screenshot("view-silent")
        await viewer.press("a")
        await viewer.wait("!document.querySelector('#avatar').muted && document.querySelector('#words').hidden")
        assert not await viewer.evaluate("document.querySelector('#avatar').paused")
        await quiet.wait("document.querySelector('#avatar').muted && document.querySelector('#avatar').videoWidth")
        assert await quiet.text("body") == ""
        await page.click("#start")

    desk.run(story())


REFUSING = """window.asked = [];
const ask = fetch;
window.fetch = async (path, how) => {
  if (!String(path).startsWith('/whep') || how?.method !== 'POST') return ask(path, how);
  asked.push(performance.now());
  return new Response('{}', { status: STATUS, headers: { 'Content-Type': 'application/json', 'Retry-After': '3' } });
};"""


def test_a_viewer_waits_as_long_as_it_is_told(desk: Desk) -> None:
    async def story() -> list[float]:
        assert desk.browser
        viewer = await desk.browser.open(desk.url + "/view?sessionid=x", before=REFUSING.replace("STATUS", "503"))
        await viewer.wait("asked.length > 2")
        return list(await viewer.evaluate("asked"))

    first, second, third = desk.run(story())
    assert min(second - first, third - second) > 2900


def test_a_lost_connection_comes_back(desk: Desk) -> None:
    async def story() -> None:
        page = await desk.open()
        await go_live(page)
        (peer,) = desk.app[PEERS].values()
        await peer._pc.close()
        await page.wait("document.querySelector('#stage').dataset.state === 'lost'", seconds=8)
        await page.screenshot("lost")
        await page.wait("document.querySelector('#stage').dataset.state === 'live' && document.querySelector('#card').hidden", seconds=10)
        assert page.errors == []
        await page.click("#start")

    desk.run(story())


STORELESS = """for (const name of ['localStorage', 'sessionStorage'])
  Object.defineProperty(window, name, { get() { throw new DOMException('no', 'SecurityError') } });"""
BLIND = "delete HTMLVideoElement.prototype.requestVideoFrameCallback;"


def test_a_page_without_storage_or_frame_times_works(desk: Desk) -> None:
    async def story() -> None:
        page = await desk.open(before=STORELESS + BLIND)
        await page.click("#performance summary")
        await go_live(page)
        await page.click("input[value=microphone]")
        await page.wait("document.querySelector('#drops').innerText !== 'Nothing yet.'")
        assert [await page.text(name) for name in ("#n-fps", "#n-p50", "#n-p95")] == ["–"] * 3
        assert "does not tell" in await page.text("#glance")
        assert await page.evaluate("document.querySelector('#chip-rate').hidden")
        await page.screenshot("blind")
        assert desk.browser
        address = await view_address(page)
        viewer = await desk.browser.open(address, width=640, height=640, before=STORELESS + BLIND)
        await viewer.wait("document.querySelector('#avatar').style.visibility === 'visible'")
        await page.click("#start")
        assert page.errors == viewer.errors == []

    desk.run(story())


@pytest.mark.parametrize("path", ["/", "/view?sessionid=x"])
def test_a_page_that_cannot_start_says_so(desk: Desk, path: str) -> None:
    async def story() -> None:
        assert desk.browser
        page = await desk.browser.open(desk.url + path, before="window.URLSearchParams = () => { throw new Error('out of order') }")
        await page.wait("!document.querySelector('#not-started').hidden")
        assert "could not start" in await page.text("#not-started")
        await page.screenshot(f"not-started-{'page' if path == '/' else 'view'}")
        page = await desk.browser.open("about:blank")
        await page.call("Network.enable")
        await page.call("Network.setBlockedURLs", urls=["*/link.js"])  # and where a part of it does not come at all
        await page.go("Page.navigate", url=desk.url + path)
        await page.wait("document.querySelector('#not-started:not([hidden])')")

    desk.run(story())


def test_a_full_server_says_so(desk: Desk) -> None:
    async def story() -> None:
        first = await desk.open()
        await go_live(first)
        page = await desk.open()
        await page.click("#start")
        await page.wait("document.querySelector('#stage').dataset.state === 'failed'")
        assert "full" in await page.text("#card-title")
        assert "seconds" in await page.text("#card-text")
        await page.screenshot("full")
        await first.click("#start")
        await asyncio.sleep(0.5)
        await page.click("#card-action")
        await page.wait("document.querySelector('#stage').dataset.state === 'live'")
        await page.click("#start")
        assert [error for error in page.errors if "503" not in error] == []

    desk.run(story())


def test_an_answer_that_comes_too_late_frees_its_seat(desk: Desk) -> None:
    """Stopped and started again while the server was still answering: its one place is not taken by somebody who has gone."""

    async def story() -> None:
        page = await desk.open(before=SLOW_FIRST.replace("PATH", "/offer"))
        await page.click("#start")
        await page.wait("window.slow")
        (first,) = desk.app[DESK].studio.sessions
        await page.click("#start")
        await page.wait("document.querySelector('#stage').dataset.state === 'ended'")
        await page.click("#start")
        await asyncio.sleep(0.5)
        await page.evaluate("letGo()")
        await page.wait(LIVE)
        assert list(desk.app[DESK].studio.sessions) != [first]
        await page.click("#start")
        await until(lambda: not desk.app[DESK].studio.sessions)
        assert page.errors == []

    desk.run(story())


def test_the_neutral_is_confirmed_by_the_server_alone(desk: Desk) -> None:
    async def story() -> None:
        page = await desk.open(before=EARS)
        await go_live(page)
        await page.evaluate("deafTo.push('state', 'notice')")
        hint = "#hint"
        await hear(page, type="state", face="seen", neutral="searching")
        assert "learns your neutral" in await page.text(hint)
        await page.screenshot("neutral-searching")
        await page.press("n")
        assert "Hold still" in await page.text(hint)
        await hear(page, type="state", face="lost", neutral="searching")
        assert "cannot see your face" in await page.text(hint)
        assert "press Set neutral again" in await page.text(hint)
        assert await page.text("#notices") == "", "no success is claimed"
        await page.screenshot("neutral-no-face")
        await hear(page, type="state", face="seen", neutral="set")
        assert await page.text(hint) == ""
        await page.press("n")
        assert "Hold still" in await page.text(hint)
        await hear(page, type="notice", level="info", text="Your neutral face is set.")
        assert await page.text(hint) == ""
        assert "is set" in await page.text("#notices")
        await page.press("n")
        await page.wait("document.querySelector('#hint').hidden", seconds=6)  # where nobody answers it does not stand for ever
        await page.click("#start")
        assert page.errors == []

    desk.run(story())


def test_viewers_get_a_link_that_only_lets_them_watch(desk: Desk) -> None:
    async def story() -> None:
        page = await desk.open(before=EARS, path="/#token=nobody-asked-for-this")
        await go_live(page)
        links = "[document.querySelector('#view-url').value, document.querySelector('#view-open').href, document.querySelector('#whep-url').value]"
        await page.wait(f"{links}.every(Boolean)")
        (live,) = desk.app[DESK].studio.sessions.values()
        name = getattr(live, "view_id", live.id)
        view, whep = f"{desk.url}/view?sessionid={name}", f"{desk.url}/whep?sessionid={name}"
        assert await page.evaluate(links) == [view, view, whep]
        await hear(page, type="hello", sessionid=live.id, view="only-to-watch")
        await page.wait(f"{links}.every((link) => link.endsWith('sessionid=only-to-watch'))")
        await page.click("#start")
        assert page.errors == []

    desk.run(story())


def test_errors_stay_until_they_are_dismissed(desk: Desk) -> None:
    async def story() -> None:
        page = await desk.open(before=EARS)
        await page.click("input[value=text]")
        await go_live(page)
        await page.evaluate("deafTo.push('notice')")
        await hear(page, type="notice", level="error", text="The first thing went wrong.")
        await hear(page, type="notice", level="error", text="The second thing went wrong.")
        for number in range(4):
            await hear(page, type="notice", level="info", text=f"By the way, {number}.")
        assert (await page.text("#notices")).count("By the way") == 3
        await page.screenshot("errors-stay")
        await asyncio.sleep(6.5)
        await page.wait("document.querySelectorAll('.notice').length === 2")
        await page.evaluate("document.querySelector('.side').lastElementChild.scrollIntoView()")
        await page.evaluate("[...document.querySelectorAll('.side :is(a, input, button)')].filter((one) => one.checkVisibility()).at(-1).focus()")
        await page.press("Tab")
        assert await page.evaluate("document.activeElement === document.querySelector('.notice button')"), "the keyboard gets there"
        await page.press("Enter")
        assert "first" not in await page.text("#notices")
        assert await page.evaluate("document.activeElement === document.querySelector('.notice button')"), "and goes on at the next one"
        await page.press("Escape")
        assert await page.text("#notices") == ""
        await page.click("#start")
        assert page.errors == []

    desk.run(story(), seconds=90)


def test_a_new_server_is_met_with_a_new_clock(desk: Desk) -> None:
    """A server that was started anew counts its seconds from elsewhere; samples of the old one would be wrong by hours."""

    async def story() -> None:
        page = await desk.open(before=EARS)
        await page.click("#performance summary")
        await go_live(page)
        await page.wait("parseFloat(document.querySelector('#n-p50').innerText) > 0")
        (live,) = desk.app[DESK].studio.sessions.values()
        await page.evaluate("deafTo.push('pong', 'frames', 'hello')")
        await hear(page, type="hello", sessionid=live.id)
        await page.wait("document.querySelector('#n-p50').innerText === '–'", seconds=3)
        await page.evaluate("deafTo.length = 0")
        await page.wait("parseFloat(document.querySelector('#n-p50').innerText) > 0")
        await page.click("#start")

    desk.run(story())


def test_drops_are_told_in_words(desk: Desk) -> None:
    """Of every cause that the server counts, there and in what it brings together from elsewhere."""
    folder = Path(__file__).parent.parent / "streaming"
    counted = {cause for file in folder.rglob("*.py") for cause in re.findall(r"drop\(\"(\w+)\"", file.read_text())}
    assert {"slot", "record_limit", "viewer_encoder"} <= counted
    received = {f"{what}_{why}" for what in ("camera", "mic") for why in ("gaps", "withheld", "decoder", "unread")}
    causes = sorted(counted | received | {"link", "mic", "mic_late", "window"})
    slow = "Making 4 pictures takes 0.94 s here, and they last 0.27 s."

    async def story() -> str:
        page = await desk.open(before=EARS)
        await page.click("#performance summary")
        await go_live(page)
        await page.evaluate("deafTo.push('stats')")
        await hear(page, type="stats", drops=dict.fromkeys(causes, 5))
        await page.wait("document.querySelector('#drops').innerText.includes('(5)')", seconds=3)
        await page.screenshot("drops")
        told = await page.text("#drops")
        await hear(page, type="stats", overrun=slow)
        assert await page.text("#overrun") == slow
        await hear(page, type="stats", overrun="")
        assert await page.evaluate("document.querySelector('#overrun').hidden")
        await page.click("#start")
        return told

    told = desk.run(story())
    assert told.count("(5)") == len(causes)
    assert "no word" not in told


def test_the_keyboard_goes_down_a_narrow_page(desk: Desk) -> None:
    """What Tab reaches later does not stand higher up."""

    async def story() -> list[float]:
        page = await desk.open(width=390, height=844)
        panels = "[...document.querySelectorAll('.stage-frame, .performance, .panel:not(.performance)')]"
        return list(await page.evaluate(f"{panels}.map((one) => one.getBoundingClientRect().top + scrollY)"))

    tops = desk.run(story())
    assert tops == sorted(tops)


DENIED = "navigator.mediaDevices.getUserMedia = async () => { throw new DOMException('no', '%s') }"


@pytest.mark.parametrize(
    ("name", "before", "title", "advice"),
    [
        ("denied", DENIED % "NotAllowedError", "not allowed", "Allow"),
        ("missing", DENIED % "NotFoundError", "no camera", "Plug"),
        ("busy", DENIED % "NotReadableError", "busy", "Close the other program"),
        ("insecure", "Object.defineProperty(navigator, 'mediaDevices', {value: undefined})", "closed here", "https"),
    ],
)
def test_a_camera_that_does_not_open_is_explained(desk: Desk, name: str, before: str, title: str, advice: str) -> None:
    async def story() -> None:
        page = await desk.open(before=before)
        await page.click("#start")
        await page.wait("document.querySelector('#stage').dataset.state === 'failed'")
        assert title in await page.text("#card-title")
        assert advice in await page.text("#card-text")
        assert page.errors == []
        await page.screenshot(f"camera-{name}")

    desk.run(story())


def test_a_picture_needs_consent_and_a_face(desk: Desk) -> None:
    blank = desk.folder / "blank.png"
    cv2.imwrite(str(blank), np.full((300, 300, 3), 127, np.uint8))
    good = desk.folder / "good.jpg"
    cv2.imwrite(str(good), np.ascontiguousarray(demo_portrait()[..., ::-1]))

    async def story() -> None:
        page = await desk.open()
        await page.choose_file("#portrait-file", blank)
        assert await page.evaluate("document.querySelector('#portrait-use').disabled")
        await page.click("#consent")
        await page.click("#portrait-use")
        await page.wait("!document.querySelector('#portrait-problem').hidden")
        assert "face" in await page.text("#portrait-problem")
        await page.screenshot("no-face")
        await page.click("#portrait-dialog [data-close]")
        await page.choose_file("#portrait-file", good)
        await page.click("#consent")
        await page.screenshot("consent")
        await page.click("#portrait-use")
        await page.wait("!document.querySelector('#portrait-dialog').open")
        await go_live(page)
        await page.click("#gallery input[value=demo]")  # another portrait while live, though the server has one place only
        await page.wait("document.querySelector('#stage').dataset.state !== 'live'")
        await page.wait("document.querySelector('#stage').dataset.state === 'live' && document.querySelector('#card').hidden")
        await page.click("#start")
        assert [error for error in page.errors if "400" not in error] == []

    desk.run(story())


def test_a_phone_and_a_keyboard_are_enough(desk: Desk) -> None:
    async def story() -> None:
        page = await desk.open(width=360, height=740)
        await page.screenshot("phone-idle", whole=True)
        assert await page.evaluate("document.documentElement.scrollWidth") <= 360
        await page.press("s")
        await page.wait("document.querySelector('#stage').dataset.state === 'live' && document.querySelector('#card').hidden")
        await asyncio.sleep(1.0)
        await page.screenshot("phone-live", whole=True)
        assert await page.evaluate("document.documentElement.scrollWidth") <= 360
        await page.press("?")
        await page.wait("document.querySelector('#help-dialog').open")
        await page.screenshot("phone-help")
        await page.press("Escape")
        await page.press("m")
        assert await page.evaluate("document.querySelector('#mic-mute').getAttribute('aria-pressed')") == "true"
        await page.press("s")
        await page.wait("document.querySelector('#stage').dataset.state === 'ended'")
        assert page.errors == []

    desk.run(story())


def test_a_token_is_asked_for(desk: Desk) -> None:
    async def story() -> None:
        app = make_app(ServerSettings(max_sessions=1, token="open sesame"))
        async with serving(app) as url:
            assert desk.browser
            page = await desk.browser.open(url)
            await page.wait("!document.querySelector('#card').hidden")
            assert "token" in await page.text("#card-title")
            await page.screenshot("token")
            await page.click("#card-action")
            await page.type("#token", "open sesame")
            await page.press("Enter")
            await page.wait("document.querySelector('#gallery input:checked')")

    desk.run(story())


def test_every_control_has_a_name(desk: Desk) -> None:
    """What a screen reader says of each control, from the browser's own accessibility tree."""

    async def story() -> list[str]:
        page = await desk.open()
        nodes = (await page.call("Accessibility.getFullAXTree"))["nodes"]
        spoken = ("button", "checkbox", "switch", "radio", "textbox", "combobox", "link", "slider")
        return [
            node["role"]["value"] for node in nodes if not node.get("ignored") and node["role"]["value"] in spoken and not node["name"].get("value")
        ]

    assert desk.run(story()) == []


def test_the_page_asks_nobody_else() -> None:
    """No address but the server's own in anything the page is made of."""
    folder = Path(__file__).parent.parent / "streaming" / "web"
    for file in folder.iterdir():
        foreign = [word for word in file.read_text().replace("http://www.w3.org/2000/svg", "").split() if "http://" in word or "https://" in word]
        assert all(word.startswith("https://") and word.rstrip(".,") == "https://" for word in foreign), f"{file.name}: {foreign}"
