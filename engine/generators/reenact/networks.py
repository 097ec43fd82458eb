"""All networks of one preset, and their weights on disk."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from engine.backends.artifact import sha256
from engine.generators.reenact import sampling
from engine.generators.reenact.blocks import SLOPE, Down, Hourglass, Modulated, Residual3d, Same
from engine.generators.reenact.motion import Extractor
from engine.generators.reenact.presets import KEYPOINTS, Preset, preset
from engine.generators.reenact.sampling import Form, Shifts, identity_grid, sampled
from engine.types import AvatarError

MANIFEST = "weights.json"
"""Beside the .safetensors files: which preset they are for and where they come from."""
SYSTEM = "reenact"
"""In the manifest: whose presets these are."""
UNTRAINED = "untrained"
RELEASE = "onnx"
"""In the manifest of a folder that holds published ONNX files instead of networks."""
VARIANCE = 0.01
"""Of the bumps that mark keypoints in the volume, whose sides are 2."""


class Appearance(nn.Module):
    """What the portrait looks like, as a volume."""

    def __init__(self, made: Preset) -> None:
        super().__init__()
        c, self._shape = made.channels, made.volume
        self.first = Same(3, c)
        self.down_blocks = nn.ModuleList([Down(c, 2 * c), Down(2 * c, 4 * c)])
        self.second = nn.Conv2d(4 * c, made.volume[0] * made.volume[1], 1)
        self.resblocks_3d = nn.Sequential()
        for i in range(made.residuals):
            self.resblocks_3d.add_module(f"3dr{i}", Residual3d(made.volume[0]))

    def forward(self, picture: Tensor) -> Tensor:
        """[N, 3, side, side] 0..1 -> [N, C, D, cells, cells]."""
        x = self.first(picture)
        for down in self.down_blocks:
            x = down(x)
        x = self.second(x)
        return self.resblocks_3d(x.reshape(x.shape[0], *self._shape, *x.shape[2:]))


class DenseMotion(nn.Module):
    """Where every cell of the volume comes from, and how much of what is there is seen.

    The published network looks at the volume moved by each keypoint and by none, and mixes these motions cell by cell. Since a keypoint
    moves the whole grid, and the mixing shares sum to 1, their mixture is the identity grid and the mixture of the shifts.
    """

    def __init__(self, made: Preset) -> None:
        super().__init__()
        channels, depth = made.volume
        copies = KEYPOINTS + 1
        self.compress = nn.Conv3d(channels, made.compressed, 1)
        self.norm = nn.BatchNorm3d(made.compressed)
        self.hourglass = Hourglass(copies * (made.compressed + 1), made.hourglass, levels=made.levels, widest=made.widest)
        self.mask = nn.Conv3d(self.hourglass.width, copies, 7, padding=3)
        self.occlusion = nn.Conv2d(self.hourglass.width * depth, 1, 7, padding=3)
        self.shifts = Shifts((depth, made.cells, made.cells))
        self.register_buffer("grid", identity_grid(depth, made.cells, made.cells), persistent=False)

    def forward(self, volume: Tensor, source: Tensor, driven: Tensor) -> tuple[Tensor, Tensor]:
        """Volume [N, C, D, h, w], keypoints [N, 21, 3] -> (grid [N, D, h, w, 3], fp32; shares seen [N, 1, h, w])."""
        n, _, depth, height, width = volume.shape
        seen = functional.relu(self.norm(self.compress(volume)))
        moved = source - driven
        moved = torch.cat([torch.zeros_like(moved[:, :1]), moved], 1)
        looks = self.shifts(seen, moved)
        marks = self.shifts.bumps(driven, VARIANCE) - self.shifts.bumps(source, VARIANCE)
        marks = torch.cat([torch.zeros_like(marks[:, :1]), marks], 1).to(looks.dtype)
        asked = torch.cat([marks[:, :, None], looks], 2).reshape(n, -1, depth, height, width)
        answer = self.hourglass(asked)
        shares = self.mask(answer).float().softmax(1)
        mixed = torch.einsum("nkdhw,nkc->ndhwc", shares, moved)
        return self.grid + mixed, torch.sigmoid(self.occlusion(answer.reshape(n, -1, height, width)))


class Warping(nn.Module):
    """The portrait's volume moved to the driven keypoints, flattened to features."""

    def __init__(self, made: Preset) -> None:
        super().__init__()
        self.dense_motion_network = DenseMotion(made)
        self.third = Same(made.volume[0] * made.volume[1], made.features, leaky=True)
        self.fourth = nn.Conv2d(made.features, made.features, 1)
        self.form: Form = "native"

    def forward(self, volume: Tensor, source: Tensor, driven: Tensor) -> Tensor:
        """Volume [N, C, D, h, w], keypoints [N, 21, 3] fp32 -> [N, F, h, w]."""
        grid, seen = self.dense_motion_network(volume, source, driven)
        # In fp32 whatever the rest is: half precisions cannot tell places a fraction of a cell apart.
        moved = sampled(volume.float(), grid, form=self.form).to(volume.dtype)
        return self.fourth(self.third(moved.flatten(1, 2))) * seen


class Decoder(nn.Module):
    """Features -> picture, twice doubled and once more by unfolding channels."""

    def __init__(self, made: Preset) -> None:
        super().__init__()
        told, wide = made.features, 2 * made.features
        how = {"told": told, "shared": made.shared}
        self.fc = nn.Conv2d(told, wide, 3, padding=1)
        for i in range(made.middle):
            self.add_module(f"G_middle_{i}", Modulated(wide, wide, **how))
        self.up_0, self.up_1 = Modulated(wide, told, **how), Modulated(told, made.painted, **how)
        self.conv_img = nn.Sequential(nn.Conv2d(made.painted, 12, 3, padding=1), nn.PixelShuffle(2))
        self._middle = made.middle

    def forward(self, features: Tensor) -> Tensor:
        """[N, F, h, w] -> [N, 3, 8h, 8w] 0..1."""
        x = self.fc(features)
        for i in range(self._middle):
            x = self.get_submodule(f"G_middle_{i}")(x, features)
        for block in (self.up_0, self.up_1):
            x = block(functional.interpolate(x, scale_factor=2.0, mode="nearest"), features)
        return torch.sigmoid(self.conv_img(functional.leaky_relu(x, SLOPE)))


class Perceptron(nn.Module):
    """A few linear layers with ReLUs between."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for a, b in zip(widths, widths[1:], strict=False):
            layers += [nn.Linear(a, b), nn.ReLU()]
        self.mlp = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """[N, A] -> [N, B]."""
        return self.mlp(x)


class Networks(nn.Module):
    """Appearance extractor, motion extractor, warping, decoder, stitching, and retargeting of lips and eyes."""

    def __init__(self, made: Preset) -> None:
        super().__init__()
        flat = 3 * KEYPOINTS
        self.preset = made
        self.appearance, self.motion = Appearance(made), Extractor(made)
        self.warping, self.decoder = Warping(made), Decoder(made)
        self.stitching = Perceptron((2 * flat, *made.stitching, flat + 2))
        self.lip = Perceptron((flat + 2, *made.lip, flat))
        self.eye = Perceptron((flat + 3, *made.eye, flat))
        self.origin = UNTRAINED  # sha256 of the weights' manifest, once there are any

    def parts(self) -> dict[str, nn.Module]:
        """Every network by the name of its file."""
        return dict(self.named_children())

    def sampled_as(self, form: Form) -> Networks:
        """Itself, with volumes looked up in that form."""
        sampling.check(form)
        self.warping.form = form
        return self


def build(made: Preset, *, seed: int = 0) -> Networks:
    """Networks with seeded random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        networks = Networks(made)
    networks.eval().requires_grad_(False)
    return networks


def empty(made: Preset) -> Networks:
    """Networks whose parameters have shapes but no values: they cost neither memory nor the time of an initialisation."""
    with torch.device("meta"):
        return Networks(made)


def save(networks: Networks, folder: Path, *, origin: dict[str, str]) -> None:
    """One .safetensors a network, and the manifest last: a folder without one is not whole."""
    folder.mkdir(parents=True, exist_ok=True)
    hashes = {}
    for name, module in networks.parts().items():
        path = folder / f"{name}.safetensors"
        save_file({key: value.contiguous() for key, value in kept(module).items()}, path)
        hashes[name] = sha256(path)
    write_manifest(folder, networks.preset, hashes, origin)


def kept(module: nn.Module) -> dict[str, Tensor]:
    """What a file holds of a network: all that counts, not how many batches a norm has seen."""
    return {key: value for key, value in module.state_dict().items() if not key.endswith(".num_batches_tracked")}


def write_manifest(folder: Path, made: Preset, hashes: dict[str, str], origin: dict[str, str], *, released: bool = False) -> None:
    """See MANIFEST. `released`: the files are published ONNX ones."""
    manifest: dict[str, Any] = {"system": SYSTEM, "preset": made.name, "sha256": hashes, "origin": origin}
    manifest |= {"format": RELEASE} if released else {}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


def load(folder: Path) -> Networks:
    """The networks of a folder that `save` or an importer wrote, in the precision of the files. Raises AvatarError for anything else."""
    networks, manifest = _described(folder)
    hashes = dict(manifest["sha256"])
    for part, module in networks.parts().items():
        path = folder / f"{part}.safetensors"
        if path.is_file() and sha256(path) != hashes.get(part):
            raise AvatarError(f"{path} is not the file that its {MANIFEST} names; import the weights again.")
        try:
            # Read, not mapped: a file that is written again must not change what runs.
            held = load_file(path, backend="pread")
            counts = {key: torch.zeros((), dtype=torch.int64) for key in module.state_dict() if key.endswith(".num_batches_tracked")}
            module.load_state_dict(held | counts, assign=True)
        except Exception as error:  # whatever a broken file raises
            raise AvatarError(f"{path} is missing, damaged or of another preset than '{networks.preset.name}'; import it again.") from error
    networks.eval().requires_grad_(False)
    return networks


def described(folder: Path) -> Networks:
    """The networks that a folder's manifest names, without values, for what runs without them. Raises AvatarError for anything else."""
    return _described(folder)[0]


def _described(folder: Path) -> tuple[Networks, dict[str, Any]]:
    """(networks without values, content of the folder's manifest)."""
    text, manifest = _manifest(folder)
    networks = empty(preset(str(manifest["preset"])))
    networks.origin = hashlib.sha256(text.encode()).hexdigest()
    return networks, manifest


def release(folder: Path) -> str | None:
    """sha256 of the manifest of a folder of published ONNX files; None where it holds networks. Raises AvatarError for anything else."""
    text, manifest = _manifest(folder)
    if manifest.get("format") != RELEASE:
        return None
    for name, digest in dict(manifest["sha256"]).items():
        path = folder / f"{name}.onnx"
        if not path.is_file() or sha256(path) != digest:
            raise AvatarError(f"{path} is missing, or not the file that its {MANIFEST} names; import the files again.")
    return hashlib.sha256(text.encode()).hexdigest()


def _manifest(folder: Path) -> tuple[str, dict[str, Any]]:
    """(text, content) of a folder's manifest."""
    try:
        text = (folder / MANIFEST).read_text()
        manifest: dict[str, Any] = json.loads(text)
        known = manifest["preset"], dict(manifest["sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AvatarError(f"{folder} holds no weights of this engine: it has no readable {MANIFEST}; import them first.") from error
    if manifest.get("system") != SYSTEM:
        raise AvatarError(f"The weights in {folder} ('{known[0]}') are another generator's; choose that one with --generator, or other weights.")
    return text, manifest


__all__ = ["MANIFEST", "UNTRAINED", "Networks", "build", "described", "empty", "kept", "load", "release", "save", "write_manifest"]
