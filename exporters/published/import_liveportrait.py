"""LivePortrait's published weights become a folder of this engine: every key by a table, every shape checked, spectral norm folded in."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from engine.types import AvatarError
from exporters.files import find, fresh_folder, read, sha256
from exporters.published.import_checkpoint import KINDS, Precision, Source, check_room, match, report, write
from exporters.published.keys import Table, same

try:
    from torch import Tensor

    from engine.generators.reenact.networks import MANIFEST, empty, kept, write_manifest
    from engine.generators.reenact.presets import LIVEPORTRAIT, Preset
    from engine.generators.reenact.released import FILES, checked
except ImportError as error:
    raise AvatarError(f"Importing weights needs PyTorch ({error}); pip install 'avatar-engine[torch]'.") from error

SYSTEM = "LivePortrait"
BASE, RETARGETING = "base_models", "retargeting_models"
ABOVE = ("", "liveportrait", "pretrained_weights/liveportrait")
"""Where these folders lie in whatever somebody takes for the published folder."""
ONNX_ABOVE = ("", "liveportrait_onnx", "checkpoints/liveportrait_onnx")
"""The same for published ONNX files."""
COUNTS = ".num_batches_tracked"
"""How many batches a norm has seen: whole numbers that nothing reads."""
SPECTRAL = ("_orig", "_u", "_v")
"""What a weight with PyTorch's old spectral norm is kept as: itself, and the two vectors that give its largest singular value."""


@dataclass(frozen=True, slots=True)
class Part:
    """One published network: its file, its name in that file where it holds several, and how its keys become ours."""

    table: Table
    inside: str = ""


def detector(key: str) -> str:
    """The motion extractor's keys without the name of its only module."""
    return key.removeprefix("detector.")


def _table(stem: str, part: str, *, folder: str, ours: Callable[[str], str] = same) -> Table:
    return Table((stem,), part, ours, folder=folder, system=SYSTEM)


PARTS = (
    Part(_table("appearance_feature_extractor", "appearance", folder=BASE)),
    Part(_table("motion_extractor", "motion", folder=BASE, ours=detector)),
    Part(_table("warping_module", "warping", folder=BASE)),
    Part(_table("spade_generator", "decoder", folder=BASE)),
    Part(_table("stitching_retargeting_module", "stitching", folder=RETARGETING), "retarget_shoulder"),
    Part(_table("stitching_retargeting_module", "lip", folder=RETARGETING), "retarget_mouth"),
    Part(_table("stitching_retargeting_module", "eye", folder=RETARGETING), "retarget_eye"),
)
"""Every network that is needed. Our modules have the published names, so the tables say where a key goes by saying that it stays."""


def import_liveportrait(
    source: Path, out: Path, *, precision: Precision = "fp32", made: Preset = LIVEPORTRAIT, tell: Callable[[str], None] = lambda line: None
) -> None:
    """The published folder `source` (with base_models and retargeting_models) -> weights of `made` in a new folder `out`.

    A folder of published ONNX files (`released.FILES`) is taken as it is. Everything is checked before anything is written. Raises
    AvatarError, one sentence, for whatever does not fit.
    """
    if precision not in KINDS:
        raise AvatarError(f"Weights are kept as one of: {', '.join(KINDS)}; not as '{precision}'.")
    if (released := _onnx(source)) is not None:
        _take(released, out, tell)
        return
    parts = empty(made).parts()
    sources = [(part, _source(source, part)) for part in PARTS]
    matches = []
    for part, each in sources:
        wanted = {key: tuple(value.shape) for key, value in kept(parts[part.table.part]).items()}
        held = plain(read(each.path, part=part.inside), each.path, tell)
        found = match(part.table, held, wanted)
        report(each, found, held, tell)
        matches.append(found)
    with fresh_folder(out) as folder:
        count = sum(value.numel() for module in parts.values() for value in kept(module).values())
        check_room(folder, count * KINDS[precision].itemsize)
        hashes = {}
        for (part, each), found in zip(sources, matches, strict=True):
            name = part.table.part
            hashes[name] = write(folder / f"{name}.safetensors", [(each, found)], precision, open_file=partial(_opened, part))
            tell(f"{name}: written")
        tell("Hashing what was read ...")
        files = {f"{each.table.folder}/{each.path.name}": each.path for _, each in sources}
        write_manifest(folder, made, hashes, {"system": SYSTEM, "precision": precision} | {name: sha256(path) for name, path in files.items()})
        for name in hashes:  # the library makes files that only their owner may read
            shutil.copymode(folder / MANIFEST, folder / f"{name}.safetensors")
    tell(f"{count / 1e6:,.1f} million values in {precision}.")


def _onnx(source: Path) -> list[Path] | None:
    """The published ONNX files of a folder, or None where it has none of them and is to be read otherwise."""
    folders = [source / above for above in ONNX_ABOVE]
    folder = next((each for each in folders if any((each / f"{stem}.onnx").is_file() for stem in FILES)), None)
    if folder is None:
        return None
    files = [folder / f"{stem}.onnx" for stem in FILES]
    if missing := [path.name for path in files if not path.is_file()]:
        raise AvatarError(f"{folder} has not all of {SYSTEM}'s ONNX files: {', '.join(missing)} is missing; download it.")
    return files


def _take(files: list[Path], out: Path, tell: Callable[[str], None]) -> None:
    """Published ONNX files, each looked at and copied."""
    for path in files:
        spec, _ = checked(path)
        takes = ", ".join(f"{name} {list(shape)}" for name, (shape, _) in spec.inputs.items())
        tell(f"{path.name}: takes {takes}; gives {', '.join(spec.outputs)}")
    with fresh_folder(out) as folder:
        check_room(folder, sum(path.stat().st_size for path in files))
        for path in files:
            shutil.copyfile(path, folder / path.name)
        hashes = {path.stem: sha256(folder / path.name) for path in files}
        write_manifest(folder, LIVEPORTRAIT, hashes, {"system": f"{SYSTEM}, as published in ONNX"}, released=True)
    tell(f"{len(files)} files are taken as they are; ONNX Runtime runs them on the CPU.")


def plain(held: Mapping[str, Tensor], path: Path, tell: Callable[[str], None] = lambda line: None) -> dict[str, Tensor]:
    """A file's tensors without counts of batches, and with spectral norm folded: weight = weight_orig / (u · weight_orig v).

    Raises AvatarError for a weight of which a part is missing.
    """
    made = {key: tensor for key, tensor in held.items() if not key.endswith(COUNTS)}
    if dropped := len(held) - len(made):
        tell(f"  {dropped} left out, counts of batches, which nothing reads")
    stems = sorted({key.removesuffix(end) for key in made for end in SPECTRAL if key.endswith(f".weight{end}")})
    for stem in stems:
        weight, u, v = (made.pop(stem + end, None) for end in SPECTRAL)
        if weight is None or u is None or v is None or u.shape != weight.shape[:1] or v.numel() != weight[:1].numel():
            raise AvatarError(f"{path} has a part of '{stem}' with spectral norm, and not the rest of it; download it again.")
        size = u.float() @ weight.float().flatten(1) @ v.float()
        made[stem] = (weight.float() / size).to(weight.dtype)
    if stems:
        tell(f"  {len(stems)} weights with spectral norm, folded")
    return made


def _source(source: Path, part: Part) -> Source:
    """A network's file, in the folder as it was published or near it."""
    if not source.is_dir():
        raise AvatarError(f"{source} is no folder; give the one that {SYSTEM}'s files were downloaded to.")
    table = part.table
    path = find([*_folders(source, table.folder), source], table.stems)
    if path is None:
        raise AvatarError(
            f"{source} has no {table.folder}/{table.stems[0]}.pth; download it, and give the folder that holds {BASE} and {RETARGETING}."
        )
    name = f"{table.folder}/{path.name}" + (f": {part.inside}" if part.inside else "")
    return Source(table, path, name)


def _folders(source: Path, folder: str) -> Iterator[Path]:
    yield from (source / above / folder for above in ABOVE)


def _opened(part: Part, path: Path) -> dict[str, Tensor]:
    return plain(read(path, part=part.inside), path)


__all__ = ["PARTS", "SYSTEM", "import_liveportrait", "plain"]
