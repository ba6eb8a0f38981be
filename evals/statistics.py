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


def ratio_interval(parts: ArrayLike, wholes: ArrayLike) -> tuple[float | None, float | None, float | None]:
    """(Σ parts / Σ wholes, low, high), such as a word error rate over utterances; items are resampled in pairs."""
    a, b = np.asarray(parts, float), np.asarray(wholes, float)
    if not b.sum():
        return None, None, None
    ratio = float(a.sum() / b.sum())
    if len(a) < 2 or np.all(a * b.sum() == b * a.sum()):
        return ratio, None, None
    return ratio, *_bca((a, b), lambda a, b, axis: a.sum(axis=axis) / b.sum(axis=axis))


def paired(ours: ArrayLike, theirs: ArrayLike) -> dict[str, float | None]:
    """The mean difference over the same items, its BCa interval and a two-sided p value (None for fewer than two).

    p is McNemar's exact test (1947) where every value is 0 or 1, else the test that swaps the two at random. Where the
    two are alike in every item, the interval is what the exact bound on the share of unlike ones leaves open; where
    the values are not only 0 and 1, there is none.
    """
    a, b = np.asarray(ours, float), np.asarray(theirs, float)
    difference = a - b
    found: dict[str, float | None] = {"gap": float(difference.mean()) if len(a) else None, "low": None, "high": None}
    found |= {"p": None, "n": len(a)}
    if len(a) < 2:
        return found
    binary = bool(np.isin(np.concatenate([a, b]), (0, 1)).all())
    if not difference.any():
        found["p"] = 1.0
        if binary:
            from scipy.stats import binomtest

            bound = float(binomtest(0, len(a)).proportion_ci(CONFIDENCE, "exact").high)
            found["low"], found["high"] = -bound, bound
        return found
    if not np.all(difference == difference[0]):  # else there is no spread to resample
        found["low"], found["high"] = _bca((difference,), lambda x, axis: x.mean(axis=axis))
    if binary:
        from scipy.stats import binomtest

        wins, losses = int((difference > 0).sum()), int((difference < 0).sum())
        found["p"] = float(binomtest(wins, wins + losses).pvalue)
    else:
        found["p"] = _swapped(difference)
    return found


def paired_ratio(ours: ArrayLike, theirs: ArrayLike, wholes: ArrayLike) -> dict[str, float | None]:
    """As `paired`, of the difference of two ratios over the same items: (Σ ours - Σ theirs) / Σ wholes.

    Both ratios are resampled together, an item at a time.
    """
    difference = np.asarray(ours, float) - np.asarray(theirs, float)
    gap, low, high = ratio_interval(difference, wholes)
    if len(difference) < 2:
        return {"gap": gap, "low": None, "high": None, "p": None, "n": len(difference)}
    p = _swapped(difference) if difference.any() else 1.0
    return {"gap": gap, "low": low, "high": high, "p": p, "n": len(difference)}


def _swapped(difference: np.ndarray) -> float:
    from scipy.stats import permutation_test

    found = permutation_test(
        (difference,), np.mean, permutation_type="samples", n_resamples=N_RESAMPLES, rng=SEED, batch=1000
    )
    return float(found.pvalue)


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
    return (low, high) if np.isfinite([low, high]).all() else (None, None)
