"""What serves a persona: its generator, its weights, and the best backend that is installed here, by a rule that is told.

The rule, for weights whose backend nobody chose. With a CUDA GPU: a TensorRT engine of these weights, else PyTorch. Without: OpenVINO where it
is installed, from an engine if one was exported, and for weights of a pixel preset without one too (it converts them at the start, which an
engine saves); else ONNX Runtime from an engine; else PyTorch.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.backends import backend, engines
from engine.built_in import BUILT_IN
from engine.generators.diffusion import presets as diffusion
from engine.generators.diffusion.taught import has_networks, preset_of
from engine.generators.reenact import presets as reenact
from engine.generators.video import presets as video
from engine.generators.video import vividpose_presets
from engine.persona import own_weights
from engine.types import AvatarError

DEFAULT = "puppet"
TAUGHT = "diffusion"
"""The generator that weights are for whose manifest names no other."""
OTHERS = ("reenact", "video")
"""Those whose weights a persona may have instead, told by their manifests."""
LIPS, LIGHT = "lipsync", "wav2lip"
"""The lips generator, and its model that a CPU is enough for: without a GPU that runs on OpenVINO, which converts it in seconds."""
PYTORCH_OWN = ("mode", "stream_batch")
"""Options that are PyTorch's: who gives one has chosen it."""


@dataclass(frozen=True, slots=True)
class Choice:
    """For `engine.generators.load(generator, **options)`."""

    generator: str
    options: Mapping[str, Any]
    told: tuple[str, ...]  # what was chosen and why, in sentences


def choose(
    generator: str | None, options: Mapping[str, Any], *, persona: str | None = None, folder: Path | None = None, offline: bool = False
) -> Choice:
    """What a person asked for, and the rest by the rule. `folder`: of the personas; `offline`: of a whole clip, which PyTorch renders.

    Raises AvatarError for a persona or weights that are not whole, and for a preset of another generator.
    """
    chosen, asked = dict(options), generator is not None
    check_preset(generator or DEFAULT, chosen.get("preset"))
    if persona is not None and generator in (None, TAUGHT, *OTHERS) and "weights" not in chosen and "preset" not in chosen:
        own = weights_of(persona, folder=folder)
        if own is not None and (whose := _whose(own)) in OTHERS:
            generator, chosen["weights"] = generator or whose, own
        elif own is not None and generator not in OTHERS and (generator == TAUGHT or has_networks(own)):
            generator, chosen["weights"] = TAUGHT, own
    if generator == TAUGHT and persona is not None and not asked and importlib.util.find_spec("torch") is None:
        instead = "The persona's weights need PyTorch, which is not installed (make torch): the puppet that its clip taught is shown instead."
        return Choice(DEFAULT, options, (instead,))
    generator = generator or DEFAULT
    if generator == LIPS and _is_light(chosen) and not {"backend", "device", "precision"} & set(chosen) and not _cuda():
        if backend("openvino").available() is None:
            return Choice(generator, chosen | {"backend": "openvino"}, ("Backend: openvino, which converts the weights now.",))
        return Choice(generator, chosen, (f"OpenVINO would be the fastest here: {backend('openvino').available()}",))
    if offline or generator != TAUGHT or "weights" not in chosen or "backend" in chosen or any(name in chosen for name in PYTORCH_OWN):
        return Choice(generator, chosen, ())
    found, why = _backend(Path(chosen["weights"]), chosen)
    return Choice(generator, chosen | found, why)


def check_preset(generator: str, preset: str | None) -> None:
    """Raise AvatarError for a preset that is of other generators alone, which are named."""
    named: dict[str, Collection[str]] = {
        "diffusion": diffusion.PRESETS,
        "reenact": reenact.PRESETS,
        "video": {**video.PRESETS, **vividpose_presets.PRESETS},
    }
    plain = "" if preset is None else diffusion.plain_name(preset)
    owners = [name for name, presets in named.items() if plain in presets]
    if owners and generator not in owners:
        whose = f"the generator{'s' * (len(owners) > 1)} {' and '.join(f'{name!r}' for name in owners)}"
        raise AvatarError(f"'{preset}' is a preset of {whose}, not of '{generator}'; give --generator {' or '.join(owners)}.")


def _whose(weights: Path) -> str:
    """The generator that a folder of weights is for."""
    try:
        return engines.generator_of(weights)
    except AvatarError:
        return TAUGHT  # which says what is wrong with them


def weights_of(persona: str, *, folder: Path | None = None) -> Path | None:
    """The folder of a persona's own weights; None where it has none. Raises AvatarError where they are lost or not those it was made with."""
    if persona in BUILT_IN:
        return BUILT_IN[persona].weights
    return own_weights(persona, folder=folder)


def _backend(weights: Path, options: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """(options to add, sentences)."""
    made = preset_of(weights)
    told = []
    if options.get("device") not in (None, "cpu") and not _cuda():
        return {}, ()  # PyTorch says what is wrong with the device

    def engine_of(name: str) -> engines.Search:
        steps, decoder = int(options.get("steps") or made.steps), "tiny" if options.get("decoder") == "tiny" else "own"
        loras = [{**each.key, "name": each.name} for each in options.get("adapters", ())]
        return engines.find(weights, name, steps=steps, precision=options.get("precision"), decoder=decoder, adapters=loras)

    if _cuda() and options.get("device") != "cpu":
        search = engine_of("tensorrt")
        if search.engine is not None:
            return {"backend": "tensorrt", "graphs": search.engine.folder}, (f"Backend: {search.told}.",)
        return {}, (search.told, "Backend: pytorch, on the GPU.")
    if backend("openvino").available() is None:
        search = engine_of("openvino")
        if search.engine is not None:
            return {"backend": "openvino", "graphs": search.engine.folder}, (f"Backend: {search.told}.",)
        told.append(search.told)
        if made.latent == "pixel" and options.get("precision") in (None, "fp32", "bf16"):
            return {"backend": "openvino"}, (*told, "Backend: openvino, which converts the weights now.")
    else:
        told.append(f"OpenVINO would be the fastest here: {backend('openvino').available()}")
    if backend("onnxruntime").available() is None:
        search = engine_of("onnxruntime")
        if search.engine is not None:
            return {"backend": "onnxruntime", "graphs": search.engine.folder}, (*told, f"Backend: {search.told}.")
    return {}, (*told, "Backend: pytorch, on the CPU.")


def _is_light(options: Mapping[str, Any]) -> bool:
    """Whether it is LIGHT that the lips generator is asked for; weights that cannot be read are its own to complain of."""
    if "weights" not in options:
        return bool(options.get("model", LIGHT) == LIGHT)
    try:
        told: dict[str, object] = json.loads((Path(options["weights"]) / engines.WEIGHTS).read_text())
        return bool(told["model"] == LIGHT)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _cuda() -> bool:
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return bool(torch.cuda.is_available())


__all__ = ["Choice", "check_preset", "choose", "weights_of"]
