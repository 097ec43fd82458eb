"""Published weights of Hallo and EchoMimic become a folder of this engine: every key by a table, every shape checked, nothing left over."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine.recogniser import Recogniser
from engine.types import AvatarError
from exporters import keys
from exporters.files import absent, find, fresh_folder, read, sha256
from exporters.import_checkpoint import KINDS, NOTICE, Match, Precision, Source, check_config, check_room, match, report, write
from exporters.keys import Table, same, spatial, temporal

try:
    from torch import Tensor

    from engine.generators.diffusion.networks import MANIFEST, RECOGNISER, empty
    from engine.generators.diffusion.presets import ECHOMIMIC, ECHOMIMIC_ACC, ECHOMIMIC_POSE, ECHOMIMIC_POSE_ACC, HALLO, Preset
    from engine.generators.diffusion.tokens import VECTOR
except ImportError as error:
    raise AvatarError(f"Importing weights needs PyTorch, diffusers and transformers ({error}); pip install 'avatar-engine[torch]'.") from error

Tell = Callable[[str], None]
Keys = Callable[[str], bool]

VARIANTS = {"base": ECHOMIMIC, "acc": ECHOMIMIC_ACC, "pose": ECHOMIMIC_POSE, "pose_acc": ECHOMIMIC_POSE_ACC}
"""EchoMimic's files by the ending of their names, and their preset."""
ABOVE = ("", "pretrained_weights", "pretrained_models")
"""Where the files lie in whatever somebody takes for the published folder."""
NET = ("net", "hallo/net")
FACES = "face_analysis/models/glintr100.onnx"
WHISPER = {
    "conv1": "conv1",
    "conv2": "conv2",
    "ln_post": "layer_norm",
    "attn.query": "self_attn.q_proj",
    "attn.key": "self_attn.k_proj",
    "attn.value": "self_attn.v_proj",
    "attn.out": "self_attn.out_proj",
    "attn_ln": "self_attn_layer_norm",
    "mlp.0": "fc1",
    "mlp.2": "fc2",
    "mlp_ln": "final_layer_norm",
}
"""Parts of Whisper's encoder as OpenAI names them, and as transformers does."""
PARAMETRISED = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
"""A normalised weight's two parts as files have them, and as PyTorch has them today."""


def whisper_key(key: str) -> str:
    """A key of OpenAI's encoder as transformers has it: `encoder.blocks.3.mlp.0.weight` -> `layers.3.fc1.weight`."""
    if key == "encoder.positional_embedding":
        return "embed_positions.weight"
    rest = key.removeprefix("encoder.")
    number = ""
    if rest.startswith("blocks."):
        _, number, rest = rest.split(".", 2)
    name, _, kind = rest.rpartition(".")
    return f"{f'layers.{number}.' if number else ''}{WHISPER.get(name, name)}.{kind}"


def wav2vec_key(key: str) -> str:
    """A key of wav2vec 2.0 as it is without what it was trained for."""
    head, _, kind = key.removeprefix("wav2vec2.").rpartition(".")
    return f"{head}.{PARAMETRISED.get(kind, kind)}"


def _second(key: str) -> bool:
    return ".attn2." in key or ".norm2." in key and ".transformer_blocks." in key


def _blind(key: str) -> bool:
    """Motion modules of the levels without attention."""
    return key.startswith(("down_blocks.3.motion_modules.", "up_blocks.0.motion_modules."))


@dataclass(frozen=True, slots=True)
class Given:
    """One network, or a part of it, in one file."""

    table: Table
    path: Path
    name: str  # in reports and in the manifest
    within: str = ""  # what its keys begin with in a file of several networks
    nested: str = ""  # by which name the file holds them
    unread: Keys = lambda key: False  # keys that nothing reads
    why: str = ""

    @property
    def source(self) -> Source:
        """For a report."""
        return Source(self.table, self.path, self.name)

    def held(self, tell: Tell = lambda line: None) -> Mapping[str, Tensor]:
        """Its tensors, without those that nothing reads."""
        every = read(self.path, part=self.nested)
        mine = {key.removeprefix(self.within): tensor for key, tensor in every.items() if key.startswith(self.within)}
        kept = {key: tensor for key, tensor in mine.items() if not self.unread(key)}
        if left := len(mine) - len(kept):
            tell(f"  {left} left out, {self.why}")
        return kept


def import_echomimic(
    source: Path,
    out: Path,
    *,
    variant: str = "base",
    vae: Path | None = None,
    precision: Precision = "fp32",
    made: Preset | None = None,
    tell: Tell = lambda line: None,
) -> None:
    """EchoMimic's folder `source` -> weights of one variant in a new folder `out`, with the autoencoder and OpenAI's `whisper_tiny.pt`.

    `made`: a preset of the same layout instead of the variant's. Raises AvatarError, one sentence, for whatever does not fit.
    """
    if variant not in VARIANTS:
        raise AvatarError(f"EchoMimic has no variant '{variant}'; choose one of: {', '.join(VARIANTS)}.")
    _check_folder(source, "EchoMimic")
    every = "" if variant == "base" else f"_{variant}"
    shared = "_pose" if "pose" in variant else ""
    unread = "second attentions that the published code never calls"
    rows: list[tuple[Table, str, Keys, str]] = [
        (Table((f"denoising_unet{every}",), "denoiser", same, spatial, system="EchoMimic"), "", temporal, "motion modules, which have a file"),
        (replace(keys.MOTION, stems=(f"motion_module{every}",), system="EchoMimic"), "", lambda key: False, ""),
        (Table((f"reference_unet{shared}",), "reference", same, system="EchoMimic"), "", _second, unread),
        (Table((f"face_locator{shared}",), "guider", same, system="EchoMimic"), "", lambda key: False, ""),
    ]
    givens = [Given(table, _file(source, table, None), "", unread=drop, why=why) for table, _, drop, why in rows]
    givens += [_autoencoder(source, vae)]
    ears = Table(("whisper_tiny",), "listener", whisper_key, prefix="model.", folder="audio_processor", system="Whisper")
    deaf = "Whisper's decoder, which writes text"
    givens += [Given(ears, _file(source, ears, None), "", nested="model_state_dict", unread=lambda key: not key.startswith("encoder."), why=deaf)]
    _import(givens, out, made=made or VARIANTS[variant], system=f"EchoMimic{every}", precision=precision, tell=tell)


def import_hallo(
    source: Path,
    out: Path,
    *,
    vae: Path | None = None,
    wav2vec: Path | None = None,
    recogniser: Path | None = None,
    precision: Precision = "fp32",
    made: Preset = HALLO,
    tell: Tell = lambda line: None,
) -> None:
    """Hallo's folder `source` -> weights in a new folder `out`, with the autoencoder, wav2vec 2.0 and a copy of the face recogniser.

    `vae`, `wav2vec`: the folders of these parts where they lie elsewhere; `recogniser`: the ONNX file. Raises AvatarError, one sentence,
    for whatever does not fit.
    """
    _check_folder(source, "Hallo")
    net = Table(NET, "", same, system="Hallo")
    path = _file(source, net, None)
    blind = "motion modules of the levels without attention, which the published inference leaves out"
    tables = {
        "reference_unet.": ("reference", ()),
        "denoising_unet.": ("denoiser", keys.MOTION.drops),
        "face_locator.": ("guider", ()),
        "imageproj.": ("image", ()),
        "audioproj.": ("speech", ()),
    }
    givens = []
    for within, (part, drops) in tables.items():
        table = Table((f"{path.stem} ({within.rstrip('.')})",), part, same, drops=drops, system="Hallo")
        drop = _blind if part == "denoiser" else (lambda key: False)
        givens.append(Given(table, path, f"{path.name} {within.rstrip('.')}", within=within, unread=drop, why=blind))
    if strange := [key for key in read(path) if not key.startswith(tuple(tables))]:
        what = f"of its tensors, {len(strange)} are of no network of Hallo's (first '{strange[0]}')"
        raise AvatarError(f"{path} is not Hallo's net: {what}; give the published file.")
    givens += [_autoencoder(source, vae)]
    ears = Table(
        ("model", "pytorch_model"),
        "listener",
        wav2vec_key,
        prefix="model.",
        folder="wav2vec2-base-960h",
        config=(
            *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act", "layer_norm_eps"),
            *("conv_dim", "conv_kernel", "conv_stride", "conv_bias", "feat_extract_norm", "feat_extract_activation", "do_stable_layer_norm"),
            *("num_conv_pos_embeddings", "num_conv_pos_embedding_groups"),
        ),
        system="wav2vec",
        option="--wav2vec",
    )
    told = "its output for text and the mask of its training"
    trained = ("lm_head.", "wav2vec2.masked_spec_embed", "masked_spec_embed")
    given = wav2vec or _folder(source, ("wav2vec/wav2vec2-base-960h", "wav2vec2-base-960h"))
    givens += [Given(ears, _file(source, ears, given), "", unread=lambda key: key.startswith(trained), why=told)]
    faces = recogniser or next((found for above in ABOVE if (found := source / above / FACES).is_file()), None)
    if faces is None:
        raise AvatarError(f"{source} has no {FACES}, which tells faces apart; download it, or name the file with --recogniser.")
    if (length := Recogniser(faces).length) != VECTOR:
        raise AvatarError(f"{faces} gives {length} numbers for a face, and Hallo reads {VECTOR}; give glintr100.onnx with --recogniser.")
    _import(givens, out, made=made, system="Hallo", precision=precision, tell=tell, recogniser=faces)


# -- what is there ----------------------------------------------------------------------------------------------------------


def _check_folder(source: Path, system: str) -> None:
    if not source.is_dir():
        raise AvatarError(f"{source} is no folder; give the one that {system}'s files were downloaded to.")


def _folder(source: Path, names: Sequence[str]) -> Path | None:
    return next((found for above in ABOVE for name in names if (found := source / above / name).is_dir()), None)


def _file(source: Path, table: Table, given: Path | None) -> Path:
    """Where a table's file is. Raises AvatarError where it is not."""
    folders = [given] if given else [source / above / table.folder for above in ABOVE]
    path = find(folders, table.stems)
    if path is None:
        raise absent(folders[0], table.stems, option=table.option)
    return path


def _autoencoder(source: Path, vae: Path | None) -> Given:
    table = replace(keys.AUTOENCODER, system="Stable Diffusion")
    return Given(table, _file(source, table, vae), "")


# -- checking and writing ---------------------------------------------------------------------------------------------------


def _import(
    given: Sequence[Given], out: Path, *, made: Preset, system: str, precision: Precision, tell: Tell, recogniser: Path | None = None
) -> None:
    """Check every file against its network, then write them all."""
    if precision not in KINDS:
        raise AvatarError(f"Weights are kept as one of: {', '.join(KINDS)}; not as '{precision}'.")
    givens = [each if each.name else replace(each, name=f"{each.table.folder}/{each.path.name}".lstrip("/")) for each in given]
    parts = empty(made).parts()
    matches = [_matched(each, parts[each.table.part], made, tell) for each in givens]
    count = sum(value.numel() for module in parts.values() for value in module.parameters())
    with fresh_folder(out) as folder:
        check_room(folder, count * KINDS[precision].itemsize + (recogniser.stat().st_size if recogniser else 0))
        hashes = {}
        for part in parts:
            mine = [(each, found) for each, found in zip(givens, matches, strict=True) if each.table.part == part]
            by_path = {each.path: each for each, _ in mine}
            hashes[part] = write(
                folder / f"{part}.safetensors",
                [(each.source, found) for each, found in mine],
                precision,
                open_file=lambda path, of=by_path: of[path].held(),  # type: ignore[misc]
            )
            tell(f"{part}: written")
        tell("Hashing what was read ...")
        origin = {"system": system, "precision": precision, "made_for": made.sampling.told, "steps": str(made.sampling.steps)}
        known: dict[Path, str] = {}
        for each in givens:
            known.setdefault(each.path, sha256(each.path))
            origin[each.name] = known[each.path]
        manifest: dict[str, Any] = {"preset": made.name, "sha256": hashes, "origin": origin}
        if recogniser is not None:
            shutil.copyfile(recogniser, folder / RECOGNISER)
            manifest["recogniser"] = sha256(folder / RECOGNISER)
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        for part in hashes:  # the library makes files that only their owner may read
            shutil.copymode(folder / MANIFEST, folder / f"{part}.safetensors")
    tell(f"{count / 1e6:,.1f} million values in {precision}. {NOTICE.format(made.sampling.told)}")


def _matched(each: Given, module: Any, made: Preset, tell: Tell) -> Match:
    """What a file gives its network. Raises AvatarError where that is not all of it, or more."""
    if each.table.config:
        check_config(each.path.parent, each.table, module.model.config)
    told: list[str] = []
    held = each.held(told.append)
    shapes = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    found = match(each.table, held, shapes, positions=made.unet.positions)
    report(each.source, found, held, tell)
    for line in told:
        tell(line)
    return found


__all__ = ["VARIANTS", "import_echomimic", "import_hallo", "wav2vec_key", "whisper_key"]
