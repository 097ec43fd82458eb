"""Photos on their way to a persona: one at a time, cancelled, resumed, saved whole or not at all, and nothing left behind."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from engine import installed
from engine.types import AvatarError
from streaming import child, sittings
from streaming.desk import Unknown
from streaming.settings import Limits, ServerSettings
from streaming.sittings_api import SITTINGS
from tests.caller import SETTINGS, House, ask, house, live, until

STATEMENT = "The person agrees."
SAVE = {"name": "Eve", "consent": STATEMENT, "photo": "1"}
MAKE = {"system": "faceid", "consent": STATEMENT, "prompt": "a person --at home", "candidates": 3}


@dataclass
class Child:
    """What would be run, and what it does: judges, makes portraits one after another, keeps a persona."""

    commands: list[list[str]] = field(default_factory=list)
    held: asyncio.Event | None = None  # work waits for it, with one thing done
    error: str = ""
    ended: int = 0

    async def __call__(self, arguments: Sequence[str], heard: Callable[[dict[str, Any]], None]) -> None:
        """See `streaming.child.run`."""
        self.commands.append(list(arguments))
        try:
            if arguments[1] == "judge":
                self._judge(arguments, heard)
            elif "--only-candidates" in arguments:
                await self._make(arguments, heard)
            else:
                await self._pause()
                self._keep(arguments, heard)
            if self.error:
                raise AvatarError(self.error)
        finally:
            self.ended += 1

    async def _pause(self) -> None:
        if self.held is not None:
            await self.held.wait()

    def _judge(self, arguments: Sequence[str], heard: Callable[[dict[str, Any]], None]) -> None:
        previews = Path(arguments[arguments.index("--previews") + 1])
        previews.mkdir(exist_ok=True)
        for path in map(Path, arguments[2 : arguments.index("--previews")]):
            if path.read_bytes().startswith(b"bad"):
                heard({"event": "refused", "file": path.name, "text": "No face was found."})
                continue
            for end in (".jpg", ".portrait.jpg"):
                (previews / f"{path.name}{end}").write_bytes(b"jpeg")
            heard({"event": "photo", "file": path.name, "mark": 0.5, "wrong": {}, "size": [9, 9], "box": [0, 0, 9, 9], "done": []})

    async def _make(self, arguments: Sequence[str], heard: Callable[[dict[str, Any]], None]) -> None:
        folder = made_in(home_of(arguments) / "candidates")
        count = next(int(word.partition("=")[2]) for word in arguments if word.startswith("--candidates="))
        for seed in range(count):
            if seed:
                await self._pause()
            path = folder / f"seed-{seed}.png"
            path.write_bytes(b"png %d" % seed)
            heard({"event": "progress", "done": seed, "total": count})
            heard({"event": "candidate", "seed": seed, "path": str(path), "mark": 0.4, "warnings": [], "complaint": ""})

    def _keep(self, arguments: Sequence[str], heard: Callable[[dict[str, Any]], None]) -> None:
        place = home_of(arguments) / "personas" / arguments[-1]
        place.mkdir(parents=True)
        (place / "manifest.json").write_text("{}")
        heard({"event": "kept", "name": arguments[-1], "done": ["made brighter"]})


def made_in(folder: Path) -> Path:
    """The folder, made."""
    folder.mkdir(exist_ok=True)
    return folder


def home_of(arguments: Sequence[str]) -> Path:
    """--home of a command."""
    return next(Path(word.partition("=")[2]) for word in arguments if word.startswith("--home="))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Child:
    """In place of the process."""
    made = Child()
    monkeypatch.setattr(child, "run", made)
    return made


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ServerSettings:
    """Everything in a folder of the test's; one system is installed, and one without a base."""
    monkeypatch.setenv("AVATAR_HOME", str(tmp_path))
    for name, base in (("faceid", tmp_path / "sd15"), ("instantid", None)):
        installed.keep(installed.Installed(name, "plus", ("sd15",), False, "a photo of a person", "0" * 64, tmp_path / name, base))
    return replace(SETTINGS, limits=Limits(sittings=2, photos=3, upload_bytes=1000))


async def begin(home: House, *photos: bytes) -> str:
    """A sitting with photos that were looked at -> its address."""
    status, _, made = await ask(home, "POST", "/studio/sittings", json={})
    assert status == 200, made
    at = f"/studio/sittings/{made['id']}"
    for photo in photos:
        assert (await ask(home, "POST", f"{at}/photo?name=a.jpg", data=photo))[0] == 200
    if photos:
        await ask(home, "POST", f"{at}/judge", json={})
        await over(home, at)
    return at


async def state(home: House, at: str) -> Any:
    """What a page sees."""
    return (await ask(home, "GET", at))[2]


async def over(home: House, at: str) -> Any:
    """The same, once the work is done."""
    return await seen(home, at, lambda told: told["job"]["over"])


async def seen(home: House, at: str, what: Callable[[Any], Any]) -> Any:
    """The same, once something is so."""
    async with asyncio.timeout(10):
        while not what(told := await state(home, at)):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return told


async def post(home: House, path: str, **body: Any) -> tuple[int, Any]:
    """A request -> (status, answer)."""
    status, _, answer = await ask(home, "POST", path, json=body)
    return status, answer


def left(folder: Path) -> list[str]:
    """Files of sittings and personas."""
    return sorted(str(path.relative_to(folder)) for part in ("sittings", "personas") for path in (folder / part).rglob("*") if path.is_file())


# -- from photo to persona ------------------------------------------------------------------------------------------------


def test_a_photo_becomes_a_persona_and_nothing_else_stays(settings: ServerSettings, fake: Child, tmp_path: Path) -> None:
    async def story() -> None:
        async with house(settings) as home:
            at = await begin(home, b"good", b"bad")
            told = await state(home, at)
            assert [(photo["key"], photo["name"], photo["state"]) for photo in told["photos"]] == [("1", "a.jpg", "fit"), ("2", "a.jpg", "refused")]
            assert told["photos"][1]["text"] == "No face was found."
            for picture in ("photo-1", "portrait-1"):
                status, headers, body = await ask(home, "GET", f"{at}/picture/{picture}")
                assert (status, headers["Content-Type"], body) == (200, "image/jpeg", "jpeg")
            for picture in ("photo-2", "photo-9", "candidate-0", "photo-../1", "candidate-x"):
                assert (await ask(home, "GET", f"{at}/picture/{picture}"))[0] == 404
            photos = tmp_path / "sittings"
            assert photos.stat().st_mode & 0o077 == 0, "nobody else's business"
            assert (await post(home, f"{at}/save", **SAVE))[0] == 200
            told = await over(home, at)
            assert told["saved"] == {"name": "Eve", "done": ["made brighter"], "generated": False}
            assert f"--consent={STATEMENT}" in fake.commands[-1]
            assert told["photos"] == []
            assert [path for path in left(tmp_path) if not path.endswith(".lock")] == ["personas/Eve/manifest.json"]
            status, answer = await post(home, f"{at}/save", **{**SAVE, "name": "Other"})
            assert (status, "start over" in answer["error"]) == (400, True)
            assert (await ask(home, "POST", f"{at}/photo?name=b", data=b"b"))[0] == 400
        assert left(tmp_path) == ["personas/Eve/manifest.json"]

    live(story)


def test_portraits_are_made_cancelled_resumed_and_one_is_picked(settings: ServerSettings, fake: Child, tmp_path: Path) -> None:
    async def story() -> None:
        async with house(settings) as home:
            (installed.systems_folder() / "other.json").write_text("{")
            _, _, known = await ask(home, "GET", "/studio/systems")
            assert known["trouble"].endswith("is damaged; remove it and run `avatar import other DIR` again."), "and hides no other"
            assert [(one["name"], one["base"], one["prompt"]) for one in known["systems"]] == [("faceid", "sd15", "a photo of a person")]
            at = await begin(home, b"one", b"two", b"bad")
            fake.held = asyncio.Event()
            assert (await post(home, f"{at}/make", **MAKE))[0] == 200
            await seen(home, at, lambda told: told["candidates"])
            status, told = await post(home, f"{at}/cancel")
            assert (status, told["job"]["over"], told["job"]["cancelled"], told["job"]["error"]) == (200, True, True, "")
            assert fake.ended == len(fake.commands), "nothing goes on"
            assert [one["seed"] for one in told["candidates"]] == [0], "what was finished stays"
            fake.held = None
            await post(home, f"{at}/make", **MAKE)
            told = await over(home, at)
            assert [one["seed"] for one in told["candidates"]] == [0, 1, 2]
            assert fake.commands[-1] == fake.commands[-2], "asked again as before, it resumes"
            command = fake.commands[-1]
            assert [Path(word).name for word in command[3:5]] == ["1", "2"], "those that can be used"
            assert {"--system=faceid", "--prompt=a person --at home", "--candidates=3"} <= set(command)
            assert (await ask(home, "GET", f"{at}/picture/candidate-2"))[2] == "png 2"
            assert (await post(home, f"{at}/save", name="Eve", consent=STATEMENT, pick=3))[0] == 400
            assert (await post(home, f"{at}/save", name="Eve", consent=STATEMENT, pick=1))[0] == 200
            assert (await over(home, at))["saved"]["generated"] is True
            assert fake.commands[-1][2:7] == [*command[2:7]]
            assert "--pick=1" in fake.commands[-1]
            assert "--only-candidates" not in fake.commands[-1]
        assert left(tmp_path) == ["personas/Eve/manifest.json"]

    live(story)


def test_another_asking_begins_anew_and_a_photo_taken_away_takes_its_portraits(settings: ServerSettings, fake: Child) -> None:
    async def story() -> None:
        async with house(settings) as home:
            at = await begin(home, b"one", b"two")
            await post(home, f"{at}/make", **MAKE)
            await over(home, at)
            fake.held = asyncio.Event()
            _, told = await post(home, f"{at}/make", **{**MAKE, "prompt": "something else"})
            assert told["candidates"] == []
            assert (await ask(home, "DELETE", f"{at}/photo/1"))[0] == 400, "not while it is looked at"
            fake.held.set()
            assert len((await over(home, at))["candidates"]) == 3
            folder = Path(fake.commands[-1][3]).parent
            assert (await ask(home, "DELETE", f"{at}/photo/1"))[0] == 204
            assert sorted(path.name for path in folder.iterdir()) == ["2"]
            told = await state(home, at)
            assert ([photo["key"] for photo in told["photos"]], told["candidates"]) == (["2"], [])
            assert (await ask(home, "GET", f"{at}/picture/photo-1"))[0] == 404

    live(story)


# -- what is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "word"),
    [
        ("save", {**SAVE, "consent": " \n"}, "consent"),
        ("save", {**SAVE, "name": "../x"}, "name is 1 to"),
        ("save", {**SAVE, "name": ""}, "name is 1 to"),
        ("save", {**SAVE, "name": "demo"}, "comes with the program"),
        ("save", {**SAVE, "name": "Taken"}, "already a persona"),
        ("save", {**SAVE, "photo": "2"}, "that can be used"),
        ("save", {**SAVE, "photo": "9"}, "that can be used"),
        ("save", {"name": "Eve", "consent": STATEMENT}, "that can be used"),
        ("save", {"name": "Eve", "consent": STATEMENT, "pick": 0}, "not there any more"),
        ("save", {**SAVE, "pick": -1}, "whole number"),
        ("make", {**MAKE, "consent": ""}, "consent"),
        ("make", {**MAKE, "system": "instantid"}, "avatar import"),
        ("make", {**MAKE, "system": "--home=/"}, "No identity system"),
        ("make", {**MAKE, "candidates": 0}, "1 to 8"),
        ("make", {**MAKE, "candidates": 9}, "from 0 to 8"),
        ("make", {**MAKE, "prompt": "x" * 1001}, "shorten"),
    ],
)
def test_what_cannot_be_is_one_sentence(path: str, body: dict[str, Any], word: str, settings: ServerSettings, fake: Child, tmp_path: Path) -> None:
    (tmp_path / "personas" / "Taken").mkdir(parents=True)

    async def story() -> None:
        async with house(settings) as home:
            at = await begin(home, b"good", b"bad")
            status, answer = await post(home, f"{at}/{path}", **body)
            assert status == 400, answer
            assert word in answer["error"]
            assert len(fake.commands) == 1, "nothing was begun"

    live(story)


def test_photos_are_bounded(settings: ServerSettings, fake: Child, tmp_path: Path) -> None:
    async def story() -> None:
        async with house(settings) as home:
            at = await begin(home)
            for data, status, word in ((b"", 400, "empty"), (b"x" * 1001, 413, "too large"), (b"a", 200, ""), (b"a", 400, "here already")):
                answered, _, body = await ask(home, "POST", f"{at}/photo?name=..%2f..%2fx", data=data)
                assert (answered, word in str(body)) == (status, True), body
            for data in (b"b", b"c"):
                assert (await ask(home, "POST", f"{at}/photo?name=b", data=data))[0] == 200
            status, _, body = await ask(home, "POST", f"{at}/photo?name=d", data=b"d")
            assert (status, "3 photos are the most" in body["error"]) == (400, True)
            assert [path.rpartition("/")[2] for path in left(tmp_path)] == [".lock", "1", "2", "3"], "no name of theirs"

    live(story)


def test_one_person_at_a_time_is_worked_for(settings: ServerSettings, fake: Child) -> None:
    async def story() -> None:
        async with house(settings) as home:
            mine, other = await begin(home, b"mine"), await begin(home, b"other")
            status, _, full = await ask(home, "POST", "/studio/sittings", json={})
            assert (status, "2 people" in full["error"]) == (503, True)
            fake.held = asyncio.Event()
            assert (await post(home, f"{mine}/save", **SAVE))[0] == 200
            status, answer = await post(home, f"{other}/make", **MAKE)
            assert (status, "somebody else's photos" in answer["error"]) == (503, True)
            status, answer = await post(home, f"{mine}/make", **MAKE)
            assert (status, "Wait until" in answer["error"]) == (400, True)
            assert (await ask(home, "POST", f"{mine}/photo?name=b", data=b"b"))[0] == 400
            fake.held.set()
            await over(home, mine)
            assert (await post(home, f"{other}/make", **MAKE))[0] == 200
            await begin(home)  # who is done makes room
            assert (await ask(home, "GET", mine))[0] == 404

    live(story)


def test_a_name_that_was_taken_meanwhile_overwrites_nobody(settings: ServerSettings, fake: Child, tmp_path: Path) -> None:
    async def story() -> None:
        async with house(settings) as home:
            at = await begin(home, b"good")
            fake.held = asyncio.Event()
            await post(home, f"{at}/save", **SAVE)
            (tmp_path / "personas" / "Eve").mkdir(parents=True)
            (tmp_path / "personas" / "Eve" / "manifest.json").write_text("theirs")
            fake.held.set()
            told = await over(home, at)
            assert "already a persona called 'Eve'" in told["job"]["error"]
            assert told["saved"] is None
            assert told["photos"], "another name can be given"
            assert (tmp_path / "personas" / "Eve" / "manifest.json").read_text() == "theirs"
            assert (await post(home, f"{at}/save", **{**SAVE, "name": "Eva"}))[0] == 200
            assert (await over(home, at))["saved"]["name"] == "Eva"

    live(story)


def test_the_sentence_that_work_ended_with_is_told(settings: ServerSettings, fake: Child) -> None:
    async def story() -> None:
        async with house(settings) as home:
            at = await begin(home, b"good")
            fake.error = "The base does not load."
            await post(home, f"{at}/make", **MAKE)
            assert (await over(home, at))["job"]["error"] == "The base does not load."

    live(story)


@pytest.mark.parametrize(("headers", "status"), [({}, 401), ({"Authorization": "Bearer secret", "Origin": "http://elsewhere.example"}, 403)])
def test_strangers_get_nothing(headers: dict[str, str], status: int, settings: ServerSettings, fake: Child) -> None:
    async def story() -> None:
        async with house(replace(settings, token="secret")) as home:
            routes = [("POST", ""), ("GET", "/x"), ("DELETE", "/x"), ("POST", "/x/photo"), ("POST", "/x/save"), ("GET", "/x/picture/photo-1")]
            for method, path in [*((method, f"sittings{path}") for method, path in routes), ("GET", "systems")]:
                assert (await ask(home, method, f"/studio/{path}", headers=headers))[0] == status

    live(story)


# -- nothing is left ------------------------------------------------------------------------------------------------------


def test_starting_over_and_silence_delete_everything(settings: ServerSettings, fake: Child, tmp_path: Path) -> None:
    async def story() -> None:
        async with house(replace(settings, limits=replace(settings.limits, sitting_idle_seconds=0.3))) as home:
            at = await begin(home, b"good")
            fake.held = asyncio.Event()
            await post(home, f"{at}/make", **MAKE)
            assert (await ask(home, "DELETE", at))[0] == 204
            assert fake.ended == len(fake.commands), "its work ends with it"
            assert [path.rpartition("/")[2] for path in left(tmp_path)] == [".lock"]
            assert (await ask(home, "DELETE", at))[0] == 204
            assert (await ask(home, "GET", at))[0] == 404
            fake.held = None
            await begin(home, b"good")
            await until(lambda: not len(home.app[SITTINGS]))
            await until(lambda: [path.rpartition("/")[2] for path in left(tmp_path)] == [".lock"])

    live(story)


def test_a_server_that_ends_takes_work_and_photos_with_it(settings: ServerSettings, fake: Child, tmp_path: Path) -> None:
    async def story() -> None:
        async with house(settings) as home:
            at = await begin(home, b"good")
            fake.held = asyncio.Event()
            await post(home, f"{at}/make", **MAKE)
        assert fake.ended == len(fake.commands)
        assert left(tmp_path) == []

    live(story)


def test_what_a_dead_server_left_goes_before_anybody_comes(settings: ServerSettings, tmp_path: Path) -> None:
    (tmp_path / "sittings" / "dead" / "photos").mkdir(parents=True)
    for name in (".lock", "photos/1"):
        (tmp_path / "sittings" / "dead" / name).touch()

    async def story() -> None:
        async with house(settings):
            assert left(tmp_path) == []

    live(story)


def test_a_photo_that_arrives_after_its_sitting_has_ended_is_not_kept(settings: ServerSettings, tmp_path: Path) -> None:
    async def story() -> None:
        async with house(settings) as home:
            held = home.app[SITTINGS]
            made = await held.start()
            await held.discard(made)
            with pytest.raises(Unknown):
                await held.add(made, "a.jpg", b"late")
            assert [path.rpartition("/")[2] for path in left(tmp_path)] == [".lock"]
            assert not made.folder.exists()

    live(story)


def test_work_that_is_cancelled_before_it_began_holds_up_nobody(settings: ServerSettings, fake: Child) -> None:
    async def story() -> None:
        async with house(settings) as home:
            at, held = await begin(home, b"good"), home.app[SITTINGS]
            made = held.get(at.rpartition("/")[2])
            held.make(made, consent=STATEMENT, system="faceid", prompt="", count=1)
            await held.cancel(made)  # the loop has not turned since
            assert not made.busy

    live(story)


def test_who_cancels_while_the_persona_is_moved_is_told_that_it_is_saved(
    settings: ServerSettings, fake: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    moving, move = asyncio.Event(), sittings._moved

    async def story() -> None:
        loop = asyncio.get_running_loop()

        def slowly(made: Path, home: Path) -> str:
            loop.call_soon_threadsafe(moving.set)
            time.sleep(0.3)
            return move(made, home)

        monkeypatch.setattr(sittings, "_moved", slowly)
        async with house(settings) as home:
            at = await begin(home, b"good")
            await post(home, f"{at}/save", **SAVE)
            await moving.wait()
            status, told = await post(home, f"{at}/cancel")
            assert (status, told["saved"] and told["saved"]["name"]) == (200, "Eve")

    live(story)


def test_what_a_dead_server_left_goes_and_a_living_one_s_stays(settings: ServerSettings, fake: Child, tmp_path: Path) -> None:
    for name in ("dead", "alive"):
        (tmp_path / "sittings" / name).mkdir(parents=True)
        (tmp_path / "sittings" / name / ".lock").touch()

    async def story() -> None:
        with (tmp_path / "sittings" / "alive" / ".lock").open("rb") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            async with house(settings) as home:
                await begin(home, b"good")
                names = {path.name for path in (tmp_path / "sittings").iterdir()}
                assert "alive" in names
                assert "dead" not in names

    live(story)


# -- the process ----------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def program(text: str, folder: Path, patch: pytest.MonkeyPatch) -> AsyncIterator[list[dict[str, Any]]]:
    """A script in the command's place; what it tells."""
    (folder / "program.py").write_text(text)
    patch.setattr(child, "PROGRAM", (str(folder / "program.py"),))
    yield []


def test_events_are_heard_and_what_a_library_prints_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVATAR_TOKEN", "secret")
    text = "import os, sys, json\nprint('loading {')\nprint(json.dumps({'event': 'said', 'text': sys.argv[1:]}))\nprint('[1]')\n"
    text += "print(json.dumps({'event': 'env', 'token': os.environ.get('AVATAR_TOKEN'), 'nice': os.nice(0), 'x': 'y' * 3_000_000}))\n"
    text += "print(json.dumps({'event': 'env', 'token': os.environ.get('AVATAR_TOKEN'), 'nice': os.nice(0)}))"

    async def story() -> None:
        async with program(text, tmp_path, monkeypatch) as heard:
            await child.run(["persona", "--x"], heard.append)
            assert heard == [{"event": "said", "text": ["persona", "--x"]}, {"event": "env", "token": None, "nice": os.nice(0) + child.NICE}]

    live(story)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("import sys\nprint('warning', file=sys.stderr)\nprint('avatar: It cannot be.', file=sys.stderr)\nsys.exit(2)", "^It cannot be.$"),
        ("import os\nos.kill(os.getpid(), 9)", "ended unexpectedly"),
    ],
)
def test_how_it_ended_is_one_sentence(text: str, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with program(text, tmp_path, monkeypatch) as heard:
            with pytest.raises(AvatarError, match=word):
                await child.run([], heard.append)

    live(story)


def test_cancelled_it_is_killed_with_all_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "import json, os, subprocess, sys, time\nother = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
    text += "print(json.dumps({'event': 'pids', 'pids': [os.getpid(), other.pid]}), flush=True)\ntime.sleep(60)"

    async def story() -> None:
        async with program(text, tmp_path, monkeypatch) as heard:
            work = asyncio.create_task(child.run([], heard.append))
            await until(lambda: heard)
            work.cancel()
            with pytest.raises(asyncio.CancelledError):
                await work
            await until(lambda: not any(alive(pid) for pid in heard[0]["pids"]))

    live(story)


def alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_command_ends_when_its_parent_does(tmp_path: Path) -> None:
    """Its standard input is a pipe that only the parent holds."""
    text = "import time\nfrom exporters.portraits.child import Child\nChild().tell('here')\ntime.sleep(60)"

    async def story() -> None:
        pipe = asyncio.subprocess.PIPE
        made = await asyncio.create_subprocess_exec(*(sys.executable, "-c", text), stdin=pipe, stdout=pipe, cwd=child.ROOT)
        assert made.stdout is not None
        assert made.stdin is not None
        assert json.loads(await made.stdout.readline()) == {"event": "said", "text": "here"}
        made.stdin.close()
        async with asyncio.timeout(10):
            assert await made.wait() == 1

    live(story)
