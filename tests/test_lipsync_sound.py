"""What a row of the lips generator hears: sound put together again, speech told from silence, and windows that are those of a whole file."""

from __future__ import annotations

from functools import cache
from typing import cast

import numpy as np
import pytest

from engine.drivers.speech import LOOK_AHEAD, SpeechDriver
from engine.types import AudioChunk, FloatArray, Signal
from tests.conftest import require_for
from tests.voices import noise, vowel

require_for("lipsync")

import torch  # noqa: E402

from engine.backends import pytorch  # noqa: E402
from engine.generators.lipsync import musetalk, wav2lip  # noqa: E402
from engine.generators.lipsync.sizes import MODELS, MuseTalkSize, Wav2LipSize  # noqa: E402
from engine.generators.lipsync.sound import CLOSING, OPENING, Gate, Sound  # noqa: E402

RATE = 16_000
TINY = cast(MuseTalkSize, MODELS["musetalk_tiny"])


@cache
def speech() -> FloatArray:
    """2.4 s: half a second of nothing, a word, nothing."""
    word = np.concatenate([vowel("a", pitch=120, seconds=0.35), vowel("i", pitch=130, seconds=0.35)])
    return np.concatenate([np.zeros(RATE // 2, np.float32), word, np.zeros(round(1.2 * RATE), np.float32)])


def told(sound: FloatArray, times: FloatArray, *, start: float = 0.0, late: float = -1.0) -> list[Signal]:
    """Signals of a session that hears `sound` from `start` s on; `late`: s by which it arrives after its time, None of it early."""
    driver = SpeechDriver()
    signals, given = [], 0
    for time in times:
        until = len(sound) if late < 0 else min(len(sound), max(0, round((float(time) - late - start) * RATE)))
        needed = len(sound) if late >= 0 else min(len(sound), round((float(time) + 0.2 - start) * RATE))
        stop = min(until, needed)
        while given < stop:
            step = sound[given : min(given + 320, stop)]
            driver.hear(AudioChunk(step, RATE, start + given / RATE))
            given += len(step)
        signals.append(Signal(float(time), pcm=driver.at(float(time)).pcm))
    return signals


@pytest.mark.parametrize(("fps", "start"), [(25.0, 0.0), (30.0, 0.0), (25.0, 1000.123456), (24.0, 7.77777)])
def test_overlapping_signals_become_one_sound_without_a_sample_lost_or_doubled(fps: float, start: float) -> None:
    sound = noise("white", 2.0, decibels=-20)
    heard = Sound()
    for signal in told(sound, np.arange(0, 1.6, 1 / fps) + start, start=start):
        heard.hear(signal)
    got = heard.read(heard.end - RATE, heard.end)
    where = round((signal.time + LOOK_AHEAD - start) * RATE) - RATE
    assert any(np.array_equal(got, sound[where + nudge : where + nudge + RATE]) for nudge in (-1, 0, 1))


def test_sound_that_arrives_after_its_frame_is_heard_by_a_later_one() -> None:
    sound = noise("white", 2.0, decibels=-20)
    heard = Sound()
    for signal in told(sound, np.arange(0.2, 1.4, 1 / 25), late=0.03):
        heard.hear(signal)
    last = round((signal.time - 0.08) * RATE)  # each is told of for the last time 80 ms after its own
    origin = round(0.2 * RATE)
    np.testing.assert_array_equal(heard.read(last - RATE // 2 - origin, last - origin), sound[last - RATE // 2 : last])


def test_sound_begins_anew_after_a_jump_and_is_silence_where_none_came() -> None:
    heard = Sound()
    loud = np.ones(2560, np.float32)
    heard.hear(Signal(5.0, pcm=loud))
    heard.hear(Signal(5.04))
    assert heard.read(0, 1280).min() == 1
    assert heard.read(1280, 3000).max() == 0
    heard.hear(Signal(50.0))
    assert heard.origin == 50.0
    assert heard.read(-4000, 1280).max() == 0
    heard.hear(Signal(5.08, pcm=loud))
    assert heard.origin == 5.08


def opened(sound: FloatArray, *, delay: float = 0.16) -> tuple[FloatArray, FloatArray]:
    """(times, how open the gate was) of frames `delay` s behind the signals."""
    heard, gate, times, shares = Sound(), Gate(), [], []
    for signal in told(sound, np.arange(0, len(sound) / RATE, 1 / 25)):
        heard.hear(signal)
        times.append(signal.time - delay)
        shares.append(gate(times[-1], heard.voiced(times[-1])))
    return np.array(times, np.float32), np.array(shares, np.float32)


@pytest.mark.parametrize("kind", ["fan", "white", "keys"])
def test_the_lips_stay_shut_in_silence_and_noise(kind: str) -> None:
    assert opened(np.zeros(RATE, np.float32))[1].max() == 0
    assert opened(noise(kind, 3.0, decibels=-50))[1][25:].max() == 0


def test_the_lips_open_with_the_voice_and_come_back_softly() -> None:
    times, shares = opened(speech())
    spoken = (times > 0.6) & (times < 1.15)
    assert shares[spoken].min() > 0.95
    assert shares[times < 0.4].max() == 0
    assert shares[times > 1.95].max() == 0
    steps = np.diff(shares)
    assert steps.min() > -1.6 * 0.04 / CLOSING  # smoothstep is at most 1.5 times as steep as its ramp
    assert steps.max() < 1.6 * 0.04 / OPENING


def test_a_frame_s_mel_is_that_of_the_whole_file_by_the_published_rule() -> None:
    sound = speech()
    offline = wav2lip.clip_windows(wav2lip.melspectrogram(sound), fps=25)
    heard, compared = Sound(), 0
    for k, signal in enumerate(told(sound, np.arange(0, 2.3, 1 / 25))):
        heard.hear(signal)
        frame = k - 4  # the delay that the generator declares
        if frame < 0 or wav2lip.span(frame / 25)[1] > len(sound):
            continue
        np.testing.assert_allclose(wav2lip.heard(heard.read(*wav2lip.span(frame / 25))), offline[frame], atol=2e-4)
        compared += 1
    assert compared > 40


def test_mel_is_on_the_published_scale() -> None:
    assert wav2lip.melspectrogram(np.zeros(RATE, np.float32)).max() == -4.0
    tone = np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE).astype(np.float32)
    mel = wav2lip.melspectrogram(tone)
    assert mel.shape == (80, 81)
    assert -4 <= mel.min() < mel.max() <= 4
    edges = np.linspace(55, 7600, 3)
    assert abs(int(mel[:, 40].argmax()) - 25) < 4, edges  # 1 kHz: the Slaney scale is linear to there, 40 Hz a band


def test_the_log_mel_is_whisper_s() -> None:
    transformers = pytest.importorskip("transformers")
    extract = transformers.WhisperFeatureExtractor(feature_size=80)
    for seconds in (1.0, 2.0417):
        sound = speech()[: round(seconds * RATE)]
        wanted = extract(sound, sampling_rate=RATE, return_tensors="np").input_features[0]
        np.testing.assert_allclose(musetalk.log_mel(sound), wanted, atol=2e-4)


@pytest.fixture(scope="module")
def listener() -> musetalk.Listener:
    torch.manual_seed(0)
    made: musetalk.Listener = musetalk.Listener(TINY).eval().requires_grad_(False)
    return made


def tokens(listener: musetalk.Listener, sound: FloatArray) -> torch.Tensor:
    """[10, 5, C] of the samples of a span."""
    states: torch.Tensor = listener(torch.from_numpy(musetalk.heard(sound, positions=TINY.positions))[None])[0]
    return states[musetalk.LEFT - musetalk.BEFORE : musetalk.LEFT + musetalk.AFTER]


def test_streamed_tokens_are_those_of_the_same_span_cut_from_the_file(listener: musetalk.Listener) -> None:
    sound = np.concatenate([speech(), speech()])
    heard = Sound()
    for k, signal in enumerate(told(sound, np.arange(0, 3.0, 1 / 25))):
        heard.hear(signal)
        frame = k - 2  # the delay that the generator declares
        if frame >= 0 and frame % 12 == 0:
            start, stop = musetalk.span(frame / 25)
            cut = np.pad(sound[max(0, start) : stop], (max(0, -start), 0))
            np.testing.assert_array_equal(heard.read(start, stop), cut)
            assert torch.equal(tokens(listener, heard.read(start, stop)), tokens(listener, cut))


def test_the_first_state_of_a_streamed_frame_is_that_of_the_whole_file(listener: musetalk.Listener) -> None:
    """What goes into the encoder's first layer sees 132.5 ms of sound; deeper states see all there is, so they differ."""
    sound = np.concatenate([speech()[RATE // 2 :], np.zeros(RATE // 4, np.float32)])[: TINY.positions * musetalk.STEP]
    whole = listener(torch.from_numpy(musetalk.log_mel(sound, positions=TINY.positions))[None])[0]
    places = listener.model.embed_positions.weight
    start, stop = musetalk.span(0.4)
    mine = tokens(listener, np.pad(sound[:stop], (-start, 0)))
    step = 20
    local = mine[:, 0] - places[musetalk.LEFT - musetalk.BEFORE : musetalk.LEFT + musetalk.AFTER]
    wanted = whole[step - musetalk.BEFORE : step + musetalk.AFTER, 0] - places[step - musetalk.BEFORE : step + musetalk.AFTER]
    np.testing.assert_allclose(local, wanted, atol=1e-4)


def test_the_published_windows_of_a_file_are_zero_beyond_its_ends() -> None:
    states = torch.arange(1.0, 61.0)[:, None, None].expand(60, 5, 2)
    windows = musetalk.clip_windows(states, seconds=1.0, fps=25)
    assert windows.shape == (25, 50, 2)
    first = windows[0].reshape(10, 5, 2)[:, 0, 0]
    assert first.tolist() == [0, 0, 0, 0, 1, 2, 3, 4, 5, 6]
    assert windows[24].reshape(10, 5, 2)[:, 3, 1].tolist() == [45, 46, 47, 48, 49, 50, 0, 0, 0, 0]


@pytest.mark.parametrize("model", [wav2lip, musetalk])
def test_no_frame_needs_sound_from_beyond_what_is_declared(model: object) -> None:
    for time in np.arange(0, 3, 0.013):
        first, last = model.span(float(time))  # type: ignore[attr-defined]
        assert last / RATE <= time + model.REACH + 1e-6  # type: ignore[attr-defined]
        assert first / RATE >= time - model.PAST - 1e-6  # type: ignore[attr-defined]


def test_the_lower_rows_alone_are_those_of_the_whole_picture() -> None:
    torch.manual_seed(0)
    network = wav2lip.Wav2Lip(cast(Wav2LipSize, MODELS["wav2lip_tiny"])).eval().requires_grad_(False)
    mel, face = torch.randn(2, 1, 80, 16), torch.rand(2, 6, 96, 96)
    whole, lower = network(mel, face), network.lower(mel, face)
    assert lower.shape == (2, 3, 96 - wav2lip.LOWER, 96)
    assert float(whole.std()) > 0.01
    torch.testing.assert_close(lower, whole[:, :, wav2lip.LOWER :], atol=1e-6, rtol=0)
    picture = (255 * face[:1, 3:].flip(1).permute(0, 2, 3, 1)).to(torch.uint8)
    live = wav2lip.Live(network).eval()
    traced = pytorch.scripted(live, [picture, mel[:1, 0]])
    torch.testing.assert_close(traced(picture, mel[:1, 0]), live(picture, mel[:1, 0]), atol=1e-3, rtol=0)
    assert torch.equal(live(picture, mel[:1, 0])[:, : wav2lip.LOWER].round().to(torch.uint8), picture[:, : wav2lip.LOWER])
