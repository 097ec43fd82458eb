"""`avatar persona create NAME --photos A B`: photos of a person -> a persona, with what was done written beside it.

Without `--system` the best photo is the portrait; with it portraits are made by the user's base and adapter, and one of them is.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from engine import persona as personas
from engine.generators import load as load_generator
from engine.persona import Persona
from engine.types import AvatarError, Generator
from exporters.portraits import candidates, contract, people
from exporters.portraits.finish import finish
from exporters.portraits.install import filled
from exporters.portraits.options import given
from exporters.portraits.photos import Photo, read_photos

Tell = Callable[[str], None]
Event = Callable[..., None]
"""(kind, facts by name): what a program that runs this wants to know; see `exporters.portraits.child`."""
Progress = Callable[[int, int], None]
SIDES = {"sd15": 512, "sdxl": 1024, "flux": 1024}
"""px of a portrait where --size is not given."""
SIZE = re.compile(r"(\d{2,4})(?:x(\d{2,4}))?")
CANDIDATES = "candidates"
"""Folder beside the personas' that portraits are made in."""


def create(
    args: argparse.Namespace,
    options: Mapping[str, Any],
    *,
    tell: Tell,
    progress: Progress | None = None,
    event: Event = lambda kind, **facts: None,
) -> Persona | None:
    """The persona that the command line asks for, kept; None where only portraits to choose from were asked for.

    `options`: of the generator. Raises AvatarError, one sentence, where it cannot be.
    """
    personas.check_new(args.name, args.consent, folder=_home(args))
    if args.system is not None:
        args = filled(args)
    _check(args)
    photos, refused = read_photos(args.photos, tell=tell)
    if args.system is None:
        return _from_photo(args, options, photos, refused, tell)
    return _from_system(args, photos, refused, tell, progress, event)


def _check(args: argparse.Namespace) -> None:
    """Raise AvatarError where options do not go together."""
    if args.system is None and (more := given(args)):
        raise AvatarError(f"{more[0]} is for an identity system; name one with --system, or leave it out.")
    if not args.photos:
        raise AvatarError("--portrait is taken as it is; give the picture with --photos for what else was asked.")
    if args.system is None:
        return
    if args.base is None or args.weights is None:
        raise AvatarError(
            f"An identity system needs --weights, the system's own files, and --base, a model in diffusers' layout; "
            f"`avatar import {args.system} FILES --base DIR` writes both down once."
        )
    if args.generator not in (None, "puppet"):
        raise AvatarError("With --system, --weights are the identity system's; leave --generator out: the persona can be served with any.")
    if (args.candidates is not None and args.candidates < 1) or (args.seed is not None and args.seed < 0):
        raise AvatarError("--candidates is at least 1, and --seed at least 0.")
    if args.steps is not None and args.steps < 1:
        raise AvatarError("--steps is at least 1; leave it out for as many as the system was published with.")
    if args.only_candidates and args.pick is not None:
        raise AvatarError("--only-candidates keeps no persona, and --pick says which one is kept; leave one of them out.")
    _size(args.size, 0)


# -- the photo itself -----------------------------------------------------------------------------------------------------


def _from_photo(args: argparse.Namespace, options: Mapping[str, Any], photos: list[Photo], refused: list[str], tell: Tell) -> Persona:
    """The best photo as it is."""
    best = photos[0]
    generator = load_generator(args.generator or "puppet", **options)
    tell(f"No identity system was asked for, so the portrait is the photo itself: {best.name}{_choice(photos)}.")
    for warning in best.marks.warnings:
        tell(f"In this photo {warning}; use another one if you can.")
    height, width = generator.spec.size
    finished = finish(best.rgb, best.face, relight=not args.no_relight, cut=width >= height)
    done = (*best.notes, *finished.done)
    tell(f"It was {', '.join(done)}." if done else "Nothing had to be done to it.")
    weights = None if "weights" not in options else Path(options["weights"])
    made = _kept(args, generator, finished.rgb, best.name, provenance(photos, refused, used=photos[:1], done=done), weights)
    tell("The person was matted from the background.")
    return made


def _home(args: argparse.Namespace) -> Path:
    """The folder of the personas."""
    return personas.personas_folder() if args.home is None else Path(args.home) / personas.personas_folder().name


def _candidates(args: argparse.Namespace) -> Path:
    """The folder that portraits are made in: a persona's own, but for a program that has a home of its own for each person."""
    return personas.personas_folder().parent / CANDIDATES / args.name if args.home is None else Path(args.home) / CANDIDATES


def _kept(args: argparse.Namespace, generator: Generator, rgb: Any, source: str, made: dict[str, Any], weights: Path | None = None) -> Persona:
    return personas.make_persona(
        generator, rgb, name=args.name, consent=args.consent, source=source, folder=_home(args), weights=weights, provenance=made
    )  # fmt: skip


def provenance(
    photos: list[Photo], refused: list[str], *, used: list[Photo], done: tuple[str, ...], system: dict[str, Any] | None = None
) -> dict[str, Any]:
    """What the manifest says about how a portrait was made. `system`: what an identity system was asked; None: it is a photo."""
    listed = [{"file": photo.name, "sha256": photo.sha256, "mark": round(photo.marks.whole, 3)} for photo in photos]
    return {"photos": listed, "left_out": refused, "used": [photo.name for photo in used], "system": system, "done": list(done)}


def _choice(photos: list[Photo]) -> str:
    if len(photos) == 1:
        return ""
    others = ", ".join(f"{photo.name} {photo.marks.whole:.2f}" for photo in photos[1:])
    return f", the best of {len(photos)} for driving (marked {photos[0].marks.whole:.2f}; {others})"


# -- an identity system ---------------------------------------------------------------------------------------------------


def _from_system(
    args: argparse.Namespace, photos: list[Photo], refused: list[str], tell: Tell, progress: Progress | None, event: Event
) -> Persona | None:
    """Portraits by the system, and the best or the picked one of them."""
    from exporters.portraits.encoders import device_of

    device = device_of(args.device)
    parts = contract.Parts(Path(args.weights), args.image_encoder, args.recogniser, args.control, args.variant, args.describe)
    system = people.together(contract.load(args.system, parts, device=device), photos, args.also, tell=tell)
    used = photos if system.together else photos[:1]
    asked = _asked(args, system, used)
    folder = candidates.folder_of(_candidates(args), asked)
    seeds = _seeds(args, folder)
    tell(f"{system.name} ({system.variant}) looks at {', '.join(photo.name for photo in used)}{_choice(photos) if not system.together else ''}.")
    tokens = candidates.tokens_of(folder, system, used)
    todo = candidates.missing(folder, seeds)

    looked: list[candidates.Candidate] = []

    def appeared(candidate: candidates.Candidate, *, before: str = "") -> None:
        looked.append(candidate)
        tell(f"{before}{candidate.said}")
        event("candidate", **candidate.facts)

    for seed in seeds:
        if seed not in todo:
            appeared(candidates.look(folder, seed), before="Made before: ")
    if todo:
        _make(args, system, tokens, folder, todo, asked, device, appeared, progress)
    if args.only_candidates:
        tell(f"They are in {folder}. To keep one as a persona: this command again with --pick SEED in place of --only-candidates.")
        return None
    chosen = candidates.best(looked, picked=args.pick is not None)
    told = provenance(photos, refused, used=used, done=(f"generated with seed {chosen.seed}",), system={**asked, "seed": chosen.seed})
    made = _kept(args, load_generator("puppet"), chosen.rgb, chosen.path.name, {**told, **people.provenance(system)})
    assert made.folder is not None
    try:
        (made.folder / personas.TOKENS).write_bytes(tokens.pack())
    except OSError as error:  # whole or not at all
        personas.remove(made.name, folder=_home(args))
        raise AvatarError(f"The persona cannot be kept in {_home(args)} ({error.strerror or error}); make room there, then try again.") from error
    another = f"avatar persona remove {made.name}, then this command again with --pick SEED"
    tell(f"The portrait is {chosen.path}; the others stay beside it. To take one of them: {another}.")
    return made


def _seeds(args: argparse.Namespace, folder: Path) -> list[int]:
    """The portraits to look at: of a pick that one alone. Raises AvatarError for one that is neither there nor among those asked for."""
    first = args.seed or 0
    seeds = list(range(first, first + (args.candidates or 4)))
    if args.pick is None:
        return seeds
    if args.pick not in seeds and (args.pick < 0 or candidates.missing(folder, [args.pick])):
        raise AvatarError(f"No portrait was made of seed {args.pick}; pick one of {', '.join(map(str, seeds))}.")
    return [args.pick]


def _asked(args: argparse.Namespace, system: contract.System, used: list[Photo]) -> dict[str, Any]:
    """All that the portraits depend on but their seeds."""
    base = Path(args.base)
    try:
        digest = candidates.base_digest(base) + (candidates.base_digest(Path(args.unet)) if args.unet else "")
    except OSError as error:
        raise AvatarError(f"The base in {base} cannot be read ({error.strerror or error}); check its permissions.") from error
    told = system.defaults
    return {
        "system": system.name,
        "variant": system.variant,
        "weights": system.digest,
        "photos": [photo.sha256 for photo in used],
        "base": base.name + (f" with {Path(args.unet).name}" if args.unet else ""),
        "base_digest": digest,
        "prompt": args.prompt or told.prompt,
        "negative": told.negative if args.negative is None else args.negative,
        "steps": args.steps or told.steps,
        "guidance": told.guidance if args.guidance is None else args.guidance,
        "scale": told.scale if args.scale is None else args.scale,
        "size": args.size,
        "precision": args.precision or "fp32",
        **({} if args.describe is None else {"description": args.describe}),
        **people.asked(system),
    }


def _make(
    args: argparse.Namespace,
    system: contract.System,
    tokens: contract.IdentityTokens,
    folder: Path,
    seeds: list[int],
    asked: dict[str, Any],
    device: str,
    appeared: Callable[[candidates.Candidate], None],
    progress: Progress | None,
) -> None:
    """Open the base, attach the person, make what is missing, and give the memory back."""
    from exporters.portraits import pipeline

    base = pipeline.open_for(system, Path(args.base), unet=args.unet, device=device, precision=asked["precision"])
    ask = pipeline.Ask(asked["prompt"], asked["negative"], asked["steps"], asked["guidance"], _size(args.size, SIDES[base.family]))
    maker = pipeline.maker(base, system.attach(base, tokens, scale=asked["scale"], size=ask.size), ask)
    del base
    try:
        candidates.make(folder, people.cut(maker, system, folder), seeds, progress=progress, appeared=appeared)
    finally:
        maker.close()


def _size(given: str | None, side: int) -> tuple[int, int]:
    """'512' or '512x768', width first -> (H, W)."""
    if given is None:
        return side, side
    found = SIZE.fullmatch(given)
    if found is None:
        raise AvatarError(f"'{given}' is no size; write 512, or 512x768 for a tall one.")
    return int(found[2] or found[1]), int(found[1])


__all__ = ["create", "provenance"]
