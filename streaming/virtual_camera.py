"""The avatar as a webcam of this machine, through pyvirtualcam (an optional extra). A sink; sending happens on a thread of its own."""

from __future__ import annotations

import importlib.util
import sys
import threading
import time
from typing import Any

import numpy as np

from engine.types import AvatarError, FloatArray, UInt8Array
from streaming.pacing import Picture

SIZE = (720, 1280)
"""(H, W) px: what meeting programs expect; the avatar is fitted in, with bars."""
FPS = 30.0
LAG_AFTER = 90
"""Pictures after which the lag is told: 3 s, then it has settled."""
MISSING = "The virtual camera needs pyvirtualcam (and on Linux v4l2loopback): pip install 'avatar-engine[camera]', or leave --virtual-camera out."


def check_virtual_camera() -> None:
    """Open the device and let it go again. Raises AvatarError where the extra or the device is missing."""
    open_camera().close()


def open_camera() -> Any:
    """pyvirtualcam's camera. Raises AvatarError where the extra or such a device is missing."""
    if importlib.util.find_spec("pyvirtualcam") is None:
        raise AvatarError(MISSING)
    import pyvirtualcam

    try:
        return pyvirtualcam.Camera(width=SIZE[1], height=SIZE[0], fps=FPS)
    except RuntimeError as error:
        raise AvatarError(f"The virtual camera cannot be opened ({error}); on Linux load v4l2loopback, on Windows and macOS install OBS.") from error


class VirtualCamera:
    """Shows one session. `camera`: what `open_camera` gives."""

    def __init__(self, camera: Any) -> None:
        self._camera = camera
        self._slot: Picture | None = None
        self._there = threading.Event()
        self._closed = False
        self._lags: list[float] = []
        self._thread = threading.Thread(target=self._run, name="virtual-camera", daemon=True)
        self._thread.start()

    def picture(self, picture: Picture, *, now: float) -> None:
        """See tracks.Sink."""
        self._slot = picture
        self._there.set()

    def sound(self, block: FloatArray, *, time: float) -> None:
        """See tracks.Sink; meeting programs take the microphone itself, delayed by the lag that is printed."""

    def close(self) -> None:
        """Give the device back."""
        self._closed = True
        self._there.set()
        self._thread.join(2.0)

    def _run(self) -> None:
        with self._camera as camera:
            while not self._closed:
                self._there.wait()
                self._there.clear()
                picture, self._slot = self._slot, None
                if picture is None or picture.rgb is None:
                    continue
                try:
                    camera.send(fit(picture.rgb))
                except Exception as error:  # the device was unplugged or taken away; the sessions go on
                    print(f"The virtual camera has stopped ({error}).", file=sys.stderr, flush=True)
                    return
                self._tell(time.monotonic() - picture.motion_time)

    def _tell(self, lag: float) -> None:
        if len(self._lags) < LAG_AFTER:
            self._lags.append(lag)
            if len(self._lags) == LAG_AFTER:
                milliseconds = 1000 * float(np.median(self._lags))
                name = f"Virtual camera '{self._camera.device}'"
                print(f"{name}: delay your microphone by {milliseconds:.0f} ms (OBS: Sync Offset of the audio).", file=sys.stderr, flush=True)


def fit(rgb: UInt8Array) -> UInt8Array:
    """[H, W, 3] -> [720, 1280, 3], whole and centred."""
    import cv2

    height, width = rgb.shape[:2]
    scale = min(SIZE[0] / height, SIZE[1] / width)
    small = cv2.resize(rgb, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_LINEAR)
    out = np.zeros((*SIZE, 3), np.uint8)
    top, left = (SIZE[0] - small.shape[0]) // 2, (SIZE[1] - small.shape[1]) // 2
    out[top : top + small.shape[0], left : left + small.shape[1]] = small
    return out
