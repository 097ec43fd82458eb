"""Which frames a training step sees: a function of the seed and the step's number alone, so that a run goes on after a kill as if it had never
stopped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from engine.generators.diffusion.layout import Condition
from engine.generators.diffusion.networks import Face
from engine.recogniser import fit, five_points
from engine.types import FloatArray, UInt8Array
from exporters.training.losses import regions

if TYPE_CHECKING:
    from exporters.data.dataset import Clip, Dataset

SILENCE = -10.0
"""Log-mel of nothing heard."""
UNGUIDED = 0.1
"""Share of rows, at most, that a preset with a listening network is told nothing in: what guidance compares with. Live there is always some sound."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """What one step sees."""

    rows: int  # pieces of clips, each from another place
    frames: int  # consecutive ones of each
    halved: bool = False  # whether only a part half as high and wide of each is seen, mostly of the face: four times the faces at the same cost


LOOKS, RUN = Pattern(8, 1, halved=True), Pattern(2, 6, halved=True)
PATTERNS = (*(*(LOOKS,) * 4, RUN) * 2, Pattern(2, 1), *(LOOKS,) * 4, Pattern(1, 20, halved=True))
"""Of the steps in turn: many different faces teach looks, runs of frames teach the window, whole pictures what lies around the face. Few rows are
rare: their gradients say more of themselves than of the person, and where half of the steps had them a network died. The last is longer than the
window, so that its oldest frames fall out of it as they do live."""
ASIDE = 0.25
"""Share of halved pictures that are taken from anywhere, not from where the face is."""
JITTER = 0.12
"""Picture heights and widths by which those of the face are off its middle, at most."""


@dataclass(frozen=True, slots=True)
class Chances:
    """How often a condition is taken away, so that what is left learns to do alone."""

    speech: float = 0.3  # the camera alone
    coarse: float = 0.1  # the voice alone: the puppet holds still


@dataclass(slots=True)
class Batch:
    """rows x frames pictures, a row's side by side (N in all)."""

    rows: int
    frames: int
    truth: Tensor  # [N, 3, H, W] -1..1
    coarse: Tensor  # uint8 [N, H, W, K] the condition: the puppet's frame, and its guide where the preset has one, or a painted picture
    speech: Tensor  # [N, 16, 80], or [N, *`Ears.heard`]
    areas: Tensor  # [N, 2, H, W] mouth with eyes, face
    fits: Tensor  # [N, 2, 3] where a recogniser's aligned face lies in the truth (`recogniser.fit`); NaN where there is none
    portrait: Tensor  # [1, 3, H, W] -1..1
    view: int = 0  # number of the portrait
    corners: tuple[tuple[int, int], ...] = ()  # (y, x) px in the whole picture of each of the N, where they are parts of it
    bank: list[Tensor] | None = None  # what a reference network that does not learn makes of it, by block [1, L, C]; None to ask the network
    tokens: Tensor | None = None  # [1, T, D] the identity's tokens, where no image encoder learns
    latents: Tensor | None = None  # [1, C, h, w] of the portrait; None to ask the autoencoder
    face: Face | None = None  # what the preset knows of the portrait's face; its masks are of the whole picture
    unguided: Tensor | None = None  # [N] bool: told as guidance's unguided half is; None: nothing is

    @property
    def seen(self) -> Tensor:
        """uint8 [N, H, W, 3] the condition as a picture."""
        return self.coarse[..., :3].expand(-1, -1, -1, 3)  # of a mask its one channel three times

    def to(self, device: Any) -> Batch:
        """The same on a device."""
        names = ("truth", "coarse", "speech", "areas", "fits", "portrait")
        moved = (getattr(self, name).to(device, non_blocking=True) for name in names)
        unguided, face = None if self.unguided is None else self.unguided.to(device), self.face
        if face is not None:
            face = Face(*(None if x is None else x.to(device) for x in (face.vector, face.regions, face.tokens)))
        return replace(self, **dict(zip(names, moved, strict=True)), unguided=unguided, face=face)


def unit(picture: Any) -> Tensor:
    """uint8 [N, H, W, 3] -> [N, 3, H, W] -1..1"""
    return torch.from_numpy(np.ascontiguousarray(picture)).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def spans(clips: Sequence[Clip], length: int, *, held_out: bool = False) -> list[tuple[int, int, int]]:
    """(clip, start, stop) of every run that is at least `length` frames long."""
    runs = ((i, *run) for i, clip in enumerate(clips) for run in (clip.held_out if held_out else clip.train))
    return [(i, start, stop) for i, start, stop in runs if stop - start >= length]


def most_still(clips: Sequence[Clip]) -> tuple[int, int]:
    """(clip, frame) of the neutral, or as near to it as the clips come."""
    moved = [np.where(clip.kept, np.abs(clip.motion).sum(1), np.inf) for clip in clips]
    clip = int(np.argmin([one.min() for one in moved]))
    return clip, int(moved[clip].argmin())


class Batches:
    """Of a dataset."""

    def __init__(
        self,
        data: Dataset,
        *,
        seed: int,
        channels: int = 3,
        depth: int,
        patterns: Sequence[Pattern] = PATTERNS,
        chances: Chances | None = None,
        condition: Condition = "puppet",
        maps: Sequence[str] = (),
        hears: bool = True,
        heard: Sequence[FloatArray] | None = None,
        face: Face | None = None,
        faced: bool = True,
    ) -> None:
        """`channels` K of the condition, its kind, `maps` (names of the pictures that it consists of, if it does) and `depth` px of the coarsest
        cells, as the preset has them; `hears`: whether it has speech: without, a condition that is taken away leaves nothing to tell the motion.
        `heard`: what the clips' frames hear by a network instead of log-mel [N, *`Ears.heard`]; `face`: of the portrait (`hearing`); `faced`:
        whether a painted skeleton has one."""
        self.channels, self.depth, self.condition, self.hears, self.faced = channels, depth, condition, hears, faced
        self.maps, self.heard, self.face = tuple(maps), heard, face
        self.data, self.seed, self.chances = data, seed, chances or Chances()
        longest = max((stop - start for clip in data.clips for start, stop in clip.train), default=0)
        whole = any(side % (2 * depth) for side in data.size)  # halves would not consist of cells
        self.patterns = [replace(one, frames=min(one.frames, longest), halved=one.halved and not whole) for one in patterns]
        clip, frame = most_still(data.clips)
        self._mask = None
        if condition == "mask":
            from engine.conditions.regions import face_mask  # whose library a benchmark of training does without

            self._mask = face_mask(data.clips[clip].face[frame], data.size)
        self._still = self._coarse(replace(data.clips[clip], hands=None), frame, frame + 1, still=False)[0]  # live a voice moves no hands
        self.views = [data.portrait, *(view for _, view in data.views)]

    def at(self, step: int, *, turn: int | None = None) -> Batch:
        """The batch of a step's number. `turn`: that of the pattern, where several steps have the same."""
        pattern = self.patterns[(step if turn is None else turn) % len(self.patterns)]
        rows, frames = pattern.rows, pattern.frames
        rng = np.random.default_rng((self.seed, step))
        runs = spans(self.data.clips, frames)
        sizes = np.array([stop - start - frames + 1 for _, start, stop in runs], np.float64)
        picked = []
        for _ in range(rows):
            clip, start, stop = runs[rng.choice(len(runs), p=sizes / sizes.sum())]
            first = int(rng.integers(start, stop - frames + 1))
            picked.append((clip, first, first + frames))
        # Mostly the one that is shown live; the others teach that the reference is read, not learnt by heart.
        view = 0 if rng.random() < 0.5 else int(rng.integers(len(self.views)))
        batch = self._gather(picked, frames, view, rng)
        return self._halved(batch, [self.data.clips[clip].face[start] for clip, start, _ in picked], rng) if pattern.halved else batch

    def _coarse(self, clip: Clip, start: int, stop: int, *, still: bool) -> UInt8Array:
        """[F, H, W, K]"""
        if still:
            return np.broadcast_to(self._still, (stop - start, *self._still.shape))
        if self._mask is not None:  # where the portrait has its face, whatever the clip does: as live
            return np.broadcast_to(self._mask[None, ..., None], (stop - start, *self._mask.shape, self.channels))
        if self.maps:
            from engine.conditions.maps import stacked  # likewise

            frames = range(start, stop)
            return np.stack([stacked({name: held[k] for name, held in clip.maps.items()}, self.maps, self.data.size) for k in frames])
        if self.condition != "puppet":
            from exporters.data.painted import painted  # with the live session's rule comes what tracks faces

            return painted(self.condition, clip, range(start, stop), self.data.size, face=self.faced)
        coarse = np.asarray(clip.coarse[start:stop])
        return coarse if self.channels == coarse.shape[3] else np.concatenate([coarse, clip.guide[start:stop]], 3)

    def _halved(self, batch: Batch, faces: list[FloatArray], rng: np.random.Generator) -> Batch:
        """The same part of all frames of a row; its corner lies on the coarsest cells, so that cells and noise are the whole picture's; what
        normalisation and edges see is not."""
        size, corners = np.array(self.data.size), list[tuple[int, int]]()
        half = size // 2
        for face in faces:
            off = rng.uniform(-JITTER, JITTER, 2) * size
            corner = rng.uniform(0, size - half) if rng.random() < ASIDE else face.mean(0)[::-1] + off - half / 2
            y, x = (np.clip(np.rint(corner / self.depth) * self.depth, 0, size - half)).astype(int)
            corners += [(int(y), int(x))] * batch.frames

        def cut(held: Tensor, first: int) -> Tensor:
            """`first`: which axis is the height."""
            parts = (one.narrow(first - 1, y, int(half[0])).narrow(first, x, int(half[1])) for one, (y, x) in zip(held, corners, strict=True))
            return torch.stack(list(parts))

        fits = batch.fits.clone()
        fits[:, :, 2] -= torch.tensor(corners).flip(1)
        parts = {"truth": cut(batch.truth, 2), "coarse": cut(batch.coarse, 1), "areas": cut(batch.areas, 2), "fits": fits}
        return replace(batch, corners=tuple(corners), **parts)

    def take(self, clip: int, start: int, stop: int) -> Batch:
        """A run as it is, with everything it was driven by."""
        return self._gather([(clip, start, stop)], stop - start, 0, None)

    def _gather(self, picked: list[tuple[int, int, int]], frames: int, view: int, rng: np.random.Generator | None) -> Batch:
        truth, coarse, speech, areas, fits, untold = [], [], [], [], [], list[bool]()
        alone = self.chances.speech if self.heard is None else min(self.chances.speech, UNGUIDED)
        for index, start, stop in picked:
            clip = self.data.clips[index]
            deaf = rng is not None and rng.random() < alone
            still = rng is not None and not deaf and self.hears and rng.random() < self.chances.coarse
            truth.append(np.asarray(clip.frames[start:stop]))
            coarse.append(self._coarse(clip, start, stop, still=still))
            heard = np.asarray((clip.speech if self.heard is None else self.heard[index])[start:stop], np.float32)
            speech.append(np.full_like(heard, SILENCE) if deaf and self.heard is None else heard)
            untold += [deaf] * frames
            areas.append(np.stack([regions(face, self.data.size) for face in clip.face[start:stop]]))
            fits.append(fit(five_points(clip.face[start:stop])))
        return Batch(
            len(picked),
            frames,
            unit(np.concatenate(truth)),
            torch.from_numpy(np.ascontiguousarray(np.concatenate(coarse))),
            torch.from_numpy(np.concatenate(speech)),
            torch.from_numpy(np.concatenate(areas)),
            torch.from_numpy(np.concatenate(fits)),
            unit(np.asarray(self.views[view])[None]),
            view,
            face=self.face,
            unguided=None if self.heard is None else torch.tensor(untold),
        )


__all__ = ["Batch", "Batches", "Chances", "Pattern", "most_still", "spans", "unit"]
