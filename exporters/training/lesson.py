"""A lesson: which networks learn, from which batches, towards what, and how they are looked at and kept; of the diffusion generator, and the
protocol by which the learner and the loop (`learner`, `train`) teach any other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from engine.backends import pytorch  # noqa: F401  before torch: see there
from engine.generators.diffusion import networks as weights_of
from engine.generators.diffusion.networks import Networks
from engine.generators.diffusion.presets import Preset
from engine.generators.diffusion.presets import preset as preset_named
from engine.generators.diffusion.temporal import MotionModule
from engine.generators.diffusion.tokens import VECTOR
from engine.recogniser import Recogniser, check_length
from engine.types import AvatarError, UInt8Array
from exporters.training import hearing
from exporters.training.batches import Batch, Batches, Pattern
from exporters.training.grow import grown, grows
from exporters.training.hearing import check_ears, check_same
from exporters.training.losses import Weights
from exporters.training.memory import recomputed
from exporters.training.objectives import Appearance, Consistency, Denoise, Following, Matching, Objective, same_encoder
from exporters.training.settings import Recipe, Settings

import torch  # isort: skip
from torch import Tensor, nn  # isort: skip

if TYPE_CHECKING:  # whose libraries a benchmark of training does without
    from engine.generators.diffusion.trust import Trust
    from exporters.data.dataset import Dataset
    from exporters.training.judge import Run

LOUD, QUIET = 4.0, 0.1
"""Of the guider's last and the denoiser's first convolution, where learning begins afresh: about as much of the picture as of the noise."""


class Lesson(Protocol):
    """What a run teaches one generator."""

    networks: Any  # nn.Module: what learns and what does not, ready to learn, fp32
    weights: Weights  # of the terms; those that this lesson has no use for are 0
    maps: tuple[str, ...]  # condition pictures that the clips must have, by name
    hands: bool  # whether those that are painted show hands
    runs: int | None  # held-out runs that are looked at, at most; None: all

    def objective(self, average: Any) -> tuple[Objective, Following | None]:
        """What is minimised, and the follower where there is one. `average`: the networks' moving average. Raises AvatarError."""
        ...

    def recompute(self, networks: Any, wanted: bool | None) -> None:
        """Let blocks of the networks be computed again on the way back: see `memory.recomputed`."""

    def read(self, batch: Batch) -> None:
        """Give a batch what parts that never change make of it."""

    def prepare(self, data: Dataset) -> None:
        """Find, once and on disk, what the batches need; only one process is asked."""

    def batches(self, data: Dataset) -> Batches:
        """What is learnt from."""
        ...

    def counts(self) -> Sequence[int]:
        """Numbers of steps that are looked at."""
        ...

    def make(self, networks: Any, run: Run, steps: int) -> UInt8Array:
        """All frames of a run, as they are shown [N, H, W, 3]."""
        ...

    def origin(self) -> dict[str, str]:
        """What the weights say of themselves, beside what all do."""
        ...

    def save(self, average: Any, folder: Path, *, origin: dict[str, str], data: Dataset, trust: Trust) -> None:
        """Write the weights."""


class Diffusion:
    """As `Lesson`, of the generator `diffusion`."""

    runs: int | None = None

    def __init__(
        self, settings: Settings, size: tuple[int, int], *, start: Path | Networks | None, teacher: Path | None, recogniser: Path | None
    ) -> None:
        """Raises AvatarError for what is missing or does not fit."""
        self.settings, self.teacher = settings, teacher
        self.networks = _networks(settings, size, start, recogniser)
        self.weights = settings.weights
        if settings.recipe != "appearance" and self.networks.preset.latent != "pixel":
            self.weights = replace(self.weights, critic=0.0)  # these learn from latents: pictures for the critic alone would cost more than the rest
        self.maps = self.networks.preset.maps
        self.hands = self.networks.preset.condition == "skeleton"
        self._seen: dict[int, tuple[Tensor, Tensor | None, list[Tensor] | None]] = {}  # by the portrait's number

    def objective(self, average: Networks) -> tuple[Objective, Following | None]:
        """See `Lesson`."""
        return _objective(self.settings, average, self.teacher)

    def recompute(self, networks: Networks, wanted: bool | None) -> None:
        """See `Lesson`."""
        recomputed(networks, wanted)

    @torch.no_grad()
    def read(self, batch: Batch) -> None:
        """What autoencoder, image encoder and reference network make of the batch's portrait, where it never changes: each is looked at once.
        None of an encoder that learns, nor of a reference network that learns or reads it anew at every noise level."""
        networks = self.networks
        if batch.view not in self._seen:
            tokens = bank = None
            if not _learns(networks.image):
                tokens = networks.tokens(batch.portrait, None if batch.face is None else batch.face.vector)
            latents = networks.encode(batch.portrait)
            if not (networks.preset.reference_each or _learns(networks.image) or _learns(networks.reference)):
                bank = networks.reread(latents, tokens)
            self._seen[batch.view] = latents, tokens, bank
        batch.latents, batch.tokens, batch.bank = self._seen[batch.view]

    def prepare(self, data: Dataset) -> None:
        """See `Lesson`."""
        hearing.prepare(data, self.networks)

    def batches(self, data: Dataset) -> Batches:
        """See `Lesson`."""
        made = self.networks.preset
        return Batches(
            data,
            seed=self.settings.seed,
            channels=made.channels,
            depth=made.depth,
            patterns=_patterns(self.settings),
            chances=self.settings.chances,
            condition=made.condition,
            maps=made.maps,
            hears=made.unet.speech_dim > 0,
            heard=hearing.heard(data, self.networks),
            face=hearing.face_in(data, self.networks),
            faced=made.face,
        )

    def counts(self) -> Sequence[int]:
        """See `Lesson`."""
        return [self.settings.steps] if self.settings.recipe == "teacher" else sorted({self.networks.preset.noise.least, self.settings.steps})

    def make(self, networks: Networks, run: Run, steps: int) -> UInt8Array:
        """See `Lesson`."""
        from exporters.training.judge import generate

        made: UInt8Array = generate(networks, run, steps)
        return made

    def origin(self) -> dict[str, str]:
        """See `Lesson`."""
        return {}

    def save(self, average: Networks, folder: Path, *, origin: dict[str, str], data: Dataset, trust: Trust) -> None:
        """See `Lesson`."""
        from engine.generators.diffusion.taught import Taught
        from engine.generators.puppet.assets import pack as pack_assets

        taught = None  # a painted condition has no puppet behind it
        if self.networks.preset.condition == "puppet":
            taught = Taught(data.portrait, {} if data.assets is None else pack_assets(data.assets), trust)
        weights_of.save(average, folder, origin=origin, taught=taught)


def _learns(module: nn.Module | None) -> bool:
    """Whether any part of it does."""
    return module is not None and any(one.requires_grad for one in module.parameters())


def _patterns(settings: Settings) -> tuple[Pattern, ...]:
    """Those that the learning part can learn from: of single pictures nothing of how they follow each other, and that alone of runs."""
    if settings.learn == "all":
        return settings.patterns
    chosen = tuple(one for one in settings.patterns if (one.frames > 1) == (settings.learn == "temporal"))
    if not chosen:
        raise AvatarError("What carries motion on learns from several frames: give --longest 2 or more, or leave it out.")
    return chosen


def _networks(settings: Settings, size: tuple[int, int], start: Path | Networks | None, recogniser: Path | None) -> Networks:
    """Fresh ones, or those to go on from, ready to learn."""
    if isinstance(start, Networks):
        networks = start
    else:
        networks = weights_of.build(preset_named(settings.preset), seed=settings.seed) if start is None else weights_of.load(start)
    if grows(settings.preset, networks.preset.name):
        networks = grown(networks, preset_named(settings.preset), seed=settings.seed)
    made = networks.preset
    if made.unet.face_dim:
        networks.recogniser = networks.recogniser or recogniser  # its own one is what its tokens were made of
        check_recogniser(made, networks.recogniser)
    if start is None:
        check_ears(made, start)
        check_begun(made, start)
    if made.name != settings.preset:
        raise AvatarError(f"The weights in {start} are for the preset '{made.name}', not '{settings.preset}'; leave --preset out.")
    if made.size != size:
        raise AvatarError(f"The dataset's pictures are {size[1]} x {size[0]} px, the preset's {made.size[1]} x {made.size[0]}; collect it anew.")
    if start is None:
        # Zero at both ends, nothing would reach the guider until the last convolution has learnt; the last one alone makes a gentle start.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            for layer in networks.guider.last():
                cast(nn.Conv2d, layer).reset_parameters()
        if made.residual:  # else the picture is a twentieth of the noise where the two are added
            networks.guider.conv_out.weight.mul_(LOUD)
            networks.denoiser.conv_in.weight.mul_(QUIET)
    return chosen(networks.float(), settings)


def chosen(networks: Networks, settings: Settings) -> Networks:
    """Ready to learn: which of the parameters do."""
    made, spatial = networks.preset, settings.learn != "temporal"
    networks.train().requires_grad_(spatial)
    networks.autoencoder.requires_grad_(False)
    if networks.listener is not None:  # whose features are found before
        networks.listener.requires_grad_(False).eval()
    networks.reference.requires_grad_(settings.reference and spatial)
    if networks.image is not None:
        networks.image.requires_grad_(made.image_encoder == "pooled" and spatial)
    for module in networks.denoiser.modules():
        if isinstance(module, MotionModule):
            module.requires_grad_(settings.learn != "spatial")
            module.register_forward_pre_hook(with_gradient)
    return networks


def with_gradient(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    """A norm that learns from an input that does not is what PyTorch 2.13 crashes at on a CPU (channels last): the input gets a gradient too."""
    x, *rest = given
    return (x if x.requires_grad or not torch.is_grad_enabled() else x.detach().requires_grad_(), *rest)


def check_begun(made: Preset, start: Path | Networks | None) -> None:
    """Raise AvatarError where a preset's autoencoder, which training leaves as it is, would be one that has learnt nothing."""
    if made.latent != "pixel" and start is None:
        raise AvatarError(f"'{made.name}' goes on from imported weights, whose autoencoder it keeps: give their folder with --start.")


def check_recogniser(made: Preset, recogniser: Path | None) -> None:
    """Raise AvatarError where a preset reads a face's tokens and no recogniser of its kind says what the face is like."""
    if not made.unet.face_dim:
        return
    if recogniser is None:
        raise AvatarError(f"The preset '{made.name}' reads what a face recogniser sees of the portrait; give one with --recogniser FILE (ONNX).")
    check_length(Recogniser(recogniser), VECTOR, reader=made.name)


def check_teacher(recipe: Recipe, teacher: Path | None) -> None:
    """Raise AvatarError where a recipe needs a teacher and none is given."""
    if recipe in ("consistency", "matching") and teacher is None:
        how = "train one with --recipe teacher and give its weights with --teacher"
        raise AvatarError(f"The recipe '{recipe}' learns from a teacher; {how}.")


def _objective(settings: Settings, average: Networks, teacher: Path | None) -> tuple[Objective, Matching | None]:
    """By the recipe's name. Raises AvatarError where it needs a teacher."""
    check_teacher(settings.recipe, teacher)
    if settings.recipe == "teacher":
        return Denoise(settings.weights, settings.seed), None
    if settings.recipe == "appearance":
        return Appearance(settings.steps, settings.weights, settings.seed), None
    assert teacher is not None
    taught_by = weights_of.load(teacher).float()
    check_same(average, taught_by, named=teacher)
    if not same_encoder(average.autoencoder, taught_by.autoencoder):
        raise AvatarError(f"The teacher in {teacher} has another autoencoder than the student; start both from the same import (--start).")
    if settings.recipe == "consistency":
        return Consistency(taught_by, average, seed=settings.seed), None
    matching = Matching(taught_by, steps=settings.steps, seed=settings.seed)
    return matching, matching


__all__ = ["Diffusion", "Lesson", "check_begun", "check_recogniser", "check_teacher", "chosen", "with_gradient"]
