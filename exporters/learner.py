"""What learns: the networks with their average, the critic of textures, the follower of matching, and an optimiser for each."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from engine.backends import pytorch  # before torch: see there
from engine.generators.diffusion import networks as weights_of
from engine.generators.diffusion.networks import Networks
from engine.generators.diffusion.presets import preset as preset_named
from engine.types import AvatarError
from exporters.batches import PATTERNS, Batch, Chances, Pattern
from exporters.losses import Critic, Weights
from exporters.objectives import CRITIC_EVERY, Appearance, Consistency, Denoise, Matching, Objective

import torch  # isort: skip
from torch import Tensor, nn  # isort: skip

Recipe = Literal["teacher", "appearance", "consistency", "matching"]
WARM_UP = 20
"""Updates until the full learning rate."""
CRITIC_RATE = 0.5
"""Learning rate of critic and follower, of the generator's."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Of a run; it goes on only with the same ones (but the budget)."""

    recipe: Recipe = "appearance"
    steps: int = 2  # of the student, a frame
    preset: str = "compact"
    rate: float = 5e-4  # at 2e-3 half as much is learnt, at 8e-3 nothing is
    average: float = 0.995  # of the weights' moving average, reached as (1 + n) / (10 + n)
    reference: bool = False  # whether the reference network learns; one person's portrait never changes, so that it costs and gives nothing
    clip: float = 1.0  # norm of the gradients
    decay: float = 0.01
    seed: int = 0
    precision: Literal["no", "bf16", "fp16"] = "no"
    weights: Weights = field(default_factory=Weights)
    chances: Chances = field(default_factory=Chances)
    patterns: tuple[Pattern, ...] = PATTERNS


class Teach(nn.Module):
    """Everything that learns, behind one call, so that it can be spread over devices."""

    def __init__(self, networks: Networks, objective: Objective, weights: Weights, *, seed: int) -> None:
        super().__init__()
        self.networks, self.critic = networks, None
        if weights.critic:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.critic = Critic()
        self._objective, self._weights = objective, weights

    def forward(self, batch: Batch, step: int, *, texture: bool) -> tuple[dict[str, Tensor], Tensor | None]:
        """(terms of the generator's loss; the critic's own loss where it takes part)."""
        terms, made = self._objective.loss(self.networks, batch, step)
        if self.critic is None or not texture:
            return terms, None
        coarse = batch.coarse[..., :3].permute(0, 3, 1, 2).to(made) / 127.5 - 1
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

    def __init__(self, settings: Settings, size: tuple[int, int], *, start: Path | None, teacher: Path | None, device: str | None) -> None:
        """`start`: weights to go on from; `teacher`: weights that consistency and matching learn from. Raises AvatarError for what is missing."""
        from accelerate import Accelerator

        self.settings = settings
        self.accelerator = Accelerator(cpu=pytorch.device(device).type == "cpu", mixed_precision=settings.precision)
        self.networks = _networks(settings, size, start)
        self.average = copy.deepcopy(self.networks).eval().requires_grad_(False)
        objective, self.follower = _objective(settings, self.average, teacher)
        self.module = Teach(self.networks, objective, settings.weights, seed=settings.seed)
        generator = [p for name, p in self.module.named_parameters() if p.requires_grad and not name.startswith("critic.")]
        second = settings.rate * CRITIC_RATE
        self.optimisers: dict[str, Any] = {"generator": torch.optim.AdamW(generator, lr=settings.rate, weight_decay=settings.decay, fused=True)}
        if self.module.critic is not None:
            self.optimisers["critic"] = torch.optim.AdamW(self.module.critic.parameters(), lr=second, betas=(0.5, 0.99))
        if self.follower is not None:
            self.optimisers["follower"] = torch.optim.AdamW(self.follower.follower.parameters(), lr=second, betas=(0.0, 0.999))
            self.follower.to(self.accelerator.device)
        self.average.to(self.accelerator.device)
        self._banks: dict[int, list[Tensor]] = {}
        self._wrapped = self.accelerator.prepare(self.module)
        self.optimisers = {name: self.accelerator.prepare(optimiser) for name, optimiser in self.optimisers.items()}

    def state(self) -> dict[str, Any]:
        """All that a checkpoint needs."""
        parts = {"module": self.module.state_dict(), "average": self.average.state_dict()}
        if self.follower is not None:
            parts["follower"] = self.follower.follower.state_dict()
        return {**parts, "optimisers": {name: optimiser.state_dict() for name, optimiser in self.optimisers.items()}}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self.module.load_state_dict(state["module"])
        self.average.load_state_dict(state["average"])
        if self.follower is not None:
            self.follower.follower.load_state_dict(state["follower"])
        for name, optimiser in self.optimisers.items():
            optimiser.load_state_dict(state["optimisers"][name])

    def update(self, batch: Batch, number: int, *, texture: bool) -> dict[str, float]:
        """Everything learns from a batch once -> what is logged. `texture`: the critic takes part."""
        generator, critic = self.optimisers["generator"], self.optimisers.get("critic")
        batch.bank = self._bank(batch)
        for group in generator.param_groups:
            group["lr"] = self.settings.rate * min(1.0, (number + 1) / WARM_UP)
        with self.accelerator.autocast():
            terms, judged = self._wrapped(batch, number, texture=texture and critic is not None)
        loss = torch.stack(list(terms.values())).sum()
        generator.zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        norm = self.accelerator.clip_grad_norm_([p for group in generator.param_groups for p in group["params"]], self.settings.clip)
        told = {"loss": float(loss.detach()), "gradient": float(norm), **{name: float(term.detach()) for name, term in terms.items()}}
        if not math.isfinite(told["loss"]):
            return told  # the run ends here, with weights that are still good
        generator.step()
        if judged is not None and critic is not None:
            critic.zero_grad(set_to_none=True)
            self.accelerator.backward(judged)
            critic.step()
        if self.follower is not None:
            self._follow(self.follower, batch, number)
        _blend(self.average, self.networks, min(self.settings.average, (1 + number) / (10 + number)))
        return told

    @torch.no_grad()
    def _bank(self, batch: Batch) -> list[Tensor] | None:
        """What the reference network makes of the batch's portrait, where it never changes: each is looked at once."""
        networks = self.networks
        if self.settings.reference or networks.image is not None:
            return None
        if batch.view not in self._banks:
            self._banks[batch.view] = networks.reference(networks.autoencoder.encode(batch.portrait) * networks.preset.gain, [])
        return self._banks[batch.view]

    def _follow(self, matching: Matching, batch: Batch, number: int) -> None:
        """Keep the follower close to the student."""
        optimiser = self.optimisers["follower"]
        for again in range(CRITIC_EVERY):
            loss = matching.follow(self.networks, batch, number * CRITIC_EVERY + again)
            optimiser.zero_grad(set_to_none=True)
            self.accelerator.backward(loss)
            optimiser.step()


@torch.no_grad()
def _blend(average: nn.Module, networks: nn.Module, keep: float) -> None:
    """The moving average of the weights."""
    learnt = [(mine, theirs) for mine, theirs in zip(average.parameters(), networks.parameters(), strict=True) if theirs.requires_grad]
    torch._foreach_lerp_([mine for mine, _ in learnt], [theirs for _, theirs in learnt], 1.0 - keep)


def _networks(settings: Settings, size: tuple[int, int], start: Path | None) -> Networks:
    """Fresh ones, or those to go on from, ready to learn."""
    networks = weights_of.build(preset_named(settings.preset), seed=settings.seed) if start is None else weights_of.load(start)
    made = networks.preset
    if made.size != size:
        raise AvatarError(f"The dataset's pictures are {size[1]} x {size[0]} px, the preset's {made.size[1]} x {made.size[0]}; collect it anew.")
    if start is None:
        # Zero at both ends, nothing would reach the guider until the last convolution has learnt; the last one alone makes a gentle start.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            networks.guider.conv_out.reset_parameters()
    networks.train().requires_grad_(True)
    networks.autoencoder.requires_grad_(False)
    networks.reference.requires_grad_(settings.reference)
    if networks.image is not None:
        networks.image.requires_grad_(made.image_encoder == "pooled")
    return networks


def _objective(settings: Settings, average: Networks, teacher: Path | None) -> tuple[Objective, Matching | None]:
    """By the recipe's name. Raises AvatarError where it needs a teacher."""
    if settings.recipe in ("consistency", "matching") and teacher is None:
        raise AvatarError(
            f"The recipe '{settings.recipe}' learns from a teacher; train one with --recipe teacher and give its weights with --teacher."
        )
    if settings.recipe == "teacher":
        return Denoise(settings.weights, settings.seed), None
    if settings.recipe == "appearance":
        return Appearance(settings.steps, settings.weights, settings.seed), None
    assert teacher is not None
    if settings.recipe == "consistency":
        return Consistency(weights_of.load(teacher), average, seed=settings.seed), None
    matching = Matching(weights_of.load(teacher), steps=settings.steps, seed=settings.seed)
    return matching, matching


__all__ = ["Learner", "Recipe", "Settings", "Teach"]
