"""PuLID v1, v1.1 and FLUX: networks and samplers against the published code, photos, files that do not fit, and portraits on tiny bases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.drivers.portrait import Found
from engine.types import AvatarError
from exporters.portraits import candidates, contract
from exporters.portraits.contract import IdentityTokens, Parts
from tests import identity_weights as small
from tests import tiny_pulid as tiny
from tests.conftest import require
from tests.recognisers import onnx_file
from tests.tiny_adapters import tensors

for part in ("torch", "diffusers", "transformers"):
    require(part)

import torch  # noqa: E402

from exporters.portraits import eva_clip, parsing, pipeline, projectors, pulid_networks, samplers  # noqa: E402
from exporters.portraits.attention import Decoupled, keys_and_values  # noqa: E402
from exporters.portraits.systems import pulid  # noqa: E402
from tests import tiny_bases  # noqa: E402
from tests.test_portraits import CLOSE, OneBlock, asked, attention, given, photo  # noqa: E402

GOLDEN = np.load(Path(__file__).parent / "golden" / "pulid.npz")
"""What the published code gives for the seeded weights of `tests.tiny_pulid`, in fp32."""
FILES = {"v1": "pulid_v1.bin", "v1.1": "pulid_v1.1.safetensors", "flux": "pulid_flux_v0.9.1.safetensors"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bases, and each version's file beside what it needs."""
    home = tmp_path_factory.mktemp("files")
    tiny_bases.base(home, family="sdxl")
    tiny.flux(home)
    onnx_file(home / "glintr100.onnx")
    tiny.eva_file(home / "EVA02_CLIP_L_336_psz14_s6B.pt")
    tiny.parsing_file(home / "parsing_bisenet.pth")
    for version, name in FILES.items():
        tiny.pulid(home / version / name, version)
    return home


@pytest.fixture(scope="module")
def encoded(files: Path) -> dict[str, IdentityTokens]:
    """What each version makes of a photo; cutting the face out takes a second, so it is done here and no more."""
    return {version: loaded(files, version).encode([photo()]) for version in FILES}


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything but the picture's edge is face."""

    def labels(network: Any, picture: Any) -> Any:
        made = torch.zeros(picture.shape[:2], dtype=torch.int64)
        made[60:-60, 60:-60] = 1
        return made

    monkeypatch.setattr(parsing, "labels", labels)


def loaded(files: Path, version: str, variant: str | None = None) -> Any:
    """A version, with its parts in the other folders."""
    return contract.load("pulid", Parts(files / version, files / "EVA02_CLIP_L_336_psz14_s6B.pt", files, variant=variant))


def worst(made: Any, name: str) -> float:
    """Largest difference from the published code's, as a share of its largest value."""
    golden = GOLDEN[name]
    assert tuple(made.shape) == golden.shape
    return float(np.abs(made.numpy() - golden).max() / np.abs(golden).max())


# -- the published code ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_its_encoders_give_what_the_published_ones_give() -> None:
    for name, shapes, vectors, count, length in (("v1", tiny.v1(), (2, tiny.READS), 2, 17), ("former", tiny.former(), (1, 2, tiny.READS), 1, 34)):
        held = tensors(shapes)
        network = projectors.loaded(pulid_networks.encoder(held, "it"), held, "it")
        assert worst(network(given(*vectors), [given(count, length, tiny.SEEN, seed=20 + i) for i in range(5)]), name) <= CLOSE


@torch.no_grad()
def test_eva_clip_gives_what_the_published_one_gives(tmp_path: Path) -> None:
    network = eva_clip.open_eva(tiny.eva_file(tmp_path / "eva.pt"))
    assert network.side == tiny.PATCH * tiny.GRID
    pooled, seen = network(given(2, 3, network.side, network.side))
    assert worst(pooled, "eva_pooled") <= CLOSE
    assert worst(torch.stack(seen)[:, :1, :, ::8], "eva_seen") <= CLOSE


@torch.no_grad()
def test_face_parsing_gives_what_facexlibs_gives(files: Path) -> None:
    network = parsing.open_parser(files / "parsing_bisenet.pth")
    assert worst(network(given(1, 3, 96, 64))[:, :, ::8, ::8], "parsing") <= CLOSE


@pytest.mark.parametrize(("name", "zeros", "softly"), [("softly", 20, True), ("orthogonal", 16, False)])
def test_orthogonal_attention_gives_what_the_published_one_gives(name: str, zeros: int, softly: bool) -> None:
    weights = tensors(small.linear("id_to_k", 20, 32, bias=False) | small.linear("id_to_v", 20, 32, bias=False), 1)
    held = {f"0.{key}": value for key, value in weights.items()}
    tokens = torch.nn.functional.pad(given(2, 7, 20, seed=9), (0, 0, 0, zeros))
    mix, block, names = pulid.orthogonal(0.8, softly=softly), attention(), ("id_to_k", "id_to_v")
    added = keys_and_values(OneBlock(block), held, tokens, names=names, mix=mix, what="it")["attn2.processor"]
    with torch.no_grad():
        assert worst(Decoupled(added)(block, given(2, 10, 32), given(2, 7, 20, seed=8)), name) <= CLOSE


@pytest.mark.parametrize("stochastic", [False, True])
def test_the_samplers_walk_as_the_published_ones(stochastic: bool) -> None:
    def noise(x: Any, t: Any, more: float) -> Any:
        return torch.tanh(0.7 * x + t.float() / 1000 - 0.3 + more)

    walk = samplers.DpmPlusPlus(stochastic=stochastic)
    for _ in range(2):  # a second walk begins afresh
        walk.set_timesteps(4)
        assert len(walk.timesteps) == (7 if stochastic else 4)
        generator = torch.Generator().manual_seed(3)
        x = given(1, 4, 4, 4) * walk.init_noise_sigma
        for t in walk.timesteps:
            seen = walk.scale_model_input(x, t)
            none, some = noise(seen, t, 0.1), noise(seen, t, 0.0)
            x = walk.step(none + 2.0 * (some - none), t, x, generator=generator)[0]
        assert worst(x, "sampler_sde" if stochastic else "sampler_2m") <= CLOSE


# -- photos ---------------------------------------------------------------------------------------------------------------


def test_the_face_alone_is_seen_grey_on_white() -> None:
    face = np.random.default_rng(0).integers(0, 256, (2, 3, 3)).astype(np.uint8)
    labels = torch.tensor([[0, 1, 17], [16, 7, 10]])  # background, skin, hair; clothes, an ear, the nose
    grey = pulid.alone(face, labels)
    expected = face.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32) / 255.0
    assert grey[labels == 0].tolist() == grey[labels == 16].tolist() == grey[labels == 7].tolist() == [1.0]
    for label in (1, 17, 10):
        at = (labels == label).numpy()
        assert grey.numpy()[at] == pytest.approx(expected[at], abs=1e-6)


def test_a_face_is_aligned_whatever_its_place_and_size() -> None:
    from engine.recogniser import five_points

    one = photo()
    face = pulid.aligned(one)
    moved = np.full((700, 700, 3), 90, np.uint8)
    moved[100:580, 150:630] = one.rgb
    other = pulid.aligned(replace(one, rgb=moved, face=Found.of(one.face.points + np.array([150, 100], np.float32))))
    middle = slice(128, 384)
    assert np.abs(face[middle, middle].astype(int) - other[middle, middle].astype(int)).max() <= 2
    import cv2

    matrix = cv2.estimateAffinePartial2D(five_points(one.face.points).astype(np.float64), pulid.TEMPLATE, method=cv2.LMEDS)[0]
    there = five_points(one.face.points) @ matrix[:, :2].T + matrix[:, 2]
    assert np.abs(there - pulid.TEMPLATE).max() < 25  # px of 512


def test_a_large_photo_is_made_smaller_with_its_points() -> None:
    import cv2

    one = photo()
    large = replace(one, rgb=np.asarray(cv2.resize(one.rgb, (1500, 1500)), np.uint8), face=Found.of(one.face.points * 1500 / 480))
    small_one = pulid.shrunk(large)
    assert small_one.rgb.shape == (1024, 1024, 3)
    assert np.allclose(small_one.face.points, one.face.points * 1024 / 480, atol=0.01)
    assert pulid.shrunk(one) is one


# -- whole ----------------------------------------------------------------------------------------------------------------

WAYS = [("v1", None), ("v1", "style"), ("v1.1", None), ("v1.1", "lightning"), ("flux", None), ("flux", "style"), ("flux", "true-cfg")]


@pytest.mark.parametrize(("version", "variant"), WAYS)
def test_a_version_makes_portraits(version: str, variant: str | None, files: Path, encoded: dict[str, IdentityTokens]) -> None:
    system = loaded(files, version, variant)
    chosen = variant or next(iter(pulid.WAYS[version]))
    assert (system.variant, system.families) == (f"{version} {chosen}", ("flux" if version == "flux" else "sdxl",))
    tokens = IdentityTokens.unpack(encoded[version].pack())
    assert tokens.variant == f"{version} {next(iter(pulid.WAYS[version]))}"
    assert tokens.arrays["tokens"].shape == (2, 10 if version == "v1" else 6, tiny_bases.WIDTH)
    ask = asked(size=(64, 96), steps=5, guidance=3.0)

    def made(tokens: IdentityTokens, scale: float = 2.0) -> Any:
        base = pipeline.open_base(files / system.families[0])
        return pipeline.maker(base, system.attach(base, tokens, scale=scale, size=ask.size), ask)

    maker = made(tokens)
    steps: list[tuple[int, int]] = []
    one, same, other = maker.make(1), maker.make(1, progress=lambda *at: steps.append(at)), maker.make(2)
    assert steps[-1] == (9, 9) if variant == "lightning" else (5, 5)
    assert one.shape == (64, 96, 3)
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    someone = replace(tokens, arrays={"tokens": tokens.arrays["tokens"][:, ::-1] * -1.0})
    assert np.abs(made(someone).make(1).astype(int) - one.astype(int)).mean() > 0.2


@pytest.mark.parametrize(("version", "variant"), [("v1", None), ("v1.1", "lightning"), ("flux", "true-cfg")])
def test_a_base_of_half_precision_makes_nearly_the_same(version: str, variant: str | None, files: Path, encoded: dict[str, IdentityTokens]) -> None:
    system, ask = loaded(files, version, variant), asked(steps=2, guidance=2.0)
    made = []
    for precision in ("fp32", "bf16"):
        base = pipeline.open_base(files / system.families[0], precision=precision)
        maker = pipeline.maker(base, system.attach(base, encoded[version], scale=1.0, size=ask.size), ask)
        assert version != "flux" or maker._late.text.shape[1] == pulid.WORDS
        made.append(maker.make(1).astype(int))
    assert np.abs(made[0] - made[1]).mean() < 6


def test_more_photos_lead_less(files: Path, cut: None) -> None:
    one = photo()
    other = replace(one, rgb=np.ascontiguousarray(255 - one.rgb), sha256="1" * 64)
    v1, v11 = loaded(files, "v1"), loaded(files, "v1.1")
    alone, both = (v1.encode(photos).arrays["tokens"] for photos in ([one], [one, other]))
    assert both.shape[1] == 15
    assert np.allclose(both[:, :10], alone, atol=1e-5)
    assert np.allclose(both[1, 10:], v1.encode([other]).arrays["tokens"][1, :5], atol=1e-5)
    alone, both = (v11.encode(photos).arrays["tokens"] for photos in ([one], [one, other]))
    assert np.array_equal(alone[0], both[0])
    assert np.abs(alone[1] - both[1]).max() > 1e-3
    assert v1.together
    assert v11.together
    assert not loaded(files, "flux").together


def test_the_scheduler_is_the_published_one(files: Path, encoded: dict[str, IdentityTokens]) -> None:
    for version, kind in (("v1", "DPMSolverMultistepScheduler"), ("v1.1", "DpmPlusPlus")):
        system = loaded(files, version)
        base = pipeline.open_base(files / "sdxl")
        pipeline.Maker(base, system.attach(base, encoded[version], scale=1.0, size=(64, 64)), asked(steps=4))
        assert type(base.pipe.scheduler).__name__ == kind
        if version == "v1":
            base.pipe.scheduler.set_timesteps(4)
            assert base.pipe.scheduler.timesteps.tolist() == [999, 749, 499, 249]


def test_another_unet_may_be_its_weights_alone(files: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    held = load_file(files / "sdxl" / "unet" / "diffusion_pytorch_model.safetensors")
    other = tmp_path / "sdxl_lightning_4step_unet.safetensors"
    save_file({key: value + 0.01 for key, value in held.items()}, other)
    base = pipeline.open_base(files / "sdxl", unet=other)
    assert base.name == f"sdxl with {other.name}"
    assert torch.allclose(base.unet.conv_in.weight, held["conv_in.weight"] + 0.01)
    digest = candidates.base_digest(other)
    del held["conv_in.bias"]
    save_file(held, other)
    assert candidates.base_digest(other) != digest
    with pytest.raises(AvatarError, match=r"does not fit its config.json .1 tensors, such as 'conv_in.bias'"):
        pipeline.open_base(files / "sdxl", unet=other)


# -- what does not fit ----------------------------------------------------------------------------------------------------


def spoilt(path: Path, version: str, spoil: Callable[[dict[str, Any]], Any]) -> Path:
    """A version's file with something wrong, as a .bin."""
    tiny.pulid(path, version)
    held = torch.load(path, weights_only=True)
    spoil(held)
    torch.save(held, path)
    return path


@pytest.mark.parametrize(
    ("version", "spoil", "sentence"),
    [
        ("v1", lambda held: held.pop("id_adapter.body.3.bias"), "lacks 1 tensors .first 'body.3.bias'"),
        ("v1", lambda held: held.pop("id_adapter.body.3.weight"), "lacks tensors of PuLID's encoder .such as 'body.3.weight'"),
        ("v1.1", lambda held: held.update({"id_adapter.layers.0.0.more": torch.zeros(1)}), "has beside what is known 1"),
        ("v1.1", lambda held: held.update({"id_adapter_attn_layers.1.to_k_ip.weight": torch.zeros(1)}), "tensor that PuLID has not"),
        ("v1.1", lambda held: [held.pop(key) for key in list(held) if "attn_layers" in key], "it holds only id_adapter"),
        ("v1", lambda held: held.update({"pulid_ca.0.to_q.weight": torch.zeros(1)}), "it holds id_adapter, id_adapter_attn_layers, pulid_ca"),
        ("flux", lambda held: held.pop("pulid_ca.1.to_kv.weight"), "lacks tensors of PuLID's attentions"),
        ("flux", lambda held: held.pop("pulid_ca.1.norm1.weight"), "lacks 1 tensors .first '1.norm1.weight'"),
    ],
)
def test_a_file_that_is_another_or_not_whole_is_one_sentence(version: str, spoil: Any, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(AvatarError, match=sentence):
        contract.load("pulid", Parts(spoilt(tmp_path / "pulid.bin", version, spoil)))


def test_a_truncated_file_is_one_sentence(files: Path, tmp_path: Path) -> None:
    for name in ("v1/pulid_v1.bin", "v1.1/pulid_v1.1.safetensors"):
        path = tmp_path / Path(name).name
        path.write_bytes((files / name).read_bytes()[:-4000])
        with pytest.raises(AvatarError, match="damaged, not complete or no checkpoint"):
            contract.load("pulid", Parts(path))


def test_a_missing_part_is_one_sentence(files: Path, tmp_path: Path, cut: None) -> None:
    path = tiny.pulid(tmp_path / "pulid_v1.bin", "v1")
    with pytest.raises(AvatarError, match="--recogniser"):
        contract.load("pulid", Parts(tmp_path)).encode([photo()])
    onnx_file(tmp_path / "glintr100.onnx")
    with pytest.raises(AvatarError, match=r"EVA02_CLIP_L_336_psz14_s6B is not in .*; put the file beside pulid_v1.bin"):
        contract.load("pulid", Parts(tmp_path)).encode([photo()])
    eye = tiny.eva_file(tmp_path / "EVA02_CLIP_L_336_psz14_s6B.pt")
    with pytest.raises(AvatarError, match="parsing_bisenet is not in"):
        contract.load("pulid", Parts(tmp_path)).encode([photo()])
    cutter = tmp_path / "parsing_bisenet.pth"
    cutter.write_bytes((files / "parsing_bisenet.pth").read_bytes())
    assert contract.load("pulid", Parts(tmp_path)).encode([photo()]).variant == "v1 fidelity"
    for part, other, sentence in ((eye, cutter, "not the image encoder that PuLID reads"), (cutter, path, "is no face parsing")):
        before = part.read_bytes()
        part.write_bytes(other.read_bytes())
        with pytest.raises(AvatarError, match=sentence):
            contract.load("pulid", Parts(tmp_path)).encode([photo()])
        part.write_bytes(before)
    tiny.eva_file(eye, out=12)
    with pytest.raises(AvatarError, match=r"reads 36 numbers and sees 128, .* give 16 \+ 12 and 128"):
        contract.load("pulid", Parts(tmp_path)).encode([photo()])
    with pytest.raises(AvatarError, match="has the variants fidelity and style, not 'lightning'"):
        contract.load("pulid", Parts(path, variant="lightning"))
    with pytest.raises(AvatarError, match="holds several adapters"):
        contract.load("pulid", Parts(files))


def test_a_base_of_another_kind_is_one_sentence(files: Path, tmp_path: Path, encoded: dict[str, IdentityTokens]) -> None:
    flux, sdxl = pipeline.open_base(files / "flux"), pipeline.open_base(files / "sdxl")
    of_flux = loaded(files, "flux").attach(flux, encoded["flux"], scale=1.0, size=(64, 64))
    of_sdxl = loaded(files, "v1").attach(sdxl, encoded["v1"], scale=1.0, size=(64, 64))
    for base, attachment, sentence in ((sdxl, of_flux, "is for a FLUX"), (flux, of_sdxl, "is for a Stable Diffusion")):
        with pytest.raises(AvatarError, match=sentence):
            pipeline.maker(base, attachment, asked())
    with pytest.raises(AvatarError, match="after step 4, and only 4 are asked for"):
        pipeline.maker(flux, of_flux, asked(steps=4)).make(0)

    def shorter(held: dict[str, Any]) -> None:
        for key in [key for key in held if key.startswith("pulid_ca.3.")]:
            del held[key]

    fewer = contract.load("pulid", Parts(spoilt(tmp_path / "pulid.bin", "flux", shorter)))
    with pytest.raises(AvatarError, match=r"has 3 attentions of width \[64\], and the base has places for 4 of 64"):
        fewer.attach(flux, encoded["flux"], scale=1.0, size=(64, 64))


def test_it_stops_between_two_steps_and_goes_on(
    files: Path, tmp_path: Path, encoded: dict[str, IdentityTokens], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "look", lambda folder, seed: candidates.Candidate(seed, folder / str(seed), photo().rgb, None, None, ""))
    system = loaded(files, "v1.1", "lightning")
    base = pipeline.open_base(files / "sdxl")
    maker = pipeline.maker(base, system.attach(base, encoded["v1.1"], scale=1.0, size=(64, 64)), asked(steps=2))
    folder = candidates.folder_of(tmp_path, {"prompt": "it"})
    steps: list[tuple[int, int]] = []
    with pytest.raises(pipeline.Cancelled, match="step 2 of 3"):
        candidates.make(folder, maker, [0, 1], progress=lambda *at: steps.append(at), cancelled=lambda: len(steps) == 5)
    assert steps == [(k, 6) for k in range(1, 6)]
    assert candidates.missing(folder, [0, 1]) == [1]
    candidates.make(folder, maker, [1])
    resumed = (folder / "seed-1.png").read_bytes()
    (folder / "seed-1.png").unlink()
    candidates.make(folder, maker, [1])
    assert (folder / "seed-1.png").read_bytes() == resumed
