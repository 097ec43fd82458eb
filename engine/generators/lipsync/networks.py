"""The networks of one model and their weights on disk: one .safetensors a network, and a manifest that names model, hashes and origin."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from engine.backends.artifact import sha256
from engine.generators.lipsync.musetalk import MuseTalk
from engine.generators.lipsync.sizes import MODELS, Size, size_of
from engine.generators.lipsync.wav2lip import Wav2Lip
from engine.types import AvatarError

MANIFEST = "weights.json"
"""Of a folder of weights, as every generator's."""
UNTRAINED = "untrained"
COUNTS = ".num_batches_tracked"
"""How many batches a norm has seen: whole numbers that nothing reads, and no file keeps."""


class Networks:
    """Networks of one model, by the name of their file."""

    def __init__(self, size: Size) -> None:
        self.size = size
        self.origin = UNTRAINED  # sha256 of the weights' manifest, once there are any
        self.module: nn.Module = MuseTalk(size) if size.kind == "musetalk" else Wav2Lip(size)  # type: ignore[arg-type]

    @property
    def parts(self) -> dict[str, nn.Module]:
        """Name of a file -> network."""
        return dict(self.module.named_children()) if isinstance(self.module, MuseTalk) else {"wav2lip": self.module}


def build(size: Size, *, seed: int = 0) -> Networks:
    """Networks with seeded random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        networks = Networks(size)
    networks.module.eval().requires_grad_(False)
    return networks


def empty(size: Size) -> Networks:
    """Networks whose parameters have shapes but no values: they cost neither memory nor the time of an initialisation."""
    with torch.device("meta"):
        return Networks(size)


def load(folder: Path) -> Networks:
    """The networks of a folder that `avatar import wav2lip|musetalk` wrote, in the precision of the files. Raises AvatarError for anything else."""
    from safetensors.torch import load_file

    networks, told = _described(folder)
    for name, module in networks.parts.items():
        path = folder / f"{name}.safetensors"
        if path.is_file() and sha256(path) != told["sha256"].get(name):
            raise AvatarError(f"{path} is not the file that its {MANIFEST} names; import the weights again.")
        try:
            # Read, not mapped: a file that is written again must not change what runs.
            counts = {key: torch.zeros((), dtype=torch.int64) for key in module.state_dict() if key.endswith(COUNTS)}
            module.load_state_dict(load_file(path, backend="pread") | counts, assign=True)
        except Exception as error:  # whatever a broken file raises
            raise AvatarError(f"{path} is missing, damaged or of another model than '{told['model']}'; import it again.") from error
    if odd := next((name for name, value in networks.module.named_buffers() if value.is_meta), None):
        raise AvatarError(f"This version of transformers or diffusers keeps '{odd}' beside the weights; install the pinned versions.")
    networks.module.eval().requires_grad_(False)
    return networks


def described(folder: Path) -> Networks:
    """The networks that a folder's manifest names, without values, for what runs without them. Raises AvatarError for anything else."""
    return _described(folder)[0]


def _described(folder: Path) -> tuple[Networks, dict[str, Any]]:
    """(networks without values, content of the folder's manifest)."""
    text, told = _manifest(folder)
    networks = empty(size_of(str(told["model"])))
    networks.origin = hashlib.sha256(text.encode()).hexdigest()
    return networks, told


def _manifest(folder: Path) -> tuple[str, dict[str, Any]]:
    how = "import the published ones first: avatar import wav2lip FILE -o OUT, or avatar import musetalk DIR -o OUT"
    if folder.is_file():
        raise AvatarError(f"{folder} is a file, and weights are a folder of this engine; {how}.")
    try:
        text = (folder / MANIFEST).read_text()
        told = json.loads(text)
        _, _ = dict(told["sha256"]), dict(told["origin"])
        model = told["model"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AvatarError(f"{folder} holds no weights of lips: it has no {MANIFEST} that names their model; {how}.") from error
    if model not in MODELS:
        raise AvatarError(f"The weights in {folder} are for the model '{model}', which this version does not know; {how}.")
    return text, told


__all__ = ["COUNTS", "MANIFEST", "UNTRAINED", "Networks", "build", "described", "empty", "load"]
