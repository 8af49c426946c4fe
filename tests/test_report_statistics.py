import itertools
import math

import numpy as np
import pytest

from batchramp.report.statistics import (
    effect_size,
    equivalence,
    holm,
    paired_t,
    seeds_needed,
    sign_flip,
)

RNG = np.random.default_rng(7)
SAMPLES = [RNG.standard_normal(n) + 0.4 for n in (1, 2, 3, 5, 8)] + [
    np.array([1.0, 1.0, -1.0, 0.0]),
    np.array([0.1, 0.2, 0.3, -0.6]),
]


def brute_sign_flip(d, alternative):
    sums = [
        math.fsum(s * x for s, x in zip(signs, d, strict=True))
        for signs in itertools.product((1, -1), repeat=len(d))
    ]
    seen = math.fsum(d)
    extreme = {
        "two-sided": lambda x: abs(x) >= abs(seen) - 1e-12,
        "greater": lambda x: x >= seen - 1e-12,
        "less": lambda x: x <= seen + 1e-12,
    }[alternative]
    return sum(map(extreme, sums)) / len(sums)


@pytest.mark.parametrize("d", SAMPLES, ids=lambda d: f"n{len(d)}")
@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
def test_sign_flip_counts_every_assignment(d, alternative):
    assert sign_flip(list(d), alternative) == brute_sign_flip(d, alternative)


def test_sign_flip_has_its_floor_and_no_direction():
    assert sign_flip([3.0] * 8) == 2 / 2**8
    assert sign_flip([3.0] * 8, "greater") == 1 / 2**8
    assert sign_flip([3.0] * 8, "less") == 1
    assert sign_flip([-x for x in SAMPLES[4]]) == sign_flip(list(SAMPLES[4]))


def test_sign_flip_of_many_seeds_is_drawn_and_repeatable():
    d = list(np.random.default_rng(1).standard_normal(24) + 0.45)
    assert sign_flip(d) == sign_flip(d)
    # Close to the normal approximation of the exact distribution: sum of ±d has variance Σ d².
    z = abs(sum(d)) / math.sqrt(sum(x * x for x in d))
    assert sign_flip(d) == pytest.approx(math.erfc(z / math.sqrt(2)), abs=0.01)
    assert 0 < sign_flip([1.0] * 40) < 1e-4


# t, degrees of freedom, two-sided p: from printed tables.
TABLE = [
    (12.706, 1, 0.05), (4.303, 2, 0.05), (3.182, 3, 0.05), (2.365, 7, 0.05), (3.499, 7, 0.01),
    (5.408, 7, 0.001), (2.262, 9, 0.05), (1.812, 10, 0.1), (2.045, 29, 0.05),
]  # fmt: skip


@pytest.mark.parametrize(("t", "degrees", "p"), TABLE)
def test_paired_t_against_tables(t, degrees, p):
    n = degrees + 1
    d = np.linspace(-1, 1, n)
    d = d / d.std(ddof=1) + t / math.sqrt(n)  # mean over standard error is t
    assert paired_t(list(d)) == pytest.approx(p, rel=3e-3)
    assert paired_t(list(d), "greater") == pytest.approx(p / 2, rel=3e-3)
    assert paired_t(list(d), "less") == pytest.approx(1 - p / 2, rel=3e-3)


def test_paired_t_against_numerical_integration():
    for degrees in (4, 7, 12):
        x = np.linspace(0, 1.7, 200_001)
        density = (1 + x**2 / degrees) ** (-(degrees + 1) / 2)
        density *= math.gamma((degrees + 1) / 2) / math.gamma(degrees / 2)
        density /= math.sqrt(degrees * math.pi)
        inside = 2 * float(((density[1:] + density[:-1]) / 2).sum()) * float(x[1])
        d = np.linspace(-1, 1, degrees + 1)
        d = d / d.std(ddof=1) + 1.7 / math.sqrt(degrees + 1)
        assert paired_t(list(d)) == pytest.approx(1 - inside, abs=1e-8)


def test_paired_t_without_spread():
    assert paired_t([0.1] * 8) == 0
    assert paired_t([0.1] * 8, "less") == 1
    assert paired_t([0.0] * 8) == 1
    assert paired_t([-0.3, -0.3], "less") == 0


def brute_holm(p):
    """By its definition: the largest multiplied p-value among those that are tested before."""
    order = sorted(p)
    return [max(min(1, (len(p) - i) * order[i]) for i in range(order.index(x) + 1)) for x in p]


def test_holm():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.2]) == [0.2]
    for _ in range(50):
        p = list(RNG.random(6))
        assert holm(p) == pytest.approx(brute_holm(p))
        assert all(a >= x for a, x in zip(holm(p), p, strict=True))


def test_holm_errs_in_at_most_the_level():
    """Of twelve true null hypotheses any is rejected in at most 5 % of cases."""
    rng = np.random.default_rng(3)
    false = sum(min(holm(list(rng.random(12)))) <= 0.05 for _ in range(2000))
    assert 0.03 < false / 2000 < 0.06


@pytest.mark.parametrize("test", [sign_flip, paired_t])
def test_equivalence_is_the_worse_of_two_one_sided_tests(test):
    d = [0.1, -0.2, 0.05, 0.12, -0.1, 0.2, 0.1, -0.15]
    worse = max(test([x + 0.3 for x in d], "greater"), test([x - 0.3 for x in d], "less"))
    assert equivalence(d, 0.3, test) == worse < 0.05
    assert equivalence([x + 0.3 for x in d], 0.3, test) > 0.05
    assert equivalence([x - 0.5 for x in d], 0.3, test) > 0.9


@pytest.mark.parametrize("test", [sign_flip, paired_t])
@pytest.mark.parametrize("skewed", [False, True])
def test_pairs_of_the_same_plan_are_seldom_declared_different(test, skewed):
    """Calibration: the same plan under relabelled seeds, at most 5 % at the level of 5 %."""
    rng = np.random.default_rng(11)
    draw = rng.exponential if skewed else rng.standard_normal
    different = sum(
        test(list(draw(size=8) - draw(size=8)), "two-sided") <= 0.05 for _ in range(1500)
    )
    assert 0.01 < different / 1500 < 0.065


def test_equivalence_at_the_margin_is_seldom_declared():
    rng = np.random.default_rng(12)
    alike = sum(
        equivalence(list(rng.standard_normal(8) + 0.5), 0.5, paired_t) <= 0.05 for _ in range(1500)
    )
    assert alike / 1500 < 0.065


def test_effect_size_and_seeds_needed():
    assert effect_size([1.0, 2.0, 3.0]) == 2
    assert math.isnan(effect_size([1.0, 1.0]))
    assert math.isnan(effect_size([1.0]))
    for tests in (1, 5, 6, 7, 40):
        n = seeds_needed(tests)
        assert 2 / 2**n * tests <= 0.05 < 2 / 2 ** (n - 1) * tests
        n = seeds_needed(tests, sides=1)
        assert 1 / 2**n * tests <= 0.05 < 1 / 2 ** (n - 1) * tests


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sign_flip([]), "differences"),
        (lambda: sign_flip([1.0, math.nan]), "differences"),
        (lambda: sign_flip([1.0], "both"), "alternative"),
        (lambda: paired_t([1.0]), "differences"),
        (lambda: paired_t([1.0, 2.0], "both"), "alternative"),
        (lambda: equivalence([1.0, 2.0], 0), "margin"),
        (lambda: holm([0.1, 1.5]), "p_values"),
    ],
)
def test_refusals_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()
