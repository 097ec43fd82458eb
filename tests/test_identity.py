"""To learn from a recogniser: its file as a network with gradients, faces aligned in the picture, and only those that are whole."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from engine.drivers.portrait import find_face
from engine.persona import demo_portrait
from engine.recogniser import SIDE, TEMPLATE, Recogniser, aligned, fit, five_points
from engine.types import AvatarError
from tests.conftest import require
from tests.recognisers import LENGTH, onnx_file, script_file, twin

pytestmark = pytest.mark.torch
for part in ("torch", "onnx", "onnxruntime", "diffusers"):
    require(part)

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from exporters.training import iresnet  # noqa: E402
from exporters.training.batches import unit  # noqa: E402
from exporters.training.identity import IdentityLoss, align, load, whole  # noqa: E402
from exporters.training.onnx_torch import Graph  # noqa: E402

LOW_HALF = torch.tensor([[[0.5, 0.0, 4.0], [0.0, 0.5, 8.0]]])
"""A face in a picture of 64 px: the square begins at (4, 8) and is 56 px wide."""


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# -- files --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["InsightFace's ONNX", "one face at a time", "MXNet's ONNX", "TorchScript", "TorchScript of one face"])
def test_every_kind_of_file_is_the_same_network(tmp_path: Path, kind: str) -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = twin()

        def forward(self, x: Tensor) -> Tensor:
            vectors: Tensor = self.inner(x.reshape(1, 3, SIDE, SIDE))
            return vectors

    path = tmp_path / ("a.onnx" if "ONNX" in kind or kind == "one face at a time" else "a.pt")
    if kind == "InsightFace's ONNX":
        onnx_file(path)
    elif kind == "one face at a time":
        onnx_file(path, batch=1)
    elif kind == "MXNet's ONNX":
        onnx_file(path, normalises=True)
    else:
        script_file(path, Fixed() if kind == "TorchScript of one face" else twin())
    faces = noise(3, 3, SIDE, SIDE).requires_grad_(True)
    network = load(path)
    vectors = network(faces)
    assert torch.allclose(vectors, twin()(faces), atol=1e-5)
    assert network.together == ("one face" not in kind)
    vectors.square().sum().backward()
    assert faces.grad is not None
    assert (faces.grad.abs().sum((1, 2, 3)) > 0).all()


def test_a_face_is_read_as_onnx_runtime_reads_it(tmp_path: Path) -> None:
    faces = np.random.default_rng(2).integers(0, 256, (2, SIDE, SIDE, 3)).astype(np.uint8)
    for how in ({}, {"normalises": True}):
        path = onnx_file(tmp_path / "a.onnx", **how)
        assert load(path)(unit(faces)).numpy() == pytest.approx(Recogniser(path)(faces), abs=1e-4)


def test_insightfaces_own_weights_make_its_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iresnet, "WIDTHS", (8, 8, 8, 8, 8))
    made = iresnet.IResNet((1, 2, 1, 1), LENGTH).eval()
    state = {name: tensor for name, tensor in made.state_dict().items() if not name.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "backbone.pth")
    faces = noise(2, 3, SIDE, SIDE)
    assert torch.allclose(load(tmp_path / "backbone.pth")(faces), made(faces), atol=1e-6)
    del state["layer2.1.bn3.weight"]
    torch.save(state, tmp_path / "backbone.pth")
    with pytest.raises(AvatarError, match="does not hold the weights of an InsightFace iresnet"):
        load(tmp_path / "backbone.pth")


def test_another_network_is_refused_in_words(tmp_path: Path) -> None:
    class Ages(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3))

    class Deaf(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.detach().flatten(1)[:, :LENGTH] * 0 + torch.arange(LENGTH)

    class Small(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1) @ torch.ones(3 * 96 * 96, LENGTH)

    for module, said in ((Ages(), "not a vector for each"), (Deaf(), "no gradient|cannot be given a face")):
        with pytest.raises(AvatarError, match=said):
            load(script_file(tmp_path / "a.pt", module))
    with pytest.raises(AvatarError, match="cannot be given a face of 112 x 112 px"):
        load(script_file(tmp_path / "small.pt", Small(), side=96))
    with pytest.raises(AvatarError, match="takes any x 3 x 96 x 96"):
        load(onnx_file(tmp_path / "a.onnx", side=96))


def test_what_is_no_file_is_refused_in_words(tmp_path: Path) -> None:
    torch.save({"first": torch.zeros(3)}, tmp_path / "some.pt")
    (tmp_path / "bad.pt").write_bytes(b"nothing")
    (tmp_path / "bad.onnx").write_bytes(b"nothing")
    for name, said in (
        ("none.pt", "cannot be read"),
        ("some.pt", "as ONNX or TorchScript"),
        ("bad.pt", "damaged, not complete or no checkpoint"),
        ("bad.onnx", "cannot load"),
    ):
        with pytest.raises(AvatarError, match=said):
            load(tmp_path / name)


def test_a_network_that_is_not_onnx_runtimes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = onnx_file(tmp_path / "a.onnx")
    truth = Graph.forward
    monkeypatch.setattr(Graph, "forward", lambda self, x: truth(self, x) * 1.001)
    with pytest.raises(AvatarError, match="other vectors here than with ONNX Runtime .by 1.0e-03."):
        load(path)


# -- faces in pictures --------------------------------------------------------------------------------------------------


def test_a_face_is_aligned_as_for_the_runtime() -> None:
    """The demo portrait, by PyTorch and by OpenCV."""
    picture = np.asarray(cv2.resize(demo_portrait(), (200, 160), interpolation=cv2.INTER_AREA), np.uint8)
    points = find_face(demo_portrait()).points * np.array([200 / 768, 160 / 768], np.float32)
    fits = torch.from_numpy(fit(five_points(points)))[None]
    made = ((align(unit(picture[None]), fits)[0].permute(1, 2, 0) + 1) * 127.5).numpy()
    assert np.abs(made - aligned(picture, points)).mean() < 1.0
    assert np.abs(made - aligned(picture, points)).max() < 16


def test_a_fine_picture_is_averaged_not_picked_from() -> None:
    picture = torch.ones(1, 3, 448, 448)
    picture[..., ::2] = -1.0
    assert align(picture, torch.tensor([[[4.0, 0.0, 1.5], [0.0, 4.0, 1.5]]])).abs().max() < 1e-5


def test_only_whole_faces_are_judged() -> None:
    off = torch.zeros(5, 2, 3)
    off[:, 0, 2] = torch.tensor([0.0, 4.0, 20.0, -60.0, float("nan")])  # px to the right
    assert whole(LOW_HALF + off, (64, 64)).tolist() == [True, True, False, False, False]
    assert whole(LOW_HALF, (32, 64)).tolist() == [False]


# -- the loss -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loss(tmp_path_factory: pytest.TempPathFactory) -> IdentityLoss:
    return IdentityLoss(onnx_file(tmp_path_factory.mktemp("recogniser") / "a.onnx"))


def test_the_same_face_costs_nothing_and_another_something(loss: IdentityLoss) -> None:
    truth = noise(1, 3, 64, 64)
    assert float(loss(truth, truth, LOW_HALF)) == pytest.approx(0, abs=1e-5)
    assert float(loss(-truth, truth, LOW_HALF)) > 0.05


def test_gradients_reach_the_made_face_alone_and_nothing_around_it(loss: IdentityLoss) -> None:
    made, truth = noise(1, 3, 64, 64).requires_grad_(True), noise(1, 3, 64, 64, seed=1).requires_grad_(True)
    loss(made, truth, LOW_HALF).backward()
    assert made.grad is not None
    assert truth.grad is None
    reached = made.grad.abs().sum((0, 1))
    assert reached[10:60, 6:58].mean() > 0
    assert reached[:6].max() == reached[:, :2].max() == reached[:, 62:].max() == 0
    assert all(not one.requires_grad for one in loss.network.parameters())


def test_a_face_that_is_cut_off_weighs_nothing(loss: IdentityLoss) -> None:
    made, truth = noise(2, 3, 64, 64).requires_grad_(True), noise(2, 3, 64, 64, seed=1)
    cut = LOW_HALF + torch.tensor([0.0, 0.0, 30.0])
    both = loss(made, truth, torch.cat([LOW_HALF, cut]))
    assert float(both.detach()) == pytest.approx(float(loss(made[:1], truth[:1], LOW_HALF).detach()), rel=1e-5)
    both.backward()
    assert made.grad is not None
    assert made.grad[1].abs().max() == 0
    assert float(loss(made[1:], truth[1:], cut).detach()) == 0


def test_a_picture_learns_to_be_recognised(loss: IdentityLoss) -> None:
    truth = noise(1, 3, 64, 64, seed=1)
    made = noise(1, 3, 64, 64).requires_grad_(True)
    begun = float(loss(made, truth, LOW_HALF).detach())
    optimiser = torch.optim.Adam([made], 0.02)
    for _ in range(30):
        optimiser.zero_grad()
        value = loss(made, truth, LOW_HALF)
        value.backward()
        optimiser.step()
    assert float(value.detach()) < 0.1 * begun


def test_narrow_precision_around_it_changes_nothing(loss: IdentityLoss) -> None:
    made, truth = noise(1, 3, 64, 64), noise(1, 3, 64, 64, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrow = loss(made, truth, LOW_HALF)
    assert torch.equal(narrow, loss(made, truth, LOW_HALF))


def test_the_template_is_where_a_square_picture_has_it() -> None:
    assert fit(TEMPLATE) == pytest.approx(np.eye(2, 3), abs=1e-4)
