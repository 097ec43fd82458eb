"""What learns: the networks with their average, the critic of textures, the follower of matching, and an optimiser for each."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

from engine.backends import pytorch  # before torch: see there
from engine.generators.diffusion import networks as weights_of
from engine.generators.diffusion.networks import Networks
from engine.generators.diffusion.presets import Preset
from engine.generators.diffusion.presets import preset as preset_named
from engine.generators.diffusion.temporal import MotionModule
from engine.generators.diffusion.tokens import VECTOR
from engine.recogniser import Recogniser, check_length
from engine.types import AvatarError
from exporters.batches import PATTERNS, Batch, Chances, Pattern
from exporters.crew import crew
from exporters.grow import grown, grows
from exporters.hearing import check_ears, check_same
from exporters.identity import IdentityLoss
from exporters.losses import Critic, Weights
from exporters.memory import recomputed
from exporters.objectives import CRITIC_EVERY, Appearance, Consistency, Denoise, Matching, Objective

import torch  # isort: skip
from torch import Tensor, nn  # isort: skip

Recipe = Literal["teacher", "appearance", "consistency", "matching"]
Learnt = Literal["all", "spatial", "temporal"]
"""Which part learns: what sees single pictures (Animate Anyone's first stage), what carries motion on (its second), or both."""
WARM_UP = 20
"""Updates until the full learning rate."""
CRITIC_AFTER = 0.6
"""Share of the budget before the critic joins in: first the shape, then the texture."""
LOUD, QUIET = 4.0, 0.1
"""Of the guider's last and the denoiser's first convolution, where learning begins afresh: about as much of the picture as of the noise."""
CRITIC_RATE = 0.5
"""Learning rate of critic and follower, of the generator's."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Of a run; it goes on only with the same ones (but the budget)."""

    recipe: Recipe = "appearance"
    steps: int = 2  # of the student, a frame
    preset: str = "compact"
    rate: float = 5e-4  # at 2e-3 nothing is learnt
    average: float = 0.995  # of the weights' moving average, reached as (1 + n) / (10 + n)
    reference: bool = False  # whether the reference network learns; one person's portrait never changes, so that it costs and gives nothing
    clip: float = 1.0  # norm of the gradients
    decay: float = 0.01
    seed: int = 0
    precision: Literal["no", "bf16"] = "no"
    learn: Learnt = "all"
    accumulate: int = 1  # batches an update, one after another; each process has as many
    checkpointing: bool | None = None  # whether what is between is computed again on the way back, which takes less memory; None: where it is large
    weights: Weights = field(default_factory=Weights)
    chances: Chances = field(default_factory=Chances)
    patterns: tuple[Pattern, ...] = PATTERNS


class Teach(nn.Module):
    """Everything that learns, behind one call, so that it can be spread over devices."""

    def __init__(self, networks: Networks, objective: Objective, weights: Weights, *, seed: int, identity: IdentityLoss | None = None) -> None:
        super().__init__()
        self.networks, self.critic = networks, None
        if weights.critic:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.critic = Critic()
        self._objective, self._weights, self._identity = objective, weights, identity if weights.identity else None

    def forward(self, batch: Batch, step: int, *, texture: bool) -> tuple[dict[str, Tensor], Tensor | None]:
        """(terms of the generator's loss; the critic's own loss where it takes part)."""
        terms, show = self._objective.loss(self.networks, batch, step)
        texture = texture and self.critic is not None
        if not texture and self._identity is None:
            return terms, None
        made = show()
        if self._identity is not None:
            terms["identity"] = self._weights.identity * self._identity(made, batch.truth, batch.fits)
        if self.critic is None or not texture:
            return terms, None
        coarse = batch.seen.permute(0, 3, 1, 2).to(made) / 127.5 - 1
        made, truth, coarse = (_face(x, batch) for x in (made, batch.truth, coarse))
        judged = self.critic.judge(made, truth, coarse)
        self.critic.requires_grad_(False)
        terms["critic"] = self._weights.critic * self.critic.please(made, truth, coarse)
        self.critic.requires_grad_(True)
        return terms, judged


def _face(pictures: Tensor, batch: Batch) -> Tensor:
    """Only the face, the rest grey: what happens around it is not the critic's business."""
    return pictures * batch.areas[:, 1:]


class Learner:
    """A run's networks and optimisers on their device."""

    def __init__(
        self,
        settings: Settings,
        size: tuple[int, int],
        *,
        start: Path | Networks | None,
        teacher: Path | None,
        device: str | None,
        recogniser: Path | None = None,
    ) -> None:
        """`start`: weights to go on from; `teacher`: weights that consistency and matching learn from; `recogniser`: see `IdentityLoss`. Raises
        AvatarError for what is missing."""
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        self.settings, self.crew = settings, crew(device)
        on_cpu = pytorch.device(device).type == "cpu"
        AcceleratorState._reset_state()  # a learner before this one may have had another precision; which processes there are stays
        self.accelerator = Accelerator(cpu=on_cpu, mixed_precision=settings.precision)
        self.networks = _networks(settings, size, start, recogniser)
        self.average = self.networks  # where nobody asks for it: it takes as much room as the networks
        if self.crew.main or settings.recipe == "consistency":
            shared = {id(one): one for one in self.networks.parameters() if not one.requires_grad}
            self.average = copy.deepcopy(self.networks, shared).eval().requires_grad_(False)
        objective, self.follower = _objective(settings, self.average, teacher)
        weights = settings.weights
        if settings.recipe != "appearance" and self.networks.preset.latent != "pixel":
            weights = replace(weights, critic=0.0)  # these learn from latents: pictures for the critic alone would cost more than all the rest
        self.identity = None if recogniser is None else IdentityLoss(recogniser).to(self.accelerator.device)
        self.module = Teach(self.networks, objective, weights, seed=settings.seed, identity=self.identity)
        still = [name for name, one in self.module.named_parameters() if not one.requires_grad]
        self._frozen = frozenset([*still, *(name.removeprefix("networks.") for name in still)])
        generator = [p for name, p in self.module.named_parameters() if p.requires_grad and not name.startswith("critic.")]
        second = settings.rate * CRITIC_RATE
        self.optimisers: dict[str, Any] = {"generator": torch.optim.AdamW(generator, lr=settings.rate, weight_decay=settings.decay, fused=True)}
        if self.module.critic is not None:
            self.optimisers["critic"] = torch.optim.AdamW(self.module.critic.parameters(), lr=second, betas=(0.5, 0.99))
        if self.follower is not None:
            self.optimisers["follower"] = torch.optim.AdamW(self.follower.follower.parameters(), lr=second, betas=(0.0, 0.999))
            self.follower.to(self.accelerator.device)
        recomputed(self.networks, settings.checkpointing)
        if self.follower is not None:
            recomputed(self.follower.follower, settings.checkpointing)
        self.module.to(self.accelerator.device)
        self.average.to(self.accelerator.device)
        self._seen: dict[int, tuple[Tensor, Tensor | None, list[Tensor] | None]] = {}  # by the portrait's number
        self.optimisers = {name: self.accelerator.prepare(optimiser) for name, optimiser in self.optimisers.items()}

    def state(self) -> dict[str, Any]:
        """All that a checkpoint needs."""
        parts = {name: _learnt(module, self._frozen) for name, module in self._kept().items()}
        if self.follower is not None:
            parts["follower"] = self.follower.follower.state_dict()
        return {**parts, "optimisers": {name: optimiser.state_dict() for name, optimiser in self.optimisers.items()}}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        for name, module in self._kept().items():
            missing, more = module.load_state_dict(state[name], strict=False)
            assert not more
            assert self._frozen.issuperset(missing)
        if self.follower is not None:
            self.follower.follower.load_state_dict(state["follower"])
        for name, optimiser in self.optimisers.items():
            optimiser.load_state_dict(state["optimisers"][name])

    def _kept(self) -> dict[str, nn.Module]:
        """What a checkpoint holds. An average that is none of its own is the networks, and neither written nor read."""
        return {"module": self.module} | ({"average": self.average} if self.average is not self.networks else {})

    def update(self, parts: Sequence[tuple[int, Batch]], number: int, *, texture: bool) -> dict[str, float]:
        """Everything learns once, from batches with their own numbers -> what is logged, over all processes. `texture`: the critic takes part."""
        generator, critic = self.optimisers["generator"], self.optimisers.get("critic")
        for group in generator.param_groups:
            group["lr"] = self.settings.rate * min(1.0, (number + 1) / WARM_UP)
        texture = texture and critic is not None
        told = dict[str, float]()
        for optimiser in (generator, critic):
            if optimiser is not None:
                optimiser.zero_grad(set_to_none=True)
        for own, batch in parts:
            for name, value in self._backward(batch, own, 1 / len(parts), texture=texture).items():
                told[name] = told.get(name, 0.0) + value / len(parts)
        self._together(generator)
        norm = self.accelerator.clip_grad_norm_(_parameters(generator), self.settings.clip)
        told = dict(zip(told, self.crew.mean(list(told.values())), strict=True))
        told = {"loss": told.pop("loss"), "gradient": float(norm), **told}
        if not math.isfinite(told["loss"] + told["gradient"]):
            return told  # the run ends here, with weights that are still good
        generator.step()
        if texture and critic is not None:
            self._together(critic)
            critic.step()
        if self.follower is not None:
            self._follow(self.follower, parts)
        if self.average is not self.networks:
            _blend(self.average, self.networks, min(self.settings.average, (1 + number) / (10 + number)))
        return told

    def _backward(self, batch: Batch, number: int, share: float, *, texture: bool) -> dict[str, float]:
        """Add a batch's `share` of the gradients -> its loss, and the terms of it."""
        batch.latents, batch.tokens, batch.bank = self._kept_of(batch)
        with self.accelerator.autocast():
            terms, judged = self.module(batch, number, texture=texture)
        loss = torch.stack([term.float() for term in terms.values()]).sum()
        self.accelerator.backward(loss * share)
        if judged is not None:
            self.accelerator.backward(judged.float() * share)
        return {"loss": float(loss.detach()), **{name: float(term.detach()) for name, term in terms.items()}}

    def _together(self, optimiser: Any) -> None:
        """What all processes learnt, on each of them."""
        self.crew.average(_parameters(optimiser))

    @torch.no_grad()
    def _kept_of(self, batch: Batch) -> tuple[Tensor, Tensor | None, list[Tensor] | None]:
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
        return self._seen[batch.view]

    def _follow(self, matching: Matching, parts: Sequence[tuple[int, Batch]]) -> None:
        """Keep the follower close to the student."""
        optimiser = self.optimisers["follower"]
        for again in range(CRITIC_EVERY):
            optimiser.zero_grad(set_to_none=True)
            for own, batch in parts:
                with self.accelerator.autocast():
                    loss = matching.follow(self.networks, batch, own * CRITIC_EVERY + again)
                self.accelerator.backward(loss.float() / len(parts))
            self._together(optimiser)
            optimiser.step()


def _learns(module: nn.Module | None) -> bool:
    """Whether any part of it does."""
    return module is not None and any(one.requires_grad for one in module.parameters())


def _parameters(optimiser: Any) -> list[Any]:
    """That an optimiser changes."""
    return [one for group in optimiser.param_groups for one in group["params"]]


def _learnt(module: nn.Module, frozen: frozenset[str]) -> dict[str, Any]:
    """A module's state without what never changes: that comes with the weights a run starts from."""
    return {name: value for name, value in module.state_dict().items() if name not in frozen}


@torch.no_grad()
def _blend(average: nn.Module, networks: nn.Module, keep: float) -> None:
    """The moving average of the weights."""
    learnt = [(mine, theirs) for mine, theirs in zip(average.parameters(), networks.parameters(), strict=True) if theirs.requires_grad]
    torch._foreach_lerp_([mine for mine, _ in learnt], [theirs for _, theirs in learnt], 1.0 - keep)


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
            module.register_forward_pre_hook(_with_gradient)
    return networks


def _with_gradient(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    """A norm that learns from an input that does not is what PyTorch 2.13 crashes at on a CPU (channels last): the input gets a gradient too."""
    x, *rest = given
    return (x if x.requires_grad or not torch.is_grad_enabled() else x.detach().requires_grad_(), *rest)


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
    taught_by = weights_of.load(teacher)
    check_same(average, taught_by, named=teacher)
    if settings.recipe == "consistency":
        return Consistency(taught_by, average, seed=settings.seed), None
    matching = Matching(taught_by, steps=settings.steps, seed=settings.seed)
    return matching, matching


__all__ = ["CRITIC_AFTER", "Learner", "Learnt", "Recipe", "Settings", "Teach", "check_recogniser", "check_teacher", "chosen"]
