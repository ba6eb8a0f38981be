"""What happens to speech on its way: noise, rooms, telephones, other pitches and paces; and sound without speech.

Waves are float32 mono [n_samples] in [-1, 1] at 16 kHz, in and out. Whatever is drawn comes from the `rng` given.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from llasm import audio

SILENCE_RMS = 1e-4  # below it a wave counts as silent: no level to set noise against


def rms(wave: audio.Wave) -> float:
    return float(np.sqrt(np.mean(np.square(wave, dtype=np.float64)))) if len(wave) else 0.0


def gain(wave: audio.Wave, db: float) -> audio.Wave:
    """Louder or softer by `db`; scaled back where it would clip."""
    return limited(wave * np.float32(10 ** (db / 20)))


def limited(wave: audio.Wave) -> audio.Wave:
    peak = float(np.abs(wave).max()) if len(wave) else 0.0
    return (wave / peak if peak > 1 else wave).astype(np.float32)


def add_noise(wave: audio.Wave, noise: audio.Wave, snr_db: float, rng: Generator) -> audio.Wave:
    """`wave` with a stretch of `noise`, repeated where it is shorter, at that signal-to-noise ratio in dB.

    The level of speech is taken where it is loud enough to be speech, so that pauses do not raise the ratio.
    """
    noise = stretch_of(noise, len(wave), rng)
    loud = wave[np.abs(wave) > 0.02 * np.abs(wave).max()] if len(wave) and np.abs(wave).max() > 0 else wave
    if rms(loud) < SILENCE_RMS or rms(noise) < SILENCE_RMS:
        return wave
    return limited(wave + noise * np.float32(rms(loud) / rms(noise) * 10 ** (-snr_db / 20)))


def stretch_of(wave: audio.Wave, n_samples: int, rng: Generator) -> audio.Wave:
    """n_samples from a random place of `wave`, going round at its end."""
    if not len(wave):
        return np.zeros(n_samples, np.float32)
    start = int(rng.integers(len(wave)))
    return np.resize(np.roll(wave, -start), n_samples)


def telephone(wave: audio.Wave) -> audio.Wave:
    """300 to 3400 Hz at 8 kHz and 8-bit mu-law, as ITU-T G.711 carries it."""
    import soxr
    from scipy.signal import butter, sosfilt

    band = butter(4, (300, 3400), "bandpass", fs=audio.SAMPLE_RATE, output="sos")
    narrow = soxr.resample(sosfilt(band, wave).astype(np.float32), audio.SAMPLE_RATE, 8000)
    mu = 255.0
    coded = np.sign(narrow) * np.log1p(mu * np.minimum(np.abs(narrow), 1)) / np.log1p(mu)
    levels = np.round(coded * 127) / 127
    decoded = np.sign(levels) * np.expm1(np.abs(levels) * np.log1p(mu)) / mu
    wide = soxr.resample(decoded.astype(np.float32), 8000, audio.SAMPLE_RATE)
    return limited(np.resize(wide, len(wave)) if len(wide) < len(wave) else wide[: len(wave)])


def room(wave: audio.Wave, rng: Generator) -> audio.Wave:
    """As heard by a microphone in a shoebox room of 3 to 8 m and 0.2 to 0.7 s reverberation, drawn by `rng`.

    Image-source method (Allen and Berkley 1979) by pyroomacoustics; the direct sound keeps its place and level.
    """
    import pyroomacoustics

    size = rng.uniform([3, 3, 2.4], [8, 6, 3.5])
    absorption, order = pyroomacoustics.inverse_sabine(float(rng.uniform(0.2, 0.7)), size)
    shoebox = pyroomacoustics.ShoeBox(
        size, fs=audio.SAMPLE_RATE, materials=pyroomacoustics.Material(absorption), max_order=min(order, 12)
    )
    speaker, microphone = (rng.uniform(0.5, size - 0.5) for _ in range(2))
    # It adds up its threads' parts in as many pieces as there are cores: one gives the same sum everywhere.
    pyroomacoustics.constants.set("num_threads", 1)
    shoebox.add_source(speaker)
    shoebox.add_microphone(microphone)
    shoebox.compute_rir()
    response = np.asarray(shoebox.rir[0][0], np.float64)  # of the microphone to the source
    return reverberated(wave, response)


def reverberated(wave: audio.Wave, response: np.ndarray) -> audio.Wave:
    """`wave` through an impulse response, as long as before, its direct sound in place and at its level."""
    from scipy.signal import fftconvolve

    direct = int(np.argmax(np.abs(response)))
    wet = fftconvolve(wave, response[direct:] / response[direct])[: len(wave)]
    return limited(wet.astype(np.float32))


def shifted(wave: audio.Wave, semitones: float, pace: float) -> audio.Wave:
    """Higher by `semitones`, and `pace` times as fast, each without the other (Signalsmith Stretch)."""
    import python_stretch.Signalsmith as signalsmith

    stretch = signalsmith.Stretch()
    stretch.preset(1, audio.SAMPLE_RATE)
    stretch.setTransposeSemitones(semitones)
    stretch.timeFactor = pace
    stretched = np.asarray(stretch.process(wave[None]), np.float32)  # [1, n_samples]
    return limited(stretched[0])


def generated_noise(n_samples: int, rng: Generator) -> audio.Wave:
    """Noise whose spectrum falls with the frequency by a drawn power: white (0) to brown (2); peak 0.5."""
    spectrum = np.fft.rfft(rng.standard_normal(n_samples))
    slope = rng.uniform(0, 2)
    frequencies = np.maximum(np.fft.rfftfreq(n_samples, 1 / audio.SAMPLE_RATE), 20)
    noise = np.fft.irfft(spectrum * frequencies ** (-slope / 2), n_samples)
    return (0.5 * noise / max(np.abs(noise).max(), 1e-9)).astype(np.float32)


def generated_music(n_samples: int, rng: Generator) -> audio.Wave:
    """Chords of decaying harmonic tones over a beat; peak 0.5."""
    beat = int(audio.SAMPLE_RATE * rng.uniform(0.3, 0.7))
    root = 55 * 2 ** (rng.integers(12, 30) / 12)
    time = np.arange(min(4 * beat, n_samples)) / audio.SAMPLE_RATE
    music = np.zeros(n_samples + len(time))
    chords = ((0, 4, 7), (9, 12, 16), (5, 9, 12), (7, 11, 14))  # I, vi, IV, V of a major key
    for number, start in enumerate(range(0, n_samples, beat)):
        notes = [*chords[number // 4 % 4], 12 + int(rng.choice([0, 4, 7, 9]))]
        for note in notes:
            tone = root * 2 ** (note / 12)
            partials = sum(np.sin(2 * np.pi * tone * k * time) / k**2 for k in range(1, 6))
            music[start : start + len(time)] += partials * np.exp(-3 * time)
    music = music[:n_samples]
    return (0.5 * music / max(np.abs(music).max(), 1e-9)).astype(np.float32)
