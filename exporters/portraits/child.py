"""`--child`: what a person would read, as one JSON object a line for the program that runs this one.

    {"event": "said", "text": ...}                                    a line for a person
    {"event": "progress", "done": 7, "total": 120}                    steps
    {"event": "photo", "file": ..., "mark": ..., "box": ..., ...}     `avatar persona judge`: a photo that can be driven
    {"event": "refused", "file": ..., "text": ...}                    ... and one that cannot
    {"event": "candidate", "seed": ..., "path": ..., ...}             a portrait that has appeared
    {"event": "kept", "name": ..., "done": [...]}                     the persona is there

Errors go where they always do: a sentence on standard error, and an exit status.
"""

from __future__ import annotations

import json
import os
import threading
from typing import Any


class Child:
    """Made once, at the beginning: from then on this program ends when its standard input does, that is, with whoever runs it."""

    def __init__(self) -> None:
        threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()

    def event(self, kind: str, **facts: Any) -> None:
        """One line."""
        print(json.dumps({"event": kind, **facts}, ensure_ascii=False), flush=True)

    def tell(self, line: str) -> None:
        """A line for a person."""
        self.event("said", text=line)

    def progress(self, done: int, total: int) -> None:
        """See `exporters.portraits.command.Progress`."""
        self.event("progress", done=done, total=total)


def _end_with_parent() -> None:
    # Not sys.stdin: a thread that holds its lock makes the interpreter's own end fail.
    while os.read(0, 4096):
        pass
    os._exit(1)


__all__ = ["Child"]
