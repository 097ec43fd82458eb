"""The front door: one function a command, everything imported when it is needed. `avatar COMMAND --help` explains each."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.types import AvatarError

if TYPE_CHECKING:
    from engine.config import Background
    from engine.persona import Persona
    from engine.types import Drive, Generator

BENCHES = {"latency": "latency", "loopback": "loopback", "capacity": "throughput", "quality": "quality"}
"""Name on the command line -> module in benchmarks."""


def serve(args: argparse.Namespace) -> int:
    """Start the server and print its address."""
    from streaming.server import serve as run
    from streaming.settings import ServerSettings

    run(
        ServerSettings(
            host=args.host,
            port=args.port,
            token=args.token,
            tls_cert=args.tls_cert,
            tls_key=args.tls_key,
            max_sessions=args.max_sessions,
            generator=args.generator,
            persona=args.persona,
            ice_servers=tuple(args.ice_server),
            badge=args.badge,
            virtual_camera=args.virtual_camera,
            tts_url=args.tts_url,
            tts_model=args.tts_model,
            tts_voice=args.tts_voice,
            allowed_origins=tuple(args.allow_origin),
            chat_url=args.chat_url,
            chat_model=args.chat_model,
            allow_echo=args.allow_echo,
            carry_strip=args.carry_strip,
        )
    )
    return 0


def render(args: argparse.Namespace) -> int:
    """Drive a portrait with a clip or a sound file and write a video."""
    from engine.config import OperatorSettings, SessionSettings
    from engine.generators import load
    from engine.media import probe
    from engine.offline import render as run

    clip = probe(args.drive)
    generator = load(args.generator)
    persona = _persona(generator, args)
    drive: Drive = args.drive_mode or ("camera" if clip.has_video else "voice")
    settings = SessionSettings(drive=drive, background=_background(args), track_body=not args.no_body)
    frames = run(generator, persona, args.drive, args.out, settings=settings, operator=OperatorSettings(badge=args.badge), progress=_bar)
    print(f"\nWrote {frames} frames to {args.out}.")
    return 0


def persona(args: argparse.Namespace) -> int:
    """Create, list, show or remove personas."""
    from engine import persona as personas
    from engine.generators import load

    if args.action == "create":
        made = personas.create(load(args.generator), Path(args.portrait), name=args.name, consent=args.consent)
        print(f"Persona '{made.name}' is ready in {made.folder}.")
    elif args.action == "list":
        for name in personas.list_personas():
            print(name)
    elif args.action == "show":
        print(json.dumps(personas.show(args.name), indent=2, ensure_ascii=False))
    else:
        personas.remove(args.name)
        print(f"Persona '{args.name}' is gone.")
    return 0


def bench(args: argparse.Namespace) -> int:
    """Run a benchmark: a table, then one JSON line."""
    from importlib import import_module

    main_of: Callable[[list[str]], int] = import_module(f"benchmarks.{BENCHES[args.benchmark]}").main
    return main_of(args.rest)


def doctor(args: argparse.Namespace) -> int:
    """Say what is installed, what works, and what to do about the rest."""
    from engine.doctor import examine

    checks = examine()
    for check in checks:
        mark = {True: "ok     ", False: "MISSING", None: "absent "}[check.ok]
        print(f"{mark} {check.part:32s} {check.detail}")
    return 1 if any(check.ok is False for check in checks) else 0


def _persona(generator: Generator, args: argparse.Namespace) -> Persona:
    from engine import persona as personas
    from engine.picture import read_picture

    if args.persona:
        return personas.load_persona(generator, args.persona)
    picture = read_picture(args.portrait) if args.portrait else personas.demo_portrait()
    return personas.make_persona(generator, picture, name=Path(args.portrait).stem if args.portrait else "demo")


def _background(args: argparse.Namespace) -> Background:
    from engine.config import Background
    from engine.picture import read_picture

    value: str = args.background
    if value in ("keep", "blur"):
        return Background(kind="keep" if value == "keep" else "blur")
    if value.startswith("#"):
        try:
            red, green, blue = bytes.fromhex(value[1:])
        except ValueError:
            raise AvatarError(f"'{value}' is not a colour; write it as #rrggbb, for example #00b140.") from None
        return Background(kind="colour", colour=(red, green, blue))
    return Background(kind="picture", picture=read_picture(value))


def _bar(done: int, total: int) -> None:
    if sys.stderr.isatty() or done == total:
        filled = round(30 * done / max(total, 1))
        print(f"\r{'#' * filled}{'.' * (30 - filled)} {done}/{total}", end="", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="avatar", description="One portrait, a webcam or a microphone, and a browser: the portrait moves and speaks, live."
    )
    commands = parser.add_subparsers(dest="command", required=True)

    p = commands.add_parser("serve", help="start the server and print its address")
    p.add_argument("--host", default="127.0.0.1", help="address to bind (default: this machine only)")
    p.add_argument("--port", type=int, default=8010)
    p.add_argument("--token", help="bearer token, needed when --host is not a loopback address")
    p.add_argument("--tls-cert", help="PEM certificate: serve https")
    p.add_argument("--tls-key", help="PEM key of the certificate")
    p.add_argument(
        "--allow-origin", action="append", default=[], metavar="URL", help="a page of another address, or a proxy's, that may use this server"
    )
    p.add_argument("--max-sessions", type=int, default=4)
    p.add_argument("--generator", default="puppet")
    p.add_argument("--persona", help="a saved persona to offer first")
    p.add_argument("--ice-server", action="append", default=[], metavar="URL", help="stun:host:port or turn:user:password@host:port; none by default")
    p.add_argument("--badge", action="store_true", help="a visible 'AI' badge in every stream; no client can turn it off")
    p.add_argument(
        "--virtual-camera", action="store_true", help="show the first session as a webcam of this machine (pip install 'avatar-engine[camera]')"
    )
    p.add_argument("--tts-url", help="an OpenAI-compatible endpoint that ends in /v1 for speech; espeak-ng otherwise")
    p.add_argument("--tts-model", default="tts-1", help="the speech endpoint's model")
    p.add_argument("--tts-voice", help="the speech endpoint's voice, or one of espeak-ng's")
    p.add_argument("--chat-url", help="an OpenAI-compatible endpoint that ends in /v1 for type:chat")
    p.add_argument("--chat-model", default="gpt-4o-mini", help="the chat endpoint's model")
    p.add_argument("--allow-echo", action="store_true", help="let benchmarks ask for their own picture back")
    p.add_argument("--carry-strip", type=int, default=0, metavar="ROWS", help="benchmarks: copy the top rows of the camera picture into the avatar's")
    p.set_defaults(run=serve)

    p = commands.add_parser("render", help="drive a portrait with a clip or a sound file and write a video")
    who = p.add_mutually_exclusive_group()
    who.add_argument("--portrait", help="a picture with one face (default: the built-in portrait)")
    who.add_argument("--persona", help="a saved persona")
    p.add_argument("--drive", required=True, help="a video clip or a sound file")
    p.add_argument("-o", "--out", required=True, help="the MP4 or WebM to write")
    p.add_argument("--drive-mode", choices=["camera", "voice", "auto"], help="who moves the face (default: the picture where there is one)")
    p.add_argument("--background", default="keep", metavar="keep|blur|#rrggbb|FILE")
    p.add_argument("--generator", default="puppet")
    p.add_argument("--no-body", action="store_true", help="leave the shoulders still")
    p.add_argument("--badge", action="store_true", help="a visible 'AI' badge")
    p.set_defaults(run=render)

    p = commands.add_parser("persona", help="keep portraits ready to go live")
    actions = p.add_subparsers(dest="action", required=True)
    create = actions.add_parser("create", help="save a portrait as a persona")
    create.add_argument("name")
    create.add_argument("--portrait", required=True)
    create.add_argument("--generator", default="puppet")
    create.add_argument("--consent", required=True, help="who agreed to what: kept in the persona's manifest")
    actions.add_parser("list", help="names of all personas")
    for name, text in (("show", "a persona's manifest"), ("remove", "delete a persona")):
        actions.add_parser(name, help=text).add_argument("name")
    p.set_defaults(run=persona)

    p = commands.add_parser("bench", help="measure: latency, loopback, capacity, quality", add_help=False)
    p.add_argument("benchmark", choices=sorted(BENCHES))
    p.add_argument("rest", nargs=argparse.REMAINDER)
    p.set_defaults(run=bench)

    commands.add_parser("doctor", help="what is installed, what works, what to do").set_defaults(run=doctor)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command -> exit status. A person's mistake is one sentence and status 2, never a traceback."""
    args = _parser().parse_args(argv)
    try:
        status: int = args.run(args)
    except AvatarError as error:
        print(f"avatar: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return status


if __name__ == "__main__":
    raise SystemExit(main())
