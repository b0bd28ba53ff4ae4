"""Promises of the statistics, against numbers worked by hand or printed in the literature."""

from types import SimpleNamespace

import numpy as np
import pytest

from stn.report.statistics import (
    centres,
    follow,
    holds,
    interval,
    mcnemar,
    scatter,
    seen,
    share_explained,
    share_gained,
    t_interval,
    variance_undone,
    verdict,
    wilson,
    without_constant,
)

GRID = np.array([[x, y] for y in (-0.6, 0, 0.6) for x in (-0.6, 0, 0.6)])


@pytest.mark.parametrize(
    ("errors", "n", "low", "high"),
    [
        (81, 263, 25.53, 36.62),  # Newcombe 1998, Statistics in Medicine 17, table I
        (15, 148, 6.24, 16.05),
        (0, 20, 0.00, 16.11),
        (1, 29, 0.61, 17.18),
    ],
)
def test_wilson_matches_the_literature(errors, n, low, high):
    assert wilson(errors, n) == pytest.approx((low, high), abs=0.006)


def test_wilson_matches_its_formula():
    z, n, p = 1.959963984540054, 10000, 0.0162
    centre, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    expected = [100 * (centre + sign * half) / (1 + z * z / n) for sign in (-1, 1)]
    assert wilson(162, 10000) == pytest.approx(expected, rel=1e-12)


def test_interval_is_wilson_for_one_seed_and_student_for_more():
    seeds = [SimpleNamespace(error=error, errors=round(100 * error), n_test=10000) for error in (0.7, 0.8, 0.9)]
    assert interval(seeds[:1]) == wilson(70, 10000)
    # t(0.975, 2) = 4.30265 times 0.1 / sqrt(3)
    assert interval(seeds) == pytest.approx((0.8 - 0.248414, 0.8 + 0.248414), abs=1e-5)


def test_interval_over_seeds_stays_a_percentage():
    assert t_interval([0.0, 1.0])[0] == 0 and t_interval([99.0, 100.0])[1] == 100
    assert t_interval([1.5, 1.5]) == (1.5, 1.5)
    with pytest.raises(ValueError, match="two seeds"):
        t_interval([1.0])


def test_mcnemar_by_hand():
    # 1 + 5 discordant: p = 2 * (C(6,0) + C(6,1)) / 2^6 = 14/64; 20 images on which both agree change nothing.
    a = np.array([True] * 5 + [False] * 1 + [True] * 12 + [False] * 8)
    b = np.array([False] * 5 + [True] * 1 + [True] * 12 + [False] * 8)
    assert mcnemar(a, b) == (pytest.approx(14 / 64), 1, 5)
    assert mcnemar(b, a) == (pytest.approx(14 / 64), 5, 1)
    assert mcnemar(a, a) == (1.0, 0, 0)
    with pytest.raises(ValueError, match="same images"):
        mcnemar(a, b[:-1])


@pytest.mark.parametrize(
    ("lo", "hi", "paper", "expected"),
    [
        (0.5, 0.64, 0.7, "better"),
        (0.5, 0.65, 0.7, "within"),  # the bound that touches the paper's rounding
        (0.75, 0.9, 0.7, "within"),
        (1.25 + 0.05, 1.4, 1.25, "within"),
        (0.76, 0.9, 0.7, "worse"),
        (0.1, 9.0, 0.7, "within"),
        (0.1, 9.0, None, "not comparable"),
    ],
)
def test_verdict_is_by_the_whole_interval(lo, hi, paper, expected):
    assert verdict(lo, hi, paper) == expected
    assert verdict(lo, hi, paper, comparable=False) == "not comparable"


def test_constant_of_the_canonical_pose_is_removed():
    true = np.linspace(-90, 90, 181)
    shown, residual = without_constant(true, (true + 170 + 180) % 360 - 180, "angle")
    np.testing.assert_allclose(residual, 0, atol=1e-9)
    np.testing.assert_allclose(shown, true, atol=1e-9)
    scale = np.linspace(0.7, 1.2, 50)
    assert np.abs(without_constant(scale, 1.7 * scale, "scale")[1]).max() < 1e-12
    assert np.abs(without_constant(scale, scale - 3, "x")[1]).max() < 1e-12


def test_share_explained_is_zero_for_a_transformer_that_finds_nothing():
    true = np.linspace(-90, 90, 181)
    for found, share in ((np.zeros(181), 0.0), (0.5 * true, 0.75), (-true, -3.0), (true + 40, 1.0)):
        _, residual = without_constant(true, found, "x")
        assert share_explained(true, residual, "x") == pytest.approx(share, abs=1e-9)


def turned(degrees):
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return GRID @ np.moveaxis(np.array([[c, -s], [s, c]]), -1, 0)


def test_variance_undone_knows_its_ends():
    shifts = np.random.default_rng(0).uniform(-0.5, 0.5, (400, 1, 2))
    before = GRID + shifts
    assert variance_undone(before, np.broadcast_to(GRID, before.shape)) == 1
    assert variance_undone(before, before) == 0
    assert variance_undone(before, GRID + 0.5 * shifts) == pytest.approx(0.75)
    assert variance_undone(before, GRID + 2 * shifts) == pytest.approx(-3)


def test_a_transformer_that_only_zooms_or_turns_undoes_nothing():
    rng = np.random.default_rng(0)
    angles, shifts = rng.uniform(-90, 90, 400), rng.uniform(-0.5, 0.5, (400, 1, 2))
    assert variance_undone(GRID + shifts, 0.5 * GRID + shifts) == pytest.approx(0)
    assert variance_undone(GRID + shifts, 2 * GRID + shifts) == pytest.approx(0)
    assert variance_undone(turned(angles), 0.5 * turned(angles)) == pytest.approx(0)
    assert variance_undone(turned(angles), turned(angles + 30) + 0.2) == pytest.approx(0, abs=0.01)


def test_a_point_near_infinity_does_not_decide_the_variance():
    clouds = GRID + np.random.default_rng(0).uniform(-0.5, 0.5, (400, 1, 2))
    wild = clouds.copy()
    wild[3, 4], wild[5, 0], wild[7, 8] = 700, np.inf, np.nan
    assert scatter(wild)[0] == pytest.approx(scatter(clouds)[0], rel=0.05)
    assert not scatter(wild)[1][[3, 5, 7]].any()


SQUARE = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])


@pytest.mark.parametrize(
    ("window", "box", "inside", "filled"),
    [
        (SQUARE, (-0.5, -0.25, 0.5, 0.25), 1, 0.125),  # the whole image
        (0.5 * SQUARE, (-0.5, -0.5, 0.5, 0.5), 1, 1),  # the box itself
        (0.5 * SQUARE[::-1], (-0.5, -0.5, 0.5, 0.5), 1, 1),  # mirrored
        (0.25 * SQUARE, (-0.5, -0.5, 0.5, 0.5), 0.25, 1),  # inside the box
        (0.5 * SQUARE, (0, 0, 1, 0.5), 0.5, 0.25),  # cuts it in two
        (0.5 * SQUARE, (0.5, 0.5, 1, 1), 0, 0),  # touches it
        (0.5 * SQUARE, (0.6, -0.5, 1, 0.5), 0, 0),  # beside it
        (0.5 * SQUARE @ [[1, 1], [-1, 1]], (-0.5, -0.5, 0.5, 0.5), 1, 0.25),  # a turned window is its bounding box
        (0 * SQUARE, (-0.5, -0.5, 0.5, 0.5), 0, 0),  # collapsed
        (np.inf * SQUARE, (-0.5, -0.5, 0.5, 0.5), 0, 0),  # flown away
    ],
)
def test_share_of_the_box_inside_and_of_the_window_filled_by_hand(window, box, inside, filled):
    windows, boxes = np.array([window, SQUARE]), np.array([box, (-1, -1, 0, 0)])
    shares = seen(windows, boxes)
    assert [share[0] for share in shares] == pytest.approx([inside, filled])
    assert [share[1] for share in shares] == pytest.approx([1, 0.25])


def test_what_a_window_holds_by_hand():
    windows = np.array([0.5 * SQUARE, 0.5 * SQUARE + 0.5, np.inf * SQUARE, np.nan * SQUARE])
    points = np.array([(0, 0), (0.5, 0.5), (-0.1, 0), (0.6, 0.2), (np.nan, np.nan)])  # one on the edge, one not visible
    held = holds(windows, np.stack([points] * 4))
    np.testing.assert_array_equal(
        held, [[1, 1, 1, 0, np.nan], [1, 1, 0, 1, np.nan], [0, 0, 0, 0, np.nan], [0, 0, 0, 0, np.nan]]
    )


def test_how_far_a_window_moves_by_hand():
    moved = np.array([[0.3, 0.4], [-0.3, -0.4], [0, 0.5], [0, -0.5]])
    windows = 0.5 * SQUARE + np.add(moved, [0.1, -0.2])[:, None]
    lost = np.concatenate([windows, [np.nan * SQUARE]])
    for found in (windows, lost):
        where, how_far = centres(found)
        assert where == pytest.approx([0.1, -0.2]) and how_far == pytest.approx(0.5)
    assert centres(np.stack([SQUARE] * 3))[1] == 0
    assert np.isnan(centres(lost[-1:])[1])


def test_the_share_of_a_gain_is_that_of_the_errors_and_its_interval_covers_it():
    rng = np.random.default_rng(5)
    covered = []
    for _ in range(60):
        skill = rng.random(3000)
        baseline, ours, ceiling = (rng.random(3000) * 0.02 + skill > level for level in (0.06, 0.045, 0.03))
        share, low, high = share_gained(baseline, ours, ceiling)
        errors = [100 * (1 - one.mean()) for one in (baseline, ours, ceiling)]
        assert share == pytest.approx(100 * (errors[0] - errors[1]) / (errors[0] - errors[2]))
        covered.append(low < 50 < high)
    assert np.mean(covered) > 0.85


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("gap", "expected"),
    [(3, 100 * 10 / 3), (0, np.nan), (-2, np.nan)],  # images that the ceiling has right beyond the baseline
)
def test_the_share_of_a_gap_that_may_not_be_there_has_no_interval(gap, expected):
    baseline, ours, ceiling = (np.arange(100) < right for right in (60, 70, 60 + gap))
    ceiling = np.roll(ceiling, 5)  # so that some resamples have a gap the other way
    share, low, high = share_gained(baseline, ours, ceiling)
    assert share == pytest.approx(expected, nan_ok=True) and np.isnan([low, high]).all()


def test_a_window_follows_what_its_centre_goes_with_axis_by_axis():
    draws = np.random.default_rng(0)
    targets, noise = draws.uniform(-0.5, 0.5, (2, 200, 2))
    centre = np.column_stack([0.3 - 0.5 * targets[:, 0], noise[:, 1]])
    windows = SQUARE + centre[:, None]
    x, y = follow(windows, targets)
    assert x == pytest.approx(-1) and y == pytest.approx(np.corrcoef(noise[:, 1], targets[:, 1])[0, 1])
    windows[0], targets[1] = np.inf, np.nan  # as if they were not there
    assert follow(windows, targets) == pytest.approx(follow(windows[2:], targets[2:]))
    assert follow(windows, targets)[0] == pytest.approx(-1)


def test_what_stands_still_is_followed_by_nothing_and_follows_nothing():
    targets = np.random.default_rng(0).uniform(-0.5, 0.5, (20, 2))
    windows = SQUARE + targets[:, None]
    still = np.tile(SQUARE, (20, 1, 1)) + np.random.default_rng(1).uniform(-1e-4, 1e-4, (20, 1, 2))
    assert np.isnan(follow(still, targets)).all()
    assert np.isnan(follow(windows, np.column_stack([targets[:, 0], np.zeros(20)]))[1])
    assert np.isnan(follow(windows[:0], targets[:0])).all()
