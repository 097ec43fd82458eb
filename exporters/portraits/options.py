"""Options of `avatar persona create` about photos, and of `avatar import` for identity systems; no more, so that a parser costs nothing."""

from __future__ import annotations

import argparse
from pathlib import Path

OF_SYSTEM = (
    *("base", "unet", "prompt", "negative", "also", "describe", "image_encoder", "recogniser", "control", "variant"),
    *("candidates", "seed", "pick", "only_candidates", "scale", "guidance", "size"),
)
"""Options that mean nothing without --system."""

FILES = {
    "ip-adapter": "an IP-Adapter's file, plain, plus, plus-face or full-face, beside CLIP's image encoder",
    "faceid": "an IP-Adapter-FaceID's file, beside a recogniser (buffalo_l) and for Plus CLIP's image encoder",
    "instantid": "InstantID's ip-adapter.bin and ControlNetModel, beside antelopev2",
    "photomaker": "PhotoMaker's file, v1 or v2, and for v2 a recogniser beside it",
    "pulid": "PuLID's file, v1, v1.1 or FLUX, beside EVA02_CLIP_L_336_psz14_s6B.pt, parsing_bisenet.pth and antelopev2",
    "consistentid": "ConsistentID's file, beside face_parsing.pth, CLIP's image encoder and buffalo_l",
    "uniportrait": "UniPortrait's folder: its faceid, router and CurricularFace files, beside CLIP's image encoder",
    "arc2face": "Arc2Face's folder: arc2face, encoder, arcface.onnx",
}
"""What an identity system is imported from."""


def add_identity(systems: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`avatar import` of identity systems."""
    for name, what in FILES.items():
        parser = systems.add_parser(name, help=f"{what}; for `avatar persona create --system {name}`")
        parser.add_argument("weights", type=Path, metavar="FILE_OR_DIR", help="the file, or the folder it lies in")
        parser.add_argument("--base", type=Path, metavar="DIR", help="a base in diffusers' layout to make portraits with; tried, and remembered")
        _add_parts(parser)


def about_photos(args: argparse.Namespace) -> bool:
    """Whether anything was given that is about photos, with or without them."""
    return bool(args.photos or args.no_relight or given(args) or args.system)


def given(args: argparse.Namespace) -> list[str]:
    """Those of OF_SYSTEM that were given, as they are written."""
    return [f"--{name.replace('_', '-')}" for name in OF_SYSTEM if getattr(args, name) is not None]


def add_photos(parser: argparse.ArgumentParser, picture: argparse._MutuallyExclusiveGroup) -> None:
    """`picture`: the group that `--portrait` is in. --weights, --steps, --precision and --device are the generator's, and a system's too."""
    picture.add_argument("--photos", nargs="+", type=Path, metavar="FILE", help="photos of the person; the best for driving becomes the portrait")
    made = parser.add_argument_group("of --photos")
    made.add_argument("--no-relight", action="store_true", help="leave the photo's light as it is, however dark or one-sided")
    made.add_argument("--home", type=Path, metavar="DIR", help="keep the persona in DIR/personas, and what is made on the way beside it")
    _add_child(made)
    system = parser.add_argument_group("of an identity system (with --photos; --weights are the system's files, --steps, --precision, --device too)")
    system.add_argument("--system", metavar="NAME", help="make portraits of the person with it: see the README for names and files")
    system.add_argument("--base", type=Path, metavar="DIR", help="a Stable Diffusion 1.5, SDXL or FLUX in diffusers' layout")
    system.add_argument("--prompt", metavar="TEXT", help="what to show (default: the system's)")
    system.add_argument("--negative", metavar="TEXT", help="what not to show (default: the system's)")
    system.add_argument(
        "--also", action="append", nargs="+", type=Path, metavar="FILE",
        help="uniportrait: photos of another person in the picture; once for each; the portrait is cut to the person of --photos",
    )  # fmt: skip
    system.add_argument(
        "--describe", metavar="TEXT", help="consistentid: what the face, ears, eyes, nose and mouth are like (default: that they are there)"
    )
    system.add_argument("--candidates", type=int, metavar="N", help="portraits to choose from (default: 4)")
    system.add_argument("--seed", type=int, metavar="N", help="of the first of them (default: 0)")
    system.add_argument("--pick", type=int, metavar="SEED", help="the portrait to keep (default: the best for driving)")
    system.add_argument("--only-candidates", action="store_true", default=None, help="make the portraits and keep no persona yet")
    system.add_argument("--scale", type=float, metavar="S", help="how strongly the person is asked for (default: the system's)")
    system.add_argument("--guidance", type=float, metavar="S", help="how strongly the prompt is (default: the system's)")
    system.add_argument("--size", metavar="WxH", help="px of the portraits, such as 512 or 512x768 (default: 512, SDXL and FLUX 1024)")
    _add_parts(system)


def add_judge(parser: argparse.ArgumentParser) -> None:
    """`avatar persona judge`."""
    parser.add_argument("photos", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--previews", type=Path, metavar="DIR", help="write each photo, upright and small, and the portrait it would become there")
    _add_child(parser)


def _add_child(group: argparse._ActionsContainer) -> None:
    what = "for a program that runs this one: events as JSON lines on standard output; it ends when its standard input does"
    group.add_argument("--child", action="store_true", help=what)


def _add_parts(group: argparse._ActionsContainer) -> None:
    group.add_argument("--unet", type=Path, metavar="PATH", help="another UNet for the base, such as CosmicMan's or SDXL-Lightning's")
    group.add_argument("--image-encoder", type=Path, metavar="PATH", help="the system's image encoder (default: image_encoder beside the weights)")
    group.add_argument("--recogniser", type=Path, metavar="PATH", help="an ONNX face recogniser, or its folder (default: beside the weights)")
    group.add_argument("--control", type=Path, metavar="DIR", help="the system's ControlNet (default: beside the weights)")
    group.add_argument("--variant", metavar="NAME", help="of a system whose files do not say it, such as plus or plusv2, or how it is used")


__all__ = ["FILES", "about_photos", "add_identity", "add_judge", "add_photos", "given"]
