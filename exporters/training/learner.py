"""What learns: the networks with their average, the critic of textures, the follower of matching, and an optimiser for each."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.backends import pytorch  # before torch: see there
from exporters.training.batches import Batch
from exporters.training.crew import crew
from exporters.training.identity import IdentityLoss
from exporters.training.lesson import Diffusion, Lesson
from exporters.training.losses import Critic, Weights
from exporters.training.objectives import CRITIC_EVERY, Following, Objective
from exporters.training.settings import Learnt, Recipe, Settings
from exporters.training.whole import PRESETS as WHOLE_PRESETS

import torch  # isort: skip
from torch import Tensor, nn  # isort: skip

WARM_UP = 20
"""Updates until the full learning rate."""
CRITIC_AFTER = 0.6
"""Share of the budget before the critic joins in: first the shape, then the texture."""
CRITIC_RATE = 0.5
"""Learning rate of critic and follower, of the generator's."""


class Teach(nn.Module):
    """Everything that learns, behind one call, so that it can be spread over devices."""

    def __init__(self, networks: Any, objective: Objective, weights: Weights, *, seed: int, identity: IdentityLoss | None = None) -> None:
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
        start: Any,
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
        self.lesson = _lesson(settings, size, start=start, teacher=teacher, recogniser=recogniser)
        self.networks = self.lesson.networks
        self.average = self.networks  # where nobody asks for it: it takes as much room as the networks
        if self.crew.main or settings.recipe == "consistency":
            shared = {id(one): one for one in self.networks.parameters() if not one.requires_grad}
            self.average = copy.deepcopy(self.networks, shared).eval().requires_grad_(False)
        objective, self.follower = self.lesson.objective(self.average)
        self.identity = None if recogniser is None else IdentityLoss(recogniser).to(self.accelerator.device)
        self.module = Teach(self.networks, objective, self.lesson.weights, seed=settings.seed, identity=self.identity)
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
        self.lesson.recompute(self.networks, settings.checkpointing)
        if self.follower is not None:
            self.lesson.recompute(self.follower.follower, settings.checkpointing)
        self.module.to(self.accelerator.device)
        self.average.to(self.accelerator.device)
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
        self.lesson.read(batch)
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

    def _follow(self, matching: Following, parts: Sequence[tuple[int, Batch]]) -> None:
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


def _lesson(settings: Settings, size: tuple[int, int], *, start: Any, teacher: Path | None, recogniser: Path | None) -> Lesson:
    """By the preset's name: that of the diffusion generator, or of whole clips."""
    if settings.preset in WHOLE_PRESETS:
        from exporters.training.whole.lesson import Whole  # whose libraries a benchmark of training does without

        return Whole(settings, size, start=start, teacher=teacher, recogniser=recogniser)
    return Diffusion(settings, size, start=start, teacher=teacher, recogniser=recogniser)


__all__ = ["CRITIC_AFTER", "Learner", "Learnt", "Recipe", "Settings", "Teach"]
