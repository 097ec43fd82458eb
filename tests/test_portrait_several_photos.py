"""FaceID-Portrait: the vectors of several photos as tokens side by side, against the published code, and portraits on tiny bases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.types import AvatarError
from exporters.portraits import contract
from exporters.portraits.contract import Parts
from tests import identity_weights as small
from tests.conftest import require
from tests.recognisers import onnx_file
from tests.tiny_adapters import adapter, tensors

for part in ("torch", "diffusers", "transformers"):
    require(part)

import torch  # noqa: E402

from exporters.portraits import pipeline, projectors  # noqa: E402
from tests import tiny_bases  # noqa: E402
from tests.test_portraits import CLOSE, asked, broken, given, photo  # noqa: E402

GOLDEN = np.load(Path(__file__).parent / "golden" / "identity_people.npz")
"""What the published code of IP-Adapter, ConsistentID and UniPortrait gives for the seeded weights of `tests.identity_weights`, in fp32."""


def worst(made: Any, name: str) -> float:
    """Largest difference from the published code's, as a share of its largest value."""
    golden = GOLDEN[name]
    assert tuple(made.shape) == golden.shape
    return float(np.abs(made.numpy() - golden).max() / np.abs(golden).max())


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bases and a recogniser."""
    home = tmp_path_factory.mktemp("files")
    for family in ("sd15", "sdxl"):
        tiny_bases.base(home, family=family)
    onnx_file(home / "w600k_r50.onnx")
    return home


def system_of(path: Path, files: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A FaceID-Portrait whose recogniser sees another person in each photo."""
    from exporters.portraits import encoders

    system = contract.load("faceid", Parts(path, None, files / "w600k_r50.onnx"))
    monkeypatch.setattr(encoders, "vectors", lambda network, photos, *, normed: given(len(photos), 16).numpy())
    return system


@torch.no_grad()
def test_the_tokens_of_several_photos_are_the_published_ones(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = adapter(tmp_path / "ip-adapter-faceid-portrait_sd15.bin", "portrait")
    system = system_of(path, files, monkeypatch)
    held = tensors(small.faceid(features=16, out=32, tokens=16))
    system._project = projectors.loaded(projectors.Mlp(held), held, "it")
    tokens = system.encode([photo()] * 3)
    assert worst(torch.from_numpy(tokens.arrays["tokens"]), "faceid_portrait") <= CLOSE
    assert tokens.photos == ("0" * 64,) * 3


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_it_makes_portraits_of_any_number_of_photos(family: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = system_of(adapter(tmp_path / f"ip-adapter-faceid-portrait_{family}.bin", "portrait"), files, monkeypatch)
    assert (system.variant, system.together) == ("portrait", True)
    made = []
    for count in (1, 3):
        tokens = system.encode([photo()] * count)
        assert tokens.arrays["tokens"].shape == (2, 16 * count, tiny_bases.WIDTH)
        base = pipeline.open_base(files / family)
        attachment = system.attach(base, tokens, scale=1.0, size=(64, 96))
        assert not attachment.weights
        maker = pipeline.Maker(base, attachment, asked(size=(64, 96)))
        made += [maker.make(1), maker.make(1)]
    assert np.array_equal(made[0], made[1])
    assert np.array_equal(made[2], made[3])
    assert not np.array_equal(made[0], made[2])


def test_what_is_no_portrait_is_one_sentence(tmp_path: Path) -> None:
    def without_lora(held: dict[str, Any]) -> None:
        held["ip_adapter"] = {key: value for key, value in held["ip_adapter"].items() if "_lora." not in key}

    for kind in ("faceid", "faceid-plus"):
        path = broken(tmp_path / "ip-adapter-faceid-plus_sd15.bin", kind, without_lora)
        with pytest.raises(AvatarError, match="lacks its LoRA and is no FaceID-Portrait"):
            contract.load("faceid", Parts(path))
    with pytest.raises(AvatarError, match="use ip-adapter-faceid-portrait_sdxl"):
        contract.load("faceid", Parts(adapter(tmp_path / "ip-adapter-faceid-portrait_sdxl_unnorm.bin", "plus")))
