"""Stable Video Diffusion's published weights become those that VividPose begins with, or go beside a user's trained ones: every key by a table.

Nobody has published VividPose's own weights. Without `trained` the denoiser's UNet and, without its temporal parts, the reference network's are
Stable Video Diffusion's, and what tells of poses and face is new and silent: such weights render, but know no pose. Files are mapped and
written tensor by tensor, so gigabytes of them need little memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from engine.types import AvatarError
from exporters.files import absent, find, fresh_folder, read, read_config, sha256
from exporters.published import keys_vividpose as keys
from exporters.published.import_checkpoint import KINDS, Checked, Precision, Source, check_config, check_room, match, report
from exporters.published.keys import Table
from exporters.published.streamed import write

try:
    import torch
    from torch import Tensor, nn

    from engine.generators.video.vividpose import FaceKeys, FaceTokens, Guider
    from engine.generators.video.vividpose_networks import TAUGHT, Networks, check_recogniser, empty, preset
    from engine.generators.video.vividpose_presets import VIVIDPOSE, VIVIDPOSE_XT, VividPose
    from engine.generators.video.weights import MADE_FOR, MANIFEST, PLAN, read_manifest, write_manifest
except ImportError as error:
    raise AvatarError(f"Importing weights needs PyTorch, diffusers and transformers ({error}); pip install 'avatar-engine[torch]'.") from error

Tell = Callable[[str], None]
ENDED = "They render whole clips (avatar render --offline), 25 steps with guidance over windows of {} frames; they are no live generator."
NO_POSES = (
    "Nobody has published VividPose's weights: these are Stable Video Diffusion's alone, which know no pose and no face. What renders shows the "
    "portrait, not the drive; both networks, the guiders and the face's keys are to be trained, and come back with --trained."
)


def import_vividpose(
    source: Path,
    out: Path,
    *,
    trained: Path | None = None,
    vae: Path | None = None,
    image_encoder: Path | None = None,
    recogniser: Path | None = None,
    precision: Precision = "fp32",
    made: VividPose | None = None,
    tell: Tell = lambda line: None,
) -> None:
    """Stable Video Diffusion's folder `source` in diffusers' layout -> weights in a new folder `out`.

    `trained`: a folder with `denoiser` and `reference` in this engine's layout, instead of its `unet`. `vae`, `image_encoder`: those folders
    where they lie elsewhere. `recogniser`: an ONNX file of ArcFace's kind, which trained weights need. `made`: another size; None for that of
    the files. Everything is checked before anything is written. Raises AvatarError, one sentence, for whatever does not fit.
    """
    if precision not in KINDS:
        raise AvatarError(f"Weights are kept as one of: {', '.join(KINDS)}; not as '{precision}'.")
    if not source.is_dir():
        raise AvatarError(f"{source} is no folder; give the one that {keys.SVD}'s folders were downloaded to.")
    if recogniser is not None:
        check_recogniser(recogniser)
    elif trained is not None:
        raise AvatarError("Trained weights of VividPose read the portrait's face by a recogniser; name its ONNX file with --recogniser.")
    root = next((place for name in keys.FOLDERS if ((place := source / name) / keys.AUTOENCODER.folder).is_dir()), source)
    made = made or _made(root, trained)
    networks = empty(made)
    given = {keys.AUTOENCODER: vae or root / keys.AUTOENCODER.folder, keys.IMAGE: image_encoder or root / keys.IMAGE.folder}
    given |= {keys.UNET: root / keys.UNET.folder} if trained is None else dict.fromkeys((keys.DENOISER, keys.REFERENCE), trained)
    paths = {table: _find(table, folder, root) for table, folder in given.items()}
    checked = {table: _checked(table, path, networks, tell) for table, path in paths.items()}
    new = _new(networks, tell) if trained is None else {}
    with fresh_folder(out) as folder:
        count = sum(value.numel() for value in networks.parameters())
        check_room(folder, count * KINDS[precision].itemsize + (recogniser.stat().st_size if recogniser else 0))
        hashes = {}
        for part, module in networks.parts().items():
            tensors = _tensors(part, module, checked, new)
            hashes[part] = write(folder / f"{part}.safetensors", tensors, KINDS[precision])
            tell(f"{part}: written")
        tell("Hashing what was read ...")
        origin = {"system": keys.SYSTEM, "precision": precision, "steps": "25", TAUGHT: "nothing" if trained is None else "poses"}
        origin |= _taught(trained)
        origin |= {each.source.name: sha256(each.source.path) for each in checked.values()}
        write_manifest(folder, preset=made.name, hashes=hashes, origin=origin, recogniser=recogniser)
    tell(f"{count / 1e6:,.1f} million values in {precision}. {ENDED.format(made.frames)}")
    if trained is None:
        tell(NO_POSES)
    if recogniser is None:
        tell("Nothing reads the portrait's face: give --recogniser for that, once there are weights that know faces.")


def _taught(trained: Path | None) -> dict[str, str]:
    """How weights that this engine trained run, by their manifest: a student's steps and window, a teacher's window."""
    if trained is None or not (trained / MANIFEST).is_file():
        return {}
    told = read_manifest(trained).origin
    return {name: told[name] for name in (MADE_FOR, *PLAN) if name in told}


def _made(root: Path, trained: Path | None) -> VividPose:
    """The size that trained weights name, or that a published unet has the frames of. Raises AvatarError where neither is told."""
    if trained is not None and (trained / MANIFEST).is_file():
        return preset(read_manifest(trained).preset)
    unet = root / keys.UNET.folder
    if trained is not None and not unet.is_dir():
        frames = f"{VIVIDPOSE.frames} or {VIVIDPOSE_XT.frames}"
        raise AvatarError(f"{trained} has no {MANIFEST}, which says whether its windows have {frames} frames; put it there, or {unet} of the same.")
    return VIVIDPOSE_XT if unet.is_dir() and read_config(unet).get("num_frames") == keys.LONG else VIVIDPOSE


def _find(table: Table, folder: Path, root: Path) -> Path:
    path = find([folder], table.stems)
    if path is None:
        if any(root.glob(keys.SINGLE)):
            what = f"{folder} has no file {' or '.join(table.stems)}"
            raise AvatarError(f"{what}; the single file beside it has another layout: download the folders unet, vae and image_encoder.")
        raise absent(folder, table.stems, option=table.option)
    return path


def _checked(table: Table, path: Path, networks: Networks, tell: Tell) -> Checked:
    """Raise AvatarError unless a file's tensors are all that its table says of our network, and no more."""
    module = networks.parts()[table.part]
    if table.config:
        check_config(path.parent, table, getattr(module, "unet", module).config)
    held = read(path)
    source = Source(table, path, f"{path.parent.name}/{path.name}")
    found = match(table, held, {key: tuple(value.shape) for key, value in module.state_dict().items()})
    report(source, found, held, tell)
    return Checked(source, found, held)


def _new(networks: Networks, tell: Tell) -> dict[str, Tensor]:
    """What is the denoiser's beside Stable Video Diffusion's UNet, as untaught: seeded, and with zeros where its voice would be."""
    made = networks.made
    widths = [int(each.to_k_ip.out_features) for each in networks.denoiser.face_keys]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts: dict[str, nn.Module] = {
            "face": FaceTokens(made),
            "face_keys": nn.ModuleList([FaceKeys(made.context, width) for width in widths]),
            "skeleton": Guider(made.guider, made.channels[0]),
            "dense": Guider(made.guider, made.channels[0]),
        }
    found: dict[str, Tensor] = nn.ModuleDict(parts).state_dict()
    tell(f"{len(found)} tensors of the denoiser are new and silent, since nobody has published them: {', '.join(parts)}")
    tell(f"{len(networks.reference.state_dict())} of the unet's begin the reference network, which sees one frame and makes none")
    return found


def _tensors(part: str, module: nn.Module, checked: Mapping[Table, Checked], new: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a network's file holds."""
    mine: dict[str, Tensor] = {}
    for table, each in checked.items():
        if table.part == part:
            mine |= each.ours()
    if part == keys.REFERENCE.part and keys.UNET in checked:
        unet = checked[keys.UNET].ours()
        mine = {key: unet[key] for key in module.state_dict()}
    return mine | (dict(new) if part == keys.DENOISER.part else {})


__all__ = ["import_vividpose"]
