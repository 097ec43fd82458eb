"""Published layouts of Wav2Lip and MuseTalk become weights of the lips generator, and what does not fit is told by its keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

import avatar
from engine.types import AvatarError
from tests.conftest import require_for

require_for("lipsync")

import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from engine.generators.lipsync import networks  # noqa: E402
from engine.generators.lipsync.generator import Lipsync  # noqa: E402
from engine.generators.lipsync.musetalk import unet_config, vae_config  # noqa: E402
from engine.generators.lipsync.sizes import MODELS, MuseTalkSize  # noqa: E402
from exporters.published.import_lipsync import import_musetalk, import_wav2lip  # noqa: E402

WAV2LIP, MUSETALK = MODELS["wav2lip_tiny"], cast(MuseTalkSize, MODELS["musetalk_tiny"])
EARLIER = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def wav2lip(path: Path, **changes: Any) -> networks.Networks:
    """A file as the published trainer writes it, of seeded weights."""
    made = networks.build(WAV2LIP, seed=3)
    state = {f"module.{key}": value for key, value in made.module.state_dict().items()} | changes
    state = {key: value for key, value in state.items() if value is not None}
    torch.save({"state_dict": state, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []}, "global_step": 5}, path)
    return made


def musetalk(folder: Path) -> networks.Networks:
    """A folder as the published download script leaves it."""
    made = networks.build(MUSETALK, seed=3)
    parts = {name: {key.removeprefix("model."): value for key, value in part.state_dict().items()} for name, part in made.parts.items()}
    for name in ("musetalkV15", "sd-vae", "whisper"):
        (folder / name).mkdir(parents=True)
    torch.save(parts["unet"], folder / "musetalkV15/unet.pth")
    (folder / "musetalkV15/musetalk.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel", "sample_size": 64} | unet_config(MUSETALK)))

    def earlier(key: str) -> str:
        for now, before in EARLIER.items():
            key = key.replace(f".attentions.0.{now}.", f".attentions.0.{before}.")
        return key

    torch.save({earlier(key): value for key, value in parts["autoencoder"].items()}, folder / "sd-vae/diffusion_pytorch_model.bin")
    (folder / "sd-vae/config.json").write_text(json.dumps({key: value for key, value in vae_config(MUSETALK).items() if key != "scaling_factor"}))
    heard = {f"model.encoder.{key}": value for key, value in parts["listener"].items()}
    save_file(heard | {"model.decoder.layer_norm.bias": torch.zeros(4), "proj_out.weight": torch.zeros(2, 2)}, folder / "whisper/model.safetensors")
    whisper = {"d_model": MUSETALK.width, "encoder_layers": 4, "encoder_attention_heads": 2, "max_source_positions": MUSETALK.positions}
    (folder / "whisper/config.json").write_text(json.dumps(whisper | {"num_mel_bins": 80, "activation_function": "gelu"}))
    return made


def same(one: networks.Networks, other: networks.Networks) -> bool:
    """Whether both have the same values, as fp32, but for counts of batches."""
    states = one.module.state_dict(), other.module.state_dict()
    assert list(states[0]) == list(states[1])
    return all(torch.equal(states[0][key].float(), states[1][key].float()) for key in states[0] if not key.endswith(networks.COUNTS))


def test_wav2lip_s_file_becomes_weights_that_run(tmp_path: Path) -> None:
    made, told = wav2lip(tmp_path / "wav2lip_gan.pth"), list[str]()
    import_wav2lip(tmp_path, tmp_path / "out", made=WAV2LIP, tell=told.append)
    assert same(networks.load(tmp_path / "out"), made)
    manifest = json.loads((tmp_path / "out/weights.json").read_text())
    assert manifest["model"] == "wav2lip_tiny"
    assert "wav2lip_gan.pth" in manifest["origin"]
    assert any("counts of batches" in line for line in told)
    generator = Lipsync(weights=tmp_path / "out")
    assert generator.spec.notice == ""
    assert generator.weights != Lipsync("wav2lip_tiny").weights


def test_musetalk_s_folder_becomes_weights_that_run(tmp_path: Path) -> None:
    made, told = musetalk(tmp_path / "models"), list[str]()
    import_musetalk(tmp_path, tmp_path / "out", made=MUSETALK, tell=told.append)
    assert same(networks.load(tmp_path / "out"), made)
    assert any("decoder" in line for line in told)
    import_musetalk(tmp_path / "models", tmp_path / "half", made=MUSETALK, precision="fp16")
    assert networks.load(tmp_path / "half").module.unet.model.conv_in.weight.dtype == torch.float16
    generator = Lipsync(weights=tmp_path / "half")
    assert generator.spec.delay == 2
    assert generator.precision == "fp32"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"module.output_block.1.bias": None}, "1 missing .first 'output_block.1.bias'"),
        ({"module.extra.weight": torch.zeros(1)}, "1 unexpected .first 'extra.weight'"),
        ({"module.output_block.1.bias": torch.zeros(4)}, r"1 of another kind .first 'output_block.1.bias', \[4\] float32 instead of \[3\]"),
    ],
)
def test_what_a_file_lacks_or_has_too_much_is_told_by_its_key(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    wav2lip(tmp_path / "a.pth", **changes)
    with pytest.raises(AvatarError, match=says):
        import_wav2lip(tmp_path / "a.pth", tmp_path / "out", made=WAV2LIP)
    assert not (tmp_path / "out").exists()


def test_files_that_could_run_code_are_not_read(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "args": np.random.default_rng(0)}, tmp_path / "a.pth")
    with pytest.raises(AvatarError, match="Python objects"):
        import_wav2lip(tmp_path / "a.pth", tmp_path / "out", made=WAV2LIP)


@pytest.mark.parametrize(
    ("file", "field", "value"),
    [
        ("musetalkV15/musetalk.json", "attention_head_dim", 4),
        ("musetalkV15/musetalk.json", "cross_attention_dim", 768),
        ("sd-vae/config.json", "scaling_factor", 0.13),
        ("whisper/config.json", "encoder_attention_heads", 4),
    ],
)
def test_what_shapes_do_not_tell_is_checked_in_the_descriptions(tmp_path: Path, file: str, field: str, value: Any) -> None:
    musetalk(tmp_path)
    config = json.loads((tmp_path / file).read_text())
    (tmp_path / file).write_text(json.dumps(config | {field: value}))
    with pytest.raises(AvatarError, match=f"has {field} {value}"):
        import_musetalk(tmp_path, tmp_path / "out", made=MUSETALK)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(AvatarError, match="no file wav2lip_gan or wav2lip"):
        import_wav2lip(tmp_path, tmp_path / "out", made=WAV2LIP)
    with pytest.raises(AvatarError, match="no musetalkV15/unet.pth"):
        import_musetalk(tmp_path, tmp_path / "out", made=MUSETALK)
    musetalk(tmp_path / "models")
    (tmp_path / "models/whisper/model.safetensors").unlink()
    with pytest.raises(AvatarError, match="--whisper"):
        import_musetalk(tmp_path / "models", tmp_path / "out", made=MUSETALK)
    (tmp_path / "models/musetalkV15/musetalk.json").unlink()
    with pytest.raises(AvatarError, match=r"musetalk.json cannot be read"):
        import_musetalk(tmp_path / "models", tmp_path / "out", made=MUSETALK)


def test_weights_that_were_changed_are_refused(tmp_path: Path) -> None:
    wav2lip(tmp_path / "a.pth")
    import_wav2lip(tmp_path / "a.pth", tmp_path / "out", made=WAV2LIP)
    path = tmp_path / "out/wav2lip.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(AvatarError, match="is not the file that its weights.json names"):
        Lipsync(weights=tmp_path / "out")
    with pytest.raises(AvatarError, match="leave --model out"):
        wav2lip(tmp_path / "b.pth")
        import_wav2lip(tmp_path / "b.pth", tmp_path / "other", made=WAV2LIP)
        Lipsync("musetalk_tiny", weights=tmp_path / "other")


def test_the_command_line_says_what_is_wrong_with_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wav2lip(tmp_path / "wav2lip.pth")  # of a size that was never published
    assert avatar.main(["import", "wav2lip", str(tmp_path), "-o", str(tmp_path / "out")]) == 2
    assert "of another kind (first 'face_encoder_blocks.0.0.conv_block.0.weight', [1, 6, 7, 7]" in capsys.readouterr().err
    assert avatar.main(["import", "musetalk", str(tmp_path), "-o", str(tmp_path / "out")]) == 2
    assert "no musetalkV15/unet.pth" in capsys.readouterr().err
