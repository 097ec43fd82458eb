"""Does the portrait follow its driver? Drives portraits with clips and speech, tracks the pictures that come out, compares.

Everything runs through a real Session, causally and in order, as the server would run it: the neutral is found while the clip
plays. `--offline` lets the driver see the whole clip once before. The definitions are in benchmarks/measure.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import media
from benchmarks.common import Panel, Table, arguments, plot, report, start
from benchmarks.measure import CHANNELS
from benchmarks.sheet import Pair, contact_sheet
from benchmarks.stage import CAMERA_NOISE, Driven, Spoken, Stage, drive_with_clip, drive_with_speech, neutral_psnr, still
from engine.types import AudioChunk


def highlights(run: Driven, *, evenly: int = 6) -> list[tuple[Pair, str]]:
    """Frames worth a look: evenly spaced ones, then the driver's extremes of every channel that moves."""
    picks: dict[int, str] = {int(i): "" for i in np.linspace(0, len(run.pairs) - 1, evenly)}
    for name in CHANNELS:
        if run.following.correlation[name] is None:
            continue
        values = run.driver.channel(name)
        ends = {"jaw": (np.nanargmax,), "eye_left": (np.nanargmin,), "eye_right": (np.nanargmin,)}.get(name, (np.nanargmin, np.nanargmax))
        picks |= {int(end(values)): name for end in ends}

    def text(i: int, name: str) -> str:
        if not name:
            return f"{i}"
        return f"{i} {name}\ndriver {run.driver.channel(name)[i]:.3g} avatar {run.output.channel(name)[i]:.3g}"

    return [(run.pairs[i], text(i, name)) for i, name in picks.items()]


def summary(driven: Sequence[Driven], spoken: Sequence[Spoken], still_rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The fixed fields: of every figure the worst over all portraits and drives; then every run for itself."""

    def worst(values: Sequence[float | int | None], *, lowest: bool) -> float | int | None:
        known = [value for value in values if value is not None and np.isfinite(value)]
        return (min(known) if lowest else max(known)) if known else None

    def latest(values: Sequence[int | None]) -> int | None:
        return max((value for value in values if value is not None), key=abs, default=None)

    return {
        "correlation": {name: worst([run.following.correlation[name] for run in driven], lowest=True) for name in CHANNELS},
        "lag_frames": latest([run.following.lag_frames for run in driven]),
        "neutral_psnr_db": worst([row["neutral_psnr_db"] for row in still_rows], lowest=True),
        "shimmer": worst([row["shimmer"] for row in still_rows], lowest=False),
        "shimmer_noisy": worst([row["shimmer_noisy"] for row in still_rows], lowest=False),
        "speech_correlation": worst([run.correlation for run in spoken], lowest=True),
        "speech_lag_frames": latest([run.lag_frames for run in spoken]),
        "silence_gap": worst([run.silence_gap for run in spoken], lowest=False),
        "rows": [
            {"portrait": r.portrait, "drive": r.drive, **asdict(r.following), "lost": {"driver": r.driver.lost, "output": r.output.lost}}
            for r in driven
        ],
        "still": list(still_rows),
        "speech": [
            {"portrait": r.portrait, "speech": r.speech, "correlation": r.correlation, "lag_frames": r.lag_frames, "silence_gap": r.silence_gap}
            for r in spoken
        ],
    }


def tables(driven: Sequence[Driven], spoken: Sequence[Spoken], still_rows: Sequence[dict[str, Any]]) -> list[Table]:
    """What people read."""
    found = []
    if driven:
        table = Table(
            ("portrait", "drive", *CHANNELS, "lag", "lost"), title="correlation of the avatar with its driver (n/a: the driver hardly moves)"
        )
        gains = Table(("portrait", "drive", *CHANNELS), title="gain: movement of the avatar per movement of its driver")
        for run in driven:
            f = run.following
            table.add(run.portrait, run.drive, *(f.correlation[n] for n in CHANNELS), f.lag_frames, run.output.lost)
            gains.add(run.portrait, run.drive, *(f.gain[n] for n in CHANNELS))
        found += [table, gains]
    if still_rows:
        table = Table(("portrait", "neutral PSNR dB", "shimmer", "shimmer, noisy camera"), title="at rest (shimmer: grey levels a frame in the head)")
        for row in still_rows:
            table.add(row["portrait"], row["neutral_psnr_db"], row["shimmer"], row["shimmer_noisy"])
        found.append(table)
    if spoken:
        table = Table(("portrait", "speech", "correlation", "lag", "lip gap in silence"), title="speech envelope against mouth opening")
        for said in spoken:
            table.add(said.portrait, said.speech, said.correlation, said.lag_frames, said.silence_gap)
        found.append(table)
    return found


def panels(driven: Sequence[Driven], spoken: Sequence[Spoken]) -> list[Panel]:
    """Driver and avatar over time, each about its own mean; speech and mouth."""
    drawn = []
    for run in driven:
        for name in CHANNELS:
            if run.following.correlation[name] is None:
                continue
            pair = {"driver": run.driver.channel(name), "avatar": run.output.channel(name)}
            lines = {label: (np.arange(len(v)).tolist(), (v - np.nanmean(v)).tolist()) for label, v in pair.items()}
            drawn.append(Panel(f"{run.drive} -> {run.portrait}: {name}", "frame", "about its mean", lines))
    for said in spoken:
        both = {"envelope": said.envelope, "mouth": said.opening}
        scaled = {label: (said.times.tolist(), (v / max(1e-9, float(np.nanmax(v)))).tolist()) for label, v in both.items()}
        drawn.append(Panel(f"{said.speech} -> {said.portrait}", "s", "share of its greatest", scaled))
    return drawn


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = arguments("quality", __doc__)
    parser.add_argument(
        "--portrait", nargs="+", default=[], metavar="P", help="pictures, or frames of videos as clip.mp4@12 (default: the built-in one)"
    )
    parser.add_argument("--drive", nargs="+", default=[], metavar="F", help="clips and sound files (default: a clip and a sentence made here)")
    parser.add_argument("--generator", default="puppet")
    parser.add_argument("--size", type=int, default=512, help="px of the generator's square frames")
    parser.add_argument("--limit", type=int, help="at most so many frames of a clip")
    parser.add_argument("--offline", action="store_true", help="let the driver see the whole clip once before it is measured")
    parser.add_argument("--no-body", action="store_true", help="leave the shoulders still")
    parser.add_argument("--skip", nargs="+", default=[], choices=("clips", "still", "speech"), help="leave parts out")
    parser.add_argument("--sheet", type=Path, metavar="F.png", help="write a contact sheet of each run: the driver above, the avatar below")
    return parser.parse_args(argv)


def _drives(options: argparse.Namespace) -> tuple[list[media.Clip], list[tuple[str, AudioChunk]]]:
    """Clips and sounds to drive with: those given, else made here."""
    from engine.media import probe

    paths = [Path(name) for name in options.drive]
    clips = [media.read_clip(path, limit=options.limit) for path in paths if probe(path).has_video]
    sounds = [(path.stem, media.read_sound(path)) for path in paths if not probe(path).has_video]
    if not clips and "clips" not in options.skip:
        made, _ = media.moving_portrait(media.CLIP_SECONDS if options.limit is None else options.limit / media.FPS)
        clips = [made]
    if not sounds and "speech" not in options.skip:
        spoken, voice = media.speech()
        sounds = [(voice, spoken)]
    return clips, sounds


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark -> exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    options = _options(words)
    clips, sounds = _drives(options)
    driven: list[Driven] = []
    spoken: list[Spoken] = []
    still_rows: list[dict[str, Any]] = []
    for portrait in options.portrait or [None]:
        picture = media.demo() if portrait is None else media.read_picture(portrait)
        stage = Stage(
            options.generator, picture, name="built-in" if portrait is None else Path(portrait).name, size=options.size, body=not options.no_body
        )
        for clip in clips if "clips" not in options.skip else ():
            driven.append(drive_with_clip(stage, clip, rehearse=options.offline))
            if options.sheet is not None:
                several = len(clips) * max(1, len(options.portrait)) > 1
                name = f"{options.sheet.stem}-{clip.name}-{Path(stage.name).stem}.png" if several else options.sheet.name
                contact_sheet(highlights(driven[-1]), options.sheet.with_name(name))
        if "still" not in options.skip:
            shown = next(clips[0].pictures()) if clips else picture
            still_rows.append(
                {
                    "portrait": stage.name,
                    "neutral_psnr_db": neutral_psnr(stage),
                    "shimmer": still(stage, shown, noise=0.0),
                    "shimmer_noisy": still(stage, shown, noise=CAMERA_NOISE),
                }
            )
        if "speech" not in options.skip:
            spoken += [drive_with_speech(stage, sound, name=name) for name, sound in sounds]
    result = summary(driven, spoken, still_rows)
    report("quality", words, result, tables=tables(driven, spoken, still_rows), json_file=options.json)
    if options.plot is not None and (drawn := panels(driven, spoken)):
        plot(drawn, options.plot)
    return 0


if __name__ == "__main__":
    start(main)
