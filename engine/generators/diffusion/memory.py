"""Memory that is not enough: one sentence that says what to do, and nothing of the attempt kept alive."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from engine.types import AvatarError

WORDS = ("out of memory", "can't allocate memory", "cublas_status_alloc_failed")
"""In what PyTorch and CUDA say where they have no kind of error for it."""
WAYS = ("fewer sessions (--max-sessions)", "a smaller size")
T = TypeVar("T")


def exhausted(error: BaseException | None) -> bool:
    """Whether memory ran out in what led to this error: the end of a capture that failed hides the first one behind its own."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            return True
        if isinstance(error, RuntimeError) and any(words in str(error).lower() for words in WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False


def within_memory(what: str, call: Callable[[], T], *, device: Any, precision: str, ways: tuple[str, ...] = WAYS) -> T:
    """`call()`. Where memory runs out it raises AvatarError: that there is not enough to do `what`, and the `ways` to need less."""
    try:
        return call()
    except Exception as error:
        if not exhausted(error):
            raise
    # Outside of the handler: an error that names the first as its cause would keep the tensors of all its frames, and with them the memory.
    where = "GPU" if device.type == "cuda" else "machine"
    ways += ("--precision fp16",) * (precision == "fp32" and device.type == "cuda")
    raise AvatarError(f"The memory of this {where} is not enough to {what}; use {', '.join(ways[:-1])} or {ways[-1]}.")


__all__ = ["exhausted", "within_memory"]
