"""Keep a native library's start-up chatter off a person's terminal.

MediaPipe's C++ side writes to file descriptor 2 whatever the environment says (GLOG_minloglevel and TF_CPP_MIN_LOG_LEVEL do nothing
in 0.10.21), so the descriptor is turned aside while its graphs start. Lines that are not known noise are written back afterwards.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import threading
from collections.abc import Iterator

KNOWN_NOISE = (
    b"absl::InitializeLog",
    b"Created TensorFlow Lite XNNPACK delegate",
    b"inference_feedback_manager.cc",
    b"landmark_projection_calculator.cc",
    b"gl_context",
)
_lock = threading.RLock()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide KNOWN_NOISE on file descriptor 2 inside the block; anything else written there appears when it ends.

    The descriptor belongs to the whole process, so blocks of several threads run one after the other.
    """
    with _lock, tempfile.TemporaryFile() as aside:
        try:
            stderr = os.dup(2)
        except OSError:  # a process started without a stderr has nothing to hide
            yield
            return
        if sys.stderr is not None:
            sys.stderr.flush()
        os.dup2(aside.fileno(), 2)
        try:
            yield
        finally:
            if sys.stderr is not None:
                sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            aside.seek(0)
            for line in aside:
                if not any(noise in line for noise in KNOWN_NOISE):
                    os.write(2, line)
