"""`avatar import instantid DIR`: an identity system's files, tried once and written down, so that later its name is enough.

Tried means: every key read, the built-in portrait encoded by the user's encoders, and, with a base, attached to it. Nothing is copied.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from engine import installed
from engine.built_in import BUILT_IN, DEMO
from engine.installed import Installed
from engine.types import AvatarError
from exporters.portraits import contract
from exporters.portraits.photos import read_photo

TRIED_IN, SIZE = "bf16", (64, 64)
"""Precision and px of what is only tried: half the memory, and nothing is generated."""


def install(args: argparse.Namespace, *, tell: Callable[[str], None]) -> Installed:
    """The system that the command line names, tried and written down. Raises AvatarError, one sentence, where its files do not fit."""
    parts = contract.Parts(args.weights, args.image_encoder, args.recogniser, args.control, args.variant)
    if not args.weights.exists():
        raise AvatarError(f"{args.weights} is not there; give the system's file, or the folder that it lies in.")
    system = contract.load(args.system, parts)
    tell(f"{args.system}: {args.weights} is {system.variant}.")
    if args.base is not None:
        from exporters.portraits.pipeline import check_base

        check_base(system, args.base, unet=args.unet)  # before anything slow
    photo = read_photo(BUILT_IN[DEMO].portrait)
    tokens = system.encode([photo])
    shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in tokens.arrays.items())
    tell(f"The built-in portrait was encoded: {shapes}.")
    if args.base is not None:
        _attach(args, system, tokens)
        tell(f"It fits the base in {args.base}.")
    made = Installed(
        name=args.system,
        variant=system.variant,
        families=system.families,
        together=system.together,
        prompt=system.defaults.prompt,
        digest=system.digest,
        weights=args.weights,
        base=args.base,
        unet=args.unet,
        image_encoder=args.image_encoder,
        recogniser=args.recogniser,
        control=args.control,
        asked_variant=args.variant,
    )
    tell(f"Written down in {installed.keep(made)}; the files stay where they are.")
    return made


def _attach(args: argparse.Namespace, system: contract.System, tokens: contract.IdentityTokens) -> None:
    """Raise AvatarError where base and system do not go together."""
    from exporters.portraits import pipeline

    base = pipeline.open_for(system, args.base, unet=args.unet, precision=TRIED_IN)
    told = system.defaults
    ask = pipeline.Ask(told.prompt, told.negative, told.steps, told.guidance, SIZE)
    pipeline.maker(base, system.attach(base, tokens, scale=told.scale, size=SIZE), ask).close()


def filled(args: argparse.Namespace) -> argparse.Namespace:
    """Options of `persona create --system` with what was written down of the system in place of what was not given."""
    known = installed.find(args.system)
    if known is None:
        return args
    told = vars(args).copy()
    if args.weights is None:
        told |= {name: getattr(known, name) for name in ("weights", "image_encoder", "recogniser", "control") if told[name] is None}
        told["variant"] = args.variant or known.asked_variant
    if args.base is None and known.base is not None:
        told |= {"base": known.base, "unet": args.unet or known.unet}
    for name in ("weights", "base"):
        place = told[name]
        if place is not None and not Path(place).exists():
            raise AvatarError(f"{place} is not there any more; give --{name}, or run `avatar import {args.system} DIR` again.")
    return argparse.Namespace(**told)


__all__ = ["filled", "install"]
