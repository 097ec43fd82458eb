"""Published weights of Wav2Lip and MuseTalk become a folder of this engine: every key by a table, every shape checked, nothing left over."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from engine.types import AvatarError
from exporters.files import find, fresh_folder, read, read_config, sha256
from exporters.published.import_checkpoint import KINDS, Match, Precision, Source, check_room, match, report, write
from exporters.published.keys import Table, later, same

try:
    from torch import Tensor

    from engine.generators.lipsync.musetalk import BANDS, unet_config, vae_config
    from engine.generators.lipsync.networks import COUNTS, MANIFEST, Networks, empty
    from engine.generators.lipsync.sizes import MODELS, MuseTalkSize, Size
except ImportError as error:
    raise AvatarError(f"Importing weights needs PyTorch, diffusers and transformers ({error}); pip install 'avatar-engine[torch]'.") from error

Tell = Callable[[str], None]

WAV2LIP = Table(("wav2lip_gan", "wav2lip"), "wav2lip", same, system="Wav2Lip")
"""The sharper of the two where a folder has both."""
SUFFIXES = (".pth", ".pt", ".safetensors", ".ckpt", ".bin")
ABOVE = ("", "models")
"""Where MuseTalk's folders lie in whatever somebody takes for the published folder."""
PAINTERS = (("musetalkV15", "unet"), ("musetalk", "pytorch_model"))
"""(folder, file) of version 1.5, and of the first one."""
PAINTER_CONFIG = "musetalk.json"
AUTOENCODERS, LISTENERS = ("sd-vae", "sd-vae-ft-mse"), ("whisper", "whisper-tiny")


def encoder(key: str) -> str:
    """A key of Whisper's encoder as the encoder alone has it."""
    return key.removeprefix("model.").removeprefix("encoder.")


def import_wav2lip(source: Path, out: Path, *, precision: Precision = "fp32", made: Size = MODELS["wav2lip"], tell: Tell = lambda line: None) -> None:
    """`source`, the published file (wav2lip_gan.pth or wav2lip.pth) or a folder with it, -> weights in a new folder `out`.

    The optimiser beside the weights is left out. Raises AvatarError, one sentence, for whatever does not fit.
    """
    path = source if source.is_file() else find([source, source / "checkpoints"], WAV2LIP.stems) if source.is_dir() else None
    if path is None:
        raise AvatarError(f"{source} has no file wav2lip_gan or wav2lip (.pth); download it, or give the file itself.")
    if path.suffix not in SUFFIXES:
        raise AvatarError(f"{path} is no checkpoint; give Wav2Lip's wav2lip_gan.pth or wav2lip.pth.")
    _import([Source(WAV2LIP, path, path.name)], out, made=made, system="Wav2Lip", precision=precision, tell=tell)


def import_musetalk(
    source: Path,
    out: Path,
    *,
    vae: Path | None = None,
    whisper: Path | None = None,
    precision: Precision = "fp32",
    made: Size = MODELS["musetalk"],
    tell: Tell = lambda line: None,
) -> None:
    """MuseTalk's folder `source` (`models`, as its download script fills it) -> weights in a new folder `out`.

    `vae`, `whisper`: the folders of these parts where they lie elsewhere. Version 1.5 is taken where both are there. Raises AvatarError, one
    sentence, for whatever does not fit.
    """
    if not source.is_dir():
        raise AvatarError(f"{source} is no folder; give the one that MuseTalk's files were downloaded to.")
    size = cast(MuseTalkSize, made)
    painter = next((path for above in ABOVE for folder, stem in PAINTERS if (path := find([source / above / folder], (stem,)))), None)
    if painter is None:
        raise AvatarError(f"{source} has no musetalkV15/unet.pth and no musetalk/pytorch_model.bin; download one of them.")
    _check(painter.parent / PAINTER_CONFIG, unet_config(size), f"MuseTalk's {painter.parent.name}")
    decoder = _part(source, AUTOENCODERS, vae, ("diffusion_pytorch_model",), "--vae")
    _check(decoder.parent / "config.json", vae_config(size), "the autoencoder sd-vae-ft-mse")
    listener = _part(source, LISTENERS, whisper, ("model", "pytorch_model"), "--whisper")
    _check(listener.parent / "config.json", _whisper_config(size), "whisper-tiny")
    sources = [
        Source(Table((painter.stem,), "unet", same, prefix="model.", folder=painter.parent.name, system="MuseTalk"), painter, _name(painter)),
        Source(Table((decoder.stem,), "autoencoder", later, prefix="model.", folder="sd-vae", system="Stable Diffusion"), decoder, _name(decoder)),
        Source(Table((listener.stem,), "listener", encoder, prefix="model.", folder="whisper", system="Whisper"), listener, _name(listener)),
    ]
    _import(sources, out, made=made, system="MuseTalk", precision=precision, tell=tell)


def _name(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def _part(source: Path, names: Sequence[str], given: Path | None, stems: tuple[str, ...], option: str) -> Path:
    """The file of a part, where it usually lies or in the folder that was given for it."""
    folders = [given] if given else [source / above / name for above in ABOVE for name in names]
    path = find(folders, stems)
    if path is None:
        what = " or ".join(stems)
        raise AvatarError(f"{folders[0]} has no file {what} (.safetensors or .bin); download it, or name its folder with {option}.")
    return path


def _whisper_config(size: MuseTalkSize) -> dict[str, Any]:
    return {
        "d_model": size.width,
        "encoder_layers": size.listener_layers,
        "encoder_attention_heads": size.listener_heads,
        "num_mel_bins": BANDS,
        "max_source_positions": size.positions,
        "activation_function": "gelu",
        "scale_embedding": False,
    }


def _check(path: Path, wanted: Mapping[str, Any], what: str) -> None:
    """Raise AvatarError where a part's description says other than ours: shapes do not tell heads, groups or kinds of blocks."""
    if path.name == PAINTER_CONFIG:
        try:
            config = json.loads(path.read_text())
            config = config if isinstance(config, dict) else {}
        except (OSError, ValueError) as error:
            raise AvatarError(f"{path} cannot be read, which tells what shapes do not; download it beside the weights.") from error
    else:
        config = read_config(path.parent)
    for name, value in wanted.items():
        want = list(value) if isinstance(value, tuple) else value
        if config.get(name, want) != want:
            raise AvatarError(f"{path} has {name} {config[name]}, and {what} has {want}; give the published folder.")


def _import(sources: Sequence[Source], out: Path, *, made: Size, system: str, precision: Precision, tell: Tell) -> None:
    """Check every file against its network, then write them all."""
    if precision not in KINDS:
        raise AvatarError(f"Weights are kept as one of: {', '.join(KINDS)}; not as '{precision}'.")
    networks = empty(made)
    matches = [_matched(each, networks, tell) for each in sources]
    count = sum(value.numel() for module in networks.parts.values() for value in module.parameters())
    with fresh_folder(out) as folder:
        check_room(folder, count * KINDS[precision].itemsize)
        hashes = {}
        for each, found in zip(sources, matches, strict=True):
            hashes[each.table.part] = write(folder / f"{each.table.part}.safetensors", [(each, found)], precision)
            tell(f"{each.table.part}: written")
        tell("Hashing what was read ...")
        origin = {"system": system, "precision": precision} | {each.name: sha256(each.path) for each in sources}
        told = {"generator": "lipsync", "model": made.name, "sha256": hashes, "origin": origin}
        (folder / MANIFEST).write_text(json.dumps(told, indent=2) + "\n")
        for part in hashes:  # the library makes files that only their owner may read
            shutil.copymode(folder / MANIFEST, folder / f"{part}.safetensors")
    tell(f"{count / 1e6:,.1f} million values in {precision}.")


def _matched(each: Source, networks: Networks, tell: Tell) -> Match:
    """What a file gives its network. Raises AvatarError where that is not all of it, or more."""
    held = _kept(read(each.path), each.table, tell)
    module = networks.parts[each.table.part]
    found = match(each.table, held, {key: tuple(value.shape) for key, value in module.state_dict().items() if not key.endswith(COUNTS)})
    report(each, found, held, tell)
    return found


def _kept(held: Mapping[str, Tensor], table: Table, tell: Tell = lambda line: None) -> dict[str, Tensor]:
    """A file's tensors that are for us: no counts of batches, and of Whisper the encoder alone."""
    kept = {key: tensor for key, tensor in held.items() if not key.endswith(COUNTS)}
    if dropped := len(held) - len(kept):
        tell(f"  {dropped} left out, counts of batches, which nothing reads")
    if table.part != "listener":
        return kept
    ours = {key: tensor for key, tensor in kept.items() if not key.removeprefix("model.").startswith("decoder.") and key != "proj_out.weight"}
    if dropped := len(kept) - len(ours):
        tell(f"  {dropped} left out, Whisper's decoder, which writes text")
    return ours


__all__ = ["import_musetalk", "import_wav2lip"]
