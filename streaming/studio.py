"""Everything the sessions share: the generator, the threads, the personas, the seats. Admits, keeps and frees sessions."""

from __future__ import annotations

import asyncio
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from engine import built_in
from engine.batch import Batch, warm_up
from engine.built_in import BUILT_IN, DEMO
from engine.config import OperatorSettings, SessionSettings
from engine.driving import dwpose_makers, live_maps
from engine.generators import load
from engine.persona import PORTRAIT, Persona, demo_portrait, list_personas, load_persona, personas_folder, read_portrait
from engine.session import Session
from engine.types import AudioChunk, AvatarError, Drive, Generator, GeneratorSpec, UInt8Array, VideoFrame
from streaming.face import HeldFace
from streaming.live import Live
from streaming.pacing import RATE
from streaming.rtc.encoders import nvenc_works
from streaming.settings import ServerSettings
from streaming.shelf import Room, Shelf
from streaming.tts import Synthesizer, TtsSettings, make_synthesizer
from streaming.web_files import preview_jpeg
from streaming.worker import BODY_NICE, Pool, Stepper

RETRY_AFTER = 10
"""s a refused client is told to wait."""
PREVIEWS = 64
"""Previews kept, about 20 kB each."""
Stamp = tuple[int, int, int]
"""Of a persona's portrait on disk: inode, time of change in ns, bytes."""


class Full(AvatarError):
    """Every seat is taken."""


def _face_driver() -> Any:
    from engine.drivers.face import FaceDriver

    return FaceDriver()


class Studio:
    """Made on the event loop; `start` loads the generator off it, `close` ends every session and thread."""

    def __init__(
        self,
        settings: ServerSettings,
        *,
        generator: Callable[[], Generator] | None = None,
        face: Callable[[], Any] = _face_driver,
        body: Callable[[], Any] | None = None,
        hands: Callable[[], Any] | None = None,
        synthesizer: Synthesizer | None = None,
        persona: Callable[[Generator, str], Persona] | None = None,
    ) -> None:
        """`generator`, `face`, `body`, `hands`, `persona`: makers to use instead of the configured ones, `synthesizer`: likewise (fakes in tests)."""
        self.settings = settings
        self.sessions: dict[str, Live] = {}
        self.started = time.monotonic()
        self.refused = 0
        self.on_ended: Callable[[Live, str], None] = lambda *_: None  # a session died; set by the desk
        self.synthesizer = synthesizer or make_synthesizer(
            TtsSettings(url=settings.tts_url, api_key=settings.tts_key, model=settings.tts_model, voice=settings.tts_voice)
        )
        self._make_generator = generator or (lambda: load(settings.generator, **settings.generator_options))
        beside = dwpose_makers(settings.dwpose)
        self._make_face, self._make_body, self._make_hands = face, body or beside.get("body"), hands or beside.get("hands")
        self._make_persona = persona or self._read_persona
        self._generator: Generator | None = None
        self._first_maps: dict[str, UInt8Array] | None = None  # of a picture, for a generator that is driven by them
        self._ready: asyncio.Task[None] | None = None
        self._steppers: list[Stepper] = []
        self._cores = max(1, min(os.cpu_count() or 1, settings.max_sessions))
        self.pool = Pool("tracker", threads=settings.trackers or self._cores)
        self.bodies = Pool("body", threads=1, nice=BODY_NICE)
        self.executor = ThreadPoolExecutor(4, thread_name_prefix="io")
        self._between: set[Live] = set()  # sessions that are being seated or freed: they hold a place and have nothing to show
        room = Room(settings.limits.personas, settings.limits.personas_bytes)
        self._personas: Shelf[tuple[Stamp | None, Persona]] = Shelf(room, used=lambda name, kept: name == self.first or self.shows(kept[1]))
        self._persona_lock = asyncio.Lock()
        self._previews: OrderedDict[str, tuple[Stamp | None, bytes]] = OrderedDict()

    # -- start and end -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin loading in the background; `ready` waits for it."""
        self._ready = asyncio.create_task(self._load())

    async def ready(self) -> None:
        """Wait until sessions can be opened. Raises what loading raised."""
        assert self._ready is not None
        await asyncio.shield(self._ready)

    async def _load(self) -> None:
        # The drivers' products are small: OpenBLAS would wake its threads for each and let them spin (measured: 0.6 of a core for nothing).
        self._blas = threadpool_limits(1, user_api="blas")
        loop = asyncio.get_running_loop()
        self._generator = await loop.run_in_executor(self.executor, self._make_generator)
        if "maps" in self._generator.spec.needs:
            await loop.run_in_executor(self.executor, self._open_maps, self._generator.spec)
        together = self.settings.accelerator or self._generator.spec.together
        workers = 1 if together else self.settings.workers or self._cores
        rows = -(-self.settings.max_sessions // workers)
        self._steppers = [Stepper(self._generator, rows=rows, together=together, name=f"generator_{k}") for k in range(workers)]
        persona = await self.persona(self.settings.persona)
        await self._warm_up(persona)

    def _open_maps(self, spec: GeneratorSpec) -> None:
        """From here on every face driver brings the condition pictures that a camera does not."""
        from engine.drivers.maps import FaceAndMaps

        maps, face = live_maps(self.settings.maps, size=spec.size), self._make_face
        if maps is None:
            how = " ".join(f"--maps {name}=FILE.onnx" for name in spec.maps)
            what = f"These weights are driven by condition pictures; give a network for each with {how}"
            raise AvatarError(f"{what}, or use `avatar render`, which takes clips of them too.")
        self._make_face = lambda: FaceAndMaps(face(), maps)
        self._first_maps = maps(VideoFrame(demo_portrait(), 0.0))

    async def _warm_up(self, persona: Persona) -> None:
        """Everything once, with the batches that sessions will use, so that compiling and loading do not fall on the first person."""
        for stepper in self._steppers:  # one after another: what one of them traces, the others take
            await asyncio.wrap_future(stepper.call(partial(warm_up, identity=persona.identity, together=stepper.together, maps=self._first_maps)))
        await asyncio.wrap_future(self._steppers[0].call(lambda batch: self._rehearse(batch, persona)))
        # Remembers its answer; asked first by an encoder, it would hold up the event loop.
        await asyncio.get_running_loop().run_in_executor(self.executor, nvenc_works)

    def _rehearse(self, batch: Batch, persona: Persona) -> None:
        """A session as others will be, with its drivers; on the stepper's thread."""
        portrait = demo_portrait()
        with closing(Session(batch, persona, face=self._make_face(), **self._others())) as session:
            for k in range(2):
                session.track_body(VideoFrame(portrait, k / 30))
                if session.wants("hands"):
                    session.track_hands(VideoFrame(portrait, k / 30))
                session.push_video(VideoFrame(portrait, k / 30, k + 1))
            session.push_audio(AudioChunk(np.zeros(RATE // 2, np.float32), RATE, 1.0))

    def make_face(self) -> Any:
        """A face driver of its own, for whoever is not in a session."""
        return self._make_face()

    def _others(self) -> dict[str, Any]:
        """The drivers beside the face's that a session is given; without a maker it makes its own when it needs one."""
        makers = {"body": self._make_body, "hands": self._make_hands}
        return {part: make() for part, make in makers.items() if make is not None}

    @property
    def loaded(self) -> bool:
        """Whether sessions can be opened."""
        return self._ready is not None and self._ready.done() and not self._ready.cancelled() and self._ready.exception() is None

    @property
    def full(self) -> bool:
        """Whether every seat is taken."""
        return len(self.sessions) + len(self._between) >= self.settings.max_sessions

    def load(self) -> dict[str, float]:
        """Busy seconds so far: of each generator thread, of the trackers, of body tracking."""
        steppers = {stepper.name: stepper.busy for stepper in self._steppers}
        return {**steppers, "tracker": self.pool.busy / self.pool.threads, "body": self.bodies.busy}

    async def close(self) -> None:
        """End every session and thread."""
        await asyncio.gather(*(self.end(live) for live in list(self.sessions.values())))
        if self._ready is not None:
            self._ready.cancel()
        loop = asyncio.get_running_loop()
        stops = [stepper.stop for stepper in self._steppers] + [self.pool.stop, self.bodies.stop]
        await asyncio.gather(*(loop.run_in_executor(None, stop) for stop in stops))
        await self.synthesizer.close()
        self.executor.shutdown(wait=False, cancel_futures=True)

    # -- personas ------------------------------------------------------------------------------------------------------

    @property
    def generator(self) -> Generator:
        """The generator; only after `ready`."""
        assert self._generator is not None
        return self._generator

    @property
    def first(self) -> str:
        """The persona of offers that name none."""
        return self.settings.persona or DEMO

    async def persona(self, name: str | None) -> Persona:
        """A persona by name, prepared once and again where it was changed on disk. None: the built-in one. Raises AvatarError."""
        key = name or DEMO
        loop = asyncio.get_running_loop()
        stamp = await loop.run_in_executor(self.executor, self._stamp, key)
        known = self._personas.get(key, renew=True)
        if known is not None and known[0] == stamp:
            return known[1]
        async with self._persona_lock:
            known = self._personas.get(key, renew=True)
            if known is None or known[0] != stamp:
                self._personas.drop(key)
                known = stamp, await loop.run_in_executor(self.executor, self._make_persona, self.generator, key)
                self._personas.put(key, known)  # where there is no room it is made again for the next who asks
            return known[1]

    def _stamp(self, name: str) -> Stamp | None:
        """What tells whether a kept persona is still the one that was read; None for one that is not on disk. `name` may be anything."""
        folder = self.settings.persona_dir or personas_folder()
        if name in BUILT_IN or name not in list_personas(folder=folder):
            return None
        try:
            found = (folder / name / PORTRAIT).stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    async def preview(self, name: str) -> bytes:
        """A persona's portrait as a small JPEG; needs no generator and holds nobody up. Raises AvatarError."""

        def work() -> bytes:
            stamp = self._stamp(name)
            if (kept := self._previews.get(name)) is not None and kept[0] == stamp:
                return kept[1]
            jpeg = preview_jpeg(built_in.portrait(name) if name in BUILT_IN else read_portrait(name, folder=self.settings.persona_dir))
            self._previews[name] = (stamp, jpeg)
            while len(self._previews) > PREVIEWS:
                self._previews.popitem(last=False)
            return jpeg

        return await asyncio.get_running_loop().run_in_executor(self.executor, work)

    def _read_persona(self, generator: Generator, name: str) -> Persona:
        if name in BUILT_IN:
            return built_in.make(generator, name)
        if name not in list_personas(folder=self.settings.persona_dir):
            raise AvatarError(f"There is no persona called '{name}'; GET /personas lists the ones there are.")
        return load_persona(generator, name, folder=self.settings.persona_dir)

    async def persona_names(self) -> list[str]:
        """The built-in persona and the kept ones; the default one first."""
        loop = asyncio.get_running_loop()
        kept = await loop.run_in_executor(self.executor, lambda: list_personas(folder=self.settings.persona_dir))
        return [self.first, *(name for name in dict.fromkeys([*BUILT_IN, *kept]) if name != self.first)]

    # -- sessions ------------------------------------------------------------------------------------------------------

    def shows(self, thing: Persona | UInt8Array | None) -> bool:
        """Whether a session shows this persona, or has this picture behind it."""
        for live in (*self.sessions.values(), *self._between):
            session: Session | None = getattr(live, "session", None)
            if thing is not None and (live.persona is thing or (session is not None and session.settings.background.picture is thing)):
                return True
        return False

    async def open(self, persona: Persona, *, drive: Drive = "camera", echo: bool = False) -> Live:
        """A new session. Raises Full where every seat is taken."""
        if self.full:
            self.refused += 1
            raise Full(f"All {self.settings.max_sessions} places are taken; try again in {RETRY_AFTER} seconds.")
        seated = [*self.sessions.values(), *self._between]
        stepper = min(self._steppers, key=lambda s: sum(live.stepper is s for live in seated))
        live = Live(persona, studio=self, stepper=stepper, echo=echo)
        live.on_failed = lambda reason: self.on_ended(live, reason)
        self._between.add(live)
        try:
            live.session = await asyncio.wrap_future(stepper.call(lambda batch: self._seat(batch, live, drive)))
        except BaseException:
            live.close()
            stepper.leave(live)  # who gave up waiting may have been seated all the same
            raise
        finally:
            self._between.discard(live)
        self.sessions[live.id] = live
        live.outlet.start()
        return live

    def _seat(self, batch: Batch, live: Live, drive: Drive) -> Session:
        """On the stepper's thread."""
        session = Session(
            batch,
            live.persona,
            settings=SessionSettings(drive=drive),
            operator=OperatorSettings(badge=self.settings.badge, carry_strip=self.settings.carry_strip),
            face=HeldFace(self._make_face, every=lambda: live.session.settings.track_every),
            **self._others(),
        )
        live.session = session
        live.stepper.seat(live)
        return session

    async def end(self, live: Live) -> None:
        """Free everything a session holds; harmless twice."""
        self.sessions.pop(live.id, None)
        self._between.add(live)
        live.close()
        try:
            await asyncio.get_running_loop().run_in_executor(self.executor, live.wait_idle)
            await asyncio.wrap_future(live.stepper.leave(live))
        finally:
            self._between.discard(live)
