"""Options of `avatar serve`, `render` and whatever else builds a generator. Nothing is imported here: `--help` must not wait."""

from __future__ import annotations

import argparse
from typing import Any

PRESETS = (
    "a size with random weights, such as tiny or compact (default); reenact: tiny (default) or liveportrait; video: tiny_unianimate (default), "
    "unianimate or vividpose"
)


def add_serve(parser: argparse.ArgumentParser) -> None:
    """`avatar serve`."""
    parser.add_argument("--host", default="127.0.0.1", help="address to bind (default: this machine only)")
    parser.add_argument("--port", type=int, default=8010)
    parser.add_argument("--token", help="bearer token, needed when --host is not a loopback address")
    parser.add_argument("--tls-cert", help="PEM certificate: serve https")
    parser.add_argument("--tls-key", help="PEM key of the certificate")
    parser.add_argument(
        "--allow-origin", action="append", default=[], metavar="URL", help="a page of another address, or a proxy's, that may use this server"
    )
    parser.add_argument("--max-sessions", type=int, default=4)
    add_generator(parser, lora=True)
    _add_maps(parser, "for weights that are driven by them, an ONNX file that makes condition pictures of the camera's")
    add_windows(parser)
    parser.add_argument("--persona", help="a saved persona to offer first")
    parser.add_argument(
        "--ice-server", action="append", default=[], metavar="URL", help="stun:host:port or turn:user:password@host:port; none by default"
    )
    parser.add_argument("--badge", action="store_true", help="a visible 'AI' badge in every stream; no client can turn it off")
    parser.add_argument(
        "--virtual-camera", action="store_true", help="show the first session as a webcam of this machine (pip install 'avatar-engine[camera]')"
    )
    parser.add_argument("--tts-url", help="an OpenAI-compatible endpoint that ends in /v1 for speech; espeak-ng otherwise")
    parser.add_argument("--tts-model", default="tts-1", help="the speech endpoint's model")
    parser.add_argument("--tts-voice", help="the speech endpoint's voice, or one of espeak-ng's")
    parser.add_argument("--chat-url", help="an OpenAI-compatible endpoint that ends in /v1 for type:chat")
    parser.add_argument("--chat-model", default="gpt-4o-mini", help="the chat endpoint's model")
    parser.add_argument("--allow-echo", action="store_true", help="let benchmarks ask for their own picture back")
    parser.add_argument(
        "--carry-strip", type=int, default=0, metavar="ROWS", help="benchmarks: copy the top rows of the camera picture into the avatar's"
    )


def add_render(parser: argparse.ArgumentParser) -> None:
    """`avatar render`."""
    who = parser.add_mutually_exclusive_group()
    who.add_argument("--portrait", help="a picture with one face (default: the built-in portrait)")
    who.add_argument("--persona", help="a saved persona")
    parser.add_argument("--drive", required=True, help="a video clip, a sound file, or recorded signals (.npz)")
    parser.add_argument("-o", "--out", required=True, help="the .mp4, .m4v, .mov or .webm to write")
    parser.add_argument("--drive-mode", choices=["camera", "voice", "auto"], help="who moves the face (default: the picture where there is one)")
    parser.add_argument("--background", default="keep", metavar="keep|blur|#rrggbb|FILE")
    add_generator(parser, lora=True)
    _add_maps(parser, "condition pictures beside the drive, a clip or an ONNX file that makes them")
    add_windows(parser)
    parser.add_argument("--no-body", action="store_true", help="leave the shoulders still")
    parser.add_argument("--badge", action="store_true", help="a visible 'AI' badge")
    parser.add_argument("--record-signals", metavar="FILE.npz", help="also keep what was read from the face (not the shoulders), to drive with later")
    whole = parser.add_argument_group("of a whole clip at leisure (diffusion, video)")
    whole.add_argument("--offline", action="store_true", help="every frame sees those after it too, with all the steps that the weights want; slow")
    whole.add_argument("--guidance", type=float, metavar="SCALE", help="1 is none (default: what the weights were made for)")
    whole.add_argument("--first-guidance", type=float, metavar="SCALE", help="of VividPose's first frame, grown evenly to the last (default: 1)")


def add_generator(parser: argparse.ArgumentParser, *, lora: bool = False) -> None:
    """Which generator, and what it is built with; options that are not given stay with the generator."""
    whose = "puppet, diffusion, lipsync, reenact or video (default: the one whose weights the persona has, else the puppet)"
    parser.add_argument("--generator", help=whose)
    lips = parser.add_argument_group("of the lips generator (with --weights, --backend, --graphs, --precision and --device as below)")
    lips.add_argument("--model", metavar="NAME", help="wav2lip (default) or musetalk, with random weights; --weights names its own")
    lips.add_argument("--over", metavar="NAME[=DIR]", help="put the lips into another generator's frames (of weights in DIR): head from the camera")
    lips.add_argument("--loop", metavar="FILE", help="a video of the portrait's person, idle, played forth and back (default: the still portrait)")
    diffusion = parser.add_argument_group(
        "of the diffusion generator; reenact and video have preset, weights, precision, backend, graphs, mode, device too, video steps"
    )
    diffusion.add_argument("--preset", help=PRESETS)
    diffusion.add_argument("--weights", metavar="DIR", help="a folder of weights that was trained or imported; it names its preset")
    diffusion.add_argument("--steps", type=int, metavar="N", help="denoising steps a frame (default: the preset's)")
    diffusion.add_argument("--stream-batch", action="store_true", default=None, help="all steps in one call; a frame leaves N - 1 frames later")
    diffusion.add_argument("--precision", choices=["fp32", "bf16", "fp16", "int8"], help="bf16 where the hardware has it, int8 from --graphs")
    diffusion.add_argument(
        "--backend", choices=["pytorch", "openvino", "onnxruntime", "tensorrt"], help="what runs the live step (default: by rule, which is told)"
    )
    diffusion.add_argument("--graphs", metavar="DIR", help="exported graphs for --backend; OpenVINO can do without")
    diffusion.add_argument(
        "--mode", choices=["eager", "script", "compile", "cudagraph"], help="how PyTorch runs it (default: script on a CPU, cudagraph on a GPU)"
    )
    diffusion.add_argument(
        "--decoder", choices=["kl", "tiny"], help="of weights that have one: their own, or the tiny one imported beside them (default: their own)"
    )
    diffusion.add_argument(
        "--identity-scale", type=float, metavar="X", help="of weights that read a face's tokens: how much these count (default: 1, as published)"
    )
    diffusion.add_argument("--device", metavar="NAME", help="cpu or cuda (default: cuda where there is one)")
    if lora:
        parser.add_argument("--dwpose", metavar="DIR", help="read body and hands with DWPose's own yolox_l.onnx and dw-ll_ucoco_384.onnx in DIR")
        diffusion.add_argument("--lora", action="append", metavar="FILE[:SCALE]", help="a LoRA (.safetensors) on the weights; may be given again")


def add_windows(parser: argparse.ArgumentParser) -> None:
    """Of the generator video."""
    windows = parser.add_argument_group("of the generator video")
    windows.add_argument("--window", type=int, metavar="N", help="frames that the network sees at once (default: what the weights were taught)")
    shared = "how many of them are past, live, or the next window's too, offline; live the others are made at once"
    windows.add_argument("--overlap", type=int, metavar="N", help=f"{shared} (default: what the weights were taught)")


def _add_maps(parser: argparse.ArgumentParser, what: str) -> None:
    kinds = "densepose, depth, dwpose, normal, semantic or smplx"
    parser.add_argument("--maps", action="append", default=[], metavar="NAME=FILE", help=f"{what}: {kinds}; may be given again")


def generator_options(args: argparse.Namespace) -> dict[str, Any]:
    """Those that were given, by the names of the generators' constructors."""
    names = (
        *("preset", "weights", "steps", "stream_batch", "precision", "mode", "device", "decoder", "backend", "graphs", "identity_scale"),
        *("model", "over", "loop"),
    )
    video = ("window", "overlap", "first_guidance")
    return {name: value for name in (*names, *video) if (value := getattr(args, name, None)) is not None}


__all__ = ["add_generator", "add_render", "add_serve", "add_windows", "generator_options"]
