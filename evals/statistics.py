"""Intervals for a mean, a ratio and a paired difference, and tests of the difference; None where there is none."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

CONFIDENCE = 0.95
N_RESAMPLES = 9999
_BATCH_VALUES = 20_000_000  # numbers held at once while resampling
SEED = 0  # the same answers give the same interval


def mean_interval(values: ArrayLike) -> tuple[float, float | None, float | None]:
    """(mean, low, high): bias-corrected and accelerated bootstrap (Efron 1987, "Better bootstrap confidence
    intervals"), where all values are 0 or all are 1 the exact binomial interval (Clopper and Pearson 1934)."""
    x = np.asarray(values, float)
    mean = float(x.mean())
    if np.all(x == x[0]):
        if x[0] not in (0, 1):
            return mean, None, None
        from scipy.stats import binomtest

        found = binomtest(int(x.sum()), len(x)).proportion_ci(CONFIDENCE, "exact")
        return mean, float(found.low), float(found.high)
    return mean, *_bca((x,), lambda x, axis: x.mean(axis=axis))


def ratio_interval(parts: ArrayLike, wholes: ArrayLike) -> tuple[float, float | None, float | None]:
    """(Σ parts / Σ wholes, low, high), such as a word error rate over utterances; items are resampled in pairs."""
    a, b = np.asarray(parts, float), np.asarray(wholes, float)
    ratio = float(a.sum() / b.sum())
    if np.all(a * b.sum() == b * a.sum()):
        return ratio, None, None
    return ratio, *_bca((a, b), lambda a, b, axis: a.sum(axis=axis) / b.sum(axis=axis))


def paired(ours: ArrayLike, theirs: ArrayLike) -> dict[str, float | None]:
    """The mean difference over the same items, its BCa interval and a two-sided p value.

    p is McNemar's exact test (1947) where every value is 0 or 1, else the test that swaps the two at random.
    """
    a, b = np.asarray(ours, float), np.asarray(theirs, float)
    difference = a - b
    if not difference.any():
        return {"gap": 0.0, "low": 0.0, "high": 0.0, "p": 1.0, "n": len(a)}
    low: float | None
    high: float | None
    if np.all(difference == difference[0]):
        low = high = None  # no spread to resample
    else:
        low, high = _bca((difference,), lambda x, axis: x.mean(axis=axis))
    if np.isin(np.concatenate([a, b]), (0, 1)).all():
        from scipy.stats import binomtest

        wins, losses = int((difference > 0).sum()), int((difference < 0).sum())
        p = float(binomtest(wins, wins + losses).pvalue)
    else:
        from scipy.stats import permutation_test

        found = permutation_test(
            (difference,), np.mean, permutation_type="samples", n_resamples=N_RESAMPLES, rng=SEED, batch=1000
        )
        p = float(found.pvalue)
    return {"gap": float(difference.mean()), "low": low, "high": high, "p": p, "n": len(a)}


def _bca(data: tuple[np.ndarray, ...], statistic: Any) -> tuple[float | None, float | None]:
    from scipy.stats import bootstrap

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a degenerate interval, which comes back as nan
        found = bootstrap(
            data,
            statistic,
            paired=len(data) > 1,
            vectorized=True,
            n_resamples=N_RESAMPLES,
            confidence_level=CONFIDENCE,
            method="BCa",
            batch=max(1, _BATCH_VALUES // len(data[0])),
            rng=SEED,
        )
    low, high = (float(end) for end in found.confidence_interval)
    return (None, None) if np.isnan(low) or np.isnan(high) else (low, high)
