"""What the exporters' commands take on the command line; no more than that, so that a parser costs nothing."""

from __future__ import annotations

import argparse
from pathlib import Path

from exporters.portraits.options import add_identity
from exporters.published.layouts import LAYOUTS, variants


def add_import(parser: argparse.ArgumentParser) -> None:
    """`avatar import`."""
    systems = parser.add_subparsers(dest="system", required=True)
    bodies = {name: systems.add_parser(name, help=layout.told) for name, layout in LAYOUTS.items() if " " not in name}
    for name, body in bodies.items():
        which = body.add_mutually_exclusive_group()
        body.set_defaults(layout=name)
        for variant in variants(name):
            which.add_argument(variant.split()[1], dest="layout", action="store_const", const=variant, help=LAYOUTS[variant].told)
    magic = systems.add_parser("magicanimate", help="MagicAnimate's three files, the autoencoder and Stable Diffusion 1.5's text encoder")
    magic.add_argument(
        "--text-encoder", type=Path, metavar="DIR", help="config.json and weights of it (default: DIR/stable-diffusion-v1-5/text_encoder)"
    )
    magic.add_argument("--unet", type=Path, metavar="DIR", help="Stable Diffusion 1.5's, where temporal_attention.ckpt holds motion modules alone")
    for body in (*bodies.values(), magic):
        body.add_argument("folder", type=Path, metavar="DIR", help="where they were downloaded to, or the folder above")
        body.add_argument("-o", "--out", type=Path, required=True, metavar="OUT", help="the folder to write; it must not exist yet")
        body.add_argument("--vae", type=Path, metavar="DIR", help="config.json and weights of the autoencoder (default: DIR/sd-vae-ft-mse)")
        if body is not magic:
            body.add_argument("--image-encoder", type=Path, metavar="DIR", help="the same of CLIP's image encoder (default: DIR/image_encoder)")
        body.add_argument(
            "--faceid", type=Path, metavar="FILE", help="ip-adapter-faceid_sd15.bin: the denoiser reads a face's tokens too (default: none)"
        )
        body.add_argument("--faceid-lora", action="store_true", help="add that file's LoRA to the denoiser's weights")
        body.add_argument("--recogniser", type=Path, metavar="FILE", help="w600k_r50.onnx (of buffalo_l), whose vectors these tokens are made of")
        body.add_argument("--tiny-vae", type=Path, metavar="DIR", help="the same of TAESD (not TAESDXL), for --decoder tiny (default: none)")
        body.add_argument("--precision", choices=["fp32", "fp16"], default="fp32", help="of the files written; fp16 halves them")
    portrait = systems.add_parser("liveportrait", help="LivePortrait's base_models and retargeting_models")
    portrait.add_argument("folder", type=Path, metavar="DIR", help="the folder that holds both, or one above it")
    portrait.add_argument("-o", "--out", type=Path, required=True, metavar="OUT", help="the folder to write; it must not exist yet")
    portrait.add_argument("--precision", choices=["fp32", "fp16"], default="fp32", help="of the files written; fp16 halves them")
    body = systems.add_parser("unianimate", help="UniAnimate's weights, with Stable Diffusion 2.1 and OpenCLIP's ViT-H/14; for offline renders")
    body.add_argument("folder", type=Path, metavar="DIR", help="where its download script put them (checkpoints), or the folder above")
    body.add_argument("-o", "--out", type=Path, required=True, metavar="OUT", help="the folder to write; it must not exist yet")
    body.add_argument("--vae", type=Path, metavar="DIR", help="the folder of v2-1_512-ema-pruned (default: DIR)")
    body.add_argument("--clip", type=Path, metavar="DIR", help="the folder of open_clip_pytorch_model (default: DIR)")
    body.add_argument("--precision", choices=["fp32", "fp16"], default="fp32", help="of the files written; fp16 halves them")
    vivid = systems.add_parser("vividpose", help="Stable Video Diffusion's folders, which VividPose begins with, or beside trained weights; offline")
    vivid.add_argument("folder", type=Path, metavar="DIR", help="diffusers' folder of stable-video-diffusion-img2vid or -xt, or the folder above")
    vivid.add_argument("-o", "--out", type=Path, required=True, metavar="OUT", help="the folder to write; it must not exist yet")
    vivid.add_argument("--trained", type=Path, metavar="DIR", help="a folder with denoiser and reference that were trained, in place of DIR/unet")
    vivid.add_argument("--vae", type=Path, metavar="DIR", help="config.json and weights of the autoencoder (default: DIR/vae)")
    vivid.add_argument("--image-encoder", type=Path, metavar="DIR", help="the same of CLIP's image encoder (default: DIR/image_encoder)")
    vivid.add_argument("--recogniser", type=Path, metavar="FILE", help="what tells faces apart, of ArcFace's kind (ONNX); trained weights need it")
    vivid.add_argument("--precision", choices=["fp32", "fp16"], default="fp32", help="of the files written; fp16 halves them")
    wav2lip = systems.add_parser("wav2lip", help="Wav2Lip's wav2lip_gan.pth or wav2lip.pth")
    wav2lip.add_argument("source", type=Path, metavar="FILE_OR_DIR", help="the file, or the folder it lies in")
    musetalk = systems.add_parser("musetalk", help="MuseTalk's folder of models, with its autoencoder and Whisper")
    musetalk.add_argument("folder", type=Path, metavar="DIR", help="where its download script put them (models), or the folder above")
    musetalk.add_argument("--vae", type=Path, metavar="DIR", help="config.json and weights of the autoencoder (default: DIR/sd-vae)")
    musetalk.add_argument("--whisper", type=Path, metavar="DIR", help="the same of whisper-tiny (default: DIR/whisper)")
    echomimic = systems.add_parser("echomimic", help="EchoMimic's files, with the autoencoder and OpenAI's Whisper")
    echomimic.add_argument("folder", type=Path, metavar="DIR", help="where they were downloaded to (pretrained_weights), or the folder above")
    echomimic.add_argument("--variant", choices=["base", "acc", "pose", "pose_acc"], default="base", help="which of its weights (default: base)")
    hallo = systems.add_parser("hallo", help="Hallo's net.pth, with the autoencoder, wav2vec 2.0 and the face recogniser")
    hallo.add_argument("folder", type=Path, metavar="DIR", help="where they were downloaded to (pretrained_models), or the folder above")
    hallo.add_argument("--wav2vec", type=Path, metavar="DIR", help="config.json and weights of wav2vec2-base-960h (default: DIR/wav2vec/...)")
    hallo.add_argument("--recogniser", type=Path, metavar="FILE", help="glintr100.onnx (default: DIR/face_analysis/models/glintr100.onnx)")
    for speaking in (echomimic, hallo):
        speaking.add_argument("--vae", type=Path, metavar="DIR", help="config.json and weights of the autoencoder (default: DIR/sd-vae-ft-mse)")
    for lips in (wav2lip, musetalk, echomimic, hallo):
        lips.add_argument("-o", "--out", type=Path, required=True, metavar="OUT", help="the folder to write; it must not exist yet")
        lips.add_argument("--precision", choices=["fp32", "fp16"], default="fp32", help="of the files written; fp16 halves them")
    add_identity(systems)


def add_export(parser: argparse.ArgumentParser) -> None:
    """`avatar export`."""
    whose = parser.add_mutually_exclusive_group(required=True)
    whose.add_argument("--weights", type=Path, metavar="DIR", help="a folder of weights that was trained or imported")
    whose.add_argument("--persona", metavar="NAME", help="a saved persona that has weights of its own")
    parser.add_argument("--backend", choices=["onnxruntime", "openvino", "tensorrt", "tensorrt-rtx"], required=True, help="what will run them")
    parser.add_argument(
        "--precision", choices=["fp32", "fp16", "bf16", "int8"], help="of the graph that costs most (default: fp32); the others keep fp32"
    )
    parser.add_argument("--steps", type=int, metavar="N", help="of diffusion and video: denoising steps a frame (default: the preset's)")
    parser.add_argument("--decoder", choices=["kl", "tiny"], help="of diffusion: as `avatar serve --decoder`")
    for name in ("window", "overlap"):
        parser.add_argument(f"--{name}", type=int, metavar="N", help=f"of video: as `avatar serve --{name}`")
    parser.add_argument("--out", type=Path, metavar="DIR", help="the folder to write (default: engines/BACKEND-KEY beside the weights)")
    parser.add_argument(
        "--lora", action="append", metavar="FILE[:SCALE]", help="a LoRA (.safetensors) to fuse, of the denoiser; may be given again (default: none)"
    )
    parser.add_argument("--modelopt", metavar="PYTHON", help="of an environment with NVIDIA ModelOpt, for fp16 and bf16 (default: AVATAR_MODELOPT)")
    built = parser.add_argument_group("of TensorRT's builder")
    built.add_argument("--level", type=int, metavar="0-5", help="how long it searches (default: 3)")
    built.add_argument("--workspace", type=float, metavar="GB", help="GPU memory that a kernel may use for itself (default: 4)")
    built.add_argument("--refit", action="store_true", default=None, help="weights can be replaced later, for a LoRA; needs a GPU")
    built.add_argument(
        "--refit-from",
        type=Path,
        metavar="DIR",
        help="give the engine in DIR, built with --refit, the weights with --lora instead of building; needs its GPU. "
        "Other backends have no refit: their graphs are made anew",
    )
    built.add_argument("--same-capability", action="store_true", default=None, help="for every GPU of this compute capability; may be slower")
    built.add_argument("--target", action="append", metavar="X.Y", help="tensorrt-rtx: compute capability to build for (default: all it knows)")
    built.add_argument("--timing-cache", type=Path, metavar="FILE", help="measured kernels, kept for the next build")


def add_train(parser: argparse.ArgumentParser) -> None:
    """`avatar train`."""
    parser.add_argument(
        "--video", type=Path, nargs="+", required=True, metavar="FILE", help="clips of one person before a still camera, or a folder of them"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="the folder for data, checkpoints, previews and weights; asked again, it goes on"
    )
    parser.add_argument("--stage", choices=["all", "data", "train"], default="all", help="only collect the data, or only train on what was collected")
    parser.add_argument(
        "--maps",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="condition pictures that a preset is driven by: an ONNX network that makes them of a picture, a clip with one for every picture of the "
        "video, or a folder of such clips, each called as its video; may be given again, with another NAME",
    )
    parser.add_argument("--minutes", type=float, help="of training (default: 15, where --updates is not given)")
    parser.add_argument("--updates", type=int, help="of the weights, instead of minutes")
    parser.add_argument("--recipe", choices=["appearance", "teacher", "consistency", "matching"], default="appearance", help="see the README")
    parser.add_argument("--steps", type=int, help="denoising steps a frame of what is trained (default: 2; of a whole clip's teacher, as published)")
    parser.add_argument(
        "--preset",
        help="size of the generator (default: that of --start, else compact); NAME+faceid reads what --recogniser sees of the portrait too",
    )
    parser.add_argument("--start", type=Path, metavar="DIR", help="weights to go on from, trained or imported")
    parser.add_argument("--teacher", type=Path, metavar="DIR", help="weights that consistency and matching learn from")
    parser.add_argument("--rate", type=float, help="learning rate")
    parser.add_argument(
        "--recogniser",
        type=Path,
        metavar="FILE",
        help="a face recogniser of ArcFace's kind (ONNX, TorchScript, or an iresnet's weights): its loss keeps the face the person's",
    )
    parser.add_argument("--identity", type=float, metavar="WEIGHT", help="of that loss (default: 0.1); 0 only measures")
    parser.add_argument(
        "--learn", choices=["all", "spatial", "temporal"], default="all", help="what sees single pictures, what carries motion on, or all"
    )
    parser.add_argument("--accumulate", type=int, default=1, metavar="N", help="batches an update, one after another (default: 1)")
    parser.add_argument(
        "--checkpointing", action=argparse.BooleanOptionalAction, help="less memory, a third more time (default: for large generators)"
    )
    parser.add_argument("--longest", type=int, metavar="N", help="frames a batch has at most (default: 20); fewer take less memory")
    parser.add_argument("--window", type=int, metavar="N", help="of whole clips (UniAnimate, VividPose): frames that are seen at once")
    parser.add_argument("--overlap", type=int, metavar="N", help="of whole clips live: how many of them are past (default: three quarters)")
    parser.add_argument("--precision", choices=["no", "bf16"], default="no", help="of the arithmetic; bf16 where the hardware has it")
    parser.add_argument("--device", metavar="NAME", help="cpu or cuda (default: cuda where there is one)")
    kept = parser.add_argument_group("of the persona that is kept at the end")
    kept.add_argument("--consent", help="who agreed to what, such as 'I am the person in the video'; without it no persona is kept")
    kept.add_argument("--name", help="the persona's (default: the name of --out)")


__all__ = ["add_export", "add_import", "add_train"]
