"""Published weights of Hallo and EchoMimic become a folder of this engine: every key by a table, every shape checked, nothing left over."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from engine.recogniser import Recogniser
from engine.types import AvatarError
from exporters.files import absent, find, read
from exporters.published import keys
from exporters.published.import_checkpoint import Precision, Published, Source, import_published
from exporters.published.keys import Drop, Table, same, spatial, temporal

try:
    from torch import Tensor

    from engine.generators.diffusion.presets import ECHOMIMIC, ECHOMIMIC_ACC, ECHOMIMIC_POSE, ECHOMIMIC_POSE_ACC, HALLO, Preset
    from engine.generators.diffusion.tokens import VECTOR
except ImportError as error:
    raise AvatarError(f"Importing weights needs PyTorch, diffusers and transformers ({error}); pip install 'avatar-engine[torch]'.") from error

Tell = Callable[[str], None]

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


def _within(start: str) -> Callable[[Path], Mapping[str, Tensor]]:
    """Of a file of several networks, the one whose keys begin so."""
    return lambda path: {key.removeprefix(start): tensor for key, tensor in read(path).items() if key.startswith(start)}


def _unread(among: Callable[[str], bool], why: str) -> Drop:
    """Keys that nothing reads."""
    return Drop("", "nothing", why, among=among)


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
    sound = "Whisper's decoder, which writes text"
    tables = [
        Table(
            (f"denoising_unet{every}",),
            "denoiser",
            same,
            spatial,
            drops=(_unread(temporal, "motion modules, which have a file"),),
            system="EchoMimic",
        ),
        replace(keys.MOTION, stems=(f"motion_module{every}",), system="EchoMimic"),
        Table((f"reference_unet{shared}",), "reference", same, drops=(_unread(_second, unread),), system="EchoMimic"),
        Table((f"face_locator{shared}",), "guider", same, system="EchoMimic"),
        Table(
            ("whisper_tiny",),
            "listener",
            whisper_key,
            prefix="model.",
            drops=(_unread(lambda key: not key.startswith("encoder."), sound),),
            folder="audio_processor",
            system="Whisper",
            read=lambda path: read(path, part="model_state_dict"),
        ),
    ]
    found = [*(_found(source, table) for table in tables), _autoencoder(source, vae)]
    published = Published(f"EchoMimic{every}", (), made or VARIANTS[variant], named=tuple(found))
    import_published(source, out, published, precision=precision, tell=tell)


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
    parts = {
        "reference_unet.": ("reference", ()),
        "denoising_unet.": ("denoiser", (_unread(_blind, blind), *keys.MOTION.drops)),
        "face_locator.": ("guider", ()),
        "imageproj.": ("image", ()),
        "audioproj.": ("speech", ()),
    }
    found = []
    for start, (part, drops) in parts.items():
        name = start.rstrip(".")
        table = Table((f"{path.stem} ({name})",), part, same, drops=drops, system="Hallo", read=_within(start))
        found.append(Source(table, path, f"{path.name} {name}"))
    if strange := [key for key in read(path) if not key.startswith(tuple(parts))]:
        what = f"of its tensors, {len(strange)} are of no network of Hallo's (first '{strange[0]}')"
        raise AvatarError(f"{path} is not Hallo's net: {what}; give the published file.")
    told = "its output for text and the mask of its training"
    trained = ("lm_head.", "wav2vec2.masked_spec_embed", "masked_spec_embed")
    ears = Table(
        ("model", "pytorch_model"),
        "listener",
        wav2vec_key,
        prefix="model.",
        drops=(_unread(lambda key: key.startswith(trained), told),),
        folder="wav2vec2-base-960h",
        config=(
            *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act", "layer_norm_eps"),
            *("conv_dim", "conv_kernel", "conv_stride", "conv_bias", "feat_extract_norm", "feat_extract_activation", "do_stable_layer_norm"),
            *("num_conv_pos_embeddings", "num_conv_pos_embedding_groups"),
        ),
        system="wav2vec",
        option="--wav2vec",
    )
    given = wav2vec or _folder(source, ("wav2vec/wav2vec2-base-960h", "wav2vec2-base-960h"))
    found += [_autoencoder(source, vae), _found(source, ears, given)]
    faces = recogniser or next((there for above in ABOVE if (there := source / above / FACES).is_file()), None)
    if faces is None:
        raise AvatarError(f"{source} has no {FACES}, which tells faces apart; download it, or name the file with --recogniser.")
    if (length := Recogniser(faces).length) != VECTOR:
        raise AvatarError(f"{faces} gives {length} numbers for a face, and Hallo reads {VECTOR}; give glintr100.onnx with --recogniser.")
    import_published(source, out, Published("Hallo", (), made, named=tuple(found), recogniser=faces), precision=precision, tell=tell)


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


def _found(source: Path, table: Table, given: Path | None = None) -> Source:
    """A table's file, under the name of its folder and its own."""
    path = _file(source, table, given)
    return Source(table, path, f"{table.folder}/{path.name}".lstrip("/"))


def _autoencoder(source: Path, vae: Path | None) -> Source:
    return _found(source, replace(keys.AUTOENCODER, system="Stable Diffusion"), vae)


__all__ = ["VARIANTS", "import_echomimic", "import_hallo", "wav2vec_key", "whisper_key"]
