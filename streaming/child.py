"""The work that needs whole models, in a process of its own: live sessions keep their real time, and its memory goes when it ends.

`avatar ... --child` tells what happens as JSON lines; `exporters.portraits.child` has them all.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from engine.types import AvatarError

NICE = 10
"""How much a live session comes before it."""
SECRETS = ("AVATAR_TOKEN", "AVATAR_TTS_KEY", "AVATAR_CHAT_KEY")
"""Of the server's environment, which it must not have."""
LINE_BYTES = 1 << 20
ROOT = Path(__file__).parent.parent
"""Where `avatar.py` lies."""
PROGRAM = ("-m", "avatar")
"""What the interpreter is given before the command's arguments."""
CLAIM = "avatar: "
"""Before the sentence that a command ends with."""


async def run(arguments: Sequence[str], heard: Callable[[dict[str, Any]], None]) -> None:
    """`avatar ARGUMENTS` to its end; `heard` gets every event. Cancelled, it is killed with all it started.

    Raises AvatarError with the sentence that it ended with.
    """
    child = await _start(arguments)
    assert child.stdout is not None
    assert child.stderr is not None
    said = asyncio.create_task(_last_words(child.stderr))
    try:
        while line := await _line(child.stdout):
            with suppress(ValueError):  # what a library printed
                event = json.loads(line)
                if isinstance(event, dict) and "event" in event:
                    heard(event)
        status = await child.wait()
        if status:
            raise AvatarError(await said or f"The work ended unexpectedly (status {status}); the server's machine may be out of memory.")
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        await child.wait()
        said.cancel()
        await asyncio.wait({said})


async def _start(arguments: Sequence[str]) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {name: value for name, value in os.environ.items() if name not in SECRETS}
    env |= {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    try:
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", *PROGRAM, *arguments),
            stdin=pipe,  # its end is ours: a child whose server died ends by itself
            stdout=pipe,
            stderr=pipe,
            env=env,
            limit=LINE_BYTES,
            process_group=0,
        )
    except OSError as error:
        raise AvatarError(f"The server cannot start the work ({error.strerror or error}); try again in a moment.") from error
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, child.pid, NICE)  # now, while it has one thread: the others take it from that
    return child


async def _line(stream: asyncio.StreamReader) -> bytes:
    try:
        return await stream.readline()
    except ValueError:  # longer than LINE_BYTES: none of ours
        return b"\n"


async def _last_words(stream: asyncio.StreamReader) -> str:
    """The last sentence for a person, of all that is printed there."""
    last = ""
    while line := (await _line(stream)).decode(errors="replace"):
        if line.startswith(CLAIM):
            last = line.removeprefix(CLAIM).strip()
    return last


__all__ = ["run"]
