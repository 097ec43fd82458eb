"""What a size of the generator is made of: frozen dataclasses, no yaml. The sizes that have names are in `presets`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from engine.types import MEL_BANDS, MEL_ROWS, AvatarError

Latent = Literal["pixel", "kl", "tiny"]
"""What the denoiser works on: pixels folded into channels (space-to-depth), or the latents of a KL or a tiny autoencoder."""
Decoder = Literal["kl", "tiny"]
"""What makes pictures of a KL autoencoder's latents: its own decoder, or a tiny one that was distilled from it (TAESD)."""
Condition = Literal["puppet", "skeleton", "landmarks", "dots", "densepose", "maps", "mask", "features"]
"""What tells a frame its motion: the puppet's own coarse frame, a painted skeleton (DWPose convention), face landmarks, the dots of a face and of its
mouth apart, or pictures that come with the signal (`Signal.maps`, those of `MAPS`); where sound is to move the face, only where it is (a mask), or
its eyes, brows and nose."""
MAPS: dict[str, tuple[str, ...]] = {"densepose": ("densepose",), "maps": ("depth", "normal", "semantic", "dwpose")}
"""Condition -> names of the pictures it is made of, in the order of its channels."""
PAINTED: dict[str, tuple[str, ...]] = {"dots": ("upper", "mouth")}
"""Likewise, where several are painted here."""
TEXT_TOKENS = 77
"""Of CLIP's text encoder."""
FACE_TOKENS = 4
"""That a recogniser's vector becomes."""
Alignment = Literal["own", "musepose", "unianimate", "shape"]
"""Whose proportions a skeleton has: the driver's own, or the portrait's by one of three published ways (`engine.conditions.align`)."""
Hearing = Literal["mel", "whisper", "wav2vec"]
"""What a frame hears: log-mel, the states of Whisper's encoder, or the layers of wav2vec 2.0."""
SpeechIn = Literal["own", "second", "branches"]
"""Where the denoiser reads speech: in a third attention of every block; in the second one, which then reads nothing else; in a module of its
own after every spatial attention, with a branch each for what surrounds the face, the face and the lips."""
Prediction = Literal["epsilon", "v", "x0", "flow"]
Stepper = Literal["euler", "lcm"]


@dataclass(frozen=True, slots=True)
class UNet:
    """Shape of the denoiser and of the reference network beside it; keys and layout are those of Stable Diffusion 1.5, or `plain`'s."""

    in_channels: int
    channels: tuple[int, ...]  # of every level
    attention: tuple[bool, ...]  # whether a level has spatial attention; the middle always has
    motion: tuple[bool, ...]  # whether a level has temporal attention
    motion_middle: bool = True
    layers: int = 2  # resnets a level on the way down; one more on the way up
    heads: int = 8
    groups: int = 32  # of every GroupNorm, each over one frame ...
    joined_norms: bool = False  # ... but for those outside of attentions, which at leisure see all frames of a window (live: one, all the same)
    bank: Literal["full", "mid_up"] = "full"  # which spatial blocks read the reference: all, or those of the middle and the way up
    reference_cut: bool = False  # the reference network ends where its last block has been read, as published files may
    image_dim: int = 0  # width of the identity's tokens that attn2 reads; 0 for none
    face_dim: int = 0  # width of a face's tokens that the denoiser's attn2 reads beside them, by projections of their own; 0 for none
    guidance_dim: int = 0  # width of the guidance scale's embedding, for weights into which guidance was distilled; 0 for none
    speech_dim: int = 0  # width of the speech tokens; 0 for none
    speech_in: SpeechIn = "own"
    speech_gain: float = 1.0  # of what the second attention hears
    branch_gains: tuple[float, float, float] = (1.0, 1.0, 1.0)  # of surroundings, face and lips
    positions: int = 32  # that the motion modules' files know; no window may be longer
    plain: bool = False  # a quick trunk without norms, one block a level, which attends in the middle alone

    @property
    def time_dim(self) -> int:
        """Width of the embedding of the noise level."""
        return 4 * self.channels[0]


@dataclass(frozen=True, slots=True)
class Noise:
    """The noise schedule and how a prediction is read. Betas 0.00085 to 0.012 over 1000 levels, as in Stable Diffusion."""

    prediction: Prediction = "v"
    betas: Literal["linear", "scaled_linear"] = "linear"
    zero_snr: bool = True  # the noisiest level has no signal at all (Lin et al. 2023, arXiv 2305.08891, section 3.1)
    spacing: Literal["trailing", "leading"] = "trailing"
    stepper: Stepper = "euler"

    @property
    def least(self) -> int:
        """Fewest steps a frame: a single one of leading spacing would begin where a picture is almost clean."""
        return 2 if self.spacing == "leading" and self.prediction != "flow" else 1


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a whole clip is rendered at leisure (`offline.sample`): by default as Moore-AnimateAnyone's script does it."""

    steps: int = 30
    guidance: float = 3.5  # scale; 1 is none, and half the work
    window: int = 24  # frames that see one another
    overlap: int = 4  # of them, how many the next window shares
    closed: bool = True  # the last windows go on at the clip's start; else they end before it
    hint_unguided: bool = True  # whether the unguided half is told the motion too
    tokens_unguided: bool = False  # whether it reads the tokens: those of an empty text say nothing of a portrait
    zeros_unguided: bool = False  # whether it reads, in the portrait's place, what the reference network makes of latents that are zero; else nothing
    padding: Literal["none", "windows", "multiple"] = "none"  # the last frame is repeated until windows come out even, or fill the clip
    noise_frames: int = 0  # frames that have a noise of their own, which then repeats; 0 for all
    speech_unguided: bool = True  # whether it hears the speech
    shift: int = 0  # frames by which the windows move on with every step
    carried: int = 0  # last frames of the clip before that a clip of `window` frames reads; 0 for windows that overlap instead
    dealt: bool = False  # whether pictures get the identity's tokens of both halves in turn, as Hallo's code deals them out
    clipped: float = 0.0  # bound of the noise where every frame starts; 0 for none

    @property
    def told(self) -> str:
        """In words."""
        return f"{self.steps} steps" + (f" with guidance {self.guidance:g}" if self.guidance != 1.0 else "")


@dataclass(frozen=True, slots=True)
class Ears:
    """The network that makes speech features of sound: the last of Whisper's encoder and wav2vec 2.0 beside log-mel, which needs none."""

    kind: Hearing = "mel"
    width: int = 0
    layers: int = 0
    heads: int = 0
    positions: int = 0  # Whisper: steps of 20 ms that it is given
    convolutions: int = 0  # wav2vec: width of those that read the sound
    hidden: int = 0  # wav2vec: width between its layers and the tokens
    tokens: int = MEL_ROWS // 4  # a frame

    @property
    def heard(self) -> tuple[int, int]:
        """Shape of what a frame hears, before it becomes tokens."""
        if self.kind == "mel":
            return MEL_ROWS, MEL_BANDS
        return (self.tokens, self.width) if self.kind == "whisper" else (FRAMES_HEARD * self.layers, self.width)


FRAMES_HEARD = 5
"""Frames around its own whose layers of wav2vec a frame hears."""


@dataclass(frozen=True, slots=True)
class Preset:
    """One size of the generator."""

    name: str
    size: tuple[int, int]  # (H, W) px of the frames
    latent: Latent
    patch: int  # px a latent cell covers along each side
    unet: UNet
    guider: tuple[int, ...]  # channels of the pose guider, finest first; each but the first halves the size
    condition: Condition
    alignment: Alignment = "own"
    fold: int = 1  # px that the guider folds into channels before its first convolution
    noise: Noise = Noise()
    image_encoder: Literal["none", "pooled", "clip", "text", "face"] = "none"  # what makes the identity's tokens; text: constant ones, of no word
    reference_each: bool = False  # whether the reference is read anew at every step, at that step's level; else once, at level 0
    controlnet: bool = False  # whether the guider's picture goes through a ControlNet, instead of being added after the first convolution
    guider_each: bool = False  # whether every picture of the condition has a guider of its own; they are summed
    guider_attends: bool = False  # whether each of these has an attention at its end
    face: bool = True  # whether a painted skeleton has a face
    planes: int = 3  # channels of a condition that is painted
    ears: Ears = Ears()
    guide: bool = False  # whether the puppet's frame comes with its guide (`puppet.guide`): 3 more channels of the condition
    residual: bool = False  # what is generated is the difference to the condition, which is the puppet's frame
    scale: float = 1.0  # latents are multiplied by this, so that their variance is about 1
    window: int = 16  # frames a frame attends to, itself included
    sinks: int = 0  # of these, how many are the stream's first frames, pinned
    sampling: Sampling = Sampling()  # of a clip at leisure
    guidance: float = 1.0  # scale that such weights are told, live
    steps: int = 2  # denoising steps a frame, live
    chunk: int = 1
    fps: int = 25

    @property
    def latent_size(self) -> tuple[int, int]:
        """(h, w) of the latents."""
        return self.size[0] // self.patch, self.size[1] // self.patch

    @property
    def needs(self) -> tuple[str, ...]:
        """Fields of a signal that its condition is made of."""
        if self.maps:
            return ("maps",)
        if self.condition == "mask":
            return ("pcm",)
        painted = {"puppet": (), "dots": ("face",)}.get(self.condition, ("face", "body", "hands"))
        return ("motion", "speech" if self.ears.kind == "mel" else "pcm", *painted)

    @property
    def channels(self) -> int:
        """Of the condition picture; the first three are what is seen."""
        return 6 if self.guide else self.planes * max(1, len(self.pictures))

    @property
    def maps(self) -> tuple[str, ...]:
        """Names of the signal's pictures that the condition is made of; empty for a condition that is painted here."""
        return MAPS.get(self.condition, ())

    @property
    def pictures(self) -> tuple[str, ...]:
        """Names of all pictures that the condition is made of; empty where it is a single one without a name."""
        return self.maps or PAINTED.get(self.condition, ())

    @property
    def tokens(self) -> int:
        """That the denoiser reads of the identity; those of a face are the last ones."""
        return {"text": TEXT_TOKENS, "face": FACE_TOKENS}.get(self.image_encoder, 1) + (FACE_TOKENS if self.unet.face_dim else 0)

    @property
    def recognises(self) -> bool:
        """Whether it reads a recogniser's vector of the portrait's face."""
        return self.image_encoder == "face" or self.unet.face_dim > 0

    @property
    def level_sizes(self) -> list[tuple[int, int]]:
        """(h, w) of every level, finest first."""
        h, w = self.latent_size
        return [(h >> i, w >> i) for i in range(len(self.unet.channels))]

    @property
    def cells(self) -> int:
        """Of all levels together."""
        return sum(h * w for h, w in self.level_sizes)

    @property
    def depth(self) -> int:
        """px that a cell of the lowest level covers along each side."""
        return self.patch << (len(self.unet.channels) - 1)

    @property
    def gain(self) -> float:
        """What the autoencoder's latents are multiplied by; a tiny one's are scaled already."""
        return 1.0 if self.latent == "tiny" else self.scale

    @property
    def recent(self) -> int:
        """Frames of the window that are not pinned, the newest one included."""
        return self.window - self.sinks

    @property
    def ring(self) -> int:
        """Past frames that are kept beside the pinned ones."""
        return self.recent - 1


def pixels(patch: int) -> int:
    """Channels of pixels that are folded `patch` by `patch`."""
    return 3 * patch * patch


def check(made: Preset) -> None:
    """Raise AvatarError where the fields of a preset contradict each other."""
    unet, (height, width) = made.unet, made.size
    bare = not any((*unet.attention, *unet.motion)) and unet.layers == 1
    rules = (
        (len(unet.attention) == len(unet.motion) == len(unet.channels), "attention and motion need one entry a level"),
        (bare or not unet.plain, "a plain trunk attends in the middle alone, and has one block a level"),
        (height % made.depth == 0 and width % made.depth == 0, f"its size must be a multiple of {made.depth}"),
        (all(c % unet.groups == 0 and c % unet.heads == 0 for c in unet.channels), "groups and heads must divide every level's channels"),
        (
            max(made.window, made.sampling.window + made.sampling.carried) <= unet.positions,
            "its windows are longer than its motion modules know positions",
        ),
        (0 <= made.sampling.overlap < made.sampling.window, "windows overlap by less than their length"),
        (0 <= made.sinks < made.window - 1, "it needs fewer pinned frames than its window has"),
        (1 <= made.chunk <= made.ring, "a chunk must fit into the window"),
        (made.patch == made.fold * 2 ** (len(made.guider) - 1), "the guider must come down to the latents' size"),
        (not made.guide or made.condition == "puppet", "a guide needs the puppet's frame"),
        (not made.guider_each or bool(made.pictures), "guiders of its pictures need a condition of several"),
        (not (made.reference_each and made.sampling.zeros_unguided), "a picture of nothing is read once, not at every step"),
        (made.guider_each or not made.guider_attends, "an attention ends the guiders of several pictures only"),
        (not made.controlnet or made.image_encoder == "text", "a ControlNet reads the tokens of a text"),
        (not unet.plain or not (unet.joined_norms or made.controlnet), "a plain trunk has neither norms nor room for a ControlNet"),
        (not made.residual or (made.condition == "puppet" and made.latent == "pixel"), "a residual needs the puppet's frame and pixels"),
        ((made.image_encoder == "none") == (unet.image_dim == 0), "an image encoder and the width of its tokens come together"),
        (unet.face_dim == 0 or unet.image_dim > 0, "a face's tokens stand beside an identity's, of which it has none"),
        (unet.face_dim == 0 or made.image_encoder != "face", "its identity's tokens are a face's already"),
        (made.planes == 3 or made.condition == "mask", "only a mask of the face has other than three channels"),
        (unet.speech_in != "second" or unet.image_dim == 0 < unet.speech_dim, "the second attention reads either speech or the identity's tokens"),
        (unet.speech_in == "own" or not unet.plain, "a plain trunk reads speech in a third attention"),
        (made.ears.kind == "mel" or unet.speech_dim > 0, "what hears needs a network that reads speech"),
        (made.ears.kind != "whisper" or made.ears.width == unet.speech_dim, "Whisper's states are the speech tokens, and as wide"),
        (made.ears.kind != "whisper" or made.ears.tokens == 10 * (made.ears.layers + 1), "a frame hears ten steps of all of Whisper's states"),
        (made.sampling.carried == 0 or _carries(unet), "carried frames need a spatial attention wherever there is a temporal one"),
        (made.guidance == 1.0 or unet.guidance_dim > 0, "a guidance scale needs a network that is told it"),
        (made.latent != "pixel" or unet.in_channels == pixels(made.patch), "pixel latents have 3 channels a px of the patch"),
    )
    for holds, complaint in rules:
        if not holds:
            raise AvatarError(f"The preset '{made.name}' cannot be built: {complaint}.")


def resized(made: Preset, size: tuple[int, int]) -> Preset:
    """The preset at another size (H, W) px: no weight depends on it. Raises AvatarError where it does not fit."""
    if min(size) < 1:
        raise AvatarError(f"A picture of {size[0]} x {size[1]} px cannot be made; give a height and a width above 0.")
    other = replace(made, size=size)
    check(other)
    return other


def _carries(unet: UNet) -> bool:
    return all(spatial or not temporal for spatial, temporal in zip(unet.attention, unet.motion, strict=False))


__all__ = [
    "FACE_TOKENS",
    "MAPS",
    "PAINTED",
    "TEXT_TOKENS",
    "Alignment",
    "Condition",
    "Decoder",
    "Ears",
    "Latent",
    "Noise",
    "Prediction",
    "Preset",
    "Sampling",
    "Stepper",
    "UNet",
    "check",
    "pixels",
    "resized",
]
