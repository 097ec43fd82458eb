"""A .safetensors file written tensor by tensor, so that a network of gigabytes never lies in memory, whatever precision it is kept in."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from engine.types import AvatarError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

ALIGNED = 8
"""Bytes that the header is filled up to."""
PIECE = 1 << 24
"""Values that are converted at a time."""


def write(path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> str:
    """Floating tensors, mapped ones too, as `dtype` -> sha256 of the file. Raises AvatarError where it cannot be written."""
    import torch

    named = {torch.float32: "F32", torch.float16: "F16"}[dtype]
    header: dict[str, object] = {}
    end = 0
    for key, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * dtype.itemsize
        header[key] = {"dtype": named, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % ALIGNED)
    made = hashlib.sha256()
    try:
        with path.open("wb") as file:
            for head in (struct.pack("<Q", len(text)), text):
                file.write(head)
                made.update(head)
            for tensor in tensors.values():
                for piece in tensor.reshape(-1).split(PIECE):
                    data = piece.to(dtype).contiguous().numpy().data
                    file.write(data)
                    made.update(data)
    except OSError as error:
        raise AvatarError(f"{path.name} cannot be written ({error.strerror}); check the room on the disk.") from error
    return made.hexdigest()


__all__ = ["write"]
