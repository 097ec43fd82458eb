"""MagicAnimate's published files become weights of this engine, as `import_checkpoint` does it: its denoiser has several forms, and what the
denoiser reads in place of a picture's tokens is made here. What else becomes part of them, `also`, is of `import_faceid`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from engine.types import AvatarError
from exporters.files import absent, find, read, read_config
from exporters.published import keys, keys_body
from exporters.published.import_checkpoint import Also, Precision, Published, import_published, places_of
from exporters.published.layouts import MODELS

try:
    import torch
    from torch import Tensor

    from engine.generators.diffusion.presets import MAGIC_ANIMATE, TEXT_TOKENS, Preset
except ImportError as error:
    raise AvatarError(f"Importing weights needs PyTorch and diffusers ({error}); pip install 'avatar-engine[torch]'.") from error

Tell = Callable[[str], None]
TEXT_FOLDER, TEXT_STEMS, TEXT_OPTION = "text_encoder", ("model", "pytorch_model"), "--text-encoder"
TEXT_OUTER, TEXT_COUNTED = "text_model.", "position_ids"
"""What begins the published keys of a text encoder, and what ends one of them that holds 0, 1, 2 and so on."""


def import_magicanimate(
    source: Path,
    out: Path,
    *,
    vae: Path | None = None,
    unet: Path | None = None,
    text_encoder: Path | None = None,
    tiny_vae: Path | None = None,
    precision: Precision = "fp32",
    made: Preset = MAGIC_ANIMATE,
    also: Also = lambda found: found,
    tell: Tell = lambda line: None,
) -> None:
    """MagicAnimate's three files, the autoencoder, and what Stable Diffusion 1.5's text encoder says of no word -> a new folder `out`.

    `unet`: Stable Diffusion's own, where the file of the motion modules holds nothing else. Raises AvatarError as `import_published`.
    """
    beside = ("MagicAnimate", f"{MODELS}/MagicAnimate", MODELS, keys_body.BASE_FOLDER, f"{MODELS}/{keys_body.BASE_FOLDER}", "..")
    path = find(places_of(source, beside, keys_body.TEMPORAL.folder), keys_body.TEMPORAL.stems)
    tables = keys_body.magic_animate({} if path is None else keys_body.read_temporal(path))
    roots = [text_encoder] if text_encoder else _text_folders(source, beside)
    told = find(roots, TEXT_STEMS)
    if told is None:
        raise absent(text_encoder or source / keys_body.BASE_FOLDER / TEXT_FOLDER, TEXT_STEMS, option=TEXT_OPTION)
    tokens = empty_text(told, made.unet.image_dim)
    tell(f"{told.parent.name}/{told.name}: read once, for the {TEXT_TOKENS} tokens of an empty text")
    elsewhere = {keys.AUTOENCODER.option: vae, keys_body.UNET_OPTION: unet, keys.TINY.option: tiny_vae}
    found = Published(keys_body.MAGIC_ANIMATE, tables, made, beside, {"image": {"embedding": tokens}}, {f"{TEXT_FOLDER}/{told.name}": told})
    import_published(source, out, also(found), elsewhere=elsewhere, precision=precision, tell=tell)


def _text_folders(source: Path, beside: Sequence[str]) -> list[Path]:
    base = [f"{keys_body.BASE_FOLDER}/{TEXT_FOLDER}", TEXT_FOLDER]
    return [place for folder in base for place in places_of(source, beside, folder)]


def empty_text(path: Path, width: int) -> Tensor:
    """What CLIP's text encoder in a file (config.json beside it) says of a text without a word -> [77, D].

    Such a text is its vocabulary's last word but one, the beginning, and then the last, the end, 76 times: no tokenizer is needed. Raises
    AvatarError for another network.
    """
    from transformers import CLIPTextConfig, CLIPTextModel

    config = read_config(path.parent)
    wrong = AvatarError(f"{path} is no text encoder of Stable Diffusion 1.5; give the folder text_encoder as it was published.")
    if config.get("hidden_size") != width or config.get("max_position_embeddings", TEXT_TOKENS) != TEXT_TOKENS or "vocab_size" not in config:
        raise wrong
    held = {key.removeprefix(TEXT_OUTER): value for key, value in read(path).items() if not key.endswith(TEXT_COUNTED)}
    size = int(config["vocab_size"])
    known = CLIPTextConfig().to_dict()
    config = {name: value for name, value in config.items() if name in known and name not in ("architectures", "dtype", "transformers_version")}
    try:
        with torch.random.fork_rng(devices=[]):
            model = CLIPTextModel(CLIPTextConfig(**config | {"bos_token_id": size - 2, "eos_token_id": size - 1})).eval()
        ours = {key.removeprefix(TEXT_OUTER): value for key, value in model.state_dict().items() if not key.endswith(TEXT_COUNTED)}
        if ours.keys() != held.keys() or any(ours[key].shape != value.shape for key, value in held.items()):
            raise wrong
        for key, value in held.items():
            ours[key].copy_(value)
    except (TypeError, ValueError) as error:  # whatever a configuration of something else raises
        raise wrong from error
    ids = torch.full((1, TEXT_TOKENS), size - 1)
    ids[0, 0] = size - 2
    with torch.inference_mode():
        said: Tensor = model(ids).last_hidden_state[0]
    return said.clone()


__all__ = ["empty_text", "import_magicanimate"]
