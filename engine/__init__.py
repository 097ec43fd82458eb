"""Camera and sound -> avatar frames. No network, no async, no threads; importing it loads none of the heavy libraries.

from engine import Batch, Session, load, make_persona, render
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from engine.types import AudioChunk, AvatarError, Motion, Output, Signal, VideoFrame

if TYPE_CHECKING:
    from engine.batch import Batch
    from engine.config import Background, OperatorSettings, SessionSettings
    from engine.generators import load
    from engine.offline import render
    from engine.persona import Persona, make_persona
    from engine.session import Session

__all__ = [
    "AudioChunk",
    "AvatarError",
    "Background",
    "Batch",
    "Motion",
    "OperatorSettings",
    "Output",
    "Persona",
    "Session",
    "SessionSettings",
    "Signal",
    "VideoFrame",
    "load",
    "make_persona",
    "render",
]

_HOMES = {
    "Background": "config",
    "Batch": "batch",
    "OperatorSettings": "config",
    "Persona": "persona",
    "Session": "session",
    "SessionSettings": "config",
    "load": "generators",
    "make_persona": "persona",
    "render": "offline",
}


def __getattr__(name: str) -> Any:
    """Public names are loaded when first used, so that `import engine` stays light."""
    if name not in _HOMES:
        raise AttributeError(f"module 'engine' has no attribute '{name}'")
    value = getattr(import_module(f"engine.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
