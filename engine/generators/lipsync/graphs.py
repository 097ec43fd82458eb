"""Every network of the generator as a backend sees it: tensors in, tensors out. The single truth for export and parity checks.

Wav2Lip has one graph, `step`. MuseTalk has `encode`, once a face (for a still portrait once at all), `listen` and `step`, once a frame.
"""

from __future__ import annotations

from engine.generators.lipsync import musetalk, wav2lip
from engine.generators.lipsync.musetalk import MuseTalk
from engine.generators.lipsync.networks import Networks
from engine.generators.lipsync.wav2lip import Wav2Lip
from engine.types import GraphSpec

NARROWED = ("step",)
"""Graphs of which an export makes a narrower one where that is asked for: the one that paints. What sees and hears stays in fp32."""
ENDS = r"(face_encoder_blocks\.0\.|output_block\.1/)"
"""Nodes of Wav2Lip's `step` that 8 bits lose most of: the first convolution and the last."""


def graphs(networks: Networks, *, rows: int = 1) -> dict[str, GraphSpec]:
    """By name, for `rows` frames a call.

    Wav2Lip `step`: `face` uint8 [rows, 96, 96, 3] RGB, `mel` [rows, 80, 16] -> `picture` float32 [rows, 96, 96, 3] RGB 0..255.
    MuseTalk `encode`: `face` uint8 [rows, S, S, 3], `noise` [rows, 8, s, s] -> `latents` [rows, 8, s, s]; `listen`: `mel` [rows, 80, 2 T] ->
    `tokens` [rows, 50, C]; `step`: `latents`, `tokens` -> `picture` float32 [rows, S, S, 3] RGB 0..255.
    """
    module = networks.module
    if isinstance(module, Wav2Lip):
        return {"step": _wav2lip(networks.size.name, module, rows)}
    assert isinstance(module, MuseTalk)
    size = module.size
    side, latent = size.side, (rows, 8, size.latent, size.latent)
    tokens = (rows, musetalk.TOKENS, size.width)
    return {
        "encode": GraphSpec(
            f"{size.name} encode",
            {"face": ((rows, side, side, 3), "uint8"), "noise": (latent, "float32")},
            ("latents",),
            lambda: musetalk.Encode(module),
        ),
        "listen": GraphSpec(
            f"{size.name} listen",
            {"mel": ((rows, musetalk.BANDS, 2 * size.positions), "float32")},
            ("tokens",),
            lambda: musetalk.Listen(module),
        ),
        "step": GraphSpec(
            f"{size.name} step", {"latents": (latent, "float32"), "tokens": (tokens, "float32")}, ("picture",), lambda: musetalk.Live(module)
        ),
    }


def _wav2lip(name: str, module: Wav2Lip, rows: int) -> GraphSpec:
    inputs = {"face": ((rows, wav2lip.SIDE, wav2lip.SIDE, 3), "uint8"), "mel": ((rows, wav2lip.BANDS, wav2lip.COLUMNS), "float32")}
    return GraphSpec(f"{name} step", inputs, ("picture",), lambda: wav2lip.Live(module))


__all__ = ["ENDS", "NARROWED", "graphs"]
