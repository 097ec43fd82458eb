"""Identity systems: the networks against the published code, the loop against diffusers, files that fit and files that do not."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from engine.drivers.portrait import find_face
from engine.types import AvatarError
from exporters.portraits import candidates, contract
from exporters.portraits.contract import Attachment, IdentityTokens, Parts
from exporters.portraits.photos import Photo, judge
from tests import identity_weights as small
from tests.conftest import require
from tests.faces import portrait
from tests.identity_weights import seeded, signal
from tests.recognisers import onnx_file
from tests.tiny_adapters import PROJECTORS, adapter, attentions, tensors

for part in ("torch", "diffusers", "transformers"):
    require(part)

import torch  # noqa: E402

from exporters.portraits import encoders, pipeline, projectors  # noqa: E402
from exporters.portraits.attention import Decoupled, keys_and_values, low_rank, plus  # noqa: E402
from tests import tiny_bases  # noqa: E402

GOLDEN = np.load(Path(__file__).parent / "golden" / "identity.npz")
"""What the published code gives for the seeded weights and inputs of `tests.identity_weights`, in fp32."""
CLOSE = 1e-4


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bases, an image encoder and a recogniser."""
    home = tmp_path_factory.mktemp("files")
    for family in ("sd15", "sdxl"):
        tiny_bases.base(home, family=family)
    tiny_bases.image_encoder(home / "image_encoder")
    onnx_file(home / "w600k_r50.onnx")
    return home


@cache
def photo() -> Photo:
    """Of the built-in portrait."""
    rgb = np.ascontiguousarray(portrait()[20:500, 120:600])
    face = find_face(rgb)
    return Photo("a.png", "0" * 64, rgb, face, (), judge(rgb, face))


def given(*shape: int, seed: int = 7) -> Any:
    return torch.from_numpy(signal(*shape, seed=seed))


def worst(made: Any, name: str) -> float:
    """Largest difference from the published code's."""
    golden: npt.NDArray[np.float32] = GOLDEN[name]
    assert tuple(made.shape) == golden.shape
    return float(np.abs(made.numpy() - golden).max())


def asked(**more: Any) -> pipeline.Ask:
    return pipeline.Ask(**{"prompt": "a photo of a woman", "negative": "blurry", "steps": 3, "guidance": 5.0, "size": (64, 64), **more})


# -- the published code ---------------------------------------------------------------------------------------------------

NETWORKS: dict[str, tuple[Any, Any, Callable[[Any], Any]]] = {
    "plain": (projectors.Linear, small.plain(features=20, out=32), lambda net: net(given(2, 20))),
    "full_face": (projectors.Pointwise, small.full_face(features=24, out=32), lambda net: net(given(2, 17, 24))),
    "resampler": (projectors.Resampler, small.resampler(features=24, width=48, out=32), lambda net: net(given(2, 17, 24))),
    "faceid": (projectors.Mlp, small.faceid(features=16, out=32), lambda net: net(given(2, 16))),
    "faceid_plus": (
        projectors.MlpPlus,
        small.faceid_plus(features=16, seen=24, out=64),
        lambda net: net(given(2, 16), given(2, 17, 24, seed=8), shortcut=False),
    ),
    "faceid_plusv2": (
        projectors.MlpPlus,
        small.faceid_plus(features=16, seen=24, out=64),
        lambda net: net(given(2, 16), given(2, 17, 24, seed=8), shortcut=True),
    ),
}


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_a_projector_gives_what_the_published_one_gives(name: str) -> None:
    network, shapes, run = NETWORKS[name]
    held = tensors(shapes)
    with torch.no_grad():
        assert worst(run(projectors.loaded(network(held), held, name)), name) <= CLOSE


def attention(more: dict[str, Any] | None = None) -> Any:
    """The block that the goldens were made with, and weights added to its own."""
    from diffusers.models.attention_processor import Attention

    shapes = small.linear("to_q", 32, 32, bias=False) | small.linear("to_k", 20, 32, bias=False) | small.linear("to_v", 20, 32, bias=False)
    block = Attention(query_dim=32, cross_attention_dim=20, heads=2, dim_head=16)
    held = tensors({**shapes, **small.linear("to_out.0", 32, 32)})
    block.load_state_dict({name: value + (more or {}).get(name, 0.0) for name, value in held.items()})
    return block.eval()


class OneBlock(torch.nn.Module):
    """As much of a UNet as the attention's functions look at: a self-attention that is never run, and the block."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.attn2 = block
        self.attn_processors = {"attn2.processor": None}
        self.device, self.dtype = torch.device("cpu"), torch.float32


def test_attention_to_a_person_gives_what_the_published_one_gives() -> None:
    weights = tensors(small.linear("to_k_ip", 20, 32, bias=False) | small.linear("to_v_ip", 20, 32, bias=False), 1)
    held = {f"0.{name}": value for name, value in weights.items()}
    block = attention()
    names = ("to_k_ip", "to_v_ip")
    added = keys_and_values(OneBlock(block), held, given(2, 4, 20, seed=9), names=names, mix=plus(0.7), what="it")["attn2.processor"]
    with torch.no_grad():
        made = Decoupled(added)(block, given(2, 10, 32), given(2, 7, 20, seed=8))
        assert worst(made, "attention") <= CLOSE
        alone = Decoupled(added)(block, given(2, 10, 32)[1:], given(2, 7, 20, seed=8)[1:])
        assert float((alone - made[1:]).abs().max()) <= 1e-5


def test_a_lora_in_the_weights_gives_what_the_published_processor_gives() -> None:
    widths = {"q": 32, "k": 20, "v": 20, "out": 32}
    shapes = {f"to_{part}_lora.{side}.weight": (6, width) if side == "down" else (32, 6) for part, width in widths.items() for side in ("down", "up")}
    held = {f"0.{name}": value for name, value in tensors(shapes, 2).items()}
    products = low_rank(OneBlock(attention()), held, what="it")
    block = attention({name.removeprefix("attn2."): up @ down for name, (up, down, _) in products.items()})
    weights = tensors(small.linear("to_k_ip", 20, 32, bias=False) | small.linear("to_v_ip", 20, 32, bias=False), 1)
    names = ("to_k_ip", "to_v_ip")
    person = {f"0.{name}": value for name, value in weights.items()}
    added = keys_and_values(OneBlock(block), person, given(2, 4, 20, seed=9), names=names, mix=plus(0.7), what="it")["attn2.processor"]
    with torch.no_grad():
        assert worst(Decoupled(added)(block, given(2, 10, 32), given(2, 7, 20, seed=8)), "attention_lora") <= CLOSE


# -- diffusers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_without_a_system_the_loop_is_diffusers(family: str, files: Path) -> None:
    base = pipeline.open_base(files / family)
    ask = asked()
    base.pipe.set_progress_bar_config(disable=True)
    theirs = base.pipe(
        prompt=ask.prompt,
        negative_prompt=ask.negative,
        num_inference_steps=ask.steps,
        guidance_scale=ask.guidance,
        height=64,
        width=64,
        generator=torch.Generator().manual_seed(3),
        output_type="np",
    ).images[0]
    ours = pipeline.Maker(base, Attachment(), ask).make(3)
    assert np.abs(ours.astype(int) - np.round(theirs * 255).astype(int)).max() <= 1
    assert ours.std() > 5


@pytest.mark.parametrize(("family", "kind"), [("sd15", "plain"), ("sd15", "plus"), ("sdxl", "plain"), ("sdxl", "plus")])
def test_an_ip_adapter_gives_what_diffusers_gives(family: str, kind: str, files: Path, tmp_path: Path) -> None:
    path = adapter(tmp_path / "ip-adapter.bin", kind)
    system = contract.load("ip-adapter", Parts(path, files / "image_encoder"))
    tokens = system.encode([photo()])
    ask = asked()
    base = pipeline.open_base(files / family)
    ours = pipeline.Maker(base, system.attach(base, tokens, scale=0.6, size=(64, 64)), ask).make(5)
    plain = pipeline.Maker(pipeline.open_base(files / family), Attachment(), ask).make(5)
    assert np.abs(ours.astype(int) - plain.astype(int)).mean() > 1  # the person is seen at all

    eye = encoders.ImageEncoder(files / "image_encoder")
    pixels = eye.pixels([encoders.square(photo(), encoders.BUST)])
    with torch.no_grad():
        if kind == "plain":
            seen, nothing = eye.pooled(pixels), torch.zeros(1, 20)
        else:
            seen, nothing = eye.hidden(pixels), eye.hidden(torch.zeros_like(pixels))
    theirs = pipeline.open_base(files / family).pipe
    theirs.set_progress_bar_config(disable=True)
    halves = torch.load(path, weights_only=True)
    theirs.load_ip_adapter(halves, subfolder="", weight_name="x", image_encoder_folder=None)
    theirs.set_ip_adapter_scale(0.6)
    made = theirs(
        prompt=ask.prompt,
        negative_prompt=ask.negative,
        num_inference_steps=ask.steps,
        guidance_scale=ask.guidance,
        height=64,
        width=64,
        ip_adapter_image_embeds=[torch.stack([nothing, seen])],
        generator=torch.Generator().manual_seed(5),
        output_type="np",
    ).images[0]
    assert np.abs(ours.astype(int) - np.round(made * 255).astype(int)).max() <= 1


def test_clip_sees_the_pixels_that_its_own_processor_makes() -> None:
    from transformers import CLIPImageProcessor

    picture = np.ascontiguousarray(portrait()[:600, :430])
    theirs = CLIPImageProcessor(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224})(picture, return_tensors="np")["pixel_values"][0]
    assert np.abs(encoders.clip_pixels(picture, 224) - theirs).max() < 0.02


# -- whole ----------------------------------------------------------------------------------------------------------------

SYSTEMS = [
    ("ip-adapter", "ip-adapter_sd15.bin", "plain", "plain"),
    ("ip-adapter", "ip-adapter-plus_sd15.safetensors", "plus", "plus"),
    ("ip-adapter", "ip-adapter-plus-face_sd15.bin", "plus", "plus-face"),
    ("ip-adapter", "ip-adapter-full-face_sd15.safetensors", "full-face", "full-face"),
    ("faceid", "ip-adapter-faceid_sd15.bin", "faceid", "faceid"),
    ("faceid", "ip-adapter-faceid-plus_sd15.bin", "faceid-plus", "plus"),
    ("faceid", "ip-adapter-faceid-plusv2_sdxl.bin", "faceid-plus", "plusv2"),
]


@pytest.mark.parametrize(("name", "file", "kind", "variant"), SYSTEMS, ids=[row[1] for row in SYSTEMS])
def test_a_system_makes_portraits(name: str, file: str, kind: str, variant: str, files: Path, tmp_path: Path) -> None:
    adapter(tmp_path / file, kind)
    system = contract.load(name, Parts(tmp_path, files / "image_encoder", files / "w600k_r50.onnx"))
    assert system.variant == variant
    tokens = system.encode([photo()])
    again = IdentityTokens.unpack(tokens.pack())
    assert np.array_equal(again.arrays["tokens"], tokens.arrays["tokens"])
    assert (again.system, again.variant, again.photos, again.weights) == (name, variant, ("0" * 64,), system.digest)
    base = pipeline.open_base(files / ("sdxl" if "sdxl" in file else "sd15"))
    maker = pipeline.Maker(base, system.attach(base, again, scale=1.0, size=(64, 96)), asked(size=(64, 96)))
    one, same, other = maker.make(1), maker.make(1), maker.make(2)
    assert one.shape == (64, 96, 3)
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_plus_and_plusv2_differ_by_the_shortcut_alone(files: Path, tmp_path: Path) -> None:
    path = adapter(tmp_path / "ip-adapter-faceid-plus_sd15.bin", "faceid-plus")
    made = {}
    for variant in ("plus", "plusv2"):
        system = contract.load("faceid", Parts(path, files / "image_encoder", files / "w600k_r50.onnx", variant=variant))
        made[variant] = system.encode([photo()]).arrays["tokens"]
    held = tensors(PROJECTORS["faceid"])  # the same names of proj and norm begin both
    assert set(held) < set(PROJECTORS["faceid-plus"])
    vector = encoders.vectors(encoders.recogniser(files / "w600k_r50.onnx", path, prefer=""), [photo()], normed=True)
    assert np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-5)
    halves = torch.load(path, weights_only=True)["image_proj"]
    short = projectors.loaded(projectors.Mlp(halves), {key: halves[key] for key in held}, "it")(torch.from_numpy(vector))
    assert np.allclose(made["plusv2"][1] - made["plus"][1], short[0].numpy(), atol=1e-4)


def test_it_stops_between_two_steps_and_goes_on(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "look", lambda folder, seed: candidates.Candidate(seed, folder / str(seed), photo().rgb, None, None, ""))
    maker = pipeline.Maker(pipeline.open_base(files / "sd15"), Attachment(), asked())
    folder = candidates.folder_of(tmp_path, {"prompt": "it"})
    steps: list[tuple[int, int]] = []
    with pytest.raises(pipeline.Cancelled, match="step 1 of 3"):
        candidates.make(folder, maker, [0, 1], progress=lambda *at: steps.append(at), cancelled=lambda: len(steps) == 4)
    assert steps == [(1, 6), (2, 6), (3, 6), (4, 6)]
    assert candidates.missing(folder, [0, 1]) == [1]
    before = (folder / "seed-0.png").read_bytes()
    candidates.make(folder, maker, candidates.missing(folder, [0, 1]))
    assert candidates.missing(folder, [0, 1]) == []
    assert (folder / "seed-0.png").read_bytes() == before
    assert candidates.folder_of(tmp_path, {"prompt": "another"}) != folder


def test_its_memory_is_given_back(files: Path, tmp_path: Path) -> None:
    system = contract.load("faceid", Parts(adapter(tmp_path / "ip-adapter-faceid.bin", "faceid"), None, files / "w600k_r50.onnx"))
    base = pipeline.open_base(files / "sd15")
    unet = weakref.ref(base.unet)
    maker = pipeline.Maker(base, system.attach(base, system.encode([photo()]), scale=1.0, size=(64, 64)), asked(steps=1))
    maker.make(0)
    del base
    maker.close()
    gc.collect()
    assert unet() is None


def test_another_unet_is_taken_whatever_its_config_calls_it(files: Path, tmp_path: Path) -> None:
    import json
    import shutil

    shutil.copytree(files / "sd15" / "unet", tmp_path / "people")
    config = json.loads((tmp_path / "people" / "config.json").read_text())
    (tmp_path / "people" / "config.json").write_text(json.dumps({**config, "_class_name": "UNet2DConditionModel_New"}))
    base = pipeline.open_base(files / "sd15", unet=tmp_path / "people")
    plain = pipeline.open_base(files / "sd15")
    makers = [pipeline.Maker(opened, Attachment(), asked(steps=1)) for opened in (base, plain)]
    assert np.array_equal(makers[0].make(0), makers[1].make(0))
    (tmp_path / "people" / "config.json").write_text(json.dumps({**config, "block_out_channels": [32, 32]}))
    with pytest.raises(AvatarError, match="does not fit its config"):
        pipeline.open_base(files / "sd15", unet=tmp_path / "people")


# -- what does not fit ----------------------------------------------------------------------------------------------------


def broken(path: Path, kind: str, spoil: Callable[[dict[str, Any]], None]) -> Path:
    """An adapter with something wrong."""
    adapter(path, kind)
    held = torch.load(path, weights_only=True)
    spoil(held)
    torch.save(held, path)
    return path


@pytest.mark.parametrize(
    ("name", "file", "kind", "spoil", "sentence"),
    [
        ("ip-adapter", "ip-adapter.bin", "faceid", None, "use --system faceid"),
        ("faceid", "ip-adapter-faceid.bin", "plus", None, "use --system ip-adapter"),
        ("faceid", "ip-adapter-faceid_sd15.bin", "faceid-plus", None, "--variant plus or plusv2"),
        ("ip-adapter", "ip-adapter.bin", "plus", lambda held: held["image_proj"].pop("norm_out.bias"), "lacks 1 tensors .first 'norm_out.bias'"),
        ("ip-adapter", "ip-adapter.bin", "plain", lambda held: held["image_proj"].update(more=torch.zeros(1)), "has beside what is known 1"),
        ("ip-adapter", "ip-adapter.bin", "plain", lambda held: held.pop("ip_adapter"), "no network called 'ip_adapter'"),
    ],
)
def test_a_file_that_is_another_is_one_sentence(name: str, file: str, kind: str, spoil: Any, sentence: str, tmp_path: Path) -> None:
    path = broken(tmp_path / file, kind, spoil or (lambda held: None))
    with pytest.raises(AvatarError, match=sentence):
        contract.load(name, Parts(path))


def test_a_part_that_is_missing_is_one_sentence(files: Path, tmp_path: Path) -> None:
    path = adapter(tmp_path / "deep" / "ip-adapter-faceid-plus_sd15.bin", "faceid-plus")
    with pytest.raises(AvatarError, match="--recogniser"):
        contract.load("faceid", Parts(path)).encode([photo()])
    with pytest.raises(AvatarError, match="--image-encoder"):
        contract.load("faceid", Parts(path, None, files / "w600k_r50.onnx")).encode([photo()])
    with pytest.raises(AvatarError, match="model_index.json"):
        pipeline.open_base(tmp_path)
    with pytest.raises(AvatarError, match="holds no file called ip-adapter"):
        contract.load("ip-adapter", Parts(files))
    with pytest.raises(AvatarError, match="choose one of arc2face, "):
        contract.load("nonsense", Parts(files))
    other = tiny_bases.image_encoder(tmp_path / "other", width=16)
    with pytest.raises(AvatarError, match="width 24, and this one has 16"):
        contract.load("ip-adapter", Parts(adapter(tmp_path / "ip-adapter.bin", "plus"), other)).encode([photo()])


def test_weights_for_another_base_are_one_sentence(files: Path, tmp_path: Path) -> None:
    path = adapter(tmp_path / "ip-adapter.bin", "plain")
    tokens = contract.load("ip-adapter", Parts(path, files / "image_encoder")).encode([photo()])
    base = pipeline.open_base(files / "sd15")

    def narrower(held: dict[str, Any]) -> None:
        held["ip_adapter"]["3.to_k_ip.weight"] = torch.zeros(64, 16)

    def longer(held: dict[str, Any]) -> None:
        held["ip_adapter"]["31.to_k_ip.weight"] = torch.zeros(64, 32)

    for spoil, sentence in ((narrower, "block 3 .* needs .64, 32."), (longer, "larger base .32 attentions")):
        system = contract.load("ip-adapter", Parts(broken(tmp_path / "ip-adapter.bin", "plain", spoil)))
        with pytest.raises(AvatarError, match=sentence):
            system.attach(base, tokens, scale=1.0, size=(64, 64))


def test_places_are_counted_down_up_middle(files: Path) -> None:
    unet = pipeline.open_base(files / "sd15").unet
    names = list(unet.attn_processors)
    assert [name.split("_")[0] for name in names] == ["down"] * 4 + ["up"] * 8 + ["mid"] * 2
    assert set(attentions()) == {f"{i}.{name}.weight" for i in range(1, 14, 2) for name in ("to_k_ip", "to_v_ip")}
    assert seeded({"a": (1,)})["a"].shape == (1,)


# -- the command ----------------------------------------------------------------------------------------------------------


def test_a_persona_of_a_system_is_kept_with_what_it_was_made_of(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Random weights draw no face, so the decoder is made to give the built-in portrait, darker for each later portrait."""
    from PIL import Image

    import avatar
    from engine.persona import list_personas, read_portrait, show

    monkeypatch.setenv("AVATAR_HOME", str(tmp_path / "home"))
    Image.fromarray(photo().rgb).save(tmp_path / "a.png")
    path = adapter(tmp_path / "ip-adapter_sd15.bin", "plain")
    asked_for: list[float] = []

    def decoded(self: Any, latents: Any) -> Any:
        asked_for.append(float(latents.std()))
        return photo().rgb if len(asked_for) != 2 else np.full((64, 64, 3), 90, np.uint8)

    def connect(self: Any, address: Any) -> None:
        raise AssertionError(f"it calls {address}")

    monkeypatch.setattr(pipeline.Maker, "_decoded", decoded)
    monkeypatch.setattr("socket.socket.connect", connect)  # a person's photos leave this machine for nowhere
    command = ["persona", "create", "Eileen", "--photos", str(tmp_path / "a.png"), "--consent", "I am in it.", "--system", "ip-adapter"]
    command += ["--base", str(files / "sd15"), "--weights", str(path), "--image-encoder", str(files / "image_encoder")]
    command += ["--candidates", "2", "--steps", "1", "--size", "64", "--prompt", "a photo of a woman", "--device", "cpu"]
    assert avatar.main(command) == 0
    said = capsys.readouterr().out
    assert "seed-0.png marked" in said
    assert "seed-1.png cannot be driven: No face" in said
    made = show("Eileen")["provenance"]
    assert made["system"]["system"] == "ip-adapter"
    assert (made["system"]["seed"], made["system"]["prompt"], made["used"]) == (0, "a photo of a woman", ["a.png"])
    assert np.array_equal(read_portrait("Eileen"), photo().rgb)
    tokens = IdentityTokens.unpack((tmp_path / "home" / "personas" / "Eileen" / candidates.TOKENS).read_bytes())
    assert tokens.photos == (made["photos"][0]["sha256"],)
    assert len(asked_for) == 2

    assert avatar.main(["persona", "remove", "Eileen"]) == 0
    assert avatar.main([*command, "--pick", "1"]) == 2
    assert "cannot be driven" in capsys.readouterr().err
    assert avatar.main([*command, "--pick", "9"]) == 2
    assert "No portrait was made of seed 9; pick one of 0, 1" in capsys.readouterr().err
    assert len(asked_for) == 2  # nothing is made for it
    next((tmp_path / "home").rglob("seed-1.png")).unlink()
    assert avatar.main([*command, "--pick", "0", "--seed", "5"]) == 0  # it is there, whatever else was asked for then
    said = capsys.readouterr().out
    assert "Made before" in said
    assert "seed-0.png" in said
    assert len(asked_for) == 2  # nothing was made again, nor another one beside it

    assert avatar.main(["persona", "remove", "Eileen"]) == 0
    with monkeypatch.context() as full:
        full.setattr("engine.persona.TOKENS", "no/room.npz")
        assert avatar.main([*command, "--pick", "0"]) == 2
    assert "make room there" in capsys.readouterr().err
    assert list_personas() == []  # without its tokens it is none

    home = tmp_path / "own"
    assert avatar.main([*command, "--only-candidates", "--home", str(home), "--seed", "7"]) == 0
    assert sorted(path.name for path in home.glob("candidates/*/*.png")) == ["seed-7.png", "seed-8.png"]
    assert not (home / "personas").exists()


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--seed", "3"], "--seed is for an identity system"),
        (["--system", "ip-adapter"], "needs --weights, the system's own files, and --base"),
        (["--system", "ip-adapter", "--base", "x", "--weights", "y", "--candidates", "0"], "--candidates is at least 1"),
        (["--system", "ip-adapter", "--base", "x", "--weights", "y", "--steps", "0"], "--steps is at least 1"),
        (["--system", "ip-adapter", "--base", "x", "--weights", "y", "--size", "64y"], "'64y' is no size"),
        (["--system", "ip-adapter", "--base", "x", "--weights", "y", "--pick", "1", "--only-candidates"], "leave one of them out"),
        (["--system", "ip-adapter", "--base", "x", "--weights", "y", "--generator", "diffusion"], "leave --generator out"),
    ],
)
def test_options_that_do_not_go_together_are_one_sentence(
    more: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import avatar

    monkeypatch.setenv("AVATAR_HOME", str(tmp_path))
    assert avatar.main(["persona", "create", "A", "--photos", "nothing.png", "--consent", "yes", *more]) == 2
    assert sentence in capsys.readouterr().err


def test_a_portrait_as_it_is_takes_none_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import avatar

    monkeypatch.setenv("AVATAR_HOME", str(tmp_path))
    for more in (["--no-relight"], ["--system", "ip-adapter"]):
        assert avatar.main(["persona", "create", "A", "--portrait", "nothing.png", "--consent", "yes", *more]) == 2
        assert "with --photos" in capsys.readouterr().err
