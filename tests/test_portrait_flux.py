"""FLUX as a base: its loop against diffusers, a person between its blocks against PuLID's published code, and the command."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engine.types import AvatarError
from exporters.portraits import candidates, contract
from exporters.portraits.contract import Attachment, Between, IdentityTokens, Parts, Prompted
from tests import tiny_pulid as tiny
from tests.conftest import require
from tests.recognisers import onnx_file
from tests.tiny_adapters import tensors

for part in ("torch", "diffusers", "transformers"):
    require(part)

import torch  # noqa: E402

from exporters.portraits import parsing, pipeline, pipeline_flux  # noqa: E402
from exporters.portraits.systems import pulid  # noqa: E402
from tests import tiny_bases  # noqa: E402
from tests.test_portrait_pulid import worst  # noqa: E402
from tests.test_portraits import CLOSE, asked, given, photo  # noqa: E402


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base."""
    return tiny.flux(tmp_path_factory.mktemp("files"))


@pytest.mark.parametrize("halves", [False, True])
def test_without_a_system_the_loop_is_diffusers(halves: bool, flux: Path) -> None:
    base = pipeline.open_base(flux)
    assert base.family == "flux"
    base.pipe.set_progress_bar_config(disable=True)
    ask = asked(steps=4, guidance=3.5, size=(64, 96))
    more = {"negative_prompt": ask.negative, "true_cfg_scale": 3.5, "guidance_scale": 1.0} if halves else {"guidance_scale": 3.5}
    theirs = base.pipe(
        prompt=ask.prompt,
        num_inference_steps=ask.steps,
        height=64,
        width=96,
        generator=torch.Generator().manual_seed(3),
        output_type="np",
        **more,
    ).images[0]
    attachment = Attachment(between=Between({}, two_halves=True)) if halves else Attachment()
    ours = pipeline.maker(base, attachment, ask).make(3)
    assert np.abs(ours.astype(int) - np.round(theirs * 255).astype(int)).max() <= 1
    assert ours.std() > 5


@pytest.mark.parametrize(("name", "two_halves", "guidance"), [("flux_told", False, 4.0), ("flux_halves", True, 3.0)])
def test_a_person_between_the_blocks_is_pulids(name: str, two_halves: bool, guidance: float, tmp_path: Path) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    transformer = tiny.flux_transformer()
    transformer.load_state_dict(tensors({key: tuple(value.shape) for key, value in transformer.state_dict().items()}, 4))
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    base = pipeline.Base(SimpleNamespace(transformer=transformer, vae_scale_factor=8, scheduler=scheduler), "flux", "it", "cpu")
    system = contract.load("pulid", Parts(tiny.pulid(tmp_path / "pulid_flux.safetensors", "flux")))
    tokens = IdentityTokens("pulid", "flux", {"tokens": given(2, 6, tiny_bases.WIDTH, seed=11).numpy()}, (), "")
    whole = system.attach(base, tokens, scale=0.9, size=(64, 96)).between
    assert whole is not None
    assert sorted(whole.blocks) == [f"{kind}transformer_blocks.{i}" for kind, i in (("single_", 0), ("single_", 4), ("", 0), ("", 2))]
    text = Prompted(given(2, 9, tiny_bases.WIDTH, seed=12), given(2, tiny_bases.WIDTH, seed=13))
    between = Between(whole.blocks, 1, two_halves, pulid.HALVES_FROM)
    attachment = Attachment(between=between, text=lambda *_: (text, text))
    maker: Any = pipeline.maker(base, attachment, asked(steps=4, guidance=guidance, size=(64, 96)))
    maker._decoded = lambda latents: latents
    assert worst(maker.make(5), name) <= CLOSE
    assert not any(module._forward_hooks for module in transformer.modules())


def test_a_square_of_latents_is_a_token() -> None:
    latents = given(1, 4, 6, 8)
    tokens = pipeline_flux.packed(latents)
    assert tokens.shape == (1, 12, 16)
    assert torch.equal(tokens[0, 5].reshape(4, 2, 2), latents[0, :, 2:4, 2:4])
    assert torch.equal(pipeline_flux.unpacked(tokens, (6, 8)), latents)


def test_it_stops_between_two_steps_and_gives_its_memory_back(flux: Path) -> None:
    base = pipeline.open_base(flux)
    transformer = weakref.ref(base.unet)
    maker = pipeline.maker(base, Attachment(), asked(steps=3))
    steps: list[tuple[int, int]] = []
    with pytest.raises(pipeline.Cancelled, match="step 2 of 3"):
        maker.make(0, progress=lambda *at: steps.append(at), cancelled=lambda: len(steps) == 2)
    assert steps == [(1, 3), (2, 3)]
    assert np.array_equal(maker.make(0), maker.make(0))
    del base
    maker.close()
    gc.collect()
    assert transformer() is None


def test_what_flux_cannot_is_one_sentence(flux: Path, tmp_path: Path) -> None:
    base = pipeline.open_base(flux)
    with pytest.raises(AvatarError, match="multiples of 16"):
        pipeline.maker(base, Attachment(), asked(size=(64, 72)))
    with pytest.raises(AvatarError, match="leave --unet out"):
        pipeline.open_base(flux, unet=tmp_path)


def test_a_persona_of_pulid_on_flux(flux: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights draw no face, so the decoder is made to give the built-in portrait."""
    from PIL import Image

    import avatar
    from engine.persona import show

    monkeypatch.setenv("AVATAR_HOME", str(tmp_path / "home"))
    Image.fromarray(photo().rgb).save(tmp_path / "a.png")
    home = tiny.pulid(tmp_path / "files" / "pulid_flux_v0.9.1.safetensors", "flux").parent
    onnx_file(home / "glintr100.onnx")
    tiny.eva_file(home / "EVA02_CLIP_L_336_psz14_s6B.pt")
    tiny.parsing_file(home / "parsing_bisenet.pth")
    seen: list[tuple[int, ...]] = []

    def decoded(self: Any, latents: Any) -> Any:
        seen.append(tuple(latents.shape))
        return photo().rgb

    monkeypatch.setattr(pipeline_flux.FluxMaker, "_decoded", decoded)
    monkeypatch.setattr(parsing, "labels", lambda network, picture: torch.ones(picture.shape[:2], dtype=torch.int64))
    command = ["persona", "create", "Eileen", "--photos", str(tmp_path / "a.png"), "--consent", "I am in it.", "--system", "pulid"]
    command += ["--base", str(flux), "--weights", str(home), "--candidates", "1", "--size", "64x96", "--device", "cpu"]
    assert avatar.main([*command, "--steps", "5"]) == 0
    made = show("Eileen")["provenance"]["system"]
    assert (made["variant"], made["guidance"], made["scale"]) == ("flux photo", 4.0, 1.0)
    assert seen == [(1, 24, 16)]
    tokens = IdentityTokens.unpack((tmp_path / "home" / "personas" / "Eileen" / candidates.TOKENS).read_bytes())
    assert tokens.system == "pulid"
