"""The front door: one function a command, everything imported when it is needed. `avatar COMMAND --help` explains each."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.persona import Persona
    from engine.serving import Choice
    from engine.types import Generator

BENCHES = {"latency": "latency", "loopback": "loopback", "capacity": "throughput", "quality": "quality"}
"""Name on the command line -> module in benchmarks."""
BENCH_HELP = """one of
  latency    what a frame costs: generators, drivers, the whole chain
  loopback   motion to photon through real peers on this machine
  capacity   sessions until frames are late
  quality    how well the portrait follows a clip
`avatar bench NAME --help` explains the options of each"""
RARELY = 10.0
"""s between two lines of progress where nobody looks at a terminal."""
PACKAGE = "avatar-engine"
INSTALL = "run `make venv` in the checkout (or pip install --no-deps -r requirements.txt), then `avatar doctor`"


def serve(args: argparse.Namespace) -> int:
    """Start the server and print its address."""
    from streaming.server import serve as run
    from streaming.settings import ServerSettings

    choice = _choice(args)
    run(
        ServerSettings(
            host=args.host,
            port=args.port,
            token=args.token,
            tls_cert=args.tls_cert,
            tls_key=args.tls_key,
            max_sessions=args.max_sessions,
            generator=choice.generator,
            generator_options=choice.options,
            generator_told=choice.told,
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
            dwpose=args.dwpose,
            maps=tuple(args.maps),
        )
    )
    return 0


def render(args: argparse.Namespace) -> int:
    """Drive a portrait with a clip or a sound file and write a video."""
    from engine.config import OperatorSettings, SessionSettings
    from engine.driving import background, dwpose_makers, open_maps
    from engine.generators import load
    from engine.offline import keep_apart, natural_drive
    from engine.offline import render as run
    from engine.types import AvatarError
    from engine.whole import Leisurely, render_whole

    if not args.offline and (given := next((name for name in ("guidance", "first_guidance") if getattr(args, name) is not None), None)):
        raise AvatarError(f"A live stream has no guidance; give --offline beside --{given.replace('_', '-')}, or leave it out.")
    if args.offline and args.backend not in (None, "pytorch"):
        raise AvatarError("A whole clip is rendered by PyTorch; leave --backend out, or --offline.")
    backdrop = None if args.background in ("keep", "blur") else args.background
    keep_apart(args.out, args.drive, args.portrait, backdrop, args.record_signals)
    drive = args.drive_mode or natural_drive(args.drive)
    settings = SessionSettings(drive=drive, background=background(args.background), track_body=not args.no_body)
    makers = dwpose_makers(args.dwpose)
    choice = _choice(args)
    options = {name: value for name, value in choice.options.items() if not (args.offline and name == "steps")}
    generator = load(choice.generator, **options)
    told = generator.notice if args.offline and isinstance(generator, Leisurely) else generator.spec.notice
    notices = [told] if told else []
    if args.maps and "maps" not in generator.spec.needs:
        notices.append(f"The generator '{choice.generator}' reads no condition pictures, so --maps changes nothing.")
    bar = _Bar()
    try:
        frames = (partial(render_whole, steps=args.steps, guidance=args.guidance) if args.offline else run)(
            generator,
            _persona(generator, args),
            args.drive,
            args.out,
            settings=settings,
            operator=OperatorSettings(badge=args.badge),
            progress=bar,
            notice=notices.append,
            record=args.record_signals,
            makers=makers,
            maps=open_maps(args.maps, size=generator.spec.size, drive=args.drive),
        )
    finally:
        bar.end()
    for notice in notices:
        print(f"avatar: {notice}", file=sys.stderr)
    print(f"Wrote {frames} frames to {args.out}.")
    return 0


def persona(args: argparse.Namespace) -> int:
    """Create, judge photos for, list, show or remove personas."""
    from engine import persona as personas
    from engine.generators import load
    from engine.serving import check_preset
    from streaming.options import generator_options

    if args.action == "create":
        from exporters.portraits.options import about_photos

        options = generator_options(args)
        check_preset(args.generator or "puppet", options.get("preset"))
        listener = _Listener(child=args.child)
        kept: Persona | None
        if about_photos(args):
            from exporters.portraits.command import create

            try:
                kept = create(args, options, tell=listener.tell, progress=listener.progress, event=listener.event)
            finally:
                listener.end()
        else:
            weights = None if "weights" not in options else Path(options["weights"])
            generator = load(args.generator or "puppet", **options)
            home = None if args.home is None else args.home / personas.personas_folder().name
            kept = personas.create(generator, Path(args.portrait), name=args.name, consent=args.consent, folder=home, weights=weights)
        if kept is not None:
            listener.event("kept", name=kept.name, done=(kept.manifest["provenance"] or {}).get("done", []))
            listener.tell(f"Persona '{kept.name}' is ready in {kept.folder}.")
    elif args.action == "judge":
        from exporters.portraits.judging import judge_photos

        listener = _Listener(child=args.child)
        judge_photos(args.photos, previews=args.previews, tell=listener.tell, event=listener.event)
    elif args.action == "list":
        for name in personas.list_personas():
            print(name)
    elif args.action == "show":
        print(json.dumps(personas.show(args.name), indent=2, ensure_ascii=False))
    else:
        personas.remove(args.name)
        print(f"Persona '{args.name}' is gone.")
    return 0


def import_(args: argparse.Namespace) -> int:
    """Turn published weights into a folder that `serve --weights` takes."""
    from exporters.published.import_command import run

    run(args, tell=_line)
    return 0


def train(args: argparse.Namespace) -> int:
    """Teach a generator one person: a video in, weights and a portrait out."""
    from exporters.training.command import teach

    teach(args.video, args.out, args, tell=_line)
    return 0


def export(args: argparse.Namespace) -> int:
    """Turn weights into engines for one backend."""
    from exporters.graphs.export_command import export as run

    run(args, tell=_line)
    return 0


def bench(args: argparse.Namespace) -> int:
    """Run a benchmark: a table, then one JSON line."""
    from importlib import import_module

    if args.benchmark is None:
        args.help()
        return 0
    main_of: Callable[[list[str]], int] = import_module(f"benchmarks.{BENCHES[args.benchmark]}").main
    return main_of(args.rest)


def doctor(args: argparse.Namespace) -> int:
    """Say what is installed, what works, and what to do about the rest."""
    from engine.doctor import examine

    checks = examine()
    for check in checks:
        mark = {True: "ok     ", False: "PROBLEM", None: "absent "}[check.ok]
        print(f"{mark} {check.part:32s} {check.detail}")
    return 1 if any(check.ok is False for check in checks) else 0


def _line(text: str) -> None:
    print(text, flush=True)


def _persona(generator: Generator, args: argparse.Namespace) -> Persona:
    from engine import built_in
    from engine import persona as personas
    from engine.picture import read_picture

    if args.persona in built_in.BUILT_IN:
        return built_in.make(generator, args.persona)
    if args.persona:
        return personas.load_persona(generator, args.persona)
    picture = read_picture(args.portrait) if args.portrait else personas.demo_portrait()
    return personas.make_persona(generator, picture, name=Path(args.portrait).stem if args.portrait else "demo")


class _Bar:
    """Progress on standard error: a bar in a terminal, a line now and then in a log."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._told = time.monotonic()
        self._open = False

    def __call__(self, done: int, total: int) -> None:
        """`total` 0: nobody knows how many there will be."""
        filled = round(30 * done / total) if total else 0
        text = f"{'#' * filled}{'.' * (30 - filled)} {done}/{total}" if total else f"{done} frames"
        if self._live:
            print(f"\r{text}", end="", file=sys.stderr, flush=True)
            self._open = True
        elif time.monotonic() - self._told > RARELY:
            self._told = time.monotonic()
            print(text, file=sys.stderr, flush=True)

    def end(self) -> None:
        """Leave the bar's line."""
        if self._open:
            print(file=sys.stderr)


class _Listener:
    """What long work tells: to a person, or with `--child` to the program that runs this one."""

    def __init__(self, *, child: bool) -> None:
        self.tell: Callable[[str], None] = _line
        self.event: Callable[..., None] = lambda kind, **facts: None
        bar = _Bar()
        self.progress: Callable[[int, int], None] = bar
        self.end = bar.end
        if child:
            from exporters.portraits.child import Child

            one = Child()
            self.tell, self.event, self.progress = one.tell, one.event, one.progress


class _Version(argparse.Action):
    """`--version`, looked up only when asked."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import PackageNotFoundError, version

        try:
            found = version(PACKAGE)
        except PackageNotFoundError:
            found = "(not installed: " + INSTALL + ")"
        print(f"avatar {found}")
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    from exporters.options import add_export, add_import, add_train
    from exporters.portraits.options import add_judge, add_photos
    from streaming.options import add_generator, add_render, add_serve

    parser = argparse.ArgumentParser(
        prog="avatar", description="One portrait, a webcam or a microphone, and a browser: the portrait moves and speaks, live."
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(dest="command", required=True)

    p = commands.add_parser("serve", help="start the server and print its address")
    add_serve(p)
    p.set_defaults(run=serve)

    p = commands.add_parser("render", help="drive a portrait with a clip or a sound file and write a video")
    add_render(p)
    p.set_defaults(run=render)

    p = commands.add_parser("persona", help="keep portraits ready to go live")
    actions = p.add_subparsers(dest="action", required=True)
    create = actions.add_parser("create", help="save a portrait as a persona")
    create.add_argument("name")
    picture = create.add_mutually_exclusive_group(required=True)
    picture.add_argument("--portrait", help="the picture as it is")
    add_photos(create, picture)
    add_generator(create)
    create.add_argument("--consent", required=True, help="who agreed to what: kept in the persona's manifest")
    add_judge(actions.add_parser("judge", help="what photos are worth for driving, and why"))
    actions.add_parser("list", help="names of all personas")
    for name, text in (("show", "a persona's manifest"), ("remove", "delete a persona")):
        actions.add_parser(name, help=text).add_argument("name")
    p.set_defaults(run=persona)

    p = commands.add_parser("import", help="turn published weights into a folder for --weights")
    add_import(p)
    p.set_defaults(run=import_)

    p = commands.add_parser("export", help="turn weights into graphs and engines that a backend runs, each compared with PyTorch")
    add_export(p)
    p.set_defaults(run=export)

    p = commands.add_parser("train", help="teach a generator one person from a video of them")
    add_train(p)
    p.set_defaults(run=train)

    p = commands.add_parser(
        "bench", help="measure: latency, loopback, capacity, quality", epilog=BENCH_HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("benchmark", nargs="?", choices=sorted(BENCHES))
    p.add_argument("rest", nargs=argparse.REMAINDER, help="its own options")
    p.set_defaults(run=bench, help=p.print_help)

    commands.add_parser("doctor", help="what is installed, what works, what to do").set_defaults(run=doctor)
    return parser


def _choice(args: argparse.Namespace) -> Choice:
    """The generator and what it is built with; what was chosen by rule is told. A persona that is not there is told before the long loading."""
    from engine.serving import choose
    from exporters.graphs.lora_option import laid
    from streaming.options import generator_options

    options = generator_options(args) | laid(args.lora or (), weights=args.weights, persona=args.persona, tell=_line)
    choice = choose(args.generator, options, persona=args.persona, offline=getattr(args, "offline", False))
    for sentence in choice.told:
        print(f"avatar: {sentence}", file=sys.stderr, flush=True)
    return choice


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command -> exit status. A person's mistake is one sentence and status 2, never a traceback.

    What nobody foresaw is a sentence and status 1; AVATAR_DEBUG=1 shows where it happened.
    """
    args = _parser().parse_args(argv)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy loads: its threads keep a whole core busy while they wait for small matrices
    try:
        from engine.types import AvatarError
    except Exception as error:  # NumPy is missing, or damaged in a way that may raise anything
        print(f"avatar: NumPy, which everything needs, does not load ({_named(error)}): {INSTALL}.", file=sys.stderr)
        return 2
    try:
        status: int = args.run(args)
        sys.stdout.flush()
    except AvatarError as error:
        print(f"avatar: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `avatar persona list | head`: whoever read has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if os.environ.get("AVATAR_DEBUG"):
            raise
        print(f"avatar: {_unforeseen(error)}", file=sys.stderr)
        return 1
    return status


def _unforeseen(error: Exception) -> str:
    if isinstance(error, ImportError):
        return f"A part is missing or damaged ({error}): {INSTALL}."
    if isinstance(error, MemoryError):
        return "The memory of this machine is not enough for that; use a smaller picture or a shorter file."
    if isinstance(error, OSError):
        where = f" '{error.filename}'" if error.filename else ""
        return f"The system refused{where} ({error.strerror or error}); check the path, its permissions and the room on the disk."
    return f"Something went wrong inside ({_named(error)}); set AVATAR_DEBUG=1 to see where, and report it."


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0] if str(error) else type(error).__name__


if __name__ == "__main__":
    raise SystemExit(main())
