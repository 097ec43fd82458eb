"""`avatar import SYSTEM DIR -o OUT`: which importer a system has, and how what it wrote is served."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable
from typing import Any

from engine.generators.diffusion.layout import MAPS
from engine.generators.diffusion.presets import PRESETS
from engine.types import AvatarError
from exporters.portraits.options import FILES
from exporters.published.layouts import LAYOUTS, elsewhere

RENDERED = {"magicanimate": MAPS["densepose"], "unianimate": (), "vividpose": ("smplx",)}
"""Systems beside LAYOUTS that no camera alone can drive, or that are best at leisure as they were published, and the pictures beside a clip that
drive them."""


def run(args: argparse.Namespace, *, tell: Callable[[str], None]) -> None:
    """Import what the command line says. Raises AvatarError for whatever does not fit."""
    if args.system in FILES:
        from exporters.portraits.install import install

        made = install(args, tell=tell)
        base = "" if made.base else " --base DIR"
        tell(f'Make a presenter with it: avatar persona create NAME --photos a.jpg b.jpg --consent "…" --system {made.name}{base}')
        return
    generator, more = SYSTEMS[args.system](args, tell)
    how = f"--generator {generator} --weights {shlex.quote(str(args.out))}{more}"
    if (pictures := _pictures(args)) is not None:
        maps = "".join(f" --maps {name}={name}.mp4" for name in pictures)
        networks = "".join(f" --maps {name}={name}.onnx" for name in pictures)
        why = "Live it needs a network of yours for each of its pictures" if networks else "Live it is soft until it is distilled"
        tell(f"{why}: avatar serve {how}{networks}")
        tell(f"Wrote {args.out}. Render with it: avatar render {how}{' --offline' if generator == 'video' else ''} --drive clip.mp4{maps} -o out.mp4")
        return
    tell(f"Wrote {args.out}. Serve it: avatar serve {how}")


def _pictures(args: argparse.Namespace) -> tuple[str, ...] | None:
    """What beside a clip drives what was imported; None where a camera alone can."""
    if args.system in LAYOUTS:
        return PRESETS[LAYOUTS[args.layout].preset].maps or None
    return RENDERED.get(args.system)


def _layout(args: argparse.Namespace, tell: Callable[[str], None]) -> tuple[str, str]:
    from exporters.published.import_checkpoint import import_layout

    folders = {option: getattr(args, option.strip("-").replace("-", "_")) for option in elsewhere(args.layout)}
    import_layout(args.layout, args.folder, args.out, elsewhere=folders, precision=args.precision, also=_also(args, tell), tell=tell)
    return "diffusion", _decoder(args)


def _also(args: argparse.Namespace, tell: Callable[[str], None]) -> Any:
    """FaceID's file for the denoiser, where one is given. Raises AvatarError where only what belongs to it is."""
    if args.faceid is None:
        if args.faceid_lora or args.recogniser is not None:
            raise AvatarError("--faceid-lora and --recogniser belong to --faceid FILE; give that too, or leave them out.")
        return lambda found: found
    from exporters.published.import_faceid import FaceId, adding

    return adding(FaceId(args.faceid, args.faceid_lora, args.recogniser), tell)


def _decoder(args: argparse.Namespace) -> str:
    return " --decoder tiny" if args.tiny_vae else ""


def _magicanimate(args: argparse.Namespace, tell: Callable[[str], None]) -> tuple[str, str]:
    from exporters.published.import_magicanimate import import_magicanimate

    found = {"vae": args.vae, "unet": args.unet, "text_encoder": args.text_encoder, "tiny_vae": args.tiny_vae}
    import_magicanimate(args.folder, args.out, **found, precision=args.precision, also=_also(args, tell), tell=tell)
    return "diffusion", _decoder(args)


def _liveportrait(args: argparse.Namespace, tell: Callable[[str], None]) -> tuple[str, str]:
    from exporters.published.import_liveportrait import import_liveportrait

    import_liveportrait(args.folder, args.out, precision=args.precision, tell=tell)
    return "reenact", ""


def _unianimate(args: argparse.Namespace, tell: Callable[[str], None]) -> tuple[str, str]:
    from exporters.published.import_unianimate import import_unianimate

    import_unianimate(args.folder, args.out, vae=args.vae, clip=args.clip, precision=args.precision, tell=tell)
    return "video", ""


def _vividpose(args: argparse.Namespace, tell: Callable[[str], None]) -> tuple[str, str]:
    from exporters.published.import_vividpose import import_vividpose

    found = {"trained": args.trained, "vae": args.vae, "image_encoder": args.image_encoder, "recogniser": args.recogniser}
    import_vividpose(args.folder, args.out, **found, precision=args.precision, tell=tell)
    return "video", ""


def _wav2lip(args: argparse.Namespace, tell: Callable[[str], None]) -> tuple[str, str]:
    from exporters.published.import_lipsync import import_wav2lip

    import_wav2lip(args.source, args.out, precision=args.precision, tell=tell)
    return "lipsync", ""


def _musetalk(args: argparse.Namespace, tell: Callable[[str], None]) -> tuple[str, str]:
    from exporters.published.import_lipsync import import_musetalk

    import_musetalk(args.folder, args.out, vae=args.vae, whisper=args.whisper, precision=args.precision, tell=tell)
    return "lipsync", ""


def _echomimic(args: argparse.Namespace, tell: Callable[[str], None]) -> tuple[str, str]:
    from exporters.published.import_audio import import_echomimic

    import_echomimic(args.folder, args.out, variant=args.variant, vae=args.vae, precision=args.precision, tell=tell)
    return "diffusion", ""


def _hallo(args: argparse.Namespace, tell: Callable[[str], None]) -> tuple[str, str]:
    from exporters.published.import_audio import import_hallo

    found = {"vae": args.vae, "wav2vec": args.wav2vec, "recogniser": args.recogniser}
    import_hallo(args.folder, args.out, **found, precision=args.precision, tell=tell)
    return "diffusion", ""


SYSTEMS: dict[str, Callable[[argparse.Namespace, Callable[[str], None]], tuple[str, str]]] = {
    **dict.fromkeys((name for name in LAYOUTS if " " not in name), _layout),
    "echomimic": _echomimic,
    "hallo": _hallo,
    "liveportrait": _liveportrait,
    "magicanimate": _magicanimate,
    "musetalk": _musetalk,
    "unianimate": _unianimate,
    "vividpose": _vividpose,
    "wav2lip": _wav2lip,
}
"""Name on the command line -> its importer, which answers with the generator and with options that what it wrote needs."""

__all__ = ["SYSTEMS", "run"]
