"""PuLID's files with random weights for small bases, a small FLUX, EVA-02-CLIP and a face parsing: keys and shapes as published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.identity_weights import Shapes, linear, norm, perceiver, seeded
from tests.tiny_adapters import VECTOR, attentions, tensors
from tests.tiny_bases import WIDTH, WORDS, text_encoder, tokenizer

SEEN, POOLED, PATCH, GRID, DEPTH = 128, 20, 7, 4, 21
"""Of EVA-02-CLIP: channels (two heads), its embedding, px of a patch, patches a side, blocks."""
READS = VECTOR + POOLED
HEADS = 2
FLUX_WIDTH, FLUX_HEAD, FLUX_DOUBLES, FLUX_SINGLES = 64, 32, 3, 5
BETWEEN_HEAD = 128


def perceptron(name: str, inputs: int, inner: int, out: int) -> Shapes:
    """Three layers, two norms."""
    made = linear(f"{name}.0", inputs, inner) | linear(f"{name}.3", inner, inner) | linear(f"{name}.6", inner, out)
    return made | {f"{name}.{i}.{part}": (inner,) for i in (1, 4) for part in ("weight", "bias")}


def v1(*, reads: int = READS, sees: int = SEEN, out: int = WIDTH) -> Shapes:
    """IDEncoder; the two widths of its body are the published code's for `out`."""
    first, second = min(5 * out // 4, 1024), min(5 * out // 2, 1024)
    made = linear("body.0", reads, first) | linear("body.3", first, second) | linear("body.6", second, 5 * out)
    made |= {f"body.{i}.{part}": (width,) for i, width in ((1, first), (4, second)) for part in ("weight", "bias")}
    for i in range(5):
        made |= {**perceptron(f"mapping_{i}", sees, sees, out), **perceptron(f"mapping_patch_{i}", sees, sees, out)}
    return made


def former(*, reads: int = READS, sees: int = SEEN, width: int = SEEN, out: int = WIDTH, queries: int = 6) -> Shapes:
    """IDFormer, its perceiver with two heads."""
    made = {"latents": (1, queries, width), "proj_out": (width, out), **perceiver("", width=width, inner=64 * HEADS, depth=10)}
    for i in range(5):
        made |= perceptron(f"mapping_{i}", sees, sees, width)
    return {**made, **perceptron("id_embedding_mapping", reads, sees, 5 * width)}


def between(*, count: int, width: int = FLUX_WIDTH, tokens: int = WIDTH) -> Shapes:
    """pulid_ca, with two heads."""
    made: dict[str, tuple[int, ...]] = {}
    inner = BETWEEN_HEAD * HEADS
    for i in range(count):
        made |= norm(f"{i}.norm1", tokens) | norm(f"{i}.norm2", width)
        made |= linear(f"{i}.to_q", width, inner, bias=False) | linear(f"{i}.to_kv", tokens, 2 * inner, bias=False)
        made |= linear(f"{i}.to_out", inner, width, bias=False)
    return made


def eva(*, width: int = SEEN, depth: int = DEPTH, patch: int = PATCH, grid: int = GRID, out: int = POOLED) -> Shapes:
    """EVA-02-CLIP's image encoder, without what it computes."""
    inner = int(width * 2.6667)
    made: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, width), "pos_embed": (1, grid * grid + 1, width)}
    made |= {"patch_embed.proj.weight": (width, 3, patch, patch), "patch_embed.proj.bias": (width,)}
    made |= linear("head", width, out) | norm("norm", width)
    for i in range(depth):
        at = f"blocks.{i}"
        made |= norm(f"{at}.norm1", width) | norm(f"{at}.norm2", width) | norm(f"{at}.attn.inner_attn_ln", width) | norm(f"{at}.mlp.ffn_ln", inner)
        for part in "qkv":
            made |= linear(f"{at}.attn.{part}_proj", width, width, bias=False)
        made |= {f"{at}.attn.q_bias": (width,), f"{at}.attn.v_bias": (width,), **linear(f"{at}.attn.proj", width, width)}
        made |= linear(f"{at}.mlp.w1", width, inner) | linear(f"{at}.mlp.w2", width, inner) | linear(f"{at}.mlp.w3", inner, width)
    return made


def places(doubles: int = FLUX_DOUBLES, singles: int = FLUX_SINGLES) -> int:
    """Attentions that a FLUX of so many blocks has."""
    return -(-doubles // 2) - (-singles // 4)


def pulid(path: Path, version: str) -> Path:
    """v1's, v1.1's or FLUX's file."""
    import torch
    from safetensors.torch import save_file

    if version == "flux":
        parts = {"pulid_encoder": tensors(former()), "pulid_ca": tensors(between(count=places()), 1)}
    else:
        encoder = tensors(v1() if version == "v1" else former())
        parts = {"id_adapter": encoder, "id_adapter_attn_layers": tensors(attentions(names=("id_to_k", "id_to_v")), 1)}
    held = {f"{part}.{key}": value for part, inner in parts.items() for key, value in inner.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(held, path)
    else:
        torch.save(held, path)
    return path


def eva_file(path: Path, **how: Any) -> Path:
    """EVA's file: text beside, and positions that it computes itself."""
    import torch

    held = {f"visual.{key}": value for key, value in tensors(eva(**how)).items()}
    more = {"logit_scale": torch.ones(()), "text.positional_embedding": torch.zeros(77, 8)}
    more |= {name: torch.zeros(GRID**2, 64) for name in ("visual.rope.freqs_cos", "visual.blocks.3.attn.rope.freqs_sin")}
    torch.save({**held, **more}, path)
    return path


def parsing_weights(shapes: Shapes) -> dict[str, Any]:
    """For the shapes of a face parsing: what batch norms have seen varied at least a little."""
    import torch

    made = {key: torch.from_numpy(value) for key, value in seeded(shapes).items()}
    return {key: value.abs() + 0.5 if key.endswith("running_var") else value for key, value in made.items()}


def parsing_file(path: Path) -> Path:
    """facexlib's."""
    import torch

    from exporters.portraits.parsing import BiSeNet

    shapes = {key: tuple(value.shape) for key, value in BiSeNet().state_dict().items() if not key.endswith("num_batches_tracked")}
    torch.save(parsing_weights(shapes), path)
    return path


def flux_transformer() -> Any:
    """diffusers' transformer of FLUX, three blocks of two streams and five of one, with guidance."""
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        in_channels=16,
        num_layers=FLUX_DOUBLES,
        num_single_layers=FLUX_SINGLES,
        attention_head_dim=FLUX_HEAD,
        num_attention_heads=FLUX_WIDTH // FLUX_HEAD,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(8, 12, 12),
    ).eval()


def flux(folder: Path) -> Path:
    """A whole base."""
    import torch
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline
    from transformers import T5Config, T5EncoderModel

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
        sample_size=64,
        latent_channels=4,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    config = T5Config(vocab_size=64, d_model=WIDTH, d_kv=16, d_ff=64, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu")
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    pipe = FluxPipeline(
        transformer=flux_transformer(),
        vae=vae,
        scheduler=scheduler,
        text_encoder=text_encoder(WIDTH),
        tokenizer=tokenizer(folder / "words"),
        text_encoder_2=T5EncoderModel(config).eval(),
        tokenizer_2=pieces(),
    )
    pipe.save_pretrained(folder / "flux")
    return folder / "flux"


def pieces() -> Any:
    """T5's tokenizer, of WORDS."""
    from transformers import T5TokenizerFast

    known = ["<pad>", "</s>", "<unk>", *(f"▁{word}" for word in WORDS)]
    return T5TokenizerFast(vocab=[(piece, 0.0 if k < 3 else -1.0) for k, piece in enumerate(known)], extra_ids=0)
