"""An engine of TensorRT that takes other weights: those of the same network with other LoRAs, or without, in place of a build.

Parity before, the engine with the weights that it has, and after, with those that it gets; between them nothing is built.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from engine.backends import artifact, engines, trt, trt_library
from engine.backends.artifact import EXPORTER, Artifact, Manifest
from engine.types import AvatarError
from exporters.graphs import export as exporter
from exporters.graphs import parity, subject_diffusion
from exporters.graphs.export import RECORDED, Order
from exporters.graphs.parity import LIMITS
from exporters.graphs.subject import Subject
from exporters.graphs.subject_diffusion import LIVE, Adapt
from exporters.graphs.to_onnx import SEEDS, reference
from exporters.graphs.to_tensorrt import Settings


@dataclass(frozen=True, slots=True)
class Held:
    """An engine whose weights can be replaced here."""

    folder: Path
    manifest: Manifest
    plans: Mapping[str, Path]  # graph -> file

    @property
    def settings(self) -> Settings:
        """What its builder was told."""
        builder = dict(self.manifest.artifact(LIVE).facts["target"]["builder"])
        return Settings(**builder | {"targets": tuple(builder["targets"])})

    @property
    def asked(self) -> dict[str, Any]:
        """How the networks are to be laid out: for `subject_diffusion.recipe_of`."""
        source = self.manifest.source
        return {"steps": source["steps"], "size": tuple(source["size"]), "decoder": "tiny" if source["decoder"] == "tiny" else None}


def held(folder: Path, weights: Path, order: Order, *, precision: str | None = None, steps: int | None = None, decoder: str | None = None) -> Held:
    """An engine in a folder, looked at before any work. Raises AvatarError where it cannot take other weights here.

    `precision`, `steps`, `decoder`: None, or what the engine has.
    """
    if order.backend not in ("tensorrt", "tensorrt_rtx"):
        raise AvatarError(f"Only TensorRT's engines take other weights; leave --refit-from out, and the graphs for {order.backend} are made anew.")
    if missing := trt.available():
        raise AvatarError(f"An engine gets other weights on the GPU that runs it. {missing}")
    trt_library.library(order.backend)
    manifest = artifact.read(folder)
    if manifest.backend != order.backend:
        raise AvatarError(f"The engine in {folder} is one of {manifest.backend}, not of {order.backend}; choose that backend.")
    if (whose := engines.generator_of(weights)) != "diffusion":
        raise AvatarError(f"Only LoRAs replace weights, which '{whose}' has none of; leave --refit-from out.")
    source, live = manifest.source, manifest.artifact(LIVE)
    if source.get("weights", {}).get(engines.WEIGHTS) != engines.origin_of(weights):
        raise AvatarError(
            f"The engine in {folder} is of other weights than those in {weights}; its layers are not theirs, so build one: avatar export."
        )
    for option, given, there in (
        ("steps", steps, source.get("steps")),
        ("precision", precision, live.precision),
        ("decoder", decoder and ("tiny" if decoder == "tiny" else "own"), source.get("decoder")),
    ):
        if given not in (None, there):
            raise AvatarError(f"The engine in {folder} has {option} {there}, not {given}, and refitting cannot change that; leave --{option} out.")
    plans = {}
    for name, made in manifest.artifacts.items():
        if made.facts.get("exporter") != EXPORTER:
            raise AvatarError(f"The engine in {folder} was made by another version of the exporter; build it anew with --refit.")
        if not made.facts["target"]["builder"]["refit"]:
            raise AvatarError(f"The engine in {folder} was not built to take other weights; build one with avatar export --refit.")
        trt.check_place(made)
        plans[name] = artifact.verified(folder, manifest, made)
    return Held(folder, manifest, plans)


def refitted(engine: Held, weights: Path, order: Order, *, adapt: Adapt | None) -> tuple[Subject, Order]:
    """(the subject with the new weights, the order that replaces weights instead of building) for `export.export_subject`.

    The engine is compared with PyTorch first, with the weights that it has. `adapt`: see `subject_diffusion`. Raises AvatarError where it is
    off, and where what it would get is what it has.
    """
    order = replace(order, precision=engine.manifest.artifact(LIVE).precision, settings=engine.settings)
    exporter.check(order)
    subject = subject_diffusion.subject(weights, **engine.asked, adapt=adapt)
    has, gets = (
        [{"sha256": each["sha256"], "scale": each["scale"]} for each in some]
        for some in (engine.manifest.source.get(engines.ADAPTERS, []), subject.adapters)
    )
    if sorted(has, key=str) == sorted(gets, key=str):
        raise AvatarError(f"The engine in {engine.folder} has these weights already; give another LoRA or another scale with --lora.")
    order.tell(f"{engine.folder.name}, before its weights are replaced:")
    before = _before(engine, weights, order)
    return subject, replace(order, plans=engine.plans, before=before)


def _before(engine: Held, weights: Path, order: Order) -> dict[str, dict[str, Any]]:
    """Graph -> how far the engine is from PyTorch with the weights that it was built with."""
    from engine.backends import pytorch
    from engine.generators.diffusion import adapters

    own = subject_diffusion.subject(weights, **engine.asked, adapt=lambda networks: adapters.fused_in(engine.folder, networks.origin))
    found = {}
    for name, spec in own.specs.items():
        made: Artifact = engine.manifest.artifact(name)
        made.fits(spec)
        module = spec.build()
        torch_runner = reference(spec, module)
        recorded = own.inputs(name, torch_runner, RECORDED)
        what = f"the engine '{spec.name}' with its own weights"
        runner = trt.TrtRunner(spec, trt.deserialised(made, engine.plans[name]), pytorch.device("cuda"), states={})
        inputs = chain((spec.examples(seed) for seed in SEEDS if made.precision != "int8"), recorded)
        measured = parity.measure(torch_runner, runner, inputs, what=what)
        parity.check(measured, LIMITS["engine" if made.precision == "fp32" else made.precision], what=what)
        found[name] = measured.told()
        order.tell(f"{name}: {measured.worst[1].rel_l2:.1e} off PyTorch")
    return found


__all__ = ["Held", "held", "refitted"]
