"""Noise, rooms and lines: what they do to a wave can be measured."""

import numpy as np
import pytest

from llasm import audio, effects


def test_effects_do_what_they_say():
    wave = audio.decode("examples/france.wav")
    rng = np.random.default_rng
    noise = effects.generated_noise(8000, rng(0))
    noisy = effects.add_noise(wave, noise, 10, rng(1))
    scale = np.dot(noisy, wave) / np.dot(wave, wave)
    loud = np.abs(wave) > 0.02 * np.abs(wave).max()
    added = noisy - scale * wave
    assert 20 * np.log10(effects.rms(scale * wave[loud]) / effects.rms(added)) == pytest.approx(10, abs=0.3)
    spectrum = np.abs(np.fft.rfft(effects.telephone(wave))) ** 2
    frequencies = np.fft.rfftfreq(len(wave), 1 / 16_000)
    assert spectrum[frequencies > 4200].sum() < 1e-3 * spectrum.sum()
    assert len(effects.shifted(wave, 2, 1.1)) == pytest.approx(len(wave) / 1.1, rel=0.02)
    assert effects.rms(effects.gain(wave, -20)) == pytest.approx(effects.rms(wave) / 10, rel=1e-3)
    assert len(effects.room(wave, rng(2))) == len(wave)
    for effect in (effects.room, lambda w, r: effects.add_noise(w, noise, 0, r)):
        assert np.array_equal(effect(wave, rng(3)), effect(wave, rng(3)))
    for silent in (np.zeros(800, np.float32), np.zeros(0, np.float32)):
        assert np.array_equal(effects.add_noise(silent, noise, 0, rng(4)), silent)
