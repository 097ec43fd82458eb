"""LoRA files: every layout lands on the layer it names, what is fused equals a branch beside the layer, and what does not fit is said."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from engine.generators.diffusion.presets import TINY
from engine.types import AvatarError
from exporters.graphs.lora_option import Asked, asked, laid
from tests import loras
from tests.conftest import found, require_for
from tests.loras import ALPHA, RANK

if found("torch") and found("diffusers"):
    import torch
    from safetensors.torch import load_file, save_file

    from engine.backends import backend
    from engine.generators.diffusion import adapters, graphs
    from exporters.graphs import lora
    from tests.networks import error, seeded

pytestmark = pytest.mark.torch
SAME = 1e-5
"""Relative error, fp32."""
SCALE = 0.7
LAYOUTS = ("peft", "peft named", "diffusers", "kohya", "own")
BLOCK = "denoiser.down_blocks.1.attentions.0.transformer_blocks.0"
SOME = (
    "denoiser.conv_in",  # 3 x 3
    "denoiser.down_blocks.1.resnets.0.conv_shortcut",  # 1 x 1
    "denoiser.down_blocks.0.downsamplers.0.conv",  # with a stride
    "denoiser.mid_block.attentions.0.proj_in",
    f"{BLOCK}.attn1.to_k",
    f"{BLOCK}.attn2.to_v",
    f"{BLOCK}.attn2.to_out.0",
    f"{BLOCK}.ff.net.0.proj",
    "denoiser.up_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.1.to_q",
    "denoiser.time_embedding.linear_1",
)


@pytest.fixture(autouse=True, scope="module")
def _installed() -> None:
    require_for("diffusion")


@pytest.fixture(scope="module")
def networks() -> Any:
    """Of TINY, which nothing here changes."""
    return seeded(TINY)


def answers(networks: Any, *, frozen: bool = False) -> dict[str, Any]:
    """What the live graph makes of random inputs, before its pictures are rounded, and what is remembered of a portrait."""
    if frozen:
        networks.denoiser.freeze(TINY.window)
    step = graphs.step_spec(networks, TINY.steps, rounded=False)
    made = dict(backend("pytorch").load(step)(step.examples(3)))
    spec = graphs.remember_spec(networks)
    return made | backend("pytorch").load(spec)(spec.examples(3))


def apart(got: dict[str, Any], want: dict[str, Any]) -> float:
    """The largest relative error of all outputs."""
    assert got.keys() == want.keys()
    return max(error(torch.from_numpy(got[name]), torch.from_numpy(want[name])) for name in want)


def beside(networks: Any, made: list[loras.Branch], gain: float) -> Any:
    """The same networks with every branch computed by itself: down, up, and added to what the layer gives."""

    def hook(branch: loras.Branch) -> Any:
        def add(layer: Any, given: tuple[Any, ...], out: Any) -> Any:
            if isinstance(layer, torch.nn.Linear):
                return out + gain * (given[0] @ branch.down.flatten(1).T @ branch.up.flatten(1).T)
            below = torch.nn.functional.conv2d(given[0], branch.down, None, layer.stride, layer.padding)
            return out + gain * torch.nn.functional.conv2d(below, branch.up)

        return add

    for branch in made:
        networks.get_submodule(branch.module).register_forward_hook(hook(branch))
    return networks


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_says_the_same(networks: Any, tmp_path: Path, layout: str) -> None:
    made = loras.branches(networks, SOME)
    lines: list[str] = []
    (adapter,) = lora.adapters(networks, [Asked(loras.file(tmp_path / "style.safetensors", made, layout), SCALE)], tell=lines.append)
    assert adapter.told == "style.safetensors at 0.7"
    assert lines == [f"LoRA style.safetensors at 0.7: {len(SOME)} modules fit (denoiser {len(SOME)}), rank {RANK}"]
    assert sorted(adapter.factors) == sorted(f"{module}.weight" for module in SOME)
    for branch in made:
        factors = adapter.factors[f"{branch.module}.weight"]
        assert factors.alpha == ALPHA
        assert torch.equal(factors.up, branch.up.flatten(1))
        assert torch.equal(factors.down, branch.down)


def test_what_is_fused_equals_a_branch_beside_every_layer(networks: Any, tmp_path: Path) -> None:
    made = loras.branches(networks, SOME)
    fused = seeded(TINY)
    found = lora.adapters(fused, [Asked(loras.file(tmp_path / "style.safetensors", made), SCALE)])
    assert adapters.fuse(fused, found) == ("style.safetensors at 0.7",)
    want = answers(beside(seeded(TINY), made, SCALE * ALPHA / RANK))
    assert apart(answers(fused), want) < SAME
    assert apart(answers(fused, frozen=True), want) < SAME, "the tables of temporal attention are of the fused weights"
    assert apart(answers(networks), want) > 0.05, "and it changes something"


def test_every_layer_of_every_network_can_have_one(networks: Any, tmp_path: Path) -> None:
    modules = [*loras.layers(networks), *loras.layers(networks, "reference")]
    path = loras.file(tmp_path / "all.safetensors", loras.branches(networks, modules, size=0.05), "kohya")
    (adapter,) = lora.adapters(networks, [Asked(path)])
    assert len(adapter.factors) == len(modules) > 300
    others = ["guider.conv_in", "speech.proj", "image.proj"]
    path = loras.file(tmp_path / "own.safetensors", loras.branches(networks, others), "own")
    assert len(lora.adapters(networks, [Asked(path)])[0].factors) == len(others)
    assert len({name.replace(".", "_") for name in modules}) == len(modules), "kohya's names are of one layer each"


def test_the_reference_network_has_what_is_named_so(networks: Any, tmp_path: Path) -> None:
    made = loras.branches(networks, ["reference.mid_block.attentions.0.transformer_blocks.0.attn1.to_q", "reference.conv_in"])
    for layout in ("peft", "kohya", "own"):
        (adapter,) = lora.adapters(networks, [Asked(loras.file(tmp_path / f"{layout}.safetensors", made, layout))])
        assert sorted(adapter.factors) == sorted(f"{each.module}.weight" for each in made)
    bare = loras.file(tmp_path / "bare.safetensors", loras.branches(networks, ["denoiser.conv_in"]), "bare")
    assert list(lora.adapters(networks, [Asked(bare)])[0].factors) == ["denoiser.conv_in.weight"], "a key that names no network is the denoiser's"


def test_motion_modules_have_other_names_in_diffusers(networks: Any) -> None:
    """Those of its MotionAdapter, from which it makes none of the published ones."""
    theirs = {
        "temporal_transformer.transformer_blocks.0.attention_blocks.0.to_k": "transformer_blocks.0.attn1.to_k",
        "temporal_transformer.transformer_blocks.0.attention_blocks.1.to_out.0": "transformer_blocks.0.attn2.to_out.0",
        "temporal_transformer.transformer_blocks.0.ff.net.0.proj": "transformer_blocks.0.ff.net.0.proj",
        "temporal_transformer.proj_in": "proj_in",
    }
    place = "mid_block.motion_modules.0"
    made = loras.branches(networks, [f"denoiser.{place}.{name}" for name in theirs])
    wanted = {f"{each.module}.weight": tuple(networks.get_parameter(f"{each.module}.weight").shape) for each in made}
    held: dict[str, Any] = {}
    for each, name in zip(made, theirs.values(), strict=True):
        held |= {f"unet.{place}.{name}.lora_A.weight": each.down, f"unet.{place}.{name}.lora_B.weight": each.up}
    found_in = lora.match(held, wanted)
    assert (found_in.unknown, found_in.unfit) == ([], [])
    for each in made:
        assert torch.equal(found_in.factors[f"{each.module}.weight"].down, each.down)


def test_how_diffusers_named_a_processors_projections(networks: Any) -> None:
    (branch,) = loras.branches(networks, [f"{BLOCK}.attn1.to_out.0"])
    stem = f"unet.{BLOCK.removeprefix('denoiser.')}.attn1.processor.to_out_lora"
    made = lora.match({f"{stem}.down.weight": branch.down, f"{stem}.up.weight": branch.up}, {f"{branch.module}.weight": (32, 32)})
    assert list(made.factors) == [f"{branch.module}.weight"]


def test_a_linear_layer_and_a_convolution_of_one_place_are_the_same(networks: Any) -> None:
    wanted = {"denoiser.linear.weight": (8, 4), "denoiser.conv.weight": (8, 4, 1, 1), "denoiser.wide.weight": (8, 4, 3, 3)}
    up, down = torch.randn(8, RANK, 1, 1), torch.randn(RANK, 4, 1, 1)
    held = {"unet.linear.lora_A.weight": down, "unet.linear.lora_B.weight": up}
    held |= {"unet.conv.lora_A.weight": down[..., 0, 0], "unet.conv.lora_B.weight": up[..., 0, 0]}
    made = lora.match(held | {"unet.wide.lora_A.weight": down, "unet.wide.lora_B.weight": up}, wanted)
    assert {name: tuple(factors.down.shape) for name, factors in made.factors.items()} == {
        "denoiser.linear.weight": (RANK, 4),
        "denoiser.conv.weight": (RANK, 4, 1, 1),
    }
    assert made.unfit == [f"'unet.wide', up [8, {RANK}, 1, 1] and down [{RANK}, 4, 1, 1] for a weight [8, 4, 3, 3]"]


# -- alpha and scale ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "alpha"),
    [
        ({}, RANK),
        ({"unet.lora_alpha": 12, "unet.r": RANK}, 12),
        ({"lora_alpha": 12}, 12),
        ({"unet.lora_alpha": 12, "unet.alpha_pattern": {"conv_in": 1}}, 1),
        ({"unet.lora_alpha": 12, "unet.alpha_pattern": {"mid_block.conv_in": 1}}, 12),
        ({"unet.lora_alpha": 12, "unet.use_rslora": True}, 12 * RANK**0.5),
        ({"text_encoder.lora_alpha": 12}, RANK),
    ],
)
def test_alpha_is_the_files_or_its_headers_or_the_rank(networks: Any, tmp_path: Path, header: Any, alpha: float) -> None:
    made = loras.branches(networks, ["denoiser.conv_in"])
    path = tmp_path / "a.safetensors"
    save_file(made[0].files("peft", alpha=None), path, metadata={"lora_adapter_metadata": json.dumps(header)})
    (adapter,) = lora.adapters(networks, [Asked(path)])
    assert adapter.factors["denoiser.conv_in.weight"].alpha == pytest.approx(alpha)
    save_file(made[0].files("peft", alpha=7.0), path, metadata={"lora_adapter_metadata": json.dumps(header)})
    assert lora.adapters(networks, [Asked(path)])[0].factors["denoiser.conv_in.weight"].alpha == 7.0


def test_several_add_up_in_any_order(networks: Any, tmp_path: Path) -> None:
    files = [
        loras.file(tmp_path / f"{seed}.safetensors", loras.branches(networks, SOME[:3], seed=seed), "kohya", alpha=alpha)
        for seed, alpha in ((1, 2.0), (2, None))
    ]
    pair = [Asked(files[0], 0.5), Asked(files[1], -1.5)]
    weights = []
    for order in (pair, pair[::-1]):
        fused = seeded(TINY)
        adapters.fuse(fused, lora.adapters(fused, order))
        weights.append(fused.denoiser.conv_in.weight)
    assert torch.equal(*weights)
    want = networks.denoiser.conv_in.weight.clone()
    for (seed, gain), scale in zip(((1, 2.0 / RANK), (2, 1.0)), (0.5, -1.5), strict=True):
        (branch,) = loras.branches(networks, SOME[:1], seed=seed)
        want += scale * gain * torch.einsum("or,rihw->oihw", branch.up[..., 0, 0], branch.down)
    assert error(weights[0], want) < SAME
    with pytest.raises(AvatarError, match="is given twice; give it once, with the sum of the scales"):
        lora.adapters(networks, [Asked(files[0]), Asked(files[0], 0.5)])


def test_weights_in_half_precision_are_rounded_once(networks: Any, tmp_path: Path) -> None:
    path = loras.file(tmp_path / "a.safetensors", loras.branches(networks, SOME[:1]))
    full, half = seeded(TINY), seeded(TINY).to(torch.float16)
    before = half.denoiser.conv_in.weight.float()
    for each in (full, half):
        adapters.fuse(each, lora.adapters(each, [Asked(path)]))
    added = full.denoiser.conv_in.weight - networks.denoiser.conv_in.weight
    assert half.denoiser.conv_in.weight.dtype == torch.float32
    assert error(half.denoiser.conv_in.weight - before, added) < SAME
    assert half.denoiser.conv_out.weight.dtype == torch.float16, "the others stay as they were"


def test_a_file_or_a_file_and_a_scale(tmp_path: Path) -> None:
    assert asked("a/style.safetensors") == Asked(Path("a/style.safetensors"), 1.0)
    assert asked("a/style.safetensors:0.8") == Asked(Path("a/style.safetensors"), 0.8)
    assert asked("style.safetensors:-1") == Asked(Path("style.safetensors"), -1.0)
    odd = tmp_path / "style:2"
    odd.touch()
    assert asked(str(odd)) == Asked(odd, 1.0), "a file that is there is taken by its whole name"
    for text, sentence in (
        ("a:b", "'a:b' is neither a file nor FILE:SCALE"),
        ("a:0", "at scale 0 cannot be fused"),
        ("a:nan", "at scale nan cannot"),
    ):
        with pytest.raises(AvatarError, match=sentence):
            asked(text)


def test_a_lora_without_weights_is_said() -> None:
    assert laid((), weights=None, persona=None, tell=print) == {}
    with pytest.raises(AvatarError, match="give them with --weights, or a persona that has some"):
        laid(["a.safetensors"], weights=None, persona=None, tell=print)


# -- what does not fit ----------------------------------------------------------------------------------------------------


def test_what_is_the_text_encoders_is_left_out_and_said(networks: Any, tmp_path: Path) -> None:
    half = torch.ones(RANK, 8)
    theirs: Any = {
        "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": half,
        "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": half.T.contiguous(),
        "lora_te_text_model_encoder_layers_0_mlp_fc1.alpha": torch.tensor(1.0),
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.down.weight": half,
    }
    path = loras.file(tmp_path / "a.safetensors", loras.branches(networks, SOME[:2]), "kohya", **theirs)
    lines: list[str] = []
    (adapter,) = lora.adapters(networks, [Asked(path)], tell=lines.append)
    assert len(adapter.factors) == 2
    assert lines[1].startswith("  2 left out, they belong to the text encoder, which this generator has not: ")
    assert "lora_te_text_model_encoder_layers_0_mlp_fc1" in lines[1]
    alone = loras.file(tmp_path / "te.safetensors", [], **theirs)
    with pytest.raises(AvatarError, match="changes nothing here: all of it belongs to the text encoder, which this generator has not"):
        lora.adapters(networks, [Asked(alone)])


def _tensors(networks: Any, tmp_path: Path) -> Any:
    return load_file(loras.file(tmp_path / "good.safetensors", loras.branches(networks, SOME), "peft"))


Q = f"unet.{BLOCK.removeprefix('denoiser.')}.attn1.to_k"
SPOILED: dict[str, tuple[Any, str]] = {
    "a layer that is not there": (
        lambda held: {
            "unet.down_blocks.9.conv.lora_A.weight": held[f"{Q}.lora_A.weight"],
            "unet.down_blocks.9.conv.lora_B.weight": held[f"{Q}.lora_B.weight"],
        },
        r"was not made for the preset 'tiny': of 11 modules 1 are in no network of it \(first 'unet.down_blocks.9.conv'\); give a LoRA for these",
    ),
    "another width": (
        lambda held: {f"{Q}.lora_A.weight": held[f"{Q}.lora_A.weight"].new_ones(RANK, 768)},
        rf"of 10 modules 1 are of another shape \(first '{Q}', up \[32, {RANK}\] and down \[{RANK}, 768\] for a weight \[32, 32\]\)",
    ),
    "two ranks": (lambda held: {f"{Q}.lora_A.weight": held[f"{Q}.lora_A.weight"][:2].contiguous()}, rf"up \[32, {RANK}\] and down \[2, 32\] for"),
    "a kernel above": (
        lambda held: {"unet.conv_in.lora_B.weight": held["unet.conv_in.lora_B.weight"].repeat(1, 1, 3, 3)},
        rf"'unet.conv_in', up \[16, {RANK}, 3, 3\]",
    ),
    "half of a layer": (lambda held: {f"{Q}.lora_B.weight": None}, rf"has no 'up' half for '{Q}'; download it again"),
    "numbers that are none": (
        lambda held: {f"{Q}.lora_B.weight": held[f"{Q}.lora_B.weight"] * float("nan")},
        rf"'{Q}' of the LoRA holds values that are no numbers",
    ),
    "an alpha that is none": (lambda held: {f"{Q}.alpha": held[f"{Q}.alpha"] / 0}, rf"The alpha of '{Q}' of the LoRA is no number"),
    "one layer under two names": (
        lambda held: {f"denoiser.{Q[5:]}.lora_A.weight": held[f"{Q}.lora_A.weight"], f"denoiser.{Q[5:]}.lora_B.weight": held[f"{Q}.lora_B.weight"]},
        "twice, under two names; keep one of them",
    ),
    "two adapters": (lambda held: {f"{Q}.lora_A.other.weight": held[f"{Q}.lora_A.weight"]}, rf"has '{Q}' twice; keep one adapter in a file"),
    "LoHa": (lambda held: {"lora_unet_conv_in.hada_w1_a": held[f"{Q}.alpha"]}, "holds 'lora_unet_conv_in.hada_w1_a', which is LoHa; give a LoRA"),
    "DoRA": (lambda held: {f"{Q}.dora_scale": held[f"{Q}.alpha"]}, "which is DoRA; give a LoRA or a LoCon"),
    "something else": (lambda held: {"model.embed": held[f"{Q}.alpha"]}, "holds 'model.embed', which is nothing of a LoRA"),
    "PEFT's own": (lambda held: {f"base_model.model.{Q}.lora_A.weight": held[f"{Q}.lora_A.weight"]}, "tells its alpha in another file; save it with"),
}


@pytest.mark.parametrize("how", sorted(SPOILED))
def test_a_file_that_does_not_fit_is_refused_in_a_sentence(networks: Any, tmp_path: Path, how: str) -> None:
    spoil, sentence = SPOILED[how]
    held = _tensors(networks, tmp_path)
    path = tmp_path / "spoiled.safetensors"
    loras.file(path, [], **{key: value for key, value in (held | spoil(held)).items() if value is not None})
    with pytest.raises(AvatarError, match=sentence) as told:
        lora.adapters(networks, [Asked(path)])
    assert "\n" not in str(told.value)


def test_what_is_no_safetensors_file_is_not_read(networks: Any, tmp_path: Path) -> None:
    pickled = pickle.dumps({"a": 1})
    for name, content, sentence in (
        ("a.pt", pickled, "a.pt is no .safetensors file; a LoRA in another format can run code when it is loaded"),
        ("a.safetensors", pickled, "a.safetensors is a pickled file under another name"),
        ("b.safetensors", b"PK\x03\x04 and more", "is a pickled file under another name"),
        ("c.safetensors", b"\x08\x00", "c.safetensors .2 bytes. is damaged, not complete or no .safetensors file"),
        ("d.safetensors", None, r"d.safetensors cannot be read \(No such file or directory\)"),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(AvatarError, match=sentence):
            lora.adapters(networks, [Asked(tmp_path / name)])


def test_a_scale_that_breaks_the_weights_is_said(networks: Any, tmp_path: Path) -> None:
    path = loras.file(tmp_path / "a.safetensors", loras.branches(networks, SOME[:1]))
    with pytest.raises(AvatarError, match=r"'denoiser.conv_in.weight' holds values that are no numbers; give a smaller scale"):
        adapters.fuse(seeded(TINY), lora.adapters(networks, [Asked(path, 1e39)]))
