"""Intervals, paired tests, verdicts, and how much of a distortion a transformer undoes.

Errors are in percent, as in the paper's tables. Nothing here reads files.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

STILL = 1e-3  # movements below this, in units of the frame, count as none
TRIMMED = 0.05  # share of the farthest images that `variance_undone` leaves out


def wilson(errors: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval, in percent, for a rate, given `errors` out of `n` images."""
    # Imported here and below: it takes a second to load, and listing the cells of a table does not need it.
    from scipy import stats

    bounds = stats.binomtest(errors, n).proportion_ci(level, method="wilson")
    return 100 * float(bounds.low), 100 * float(bounds.high)


def t_interval(errors_percent: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Student's interval, in percent, for the mean over two or more seeds, cut off at 0 and 100."""
    if len(errors_percent) < 2:
        raise ValueError("an interval over seeds needs two seeds or more")
    from scipy import stats

    mean, spread = np.mean(errors_percent), stats.sem(errors_percent)
    half = stats.t.ppf((1 + level) / 2, len(errors_percent) - 1) * spread
    return max(0.0, float(mean - half)), min(100.0, float(mean + half))


class Counted(Protocol):
    """The errors that one seed makes: in percent, as a count, and of how many test images."""

    @property
    def error(self) -> float: ...

    @property
    def errors(self) -> int: ...

    @property
    def n_test(self) -> int: ...


def interval(seeds: Sequence[Counted], level: float = 0.95) -> tuple[float, float]:
    """The interval of one cell: Wilson's for one seed (over test images), Student's for more (over seeds)."""
    if len(seeds) == 1:
        return wilson(seeds[0].errors, seeds[0].n_test, level)
    return t_interval([seed.error for seed in seeds], level)


def mcnemar(correct_a: np.ndarray, correct_b: np.ndarray) -> tuple[float, int, int]:
    """McNemar's exact two-sided test of two models on the same images: (p, n01, n10).

    n01 counts the images that only b has right, n10 those that only a has right. Images on which both agree carry
    no information, so p is the chance of a split at least as uneven if each of the n01 + n10 were a fair coin.
    """
    correct_a, correct_b = np.asarray(correct_a, bool), np.asarray(correct_b, bool)
    if correct_a.shape != correct_b.shape:
        raise ValueError(f"paired models need the same images, not {correct_a.shape} and {correct_b.shape}")
    from scipy import stats

    n01, n10 = int((~correct_a & correct_b).sum()), int((correct_a & ~correct_b).sum())
    p = float(stats.binomtest(n01, n01 + n10).pvalue) if n01 + n10 else 1.0
    return p, n01, n10


def share_gained(
    baseline: np.ndarray, model: np.ndarray, ceiling: np.ndarray, level: float = 0.95, draws: int = 10_000
) -> tuple[float, float, float]:
    """The share, in percent, of the gap between the baseline's error and the ceiling's that a model closes.

    Each argument says which of the same test images (n,) are right. Returns the share and its interval, a percentile
    bootstrap over images, which depends only on the counts of the eight combinations. The share is nan without a gap,
    that is if the ceiling makes no fewer errors than the baseline; the interval is (nan, nan) if a resample has none.
    """
    kinds = np.asarray(baseline, int) + 2 * np.asarray(model, int) + 4 * np.asarray(ceiling, int)
    counts = np.bincount(kinds, minlength=8)
    right = np.array([[kind >> k & 1 for k in range(3)] for kind in range(8)])  # which of the three, by combination

    def share(counted: np.ndarray) -> np.ndarray:
        base, own, best = np.moveaxis(counted @ right, -1, 0)
        gap = np.where(best > base, best - base, np.nan)
        return np.asarray(100 * (own - base) / gap)

    resampled = share(np.random.default_rng(0).multinomial(len(kinds), counts / len(kinds), draws))
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])  # nan if any is nan
    return float(share(counts)), float(low), float(high)


def verdict(lo: float, hi: float, paper: float | None, tolerance: float = 0.05, comparable: bool = True) -> str:
    """better, within, worse or not comparable: the whole interval compared with the paper's value +- its rounding.

    With one decimal, a printed value stands for an interval of +- 0.05, and a bound that touches it is within.
    """
    if not comparable or paper is None:
        return "not comparable"
    slack = tolerance + 1e-9  # 1.25 + 0.05 is not 1.3 in binary
    return "better" if hi < paper - slack else "worse" if lo > paper + slack else "within"


def without_constant(true: np.ndarray, estimate: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The estimated pose with the network's own constant removed, and the residuals estimate - true.

    A transformer may bring objects to any canonical pose, so its estimate is defined up to a constant: a summand of
    `angle` (degrees, wrapped to +-180), `x` and `y` (pixels), a factor of `scale`, whose residuals are logarithms of
    the ratio. The returned estimate is the true pose plus the residual; for `scale`, times its exponential.
    """
    true, estimate = np.asarray(true, float), np.asarray(estimate, float)
    if name == "angle":
        turn = np.deg2rad(estimate - true)
        constant = np.arctan2(np.sin(turn).mean(), np.cos(turn).mean())
        residual = np.rad2deg(np.angle(np.exp(1j * (turn - constant))))
    elif name == "scale":
        ratio = np.log(estimate / true)
        residual = ratio - ratio.mean()
        return true * np.exp(residual), residual
    else:
        residual = estimate - true - (estimate - true).mean()
    return true + residual, residual


def share_explained(true: np.ndarray, residual: np.ndarray, name: str) -> float:
    """R^2 of the identity line: 1 - var(residual) / var(true), on the logarithm for `scale`. Can be negative."""
    true = np.log(true) if name == "scale" else np.asarray(true, float)
    return 1 - float(np.mean(np.square(residual)) / np.var(true))


def at_size_of(reference: np.ndarray, cloud: np.ndarray) -> np.ndarray:
    """`cloud` (N images, K points, 2) with all images scaled by one factor, to the size of `reference`.

    An image is scaled about the centre of its points. The size of a cloud is the median over images of the root of the
    summed squared distances of the points from that centre.
    """

    def size(points: np.ndarray) -> float:
        return float(np.sqrt(np.nanmedian(np.square(points - points.mean(1, keepdims=True)).sum((1, 2)))))

    with np.errstate(invalid="ignore", over="ignore"):
        reference, cloud = (np.where(np.isfinite(part), part, np.nan).astype(float) for part in (reference, cloud))
        centre = cloud.mean(1, keepdims=True)
        return np.asarray(centre + (cloud - centre) * (size(reference) / size(cloud)))


def scatter(cloud: np.ndarray) -> tuple[float, np.ndarray]:
    """The variance over images of a cloud's points (N, K, 2), summed, and which images count, bool (N,).

    The share `TRIMMED` of the farthest images is left out: a projective map sends a few points almost to infinity, and
    one image in a thousand would contribute nine tenths of the variance.
    """
    cloud = np.asarray(cloud, float)
    finite = np.isfinite(cloud).all((1, 2))
    n = min(int(finite.sum()), int(np.ceil((1 - TRIMMED) * len(cloud))))
    # Least trimmed squares: the mean of the nearest images and the images nearest to that mean, until they agree.
    centre, inliers = np.median(cloud[finite], 0), np.zeros(len(cloud), bool)
    for _ in range(50):
        displacement = np.square(cloud - centre).sum((1, 2))  # inf and nan sort last
        previous, inliers = inliers, np.zeros(len(cloud), bool)
        inliers[np.argsort(displacement, kind="stable")[:n]] = True
        centre = cloud[inliers].mean(0)
        if np.array_equal(previous, inliers):
            break
    return float(np.square(cloud[inliers] - centre).sum((1, 2)).mean()), inliers


def variance_undone(cloud_before: np.ndarray, cloud_after: np.ndarray) -> float:
    """Share of the pose variance that a transformer removes: 1 - scatter(after) / scatter(before).

    The clouds (N, K, 2) are the places of K fixed points of the canvas in each undistorted object's frame. 1 means that
    every image reaches the same pose, 0 that nothing is gained, a negative value that the spread grew. A constant zoom
    is removed first, because it would shrink a rotated cloud without undoing anything.
    """
    return 1 - scatter(at_size_of(cloud_before, cloud_after))[0] / scatter(cloud_before)[0]


def seen(windows: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How well windows (N, 4 corners, 2) show boxes (N, x0 y0 x1 y1), all in one frame: two shares of areas, each (N,).

    The first is the share of the box inside the window's bounding box, the second the share of that bounding box inside
    the box. Both are 0 for a window without area and for one that is not finite.
    """
    windows, boxes = np.asarray(windows, float), np.asarray(boxes, float)
    windows = np.where(np.isfinite(windows).all((1, 2), keepdims=True), windows, 0)
    low, high = windows.min(1), windows.max(1)
    common = (np.minimum(high, boxes[:, 2:]) - np.maximum(low, boxes[:, :2])).clip(0).prod(1)
    area = (high - low).prod(1)
    return common / (boxes[:, 2:] - boxes[:, :2]).prod(1), np.divide(common, area, np.zeros_like(area), where=area > 0)


def holds(windows: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Which points (N images, K, 2) lie in their image's window (N, 4 corners, 2): (N, K), 1 or 0, nan for no point.

    A window is its bounding box, edges included. A window that is not finite holds no point.
    """
    windows, points = np.asarray(windows, float), np.asarray(points, float)
    low, high = windows.min(1)[:, None], windows.max(1)[:, None]
    inside = ((points >= low) & (points <= high)).all(-1) & np.isfinite(windows).all((1, 2))[:, None]
    return np.where(np.isfinite(points).all(-1), inside, np.nan)


def follow(windows: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
    """Correlations, in x and in y, of the centres of windows (N images, 4 corners, 2) with points (N, 2).

    nan if windows or points do not move. Images in which one of the two is not finite do not count.
    """
    centre, targets = np.asarray(windows, float).mean(1), np.asarray(targets, float)
    is_finite = np.isfinite(centre).all(1) & np.isfinite(targets).all(1)
    if not is_finite.any():
        return np.nan, np.nan
    x, y = (
        np.nan if min(np.ptp(a), np.ptp(b)) < STILL else float(np.corrcoef(a, b)[0, 1])
        for a, b in zip(centre[is_finite].T, targets[is_finite].T, strict=True)
    )
    return x, y


def centres(windows: np.ndarray) -> tuple[np.ndarray, float]:
    """The mean of the centres of windows (N images, 4 corners, 2), (2,), and how far the centres move.

    The second is the root mean square of the distances of the centres from their mean, in the units of the corners.
    Windows that are not finite do not count.
    """
    centre = np.asarray(windows, float).mean(1)
    centre = centre[np.isfinite(centre).all(1)]
    if not len(centre):
        return np.full(2, np.nan), np.nan
    return centre.mean(0), float(np.sqrt(np.square(centre - centre.mean(0)).sum(1).mean()))
