"""A face's tokens beside the identity's (IP-Adapter-FaceID): attention, streams, weights, personas, imports, training and exports that read them."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from engine import persona as personas
from engine.generators import load
from engine.generators.diffusion import presets
from engine.generators.diffusion.presets import ANIMATE_ANYONE, COMPACT, ECHOMIMIC, HALLO, TINY, preset, with_face
from engine.persona import demo_portrait
from engine.types import AvatarError, Identity, Signal
from exporters.options import add_train
from tests import recognisers
from tests.conftest import found, require
from tests.identity_weights import faceid, seeded, signal
from tests.networks import error
from tests.networks import seeded as seeded_networks
from tests.recognisers import given_recogniser  # noqa: F401

if found("torch") and found("diffusers") and found("transformers"):
    import torch

    from engine.backends import backend
    from engine.generators.diffusion import graphs, leisure, stream
    from engine.generators.diffusion import networks as weights_of
    from engine.generators.diffusion.attention import Recognising, Sources, SpatialTransformer
    from engine.generators.diffusion.features import Features
    from engine.generators.diffusion.networks import Face
    from engine.generators.diffusion.offline import sample
    from engine.generators.diffusion.presets import Sampling
    from engine.generators.diffusion.sampler import levels
    from engine.generators.diffusion.temporal import places
    from engine.generators.diffusion.tokens import FaceIdTokens
    from engine.generators.diffusion.unet import spatial_blocks
    from exporters.graphs import to_onnx
    from exporters.portraits.contract import IdentityTokens
    from exporters.published.import_checkpoint import with_low_rank
    from exporters.published.import_faceid import LAYERS
    from exporters.training import command, grow
    from exporters.training.learner import Learner
    from tests.test_diffusion import clip, recipe

pytestmark = pytest.mark.torch
FACED = with_face(TINY)
SAME = 1e-5
"""Relative error, fp32."""
GOLDEN = np.load(Path(__file__).parent / "golden" / "identity_tokens.npz")
"""Of the published attention processors and projector (tencent-ailab/IP-Adapter 62e4af9), on weights that `seeded` makes again."""


@pytest.fixture(autouse=True, scope="module")
def _installed() -> None:
    for part in ("torch", "diffusers", "transformers"):
        require(part)


def networks(made: Any = FACED) -> Any:
    """None of whose layers is zero, the face's values neither."""
    return seeded_networks(made)


def face(seed: int = 0) -> Any:
    return Face(torch.randn(1, 512, generator=torch.Generator().manual_seed(seed)))


# -- attention --------------------------------------------------------------------------------------------------------------


@torch.no_grad() if found("torch") else (lambda test: test)
@pytest.mark.parametrize("count", [1, 6])
def test_attention_is_the_others_plus_the_scaled_face(count: int) -> None:
    """By the formula of the paper, written out: the two softmaxes know nothing of each other."""
    torch.manual_seed(0)
    heads, width, scale = 2, 16, 0.7
    attention = Recognising(width, heads, source=12, face=10)
    x, tokens, known = torch.randn(3, 5, width), torch.randn(3, count, 12), torch.randn(3, 4, 10)

    def attend(keys: Any, values: Any) -> Any:
        parts = []
        for q, k, v in zip(attention.to_q(x).chunk(heads, -1), keys.chunk(heads, -1), values.chunk(heads, -1), strict=True):
            parts.append((q @ k.transpose(1, 2) / (width // heads) ** 0.5).softmax(-1) @ v)
        return torch.cat(parts, -1)

    others = attend(attention.to_k(tokens), attention.to_v(tokens))
    want = attention.out(others + scale * attend(attention.to_k_ip(known), attention.to_v_ip(known)))
    got = attention(x, *attention.with_face(attention.project(tokens), known, scale))
    assert error(got, want) < SAME
    assert error(attention.out(others), want) > 1e-2


@torch.no_grad() if found("torch") else (lambda test: test)
@pytest.mark.parametrize("count", [5, 1])
def test_a_block_is_the_published_one(count: int) -> None:
    """With FaceID's LoRA in its weights."""
    width, dim, rank = 16, 12, 3
    block = SpatialTransformer(width, 2, 4, image_dim=dim, speech_dim=0, index=0, face_dim=dim).eval()
    shapes = {key: tuple(value.shape) for key, value in block.state_dict().items() if "_ip." not in key}
    added: dict[str, tuple[int, ...]] = {f"attn2.to_{part}_ip.weight": (width, dim) for part in "kv"}
    for attention in ("attn1", "attn2"):
        for part in LAYERS:
            source = dim if attention == "attn2" and part in "kv" else width
            added |= {f"{attention}.to_{part}_lora.down.weight": (rank, source), f"{attention}.to_{part}_lora.up.weight": (width, rank)}
    held = {key: torch.from_numpy(value) for key, value in seeded(shapes | added).items()}
    state = {key: held[key] for key in shapes}
    for attention in ("attn1", "attn2"):
        for part, ours in LAYERS.items():
            key, lora = f"transformer_blocks.0.{attention}.{ours}.weight", f"{attention}.to_{part}_lora"
            state[key] = with_low_rank(state[key], (held[f"{lora}.up.weight"], held[f"{lora}.down.weight"]), key)
    state |= {f"transformer_blocks.0.{key}": held[key] for key in added if "_ip." in key}
    block.load_state_dict(state)
    projector = FaceIdTokens(dim).eval()
    projector.load_state_dict({key: torch.from_numpy(value) for key, value in seeded(faceid(features=512, out=dim)).items()})
    known = projector(torch.from_numpy(signal(1, 512)))
    assert error(known, torch.from_numpy(GOLDEN["tokens"])) < SAME
    attention2 = block.transformer_blocks[0].attn2
    text = torch.from_numpy(signal(1, 5, dim, seed=8))[:, :count]
    pair = attention2.with_face(attention2.project(text), known, 0.7)
    got = block(torch.from_numpy(signal(1, width, 3, 4)), Sources(identity=[pair]))
    assert error(got, torch.from_numpy(GOLDEN[f"block_{count}"])) < SAME


# -- streams ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("chunk", "batched"), [(1, False), (2, True)])
def test_streaming_equals_the_whole_clip(chunk: int, batched: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.test_diffusion import FRAMES, Latents, run

    made = networks(replace(FACED, chunk=chunk))
    portrait, condition, speech = clip(made.preset)
    cache, how = made.remember(portrait, face=face()), recipe(made, batched=batched)
    want = stream.whole_clip(how, cache, condition, speech)
    live = stream.open_stream(how, 2, cache)
    stream.seat(live, 1, cache)
    got = run(how, live, 1, condition, speech, Latents(made, monkeypatch))
    delay = chunk if batched else 0
    assert error(got[delay:], want[: FRAMES - delay]) < SAME
    other = stream.whole_clip(how, made.remember(portrait, face=face(1)), condition, speech)
    assert error(other, want) > 1e-3, "another face makes another picture"


def test_a_scale_of_zero_is_the_preset_without() -> None:
    """And what has not learnt yet is too; the reference network is the same at every scale."""
    plain = seeded_networks(TINY)
    portrait, condition, speech = clip(TINY)
    before = plain.remember(portrait)
    want = stream.whole_clip(recipe(plain), before, condition, speech)
    made = grow.grown(plain, FACED, seed=1)
    for fresh in (made, networks()):
        assert not any("_ip." in key for key in fresh.reference.state_dict())
        assert sum("_ip." in key for key in fresh.denoiser.state_dict()) == 2 * fresh.denoiser.spatial_blocks
    assert error(stream.whole_clip(recipe(made), made.remember(portrait, face=face()), condition, speech), want) < SAME
    for block in spatial_blocks(made.denoiser):
        torch.nn.init.normal_(block.attn2.to_v_ip.weight, generator=torch.Generator().manual_seed(2))
    seen = {}
    for made.identity_scale in (0.0, 0.5, 1.0):
        cache = made.remember(portrait, face=face())
        assert all(
            torch.equal(a, b) for mine, theirs in zip(cache.reference, before.reference, strict=True) for a, b in zip(mine, theirs, strict=True)
        )
        seen[made.identity_scale] = error(stream.whole_clip(recipe(made), cache, condition, speech), want)
    assert seen[0.0] < SAME
    assert 1e-3 < seen[0.5] < seen[1.0]


def test_guidance_compares_with_nobodys_face() -> None:
    """As published: the unguided half reads what the projector makes of zeros, and of the identity's other tokens nothing."""
    made = networks()
    portrait, condition, _ = clip(FACED)
    cache = made.remember(portrait, face=face())
    nobody = made.unknown([(torch.zeros_like(k), torch.zeros_like(v)) for k, v in cache.identity])
    for block, (keys, values) in zip(spatial_blocks(made.denoiser), nobody, strict=True):
        known = made.face(torch.zeros(1, 512))
        assert torch.equal(keys[:, 1:], block.attn2.to_k_ip(known))
        assert torch.equal(values[:, 1:], block.attn2.to_v_ip(known))
        assert not keys[:, :1].any()
        assert not values[:, :1].any()
    told: list[int] = []
    unknown = made.unknown

    def spy(identity: Any) -> Any:
        told.append(1)
        return unknown(identity)

    made.unknown = spy
    how = replace(Sampling(), window=4, overlap=1)
    clips = [sample(recipe(made), cache, condition[:4], sampling=replace(how, guidance=guidance)) for guidance in (1.0, 3.5)]
    assert told == [1]
    assert error(clips[1], clips[0]) > 1e-2


def test_a_clip_at_leisure_reads_the_same_face_at_its_own_steps() -> None:
    """Where the portrait is read anew at every step's level, nobody looks for its face again."""
    made = networks(replace(FACED, reference_each=True))
    live, slow = (stream.Recipe(made, levels(FACED.noise, steps), False, torch.float32, torch.device("cpu")) for steps in (2, 3))
    portrait = cv2.resize(demo_portrait(), FACED.size[::-1])
    unit = torch.from_numpy(portrait).permute(2, 0, 1)[None] / 127.5 - 1
    identity = Identity("key", portrait, Features(live.remember(unit, face()), None, None))
    got, want = leisure._cache(slow, identity, live=live), slow.remember(unit, face())
    assert len(got.reference) == 3 / 2 * len(identity.features.cache.reference)
    for mine, theirs in zip(got.identity, want.identity, strict=True):
        assert error(mine[0], theirs[0]) < SAME
        assert error(mine[1], theirs[1]) < SAME


# -- weights and presets ----------------------------------------------------------------------------------------------------


def test_names_of_presets() -> None:
    assert preset("tiny+faceid") == FACED
    assert (FACED.tokens, with_face(ANIMATE_ANYONE).tokens, with_face(presets.MAGIC_ANIMATE).tokens) == (5, 5, 81)
    for made in (COMPACT, HALLO, ECHOMIMIC):
        with pytest.raises(AvatarError, match=f"'{made.name}' has no tokens of an identity that a face's could stand beside; choose one of: animate"):
            preset(f"{made.name}+faceid")
    for name in ("nothing+faceid", "tiny+something"):
        with pytest.raises(AvatarError, match="There is no preset called"):
            preset(name)
    for changes in ({"image_encoder": "face"}, {"image_encoder": "none", "unet": replace(FACED.unet, image_dim=0)}):
        with pytest.raises(AvatarError, match="cannot be built"):
            presets.check(replace(FACED, **changes))


def test_weights_come_back_with_their_recogniser(recogniser: Path, tmp_path: Path) -> None:
    made = networks()
    made.recogniser = recogniser
    weights_of.save(made, tmp_path / "w", origin={"faceid": "abc"})
    again = weights_of.load(tmp_path / "w")
    assert again.preset == FACED
    assert again.projector == "abc"
    assert again.recogniser == tmp_path / "w" / "recogniser.onnx"
    before, after = made.state_dict(), again.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    (tmp_path / "w" / "face.safetensors").unlink()
    with pytest.raises(AvatarError, match=r"face\.safetensors is missing, damaged or of another version of 'tiny\+faceid'"):
        weights_of.load(tmp_path / "w")
    weights_of.save(seeded_networks(TINY), tmp_path / "plain", origin={})
    assert weights_of.load(tmp_path / "plain").face is None, "weights without are as they were"


# -- personas ---------------------------------------------------------------------------------------------------------------


def saved(folder: Path, *, origin: dict[str, str] | None = None, recogniser: Path | None = None) -> Path:
    made = networks()
    made.recogniser = recogniser
    weights_of.save(made, folder, origin=origin or {})
    return folder


def test_a_portraits_face_is_recognised_and_cached(recogniser: Path, tmp_path: Path) -> None:
    """What is kept of a portrait is what is computed again, by the recogniser's vector brought to length 1; a scale counts in it."""
    weights = saved(tmp_path / "w", recogniser=recogniser)
    generator: Any = load("diffusion", weights=weights, mode="eager")
    made = generator.prepare(demo_portrait())
    kept = generator.unpack(made.portrait, generator.pack(made)).features.cache
    inner: Any = generator.recipe.networks
    assert torch.equal(kept.face, made.features.cache.face)
    again = inner.identity(inner.image(torch.from_numpy(made.portrait).permute(2, 0, 1)[None] / 127.5 - 1), kept.face)
    for mine, theirs in zip(kept.identity, again, strict=True):
        assert error(mine[0], theirs[0]) < SAME
        assert error(mine[1], theirs[1]) < SAME
    assert error(kept.face, inner.known()) > 1e-2, "the recogniser was asked"
    half: Any = load("diffusion", weights=weights, mode="eager", identity_scale=0.5)
    assert half.weights != generator.weights
    scaled = half.prepare(demo_portrait()).features.cache.identity
    assert torch.equal(scaled[0][0], kept.identity[0][0])
    assert error(scaled[0][1][:, 1:], 0.5 * kept.identity[0][1][:, 1:]) < SAME
    with pytest.raises(AvatarError, match="made with other weights"):
        half.unpack(made.portrait, generator.pack(made))
    state = generator.allocate(1)
    generator.admit(state, 0, made)
    assert generator.step(state, [[Signal(time=0.0)]])[0][0].rgb.shape == (*TINY.size, 3)


def test_a_persona_brings_its_tokens(tmp_path: Path) -> None:
    """Those of the same file are read instead of the portrait; others are not, and damaged ones are told."""
    home = tmp_path / "personas"
    picture = tmp_path / "p.png"
    cv2.imwrite(str(picture), demo_portrait()[..., ::-1])
    personas.create(load("puppet", size=TINY.size), picture, name="me", consent="mine", folder=home)
    generator: Any = load("diffusion", weights=saved(tmp_path / "w", origin={"faceid": "abc"}), mode="eager")
    with pytest.raises(AvatarError, match="read what a face recogniser sees of the portrait, and they came without one"):
        personas.load_persona(generator, "me", folder=home)

    def bring(seed: int, *, weights: str = "abc", system: str = "faceid", dim: int = 12) -> Any:
        tokens = signal(2, 4, dim, seed=seed)
        packed = IdentityTokens(system, system, {"tokens": tokens}, ("photo",), weights).pack()
        (home / "me" / personas.TOKENS).write_bytes(packed)
        return torch.from_numpy(tokens[1:])

    first = bring(1)
    made = personas.load_persona(generator, "me", folder=home)
    assert torch.equal(made.identity.features.cache.face, first)
    again = personas.load_persona(generator, "me", folder=home)
    assert torch.equal(again.identity.features.cache.face, first)
    assert again.identity.key == made.identity.key
    second = bring(2)
    other = personas.load_persona(generator, "me", folder=home)
    assert torch.equal(other.identity.features.cache.face, second), "what was cached is of the tokens before"
    assert other.identity.key != made.identity.key
    for odd in (("abd", "faceid"), ("abc", "photomaker")):
        bring(3, weights=odd[0], system=odd[1])
        with pytest.raises(AvatarError, match="they came without one; import them again with --recogniser"):
            personas.load_persona(generator, "me", folder=home)
    bring(4, dim=11)
    with pytest.raises(AvatarError, match=r"identity\.npz is damaged"):
        personas.load_persona(generator, "me", folder=home)
    bring(5)
    whole = (home / "me" / personas.TOKENS).read_bytes()
    at = whole.index(b"array.tokens") + 200
    for damaged in (b"nothing", whole[: len(whole) // 2], whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]):
        (home / "me" / personas.TOKENS).write_bytes(damaged)
        with pytest.raises(AvatarError, match=r"identity\.npz is damaged"):
            personas.load_persona(generator, "me", folder=home)


def test_options_and_recognisers_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(AvatarError, match="--identity-scale is for weights whose denoiser reads a face's tokens, and 'tiny' reads none"):
        load("diffusion", preset="tiny", identity_scale=0.5)
    for scale in (-0.1, float("nan"), float("inf")):
        with pytest.raises(AvatarError, match="--identity-scale .* is neither"):
            load("diffusion", preset="tiny+faceid", identity_scale=scale)
    short = recognisers.onnx_file(tmp_path / "short.onnx")
    generator: Any = load("diffusion", weights=saved(tmp_path / "w", recogniser=short), mode="eager")
    with pytest.raises(AvatarError, match=r"gives 16 numbers for a face, and 'tiny\+faceid' reads 512"):
        generator.prepare(demo_portrait())


# -- training ---------------------------------------------------------------------------------------------------------------


def test_a_run_learns_to_read_the_face(recogniser: Path, tmp_path: Path) -> None:
    """It begins at the plain network, its loss falls, and afterwards another face makes another picture; the weights serve."""
    from exporters.training.losses import Weights
    from exporters.training.train import Budget, train
    from tests.test_identity_train import QUICK, dataset

    settings = replace(QUICK, preset="tiny+faceid", weights=Weights(critic=0.0, identity=0.0))
    plain = tmp_path / "plain"
    weights_of.save(seeded_networks(TINY), plain, origin={})
    portrait, condition, speech = clip(TINY)
    begun = Learner(settings, TINY.size, start=plain, teacher=None, device="cpu", recogniser=recogniser).networks.eval()
    was = weights_of.load(plain)
    want = stream.whole_clip(recipe(was), was.remember(portrait), condition, speech)
    assert error(stream.whole_clip(recipe(begun), begun.remember(portrait, face=face()), condition, speech), want) < SAME
    assert all(one.requires_grad for one in begun.face.parameters())
    train(dataset(), tmp_path / "run", budget=Budget(updates=24), settings=settings, start=plain, recogniser=recogniser, device="cpu")
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert np.mean(losses[-6:]) < 0.9 * np.mean(losses[:6])
    made = weights_of.load(tmp_path / "run" / "weights")
    assert made.preset == FACED
    assert made.recogniser is not None
    assert all(block.attn2.to_v_ip.weight.any() for block in spatial_blocks(made.denoiser))
    one, other = (stream.whole_clip(recipe(made), made.remember(portrait, face=face(seed)), condition, speech) for seed in (1, 2))
    assert error(one, other) > 1e-4
    generator: Any = load("diffusion", weights=tmp_path / "run" / "weights", mode="eager")
    assert generator.prepare(demo_portrait()).features.cache.face.shape == (1, 4, 12)


def test_weights_go_on_with_the_recogniser_that_their_tokens_are_made_of(recogniser: Path, tmp_path: Path) -> None:
    """Another one, given for the identity loss, sees faces in other numbers."""
    from exporters.training.losses import Weights
    from tests.test_identity_train import QUICK

    other = recognisers.onnx_file(tmp_path / "other.onnx", seed=1, length=512)
    start = saved(tmp_path / "w", recogniser=recogniser)
    settings = replace(QUICK, preset="tiny+faceid", weights=Weights(critic=0.0, identity=0.1))
    learner = Learner(settings, TINY.size, start=start, teacher=None, device="cpu", recogniser=other)
    assert learner.networks.recogniser == start / "recogniser.onnx"
    short = recognisers.onnx_file(tmp_path / "short.onnx")
    assert Learner(settings, TINY.size, start=start, teacher=None, device="cpu", recogniser=short).identity is not None


def test_only_the_face_can_learn_too() -> None:
    """Gradients reach the projector and both projections, once the values are not zero."""
    made = networks(replace(FACED, steps=1)).requires_grad_(True)
    how = recipe(made)
    portrait, condition, speech = clip(FACED)
    hint, spoken = stream.heard_and_seen(made, condition[:1], speech[:1], torch.float32)
    cache = made.look(portrait, face=face())
    rings = [[(k[0], v[0]) for k, v in stream.open_stream(how, 1, cache).rings]]
    at = places(torch.zeros(1, dtype=torch.int64), 1, FACED)
    noise = stream.noise_of(FACED)
    sources = Sources(1, cache.reference, cache.identity, speech=spoken)
    stream.in_turn(made, how.levels, noise, hint, sources, rings, at)[0].square().mean().backward()
    learnt = list(made.face.parameters())
    for block in spatial_blocks(made.denoiser):
        learnt += [block.attn2.to_k_ip.weight, block.attn2.to_v_ip.weight]
    assert all(one.grad is not None and bool(one.grad.any()) for one in learnt)


def test_training_asks_for_a_recogniser_before_it_begins(recogniser: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    weights_of.save(seeded_networks(TINY), plain, origin={})
    parser = argparse.ArgumentParser()
    add_train(parser)

    def check(*more: str) -> None:
        command._check(parser.parse_args(["--video", "a.mp4", "--out", "o", "--device", "cpu", *more]))

    with pytest.raises(AvatarError, match=r"'tiny\+faceid' reads what a face recogniser sees of the portrait; give one with --recogniser"):
        check("--preset", "tiny+faceid")
    with pytest.raises(AvatarError, match="has no tokens of an identity"):
        check("--preset", "compact+faceid", "--recogniser", str(recogniser))
    check("--preset", "tiny+faceid", "--start", str(plain), "--recogniser", str(recogniser))
    check("--start", str(saved(tmp_path / "w", recogniser=recogniser)))
    with pytest.raises(AvatarError, match=r"are for the preset 'tiny\+faceid', not 'tiny'"):
        check("--start", str(tmp_path / "w"), "--preset", "tiny", "--recogniser", str(recogniser))


# -- exports ----------------------------------------------------------------------------------------------------------------


def test_the_graphs_are_what_pytorch_does(tmp_path: Path) -> None:
    """The portrait's, which takes a vector, and the live step, with the face's tokens behind the others; on OpenVINO too where it is."""
    from tests.test_compiled import SMALL, _holds

    made = replace(with_face(SMALL), steps=1, window=4, sinks=0)
    _holds(made, "openvino" if found("openvino") else "pytorch")
    inner = networks(made)
    how = recipe(inner)
    spec = graphs.graphs(how)["remember"]
    assert spec.inputs["vector"] == ((1, 512), "float32")
    inputs = spec.examples(seed=2)
    got = backend("pytorch").load(spec)(inputs)
    portrait = torch.from_numpy(inputs["portrait"]).permute(0, 3, 1, 2) / 127.5 - 1
    cache = inner.remember(portrait, face=Face(torch.from_numpy(inputs["vector"])))
    for i, (keys, values) in enumerate(cache.identity):
        assert error(torch.from_numpy(got[f"identity.{i}.k"]), keys) < SAME
        assert error(torch.from_numpy(got[f"identity.{i}.v"]), values) < SAME


def test_the_exported_step_is_the_live_one(tmp_path: Path) -> None:
    from tests.test_compiled import SMALL

    for part in ("onnx", "onnxscript", "onnxruntime"):
        require(part)
    made = networks(replace(with_face(SMALL), steps=1, window=4, sinks=0))
    made.denoiser.freeze(4)
    for name, spec in graphs.graphs(recipe(made)).items():
        file = to_onnx.to_onnx(spec, tmp_path / f"{name}.onnx")  # raises where it is not what PyTorch makes
        assert file is not None
