"""LoRA files of others onto the networks of a generator: read without running anything, every key accounted for, every shape checked.

Layouts: diffusers and PEFT (`unet.down_blocks.0…to_q.lora_A.weight`, also `lora.down`, `lora_down`) and kohya
(`lora_unet_down_blocks_0_…_to_q.lora_down.weight`), of linear layers and convolutions (LoCon). What is fused into networks in memory is
`engine.generators.diffusion.adapters`; no weights on disk change.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.types import AvatarError
from exporters.graphs.lora_option import Asked
from exporters.published import keys
from exporters.published.keys import Table

try:
    import safetensors.torch
    from torch import Tensor

    from engine.generators.diffusion.adapters import WEIGHT, Adapter, Factors, told
    from engine.generators.diffusion.networks import Networks, empty
    from engine.generators.diffusion.taught import preset_of
except ImportError as error:
    raise AvatarError(f"A LoRA needs PyTorch and diffusers ({error}); pip install 'avatar-engine[torch]'.") from error

SUFFIX = ".safetensors"
KEY = re.compile(
    r"(?P<module>.+?)"
    r"(?:\.lora_(?P<now>A|B|down|up)(?:\.(?!weight$)[^.]+)?\.weight"  # PEFT, whose adapters may have names, and kohya
    r"|(?P<then>_lora|\.lora|\.lora_linear_layer)\.(?P<old>down|up)\.weight"  # diffusers before PEFT
    r"|\.(?P<alpha>alpha))"
)
KINDS = {"A": "down", "B": "up", "down": "down", "up": "up", "alpha": "alpha"}
OTHERS = {
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "lora_mid": "a LoCon with a Tucker decomposition",
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "oft_": "OFT",
    "diff": "a difference of whole weights",
}
"""What a key may hold that is no LoRA, and its name."""
PEFT_OWN = "base_model.model."
"""Before the keys of PEFT's own files, whose alpha is in another file."""
HEADER = "lora_adapter_metadata"
"""Where a file of diffusers tells the alpha, in its header."""
SHOWN = 3
"""Names of each kind that a report spells out."""

Shape = tuple[int, ...]


@dataclass(slots=True)
class Match:
    """What a file gives to networks, and what it does not."""

    factors: dict[str, Factors] = field(default_factory=dict)  # our weight -> what is added to it
    elsewhere: dict[str, list[str]] = field(default_factory=dict)  # a part that the generator has not, in words -> keys that are left out
    unknown: list[str] = field(default_factory=list)  # modules that are in no network of the generator
    unfit: list[str] = field(default_factory=list)  # modules of another shape, each with what it is and what it should be


def adapters(networks: Networks, loras: Sequence[Asked], *, tell: Callable[[str], None] = lambda line: None) -> tuple[Adapter, ...]:
    """LoRA files laid onto networks, which stay as they are; a few lines of what each gives.

    Raises AvatarError, one sentence, for a file that cannot be read or is no LoRA, that fits nothing, or that has anything which does not
    fit but for what belongs to parts that no generator of this kind has.
    """
    wanted = {name: tuple(value.shape) for name, value in networks.named_parameters() if name.endswith(WEIGHT) and value.ndim > 1}
    made: list[Adapter] = []
    for each in loras:
        data = _bytes(each.path)
        sha256 = hashlib.sha256(data).hexdigest()
        if any(sha256 == other.sha256 for other in made):
            raise AvatarError(f"{each.path} is given twice; give it once, with the sum of the scales.")
        held, header = _parsed(each.path, data)
        match_ = match(held, wanted, header=header, name=str(each.path))
        _report(each, match_, networks.preset.name, tell)
        made.append(Adapter(each.path.name, sha256, each.scale, match_.factors))
    return tuple(made)


def for_weights(weights: Path, loras: Sequence[Asked], *, tell: Callable[[str], None] = lambda line: None) -> tuple[Adapter, ...]:
    """As `adapters`, for the networks of a folder of weights, of which only the manifest is read."""
    return adapters(empty(preset_of(weights)), loras, tell=tell)


def match(held: Mapping[str, Tensor], wanted: Mapping[str, Shape], *, header: Mapping[str, str] | None = None, name: str = "the file") -> Match:
    """Lay a file's tensors beside the shapes of our weights. Raises AvatarError for a file that is no LoRA, or one of another kind."""
    made, parts = Match(), _modules(held, name)
    config = _config(header or {}, name)
    flat = {_flat(weight.removesuffix(WEIGHT)): weight for weight in wanted}
    for module, given in parts.items():
        if part := _elsewhere(module):
            made.elsewhere.setdefault(part, []).append(module)
            continue
        weight = _ours(module, wanted, flat)
        if weight is None:
            made.unknown.append(module)
            continue
        lacking = [kind for kind in ("down", "up") if kind not in given]
        if lacking:
            raise AvatarError(f"{name} has no '{lacking[0]}' half for '{module}'; download it again.")
        factors = _factors(module, given, config)
        if factors is None or not _fits(factors, wanted[weight]):
            up, down = (list(given[kind].shape) for kind in ("up", "down"))
            made.unfit.append(f"'{module}', up {up} and down {down} for a weight {list(wanted[weight])}")
        elif weight in made.factors:
            raise AvatarError(f"{name} has '{module}' twice, under two names; keep one of them.")
        else:
            made.factors[weight] = _shaped(factors, wanted[weight])
    return made


# -- files ----------------------------------------------------------------------------------------------------------------


def _bytes(path: Path) -> bytes:
    if path.suffix != SUFFIX:
        raise AvatarError(f"{path} is no {SUFFIX} file; a LoRA in another format can run code when it is loaded, so get it as {SUFFIX}.")
    try:
        return path.read_bytes()
    except OSError as error:
        raise AvatarError(f"{path} cannot be read ({error.strerror or error}); check the path and its permissions.") from error


def _parsed(path: Path, data: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, what the header says beside) of a .safetensors file."""
    if data[:1] == b"\x80" or data[:2] == b"PK":
        raise AvatarError(f"{path} is a pickled file under another name, which can run code when it is loaded; get it as {SUFFIX}.")
    try:
        held = safetensors.torch.load(data)
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    except Exception as error:  # whatever a broken file raises
        raise AvatarError(f"{path} ({len(data):,} bytes) is damaged, not complete or no {SUFFIX} file; download it again.") from error
    return held, dict(header)


def _config(header: Mapping[str, str], name: str) -> dict[str, Any]:
    """What diffusers' header says of the denoiser's LoRA; empty where there is none."""
    try:
        told_ = json.loads(header.get(HEADER, "{}"))
        own = {key.removeprefix("unet."): value for key, value in told_.items() if key.startswith("unet.")} or told_
        if own.get("use_dora"):
            raise AvatarError(f"{name} is DoRA, which is not fused here; give a LoRA or a LoCon.")
        return dict(own)
    except (ValueError, AttributeError, TypeError) as error:
        raise AvatarError(f"{name} has a header that cannot be read ({error}); download it again.") from error


# -- keys -----------------------------------------------------------------------------------------------------------------


def _modules(held: Mapping[str, Tensor], name: str) -> dict[str, dict[str, Tensor]]:
    """Module, as the file names it -> its tensors by kind: up, down, alpha. Keys of parts that we have not are not looked into."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in held.items():
        if key.startswith(PEFT_OWN):
            raise AvatarError(f"{name} is in PEFT's own layout, which tells its alpha in another file; save it with diffusers' save_lora_weights.")
        parsed = KEY.fullmatch(key)
        if parsed is None:
            if _elsewhere(key):
                found.setdefault(key, {})
                continue
            other = next((words for word, words in OTHERS.items() if f".{word}" in key), None)
            kind = f"is {other}" if other else "is nothing of a LoRA"
            raise AvatarError(f"{name} holds '{key}', which {kind}; give a LoRA or a LoCon, with up, down and alpha.")
        module = parsed["module"].replace(".processor.", ".")
        kinds = found.setdefault(module, {})
        kind = KINDS[parsed["now"] or parsed["old"] or parsed["alpha"]]
        if kind in kinds:
            raise AvatarError(f"{name} has '{module}' twice; keep one adapter in a file.")
        kinds[kind] = tensor
    if not found:
        raise AvatarError(f"{name} holds no tensors; download it again.")
    return found


def _elsewhere(key: str) -> str | None:
    """A part that generators of this kind have not, in words, where a key belongs to one."""
    for word, part in keys.ELSEWHERE.items():
        if key.startswith((f"{word}.", f"lora_{word}_")):
            return part
    return None


def _flat(module: str) -> str:
    """As kohya names it."""
    return module.replace(".", "_")


def _ours(module: str, wanted: Mapping[str, Shape], flat: Mapping[str, str]) -> str | None:
    """A module's weight among ours; None where there is none."""
    if module + WEIGHT in wanted:  # our own name for it
        return module + WEIGHT
    kohya = module.startswith("lora_")
    rest, mark = (module.removeprefix("lora_"), "_") if kohya else (module, ".")
    named = sorted((word for word in keys.ADAPTED if rest.startswith(word + mark)), key=len)
    table: Table = keys.ADAPTED[named[-1] if named else "denoiser"]
    inner = rest.removeprefix(named[-1] + mark) if named else rest
    if kohya:
        start = _flat(f"{table.part}.{table.prefix}")
        return flat.get(start + inner.removeprefix(_flat(table.prefix)))
    start = f"{table.part}.{table.prefix}"
    # Diffusers calls what is the first of a list, `to_out.0`, by the list's name as well.
    choices = (start + table.ours(f"{inner.removeprefix(table.prefix)}{middle}{WEIGHT}") for middle in ("", ".0"))
    return next((weight for weight in choices if weight in wanted), None)


# -- tensors --------------------------------------------------------------------------------------------------------------


def _factors(module: str, given: Mapping[str, Tensor], config: Mapping[str, Any]) -> Factors | None:
    """None where the tensors are no two halves of one product."""
    up, down = given["up"], given["down"]
    if up.ndim < 2 or down.ndim < 2 or up.numel() == 0 or down.numel() == 0 or up[0, 0].numel() != 1 or up.shape[1] != down.shape[0]:
        return None
    if not all(half.is_floating_point() and bool(half.float().isfinite().all()) for half in (up, down)):
        raise AvatarError(f"'{module}' of the LoRA holds values that are no numbers; download it again.")
    rank = down.shape[0]
    alpha = float(given["alpha"].float().reshape(-1)[0]) if "alpha" in given and given["alpha"].numel() == 1 else _alpha(module, rank, config)
    if not math.isfinite(alpha):
        raise AvatarError(f"The alpha of '{module}' of the LoRA is no number; download it again.")
    return Factors(up.flatten(1), down, alpha)


def _alpha(module: str, rank: int, config: Mapping[str, Any]) -> float:
    """By the file's header; where that says nothing the rank, which means a factor of 1."""
    patterns = config.get("alpha_pattern") or {}
    inner = module.removeprefix("unet.")
    found = next((value for key, value in patterns.items() if inner == key or inner.endswith(f".{key}")), config.get("lora_alpha", rank))
    return float(found) * math.sqrt(rank) if config.get("use_rslora") and "lora_alpha" in config else float(found)


def _fits(factors: Factors, weight: Shape) -> bool:
    """Whether a product has the shape of a weight [o, i, ..]; of a linear layer and a convolution of 1 x 1 each passes for the other."""
    down = tuple(factors.down.shape[1:])
    return factors.up.shape[0] == weight[0] and (down == weight[1:] or _plain(down) == _plain(weight[1:]) is not None)


def _plain(shape: Shape) -> int | None:
    """Channels of a layer that looks at one place at a time."""
    return shape[0] if all(size == 1 for size in shape[1:]) else None


def _shaped(factors: Factors, weight: Shape) -> Factors:
    return Factors(factors.up, factors.down.reshape(factors.down.shape[0], *weight[1:]), factors.alpha)


# -- what is said ---------------------------------------------------------------------------------------------------------


def _report(lora: Asked, made: Match, preset: str, tell: Callable[[str], None]) -> None:
    """Lines of what a file gives, and AvatarError where something does not fit."""
    parts = Counter(weight.partition(".")[0] for weight in made.factors)
    ranks = sorted({factors.down.shape[0] for factors in made.factors.values()})
    words = ", ".join(f"{part} {count}" for part, count in sorted(parts.items())) or "none"
    rank = f", rank {ranks[0]}" + (f" to {ranks[-1]}" if len(ranks) > 1 else "") if ranks else ""
    tell(f"LoRA {told(lora.path.name, lora.scale)}: {len(made.factors)} modules fit ({words}){rank}")
    for part, names in made.elsewhere.items():
        tell(f"  {len(names)} left out, they belong to {part}, which this generator has not: {_few(names)}")
    for kind, names in (("in no network of it", made.unknown), ("of another shape", made.unfit)):
        if names:
            tell(f"  {len(names)} {kind}: {_few(names)}")
    left = [f"{len(made.unknown)} are in no network of it (first '{made.unknown[0]}')"] if made.unknown else []
    left += [f"{len(made.unfit)} are of another shape (first {made.unfit[0]})"] if made.unfit else []
    total = len(made.factors) + len(made.unknown) + len(made.unfit)
    if left:
        raise AvatarError(
            f"{lora.path} was not made for the preset '{preset}': of {total} modules {' and '.join(left)}; give a LoRA for these weights."
        )
    if not made.factors:
        part = next(iter(made.elsewhere))
        raise AvatarError(f"{lora.path} changes nothing here: all of it belongs to {part}, which this generator has not; give one for the UNet.")


def _few(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


__all__ = ["Match", "adapters", "for_weights", "match"]
