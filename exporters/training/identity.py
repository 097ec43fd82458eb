"""How like the person a made face is, as a recogniser sees it that the user has: something to learn from, and a figure.

The recogniser never learns. A file of ONNX must give what ONNX Runtime makes of it, or it is refused.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.recogniser import GIVE, MIDDLE, SIDE, Recogniser, check_vectors, digest
from engine.types import AvatarError
from exporters import files
from exporters.training import iresnet
from exporters.training.onnx_torch import Graph

TOLERANCE = 1e-4
"""Largest difference from ONNX Runtime, or between one face and many at once, of the largest number of a vector."""
SEEN = 0.9
"""Share of the aligned square that must lie within the picture: whoever is cut off more is not judged."""
PROBES, SEED = 2, 0


class FaceNetwork(nn.Module):
    """Aligned faces [N, 3, 112, 112] -1..1 RGB -> vectors [N, D], with gradients to the faces."""

    def __init__(self, network: nn.Module, *, normalises: bool = False, together: bool = True) -> None:
        """`normalises`: the network itself, from 0..255; `together`: it takes many faces at once."""
        super().__init__()
        self.network, self.normalises, self.together = network, normalises, together

    def forward(self, faces: Tensor) -> Tensor:
        """As the class."""
        x = (faces + 1.0) * MIDDLE if self.normalises else faces
        made = self.network(x) if self.together else torch.cat([self.network(one) for one in x.split(1)])
        return made.flatten(1) if isinstance(made, Tensor) and made.ndim > 1 else made


def load(path: Path) -> FaceNetwork:
    """From ONNX, TorchScript, or weights of InsightFace's iresnet. Raises AvatarError, in words, for whatever is no recogniser."""
    digest(path)  # whether it can be read at all
    faces = np.random.default_rng(SEED).integers(0, 256, (PROBES, SIDE, SIDE, 3)).astype(np.uint8)
    wanted: Tensor | None = None
    if _scripted(path):
        made = FaceNetwork(_script(path))
    elif path.suffix in files.SUFFIXES:
        made = FaceNetwork(iresnet.build(path, files.read(path)))
    else:
        runtime = Recogniser(path)
        made = FaceNetwork(Graph(path), normalises=runtime.normalises, together=runtime.together)
        wanted = torch.from_numpy(np.concatenate([runtime(face[None]) for face in faces]))
    made.eval().requires_grad_(False)
    _check(path, made, torch.from_numpy(faces).permute(0, 3, 1, 2).float() / MIDDLE - 1.0, wanted)
    return made


def _check(path: Path, network: FaceNetwork, faces: Tensor, wanted: Tensor | None) -> None:
    """Raise AvatarError where it does not give each face a vector of its own, the wanted one where it is known, and a gradient."""
    try:
        alone = torch.cat([network(face[None]) for face in faces])
        check_vectors(path, tuple(alone.shape), len(faces))
        network.together = network.together and _same_together(network, faces, alone)
        given = faces.clone().requires_grad_(True)
        functional.normalize(network(given)).sum().backward()
    except AvatarError:
        raise
    except Exception as error:  # whatever a network raises that takes something else
        said = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise AvatarError(f"'{path}' cannot be given a face of {SIDE} x {SIDE} px ({said}); {GIVE}.") from error
    if not torch.isfinite(alone).all() or given.grad is None or not torch.isfinite(given.grad).all() or not given.grad.any():
        raise AvatarError(f"'{path}' gives no gradient that could be learnt from; {GIVE}.")
    if wanted is not None and (off := _apart(alone, wanted)) > TOLERANCE:
        raise AvatarError(f"'{path}' gives other vectors here than with ONNX Runtime (by {off:.1e}); give it in fp32, or as TorchScript.")


def _same_together(network: FaceNetwork, faces: Tensor, alone: Tensor) -> bool:
    try:
        return _apart(network(faces), alone) <= TOLERANCE
    except Exception:  # whatever a file raises that was made for one face at a time
        return False


def _apart(some: Tensor, wanted: Tensor) -> float:
    """Largest difference, of the largest number."""
    return float("inf") if some.shape != wanted.shape else float((some - wanted).abs().max() / wanted.abs().max().clamp_min(1e-12))


def _scripted(path: Path) -> bool:
    """Whether the file is TorchScript: an archive with code in it."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def _script(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that TorchScript is no longer developed, which such files do not change
        try:
            return torch.jit.load(str(path), map_location="cpu")
        except Exception as error:  # whatever a damaged file raises
            raise AvatarError(f"'{path}' is damaged, or of another version of TorchScript; download or export it again.") from error


# -- what is learnt from ------------------------------------------------------------------------------------------------


def places(fits: Tensor, size: tuple[int, int], *, fine: int = 1) -> Tensor:
    """Fits [N, 2, 3] (`recogniser.fit`) and the pictures' size (H, W) px -> grid [N, 112 * fine, 112 * fine, 2] as `grid_sample` takes it."""
    steps = (torch.arange(SIDE * fine, device=fits.device, dtype=fits.dtype) + 0.5) / fine - 0.5
    down, across = torch.meshgrid(steps, steps, indexing="ij")
    at = fits[:, :, :2] @ torch.stack([across.reshape(-1), down.reshape(-1)]) + fits[:, :, 2:]
    sides = torch.tensor([[size[1]], [size[0]]], device=fits.device, dtype=fits.dtype)
    return ((2 * at + 1) / sides - 1).transpose(1, 2).reshape(len(fits), *down.shape, 2)


def whole(fits: Tensor, size: tuple[int, int]) -> Tensor:
    """[N] bool: whose face lies in the picture; False where there is none (NaN)."""
    within = (places(fits, size).abs() <= 1.0).all(-1).flatten(1).float().mean(1)
    return within >= SEEN


def align(pictures: Tensor, fits: Tensor) -> Tensor:
    """[N, 3, H, W] -1..1 -> aligned faces [N, 3, 112, 112], grey where the picture ends; several samples a pixel where the picture is finer."""
    size = (pictures.shape[2], pictures.shape[3])
    fine = max(1, min(size) // SIDE)
    grid = places(fits, size, fine=fine).to(pictures)
    return functional.avg_pool2d(functional.grid_sample(pictures, grid, mode="bilinear", padding_mode="zeros", align_corners=False), fine)


class IdentityLoss:
    """1 - cosine between the vectors of a made and of the real face, both aligned by the real one's landmarks."""

    def __init__(self, path: Path) -> None:
        """Raises AvatarError for a file that is no recogniser."""
        self.network, self.device = load(path), torch.device("cpu")

    def to(self, device: Any) -> Self:
        """On a device."""
        self.network.to(device)
        self.device = torch.device(device)
        return self

    def vectors(self, pictures: Tensor, fits: Tensor) -> Tensor:
        """[N, 3, H, W] -1..1 and [N, 2, 3] -> [N, D]; in fp32 whatever the precision around it is."""
        with torch.autocast(pictures.device.type, enabled=False):
            found: Tensor = self.network(align(pictures.float(), fits))
        return found

    def compared(self, made: Sequence[Tensor], truth: Tensor, fits: Tensor) -> list[Tensor]:
        """Several makings [N, 3, H, W] -1..1 of one truth -> of each the cosines [M] of the M faces that are whole, with gradients to the made."""
        seen = whole(fits, (truth.shape[2], truth.shape[3]))
        if not seen.any():
            return [truth.new_zeros(0) for _ in made]
        with torch.no_grad():
            wanted = self.vectors(truth[seen], fits[seen])
        return [functional.cosine_similarity(self.vectors(one[seen], fits[seen]), wanted) for one in made]

    def __call__(self, made: Tensor, truth: Tensor, fits: Tensor) -> Tensor:
        """[N, 3, H, W] -1..1 each -> the loss: the mean over the faces that are whole, 0 where none is."""
        (cosines,) = self.compared([made], truth, fits)
        return (1.0 - cosines).mean() if len(cosines) else made.new_zeros(())


__all__ = ["FaceNetwork", "IdentityLoss", "align", "load", "places", "whole"]
