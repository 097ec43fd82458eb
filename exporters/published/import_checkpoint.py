"""Published weights become a folder of this engine: every key by a table, every shape checked, nothing missing and nothing left over."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from engine.types import AvatarError
from exporters.files import absent, find, fresh_folder, read, read_config, sha256
from exporters.published import keys
from exporters.published.keys import Drop, Table
from exporters.published.layouts import LAYOUTS, WEIGHTS, Layout, variants

try:
    import torch
    from safetensors.torch import save_file
    from torch import Tensor

    from engine.generators.diffusion.autoencoder import Tiny
    from engine.generators.diffusion.networks import MANIFEST, RECOGNISER, empty
    from engine.generators.diffusion.presets import PRESETS, Preset
    from engine.generators.diffusion.temporal import sinusoids
except ImportError as error:
    raise AvatarError(f"Importing weights needs PyTorch and diffusers ({error}); pip install 'avatar-engine[torch]'.") from error

Precision = Literal["fp32", "fp16"]
KINDS = {"fp32": torch.float32, "fp16": torch.float16}
SHOWN = 3
"""Names of each kind that a report spells out."""
NOTICE = "They were made for {}; with the few steps of a live stream, which has no guidance, expect a soft picture."
CLOSE = 2e-3
"""Between sinusoids that are made again and those of a file, which may be in half precision."""

Shape = tuple[int, ...]


@dataclass(slots=True)
class Match:
    """What one file gives, by published key, and what is wrong with it."""

    pairs: dict[str, str] = field(default_factory=dict)  # our key -> published key
    dropped: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)  # our keys, without the prefix
    unexpected: list[str] = field(default_factory=list)
    unfit: list[str] = field(default_factory=list)  # each with what it is and what it should be
    positions: int = 0  # that a motion module's file is to know


@dataclass(frozen=True, slots=True)
class Source:
    """A file that is read, and what it is to be."""

    table: Table
    path: Path
    name: str  # in reports and in the manifest


class Unfit(AvatarError):
    """A file's tensors are not those of its table."""

    def __init__(self, source: Source, told: str) -> None:
        super().__init__(told)
        self.source = source


@dataclass(frozen=True, slots=True)
class Checked:
    """A file whose every tensor has its place."""

    source: Source
    match: Match
    held: dict[str, Tensor]  # by published key; mapped

    def ours(self) -> dict[str, Tensor]:
        """Its tensors by our keys."""
        return {ours: self.held[theirs] for ours, theirs in self.match.pairs.items()}


@dataclass(frozen=True, slots=True)
class Published:
    """What somebody published, and what becomes of it."""

    system: str
    tables: tuple[Table, ...]
    made: Preset
    beside: tuple[str, ...] = ()  # folders inside the given one, looked into first; "..": the one above, for what has a folder of its own
    given: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)  # part -> tensors that come from no file of the tables
    read: Mapping[str, Path] = field(default_factory=dict)  # name in the manifest -> a file that these were made from
    named: tuple[Source, ...] = ()  # files that were given one by one
    low_rank: Mapping[str, Mapping[str, tuple[Tensor, Tensor]]] = field(default_factory=dict)  # part -> our key -> up @ down is added to it
    recogniser: Path | None = None  # of faces, for presets that read its vectors


Also = Callable[[Published], Published]
"""What somebody published -> the same with what somebody else did."""


def import_layout(
    name: str,
    source: Path,
    out: Path,
    *,
    elsewhere: Mapping[str, Path | None] = MappingProxyType({}),
    precision: Precision = "fp32",
    also: Also = lambda found: found,
    tell: Callable[[str], None] = lambda line: None,
) -> None:
    """The files in `source` of one of LAYOUTS -> weights of its preset in a new folder `out`. As `import_published`.

    `also`: of `import_faceid`.
    """
    layout = LAYOUTS[name]
    found = also(Published(layout.system, layout.tables, PRESETS[layout.preset], layout.beside))
    try:
        import_published(source, out, found, elsewhere=elsewhere, precision=precision, tell=tell)
    except Unfit as error:
        alike = [other for other in variants(name) if LAYOUTS[other].tables == layout.tables]  # files of the same names
        if (meant := next((other for other in alike if _fits(error.source, LAYOUTS[other])), None)) is None:
            raise
        given, wanted = (each.partition(" ")[2] for each in (name, meant))
        how = f"give {wanted}" if wanted else f"leave {given} out"
        raise AvatarError(f"{error.source.path} is of another configuration of {layout.system}; {how}.") from error


def _fits(source: Source, layout: Layout) -> bool:
    """Whether a file is whole where another layout has one of its name."""
    for table in layout.tables:
        if (table.stems, table.folder) == (source.table.stems, source.table.folder):
            made = PRESETS[layout.preset]
            shapes = {key: tuple(value.shape) for key, value in empty(made).parts()[table.part].state_dict().items()}
            found = match(table, (table.read or read)(source.path), shapes, positions=made.unet.positions)
            return not (found.missing or found.unexpected or found.unfit)
    return False


def import_published(
    source: Path,
    out: Path,
    found: Published,
    *,
    elsewhere: Mapping[str, Path | None] = MappingProxyType({}),
    precision: Precision = "fp32",
    tell: Callable[[str], None] = lambda line: None,
) -> None:
    """The files in `source`, or in the folders `elsewhere` (option of the command line -> folder), -> weights in a new folder `out`.

    A folder for `--tiny-vae` holds TAESD in diffusers' format, whose decoder `--decoder tiny` will take. Everything is checked before anything
    is written. Raises AvatarError, one sentence, for whatever does not fit.
    """
    if precision not in KINDS:
        raise AvatarError(f"Weights are kept as one of: {', '.join(KINDS)}; not as '{precision}'.")
    made, tiny_vae = found.made, elsewhere.get(keys.TINY.option)
    sources = [*_sources(source, found, elsewhere), *found.named]
    parts = empty(made).parts()
    if tiny_vae is not None:
        with torch.device("meta"):
            parts[keys.TINY.part] = Tiny()
    matches = [_checked(each, parts[each.table.part], made, tell) for each in sources]
    with fresh_folder(out) as folder:
        count = sum(parameter.numel() for module in parts.values() for parameter in module.parameters())
        check_room(folder, count * KINDS[precision].itemsize + (found.recogniser.stat().st_size if found.recogniser else 0))
        hashes = {}
        for part in parts:
            given = [(each, match) for each, match in zip(sources, matches, strict=True) if each.table.part == part]
            beside, low_rank = found.given.get(part), found.low_rank.get(part)
            hashes[part] = write(folder / f"{part}.safetensors", given, precision, more=beside, low_rank=low_rank)
            tell(f"{part}: written")
        tell("Hashing what was read ...")
        origin = {"system": found.system, "precision": precision, "made_for": made.sampling.told, "steps": str(made.sampling.steps)}
        files = {each.name: each.path for each in sources} | dict(found.read)
        known = {path: sha256(path) for path in dict.fromkeys(files.values())}  # several networks may lie in one
        origin |= {name: known[path] for name, path in files.items()}
        manifest: dict[str, Any] = {"preset": made.name, "sha256": hashes, "origin": origin}
        if found.recogniser is not None:
            shutil.copyfile(found.recogniser, folder / RECOGNISER)
            manifest["recogniser"] = sha256(folder / RECOGNISER)
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        for part in hashes:  # the library makes files that only their owner may read
            shutil.copymode(folder / MANIFEST, folder / f"{part}.safetensors")
    tell(f"{count / 1e6:,.1f} million values in {precision}. {NOTICE.format(made.sampling.told)}")


def match(table: Table, held: Mapping[str, Tensor], wanted: Mapping[str, Shape], *, positions: int = 0) -> Match:
    """Lay a file's tensors beside the shapes of our network, our keys with their prefix. `positions`: how many a motion module's file knows."""
    made = Match(positions=positions)
    open_keys = {key.removeprefix(table.prefix): shape for key, shape in wanted.items() if table.fills(key)}
    for key, tensor in held.items():
        if not table.takes(key):
            continue
        drop = next((drop for drop in table.drops if drop.takes(key)), None)
        if drop is not None:
            made.dropped.append(key)
            if not _made_again(drop, tensor, positions):
                made.unfit.append(f"'{key}', which is not {drop.reason.format(positions)}")
            continue
        shape = open_keys.pop(table.ours(key), None)
        if shape is None:
            made.unexpected.append(key)
        elif tuple(tensor.shape) != shape or not _plain(tensor):
            made.unfit.append(f"'{key}', {list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')} instead of {list(shape)}")
        else:
            made.pairs[table.prefix + table.ours(key)] = key
    made.missing = [*open_keys, *(key for key in table.marks if key not in held)]
    return made


def _plain(tensor: Tensor) -> bool:
    """Numbers that are there, one after the other."""
    return bool(tensor.is_floating_point() and tensor.layout == torch.strided and tensor.device.type == "cpu")


def _made_again(drop: Drop, tensor: Tensor, positions: int) -> bool:
    """Whether a tensor that is left out, [1, P, C] or [1, P], holds what will be made in its place."""
    if drop.again == "nothing":
        return True
    if drop.again == "count":
        return bool(tensor.ndim == 2 and torch.equal(tensor[0].long(), torch.arange(tensor.shape[1])))
    if tensor.ndim != 3 or tensor.shape[0] != 1 or (tensor.shape[1] != positions and not drop.any_length):
        return False
    return bool(torch.allclose(tensor[0].float(), sinusoids(*tensor.shape[1:]), atol=CLOSE))


# -- what is there --------------------------------------------------------------------------------------------------------


def _sources(source: Path, published: Published, elsewhere: Mapping[str, Path | None]) -> list[Source]:
    """Every file that is needed, where it usually lies or in the folder that was given for its option."""
    if not source.is_dir():
        raise AvatarError(f"{source} is no folder; give the one that {published.system}'s files were downloaded to.")
    found: list[Source] = []
    for table in (*published.tables, *([keys.TINY] if elsewhere.get(keys.TINY.option) else [])):
        given = elsewhere.get(table.option)
        folders = [given] if given else places_of(source, published.beside, table.folder)
        path = find(folders, table.stems)
        if path is None:
            raise absent(given or source / table.folder, table.stems, option=table.option)
        name = f"{path.parent.name}/{path.name}" if table.folder else path.name
        taken = any(name == other.name for other in found)  # two folders of one name
        found.append(Source(table, path, f"{table.part}: {name}" if taken else name))
    return found


def places_of(source: Path, beside: Sequence[str], folder: str) -> list[Path]:
    """Where a file with a folder of its own (or, with "", without one) may lie."""
    inside = [source / name for name in beside if name != ".."]
    above = [source.resolve().parent] if ".." in beside and folder else []
    return [place / folder for place in (*inside, source, source / WEIGHTS, *above)]


def _checked(source: Source, module: Any, preset: Preset, tell: Callable[[str], None]) -> Match:
    """Raise AvatarError unless a file is what its table says of our network."""
    table = source.table
    if table.config:
        check_config(source.path.parent, table, module.model.config)
    held = (table.read or read)(source.path)
    made = match(table, held, {key: tuple(value.shape) for key, value in module.state_dict().items()}, positions=preset.unet.positions)
    report(source, made, held, tell)
    return made


def check_config(folder: Path, table: Table, ours: Any) -> None:
    """Raise AvatarError where a folder's config.json says other than ours in the fields that a table names."""
    config = read_config(folder)
    for name in table.config:
        want = getattr(ours, name)
        want = list(want) if isinstance(want, tuple) else want
        if config.get(name, want) != want:
            raise AvatarError(f"{folder}/config.json has {name} {config[name]}, this system {want}; give the published {table.folder}.")


def report(source: Source, made: Match, held: Mapping[str, Tensor], tell: Callable[[str], None]) -> None:
    """A few lines of what a file gives, and Unfit for what it lacks or has too much."""
    values = sum(held[key].numel() for key in made.pairs.values())
    tell(f"{source.name}: {len(made.pairs)} tensors -> {source.table.part}, {values / 1e6:,.1f} million values")
    left = list(made.dropped)
    for drop in source.table.drops:
        names, left = [key for key in left if drop.takes(key)], [key for key in left if not drop.takes(key)]
        if names:
            tell(f"  {len(names)} left out, {drop.reason.format(made.positions)}: {_few(names)}")
            if drop.any_length and (count := held[names[0]].shape[1]) != made.positions:
                system = source.table.system
                tell(f"  These are of {count} positions, {system}'s networks have {made.positions}: make sure that the files are {system}'s.")
    wrong = {"missing": made.missing, "unexpected": made.unexpected, "unfit": made.unfit}
    for kind, names in wrong.items():
        if names:
            tell(f"  {len(names)} {kind}: {_few(names)}")
    told = [f"{len(made.missing)} missing (first '{made.missing[0]}')"] if made.missing else []
    told += [f"{len(made.unexpected)} unexpected (first '{made.unexpected[0]}')"] if made.unexpected else []
    told += [f"{len(made.unfit)} of another kind (first {made.unfit[0]})"] if made.unfit else []
    if told:
        what = source.table.folder or source.table.stems[0]
        raise Unfit(source, f"{source.path} is not {source.table.system}'s {what}: of its tensors, {', '.join(told)}; give the published file.")


def _few(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


# -- writing --------------------------------------------------------------------------------------------------------------


def check_room(folder: Path, needed: int) -> None:
    """Raise AvatarError where a disk has not `needed` bytes left."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise AvatarError(f"The weights need {needed / 1e9:.1f} GB, and {folder.parent} has room for {free / 1e9:.1f}; make room or write elsewhere.")


def write(
    path: Path,
    given: Sequence[tuple[Source, Match]],
    precision: Precision,
    *,
    open_file: Callable[[Path], Mapping[str, Tensor]] = read,
    more: Mapping[str, Tensor] | None = None,
    low_rank: Mapping[str, tuple[Tensor, Tensor]] | None = None,
) -> str:
    """One network's tensors from its files -> sha256 of what was written. Read anew and mapped: one network at a time is held at most.

    `low_rank`: name of a tensor -> (up, down), whose product is added to it. Raises AvatarError where one has not its shape.
    """
    tensors: dict[str, Tensor] = {name: value.to(KINDS[precision]).contiguous() for name, value in (more or {}).items()}
    for source, match_ in given:
        held = (source.table.read or open_file)(source.path)
        for ours, theirs in match_.pairs.items():
            value = with_low_rank(held[theirs], low_rank[ours], ours) if low_rank and ours in low_rank else held[theirs]
            tensors[ours] = value.to(KINDS[precision]).contiguous()
    try:
        save_file(tensors, path)
    except Exception as error:  # the library has its own kinds, even for a full disk
        raise AvatarError(f"{path.name} cannot be written ({str(error).splitlines()[0]}); check the room on the disk.") from error
    return sha256(path)


def with_low_rank(weight: Tensor, factors: tuple[Tensor, Tensor], name: str) -> Tensor:
    """A weight [o, i] with the product of (up [o, r], down [r, i]) added to it, fp32."""
    up, down = factors
    if up.ndim != 2 or down.ndim != 2 or (up.shape[0], down.shape[1]) != tuple(weight.shape) or up.shape[1] != down.shape[0]:
        raise AvatarError(f"A LoRA of {list(up.shape)} by {list(down.shape)} does not fit '{name}', {list(weight.shape)}; give one of the same base.")
    return weight.float() + up.float() @ down.float()


__all__ = [
    "KINDS",
    "NOTICE",
    "Also",
    "Checked",
    "Match",
    "Precision",
    "Published",
    "Source",
    "Unfit",
    "check_config",
    "check_room",
    "import_layout",
    "import_published",
    "match",
    "places_of",
    "report",
    "with_low_rank",
    "write",
]
