"""The speech driver: exact streaming, honest causality, gapless sound; and lips that follow voices and ignore noise."""

from __future__ import annotations

import threading
import time as clock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.drivers.resample import RATE, Resampler
from engine.drivers.speech import BRIDGE, LOG_FLOOR, LOOK_AHEAD, RING, SpeechDriver, SpeechReading
from engine.drivers.visemes import WIDEST_GAP
from engine.types import AudioChunk, AvatarError, FloatArray
from tests.voices import noise, spoken, vowel

FPS = 30


def drive(sound: FloatArray, rate: int = RATE, *, start: float = 5.0, chunk: int = 0, fps: int = FPS) -> list[SpeechReading]:
    """Hear a sound in chunks as a session does -> the readings of its frames."""
    driver = SpeechDriver()
    chunk = chunk or rate // 50
    readings: list[SpeechReading] = []
    for at in range(0, len(sound), chunk):
        driver.hear(AudioChunk(sound[at : at + chunk], rate, start + at / rate))
        while driver.heard_until - LOOK_AHEAD - 1 / fps >= start + len(readings) / fps:
            readings.append(driver.at(start + len(readings) / fps))
    return readings


def mouths(sound: FloatArray, rate: int = RATE) -> FloatArray:
    """[frames, 4]"""
    return np.array([reading.mouth for reading in drive(sound, rate)])


def envelope(sound: FloatArray, rate: int, count: int) -> FloatArray:
    """RMS around each frame's time, over a frame."""
    half = rate / FPS / 2
    spans = [sound[max(0, int(2 * k * half - half)) : int(2 * k * half + half) + 1] for k in range(count)]
    return np.array([np.sqrt((span**2).mean()) for span in spans])


def correlation(loudness: FloatArray, gap: FloatArray, lag: int) -> float:
    """Of the envelope and the gap `lag` frames later."""
    a, b = (loudness[: len(loudness) - lag], gap[lag:]) if lag >= 0 else (loudness[-lag:], gap[:lag])
    return float(np.corrcoef(a, b)[0, 1])


def same(one: SpeechReading, other: SpeechReading) -> bool:
    arrays = all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("logmel", "pcm", "mouth"))
    return arrays and (one.voiced, one.loudness) == (other.voiced, other.loudness)


# -- features ---------------------------------------------------------------------------------------------------------


def test_logmel_is_librosa_s() -> None:
    import librosa

    sound = noise("pink", 0.5, decibels=-20)
    driver = SpeechDriver()
    driver.hear(AudioChunk(sound, RATE, 0.0))
    power = librosa.feature.melspectrogram(y=sound, sr=RATE, n_fft=512, win_length=400, hop_length=160, n_mels=80, center=False, pad_mode="constant")
    # librosa centres the 400 samples in 512; row r of ours starts at 160 r, so its frame starts 56 samples earlier.
    shifted = librosa.feature.melspectrogram(
        y=np.concatenate([np.zeros(56, np.float32), sound]), sr=RATE, n_fft=512, win_length=400, hop_length=160, n_mels=80, center=False
    )
    assert power.shape[0] == 80
    reading = driver.at(0.3)
    last = (round((0.3 + LOOK_AHEAD) * RATE) - 400) // 160
    assert np.allclose(reading.logmel, np.log10(np.maximum(shifted.T[last - 15 : last + 1], 1e-10)), atol=1e-3)
    assert reading.logmel.shape == (16, 80)
    assert reading.pcm.shape == (2560,)
    end = round((0.3 + LOOK_AHEAD) * RATE)
    assert np.array_equal(reading.pcm, sound[end - 2560 : end])


@settings(max_examples=12, deadline=None)
@given(st.integers(7, 4000), st.sampled_from([8_000, 16_000, 22_050, 44_100, 48_000]))
def test_streaming_equals_offline_for_every_chunk_size(chunk: int, rate: int) -> None:
    sound, _ = spoken()
    piece = sound[:rate]  # as if it had this rate: the numbers do not care
    whole, parts = drive(piece, rate, chunk=len(piece)), drive(piece, rate, chunk=max(chunk, rate // 500))
    assert len(whole) >= 25
    assert all(same(a, b) for a, b in zip(whole, parts, strict=True))


@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_nothing_later_than_the_look_ahead_matters(rate: int) -> None:
    sound, _ = spoken()
    piece = sound[:rate].copy()
    at = 0.5
    changed = piece.copy()
    changed[round((at + LOOK_AHEAD) * rate) :] = 0.7
    readings = []
    for version in (piece, changed):
        driver = SpeechDriver()
        driver.hear(AudioChunk(version, rate, 0.0))
        readings.append(driver.at(at))
    assert same(*readings)
    changed[round((at + LOOK_AHEAD) * rate) - 200 :] = 0.7
    driver = SpeechDriver()
    driver.hear(AudioChunk(changed, rate, 0.0))
    assert not same(readings[0], driver.at(at))
    assert LOOK_AHEAD <= 0.1


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 24_000, 44_100, 48_000, 96_000])
def test_resampling_keeps_speech_and_drops_what_would_alias(rate: int) -> None:
    t = np.arange(rate) / rate
    low, high = (np.sin(2 * np.pi * hz * t).astype(np.float32) for hz in (1000.0, 9500.0))
    resampler = Resampler(rate)
    made = resampler.push(low)
    expected = np.sin(2 * np.pi * 1000.0 * (np.arange(len(made)) / RATE - resampler.delay))
    assert len(made) == RATE
    assert resampler.delay <= 0.004
    assert np.abs(made - expected)[200:-200].max() < 2e-3
    if rate > 2 * 9500:
        assert np.abs(Resampler(rate).push(high))[200:-200].max() < 2e-3


# -- time -------------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([16_000, 22_050, 44_100, 48_000]), st.sampled_from([24, 25, 30, 60]), st.integers(1, 5000), st.floats(0, 1e6))
def test_sound_is_gapless_and_sample_exact(rate: int, fps: int, chunk: int, start: float) -> None:
    chunk = max(chunk, rate // 200)
    sound = np.arange(rate, dtype=np.float32) / rate
    driver, given_back, k = SpeechDriver(), [np.zeros(0, np.float32)], 0
    for at in range(0, len(sound), chunk):
        driver.hear(AudioChunk(sound[at : at + chunk], rate, start + at / rate))
        while driver.heard_until >= start + (k + 1) / fps:
            begin = start + k / fps
            given_back += [piece.pcm for piece in driver.sound(begin, begin + 1 / fps)]
            k += 1
    joined = np.concatenate(given_back)
    assert len(joined) >= rate - chunk - rate / fps - 1
    assert np.array_equal(joined, sound[: len(joined)])


def test_sound_keeps_its_rate_and_says_its_time() -> None:
    driver = SpeechDriver()
    driver.hear(AudioChunk(np.full(4800, 0.1, np.float32), 48_000, 10.0))
    driver.hear(AudioChunk(np.full(2205, 0.2, np.float32), 22_050, 10.1))
    pieces = driver.sound(10.05, 10.15)
    assert [p.rate for p in pieces] == [48_000, 22_050]
    assert len(pieces[0].pcm) == 2400
    assert abs(len(pieces[1].pcm) - 1102.5) < 1
    assert [p.time for p in pieces] == pytest.approx([10.05, 10.1])
    assert driver.heard_until == pytest.approx(10.2)


def test_a_small_gap_is_bridged_and_an_overlap_cut() -> None:
    driver = SpeechDriver()
    ones = np.ones(1600, np.float32)
    driver.hear(AudioChunk(ones, RATE, 0.0))
    driver.hear(AudioChunk(ones, RATE, 0.15))
    assert driver.heard_until == pytest.approx(0.25)
    sound = np.concatenate([p.pcm for p in driver.sound(0.0, 0.25)])
    assert np.array_equal(sound, np.concatenate([ones, np.zeros(800, np.float32), ones]))
    driver.hear(AudioChunk(2 * ones, RATE, 0.20))
    assert driver.heard_until == pytest.approx(0.3)
    driver.hear(AudioChunk(ones, RATE, 0.303))  # jitter: contiguous
    assert driver.heard_until == pytest.approx(0.4)


@pytest.mark.parametrize("jump", [BRIDGE + 0.5, -3.0])
def test_a_large_jump_starts_afresh(jump: float) -> None:
    driver = SpeechDriver()
    driver.hear(AudioChunk(vowel("a", pitch=120, seconds=0.5), RATE, 10.0))
    driver.hear(AudioChunk(np.zeros(320, np.float32), RATE, 10.5 + jump))
    assert driver.heard_until == pytest.approx(10.52 + jump)
    assert driver.sound(10.0, 10.5) == []
    assert driver.at(10.2).mouth[0] == 0.0


def test_rate_changes_do_not_add_up_to_drift() -> None:
    driver, time = SpeechDriver(), 0.0
    for k in range(60):
        rate = (22_050, 44_100, 16_000)[k % 3]
        driver.hear(AudioChunk(np.zeros(441, np.float32), rate, time))
        time += 441 / rate
    click = np.zeros(RATE // 5, np.float32)
    click[1600] = 1.0
    driver.hear(AudioChunk(click, RATE, time))
    pcm = driver.at(time + 0.1 - LOOK_AHEAD + 0.05).pcm
    assert int(np.abs(pcm).argmax()) == pytest.approx(2560 - 800, abs=3)


def test_what_was_not_heard_is_silence() -> None:
    driver = SpeechDriver()
    assert driver.heard_until == float("-inf")
    nothing = driver.at(3.0)
    assert (nothing.logmel == LOG_FLOOR).all()
    assert nothing.mouth.tolist() == [0, 0, 0, 0]
    assert driver.sound(0.0, 1.0) == []
    driver.clear()


def test_the_mouth_closes_gently_where_the_sound_stops_coming() -> None:
    driver = SpeechDriver()
    driver.hear(AudioChunk(vowel("a", pitch=120, seconds=1.0)[: -RATE // 4], RATE, 0.0))
    gaps = np.array([driver.at(0.6 + k / 100).mouth[0] for k in range(40)])
    assert gaps[0] > 0.15
    assert gaps[-1] == 0.0
    assert np.abs(np.diff(gaps)).max() < 0.05


def test_memory_is_bounded() -> None:
    driver = SpeechDriver()
    for k in range(300):
        driver.hear(AudioChunk(np.zeros(960, np.float32), (48_000, 24_000)[k // 10 % 2], k * 0.03))
    assert driver._track is not None
    assert len(driver._track.takes) < 20
    driver.hear(AudioChunk(np.zeros(48_000 * 30, np.float32), 48_000, 9.0))  # 30 s at once: only the end is kept
    assert len(driver._track.pcm._data) < 3 * RING * RATE


def test_clear_forgets_what_was_not_shown_and_the_clock_runs_on() -> None:
    driver = SpeechDriver()
    driver.hear(AudioChunk(vowel("a", pitch=120, seconds=1.0), RATE, 0.0))
    shown = driver.sound(0.0, 0.5)
    until = driver.heard_until
    driver.clear()
    rest = np.concatenate([p.pcm for p in driver.sound(0.5, 1.0)])
    assert np.abs(shown[0].pcm).max() > 0.2
    assert len(rest) == 8000
    assert (rest[200:] == 0).all()
    assert np.abs(np.diff(rest[:200])).max() < 0.2
    assert driver.heard_until == until
    assert driver.at(0.65).mouth[0] == 0.0
    assert (driver.at(0.8).pcm == 0).all()
    driver.hear(AudioChunk(vowel("a", pitch=120, seconds=0.5), RATE, until))
    assert driver.at(until + 0.2).mouth[0] > 0.1


def test_sound_that_moves_no_lips_is_kept_but_not_read_until_it_does() -> None:
    """A camera call's microphone costs no analysis; from the moment the voice drives, it is read."""
    (sound, rate), split = spoken(), 3.0
    whole, late = SpeechDriver(), SpeechDriver()
    step = rate // 50
    for k in range(round(5.0 * 50)):
        piece = AudioChunk(sound[k * step : (k + 1) * step], rate, k / 50)
        whole.hear(piece)
        late.hear(piece, read=piece.time >= split)
        if k == 149:
            assert late.at(2.5).mouth[0] == 0.0 < max(whole.at(t).mouth[0] for t in np.arange(2.0, 2.9, 0.05)), "unread sound reads as silence"
    gaps = np.array([[driver.at(t).mouth[0] for t in np.arange(split + 0.3, 4.8, 1 / FPS)] for driver in (whole, late)])
    assert np.corrcoef(gaps)[0, 1] > 0.9, "and soon after it is read the lips are where they would have been"
    heard = np.concatenate([chunk.pcm for chunk in late.sound(4.0, 5.0)])
    assert np.array_equal(heard, sound[4 * rate : 5 * rate]), "not a sample is lost"


def test_hearing_and_asking_from_two_threads() -> None:
    driver = SpeechDriver()
    sound, rate = spoken()
    errors: list[BaseException] = []
    done = threading.Event()

    def ask() -> None:
        try:
            while not done.is_set():
                end = driver.heard_until
                if np.isfinite(end):
                    assert np.isfinite(driver.at(end - 0.1).mouth).all()
                    driver.sound(end - 0.1, end)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    for at in range(0, 2 * rate, rate // 50):
        driver.hear(AudioChunk(sound[at : at + rate // 50], rate, at / rate))
    done.set()
    thread.join()
    assert not errors


@pytest.mark.parametrize(
    ("pcm", "rate", "time"),
    [
        (np.zeros((2, 100), np.float32), RATE, 0.0),
        (np.zeros(100, np.int16), RATE, 0.0),
        (np.full(100, np.nan, np.float32), RATE, 0.0),
        (np.zeros(100, np.float32), RATE, float("inf")),
        (np.zeros(100, np.float32), 4_000, 0.0),
        (np.zeros(100, np.float32), 1_000_000, 0.0),
    ],
)
def test_sound_that_is_none_is_refused_and_changes_nothing(pcm: FloatArray, rate: int, time: float) -> None:
    driver = SpeechDriver()
    with pytest.raises(AvatarError):
        driver.hear(AudioChunk(pcm, rate, time))
    assert driver.heard_until == float("-inf")
    driver.hear(AudioChunk(np.zeros(0, np.float32), RATE, 0.0))
    driver.hear(AudioChunk(np.zeros(320, np.float32), RATE, 0.0))
    with pytest.raises(AvatarError):
        driver.hear(AudioChunk(pcm, rate, 0.02 if time == 0.0 else time))
    assert driver.heard_until == pytest.approx(0.02)


# -- lips -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("voice", ["en-us", "en-us+f3", "en-us+m7", "de"])
@pytest.mark.parametrize("gain", [0.02, 1.0])
def test_the_lips_follow_the_voice_without_lag(voice: str, gain: float) -> None:
    sound, rate = spoken(voice)
    gap = mouths(gain * sound, rate)[:, 0]
    loudness = envelope(sound, rate, len(gap))
    lags = {lag: correlation(loudness, gap, lag) for lag in range(-4, 5)}
    assert lags[0] >= 0.75
    assert max(lags, key=lambda lag: lags[lag]) in (-1, 0, 1)
    assert 0.2 < gap.max() <= WIDEST_GAP * 1.01
    assert (gap >= 0).all()


def test_lips_are_shut_in_silence_soon_after_speech() -> None:
    speech = 0.3 * spoken("en-us", "Five big frogs.")[0]
    rate = spoken("en-us", "Five big frogs.")[1]
    quiet = (1e-4 * np.random.default_rng(0).standard_normal(rate)).astype(np.float32)
    last = int(np.flatnonzero(np.abs(speech) > 0.01)[-1])
    sound = np.concatenate([quiet, speech[:last], quiet, quiet])
    shut = mouths(sound, rate)[:, 0]
    end = int((1 + last / rate + 0.15) * FPS) + 1
    assert (shut[:25] == 0).all()
    assert (shut[end:] == 0).all()


@pytest.mark.parametrize("kind", ["white", "pink", "brown", "hum50", "hum120", "fan", "keys"])
@pytest.mark.parametrize("decibels", [-55, -25])
def test_noise_does_not_move_the_mouth(kind: str, decibels: float) -> None:
    room = noise("white", 1.0, decibels=-75, seed=9)
    moved = mouths(np.concatenate([room, noise(kind, 3.0, decibels=decibels)]))
    assert np.abs(moved).max() < 0.02


@pytest.mark.parametrize("kind", ["white", "fan"])
def test_a_voice_in_noise_is_still_followed(kind: str) -> None:
    sound, rate = spoken("en-us+f3")
    level = float(np.sqrt((sound**2).mean()))
    sixteen = Resampler(rate).push(sound)
    loud = sixteen + noise(kind, len(sixteen) / RATE, decibels=20 * np.log10(level) - 12)
    gap = mouths(loud.astype(np.float32))[:, 0]
    assert correlation(envelope(sixteen, RATE, len(gap)), gap, 0) > 0.7


@pytest.mark.parametrize(("pitch", "size"), [(100, 1.0), (210, 1.15), (300, 1.3)])
def test_vowels_have_their_shapes_in_every_voice(pitch: float, size: float) -> None:
    quiet = noise("white", 0.4, decibels=-75)
    shape = {}
    for name in "aiou":
        moved = mouths(np.concatenate([quiet, vowel(name, pitch=pitch, seconds=0.6, size=size), quiet]))
        shape[name] = moved[18:28].mean(0)
    gap, width, rounded = ({name: float(values[k]) for name, values in shape.items()} for k in (0, 1, 2))
    assert gap["a"] > 0.22
    assert gap["a"] > 1.6 * gap["i"] > 0
    assert width["i"] > 0.05 > width["u"]
    assert rounded["u"] > 0.4 > rounded["a"]
    assert rounded["o"] > 0.2 > rounded["i"]


def test_a_long_vowel_stays_open() -> None:
    held = np.concatenate([noise("white", 0.5, decibels=-75), vowel("a", pitch=120, seconds=4.0), noise("white", 0.5, decibels=-75)])
    gap = mouths(held)[:, 0]
    assert gap[20:125].min() > 0.15
    assert gap[-5:].max() == 0.0


def test_m_closes_the_lips_inside_a_word() -> None:
    sound, rate = spoken("en-us", "Mama. Mama. Mama.")
    gap = np.array([reading.mouth[0] for reading in drive(sound, rate, fps=100)])
    wide = gap > 0.12
    opened = np.flatnonzero(wide[1:] & ~wide[:-1])
    assert len(opened) == 6  # two syllables in each
    valleys = [gap[a:b].min() for a, b in zip(opened[:-1], opened[1:], strict=True)]
    assert max(valleys) < 0.05


def test_hearing_and_reading_cost_little() -> None:
    sound, rate = spoken()
    driver = SpeechDriver()
    took = []
    for at in range(0, 4 * rate, rate // 30):
        before = clock.thread_time()
        driver.hear(AudioChunk(sound[at : at + rate // 30], rate, at / rate))
        driver.at(at / rate - 0.1)
        took.append(clock.thread_time() - before)
    assert np.median(took) < 0.0025  # s of CPU a frame; 0.8 ms on a quiet machine
