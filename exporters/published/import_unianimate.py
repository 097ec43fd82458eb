"""UniAnimate's published weights become a folder of this engine: every key by a table, every shape checked, nothing left over.

Files are mapped and written tensor by tensor, so gigabytes of them need little memory. CLIP's text encoder answers one question here, what an
empty prompt means, and is not kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.types import AvatarError
from exporters.files import absent, find, fresh_folder, read, sha256
from exporters.published import keys_unianimate as keys
from exporters.published.import_checkpoint import KINDS, Checked, Precision, Source, check_room, match, report
from exporters.published.keys import Table
from exporters.published.streamed import write

try:
    import torch
    from torch import Tensor, nn

    from engine.generators.video.networks import empty
    from engine.generators.video.presets import UNIANIMATE, UniAnimate
    from engine.generators.video.text import EMPTY_TOKENS, prompt_of, text_encoder
    from engine.generators.video.weights import write_manifest
except ImportError as error:
    raise AvatarError(f"Importing weights needs PyTorch, diffusers and transformers ({error}); pip install 'avatar-engine[torch]'.") from error

Tell = Callable[[str], None]
FOLDER = "checkpoints"
"""That the published download script makes, looked into as well."""


def import_unianimate(
    source: Path,
    out: Path,
    *,
    vae: Path | None = None,
    clip: Path | None = None,
    precision: Precision = "fp32",
    made: UniAnimate = UNIANIMATE,
    tell: Tell = lambda line: None,
) -> None:
    """UniAnimate's files in `source`, with Stable Diffusion 2.1 for its autoencoder and OpenCLIP's ViT-H/14, -> weights in a new folder `out`.

    `vae`, `clip`: the folders of these where they lie elsewhere. Everything is checked before anything is written. Raises AvatarError, one
    sentence, for whatever does not fit.
    """
    if precision not in KINDS:
        raise AvatarError(f"Weights are kept as one of: {', '.join(KINDS)}; not as '{precision}'.")
    if not source.is_dir():
        raise AvatarError(f"{source} is no folder; give the one that {keys.SYSTEM}'s files were downloaded to.")
    tables = {keys.DENOISER: None, keys.AUTOENCODER: vae, keys.IMAGE: clip}
    paths = {table.part: _find(source, table, given) for table, given in tables.items()}
    parts = empty(made).parts()
    with torch.device("meta"):
        reader = text_encoder(made, layers=made.text_layers)
    checked = {
        "denoiser": _checked(keys.DENOISER, paths["denoiser"], read(paths["denoiser"]), module=parts["denoiser"], tell=tell),
        "autoencoder": _checked(
            keys.AUTOENCODER, paths["autoencoder"], _pictures(paths["autoencoder"], tell), module=parts["autoencoder"], tell=tell
        ),
    }
    seeing, reading = _towers(paths["image"], tell)
    checked["image"] = _checked(keys.IMAGE, paths["image"], seeing, module=parts["image"], tell=tell)
    text = _checked(_prefixed(keys.TEXT, reader), paths["image"], reading, module=reader, tell=tell)
    with fresh_folder(out) as folder:
        count = sum(value.numel() for module in parts.values() for value in module.parameters())
        check_room(folder, count * KINDS[precision].itemsize)
        hashes = {}
        for part in parts:
            tensors = {EMPTY_TOKENS: prompt_of(text.ours(), made)} if part == "empty" else checked[part].ours()
            hashes[part] = write(folder / f"{part}.safetensors", tensors, KINDS[precision])
            tell(f"{part}: written")
        tell("Hashing what was read ...")
        origin = {"system": keys.SYSTEM, "precision": precision, "made_for": keys.MADE_FOR, "steps": str(keys.PUBLISHED_STEPS)}
        origin |= {path.name: sha256(path) for path in paths.values()}
        write_manifest(folder, preset=made.name, hashes=hashes, origin=origin)
    tell(f"{count / 1e6:,.1f} million values in {precision}. They render whole clips, {keys.MADE_FOR}; they are no live generator.")


def _find(source: Path, table: Table, given: Path | None) -> Path:
    folders = [given] if given else [source, source / FOLDER]
    path = find(folders, table.stems)
    if path is None:
        raise absent(folders[0], table.stems, option=table.option)
    return path


def _checked(table: Table, path: Path, held: dict[str, Tensor], *, module: nn.Module, tell: Tell) -> Checked:
    """Raise AvatarError unless a file's tensors are all of a network's, and no more."""
    source = Source(table, path, path.name)
    found = match(table, held, {key: tuple(value.shape) for key, value in module.state_dict().items()})
    report(source, found, held, tell)
    return Checked(source, found, held)


def _pictures(path: Path, tell: Tell) -> dict[str, Tensor]:
    """Of a checkpoint of Stable Diffusion, the autoencoder."""
    held = read(path)
    kept = {key: value for key, value in held.items() if key.startswith(keys.FIRST_STAGE)}
    if not kept:
        raise AvatarError(f"{path} is not Stable Diffusion 2.1's checkpoint: nothing in it is called '{keys.FIRST_STAGE}'; give the published file.")
    tell(f"{path.name}: {len(held) - len(kept)} left out, of the networks that make pictures of texts: only the autoencoder is wanted")
    return keys.flattened(kept)


def _towers(path: Path, tell: Tell) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """CLIP's image encoder and its text encoder."""
    held = read(path)
    unused = [key for key in held if key in keys.UNUSED]
    tell(f"{path.name}: {len(unused)} left out, which compare pictures with texts: {', '.join(unused)}")
    kept = keys.parted({key: value for key, value in held.items() if key not in unused})
    seeing = {key: value for key, value in kept.items() if key.startswith(keys.VISUAL)}
    if not seeing:
        raise AvatarError(f"{path} is not {keys.IMAGE.system}: nothing in it is called '{keys.VISUAL}'; give open_clip's file, not transformers'.")
    return seeing, {key: value for key, value in kept.items() if key not in seeing}


def _prefixed(table: Table, reader: Any) -> Table:
    """Some versions of transformers put a word before every key of the text encoder."""
    first: Mapping[str, Tensor] = reader.state_dict()
    word = "text_model."
    return replace(table, prefix=word) if all(key.startswith(word) for key in first) else table


__all__ = ["import_unianimate"]
