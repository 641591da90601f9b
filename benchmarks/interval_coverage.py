"""How often the 95% intervals of every metric hold the true value, counted over patients.

    python benchmarks/interval_coverage.py --draws 600

Scores are normal in each class; a patient moves them with variance rho, half of it for both classes
together and half for each; a patient has about 30 patches, equally many (Poisson) or unequal
numbers (log-normal, sigma 0.8), with both classes (beta(4, 4)), mostly one (beta(0.4, 0.4)) or
exactly one. The AUROC is 0.7, 0.9 or 0.99 and rho 0.1, 0.3 or 0.5. The network's log-odds are 1.2
times the right ones plus 0.3, so that its calibration is off and its sensitivity is not its
specificity.

For each number of patients and each metric the script prints, over these cells: the least and the
mean coverage, the share of cells (of an AUROC of 0.7 and 0.9) that cover more than 0.995, how often
the truth lies below and above the interval, its mean width, and in how many draws there was one.
Last, how far one changed patch of 100 moves the bounds of the AUROC.
"""

import argparse
import concurrent.futures
import functools
import itertools
import math
import os
from collections.abc import Callable, Sequence

import numpy as np
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.stats import norm

from glomjax.evaluation import auroc_interval
from glomjax.evaluation.estimates import binary_estimates

PATIENTS = (2, 3, 4, 5, 6, 7, 8, 10, 15, 20, 40)
AREAS, CORRELATIONS = (0.7, 0.9, 0.99), (0.1, 0.3, 0.5)
MIXES, SIGMAS = ("both", "mostly", "one"), (0.0, 0.8)
PREVALENCE = 0.1  # at which PPV and NPV are also given
SLOPE, SHIFT = 1.2, 0.3  # by which the log-odds of the network differ from the right ones

Function = Callable[[float], float]
Cell = tuple[int, float, float, str, float]  # patients, area, correlation, mix, sigma


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=600, help="of each cell")
    parser.add_argument("--patients", type=int, nargs="+", default=PATIENTS)
    parser.add_argument("--metrics", nargs="+", default=[], help="by default all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    args = parser.parse_args()
    kinds = list(itertools.product(AREAS, CORRELATIONS, MIXES, SIGMAS))
    print(
        f"{'patients':<9}{'metric':<23}{'least':<7}{'mean':<7}{'>0.995':<8}{'below':<7}{'above':<7}"
        f"{'width':<7}drawn"
    )
    with concurrent.futures.ProcessPoolExecutor(args.jobs) as pool:
        for patients in args.patients:
            cells: list[Cell] = [(patients, *kind) for kind in kinds]
            found = pool.map(measure, cells, [args.draws] * len(cells), [args.seed] * len(cells))
            report(patients, cells, list(found), args.metrics)
    moves = [one_changed(np.random.default_rng([args.seed, n])) for n in range(200)]
    print(f"one changed patch of 100 of 5 patients moves a bound of the AUROC by {max(moves):.3f}")


def report(
    patients: int,
    cells: Sequence[Cell],
    found: Sequence[dict[str, np.ndarray]],
    metrics: Sequence[str],
) -> None:
    """Prints a line for each metric."""
    for name in metrics or found[0]:
        rows = np.array([part[name] for part in found])  # [cells, 5]
        known = rows[:, 4] > 0.5
        if not known.any():
            print(f"{patients:<9}{name:<23}none", flush=True)
            continue
        middle = np.array([cell[1] < 0.95 for cell in cells]) & known
        always = f"{(rows[middle, 0] > 0.995).mean():.2f}" if middle.any() else ""
        kept = rows[known]
        print(
            f"{patients:<9}{name:<23}{kept[:, 0].min():<7.3f}{kept[:, 0].mean():<7.3f}{always:<8}"
            f"{kept[:, 1].mean():<7.3f}{kept[:, 2].mean():<7.3f}{kept[:, 3].mean():<7.3f}"
            f"{rows[:, 4].mean():.2f}",
            flush=True,
        )


def measure(cell: Cell, draws: int, seed: int) -> dict[str, np.ndarray]:
    """{metric: shares of the draws that are covered, have the truth below, above; the mean width;
    the share of draws that have an interval}."""
    patients, area, correlation, mix, sigma = cell
    number = [patients, *(int(100 * x) for x in (area, correlation, sigma)), MIXES.index(mix)]
    rng = np.random.default_rng([seed, *number])
    distance = math.sqrt(2) * float(norm.ppf(area))
    true = truth(distance)
    rows: dict[str, list[tuple[float, float, float, float]]] = {name: [] for name in true}
    for _ in range(draws):
        labels, scores, groups = draw(rng, patients, distance, correlation, mix, sigma)
        log_odds = SLOPE * distance * (scores - distance / 2) + SHIFT
        bounds = {
            name: (estimate.interval.low, estimate.interval.high)
            for name, estimate in binary_estimates(
                labels, log_odds, groups, prevalence=PREVALENCE
            ).items()
        }
        for name, (low, high) in bounds.items():
            if not math.isnan(low):
                value = true[name]
                rows[name].append((low <= value <= high, value < low, value > high, high - low))
    return {
        name: np.append(np.mean(found, axis=0) if found else np.zeros(4), len(found) / draws)
        for name, found in rows.items()
    }


def draw(
    rng: np.random.Generator,
    patients: int,
    distance: float,
    correlation: float,
    mix: str,
    sigma: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(labels, scores, patients) of one data set with both classes."""
    while True:
        sizes = rng.poisson(30 * np.exp(sigma * rng.normal(size=patients) - sigma**2 / 2))
        patient = np.repeat(np.arange(patients), np.maximum(sizes, 1))
        share = {
            "both": lambda: rng.beta(4, 4, patients),
            "mostly": lambda: rng.beta(0.4, 0.4, patients),
            "one": lambda: rng.permutation(np.arange(patients) % 2 ^ rng.integers(2)),
        }[mix]()
        labels = (rng.random(len(patient)) < share[patient]).astype(int)
        if 0 < labels.sum() < len(labels):
            break
    effects = rng.normal(size=patients)[patient] + rng.normal(size=(patients, 2))[patient, labels]
    noise = rng.normal(size=len(patient)) * math.sqrt(1 - correlation)
    return labels, distance * labels + math.sqrt(correlation / 2) * effects + noise, patient


@functools.cache
def truth(distance: float) -> dict[str, float]:
    """Every metric of the population, which has as many positives as negatives."""
    cut = distance / 2 - SHIFT / (SLOPE * distance)
    sensitivity, specificity = above(cut - distance), 1 - above(cut)
    false, rare = 1 - specificity, (1 - PREVALENCE) / PREVALENCE

    def logit(x: float) -> float:
        return SLOPE * distance * (x - distance / 2) + SHIFT

    def chance(x: float) -> float:
        return 0.5 * (1 + math.tanh(logit(x) / 2))

    def mean(of_positive: Function, of_negative: Function) -> float:
        def product(x: float) -> float:
            return density(x - distance) * of_positive(x) + density(x) * of_negative(x)

        return float(quad(product, -9, distance + 9, limit=500)[0]) / 2

    def precision(x: float) -> float:
        return density(x - distance) / (1 + above(x) / above(x - distance))

    def excess(raised_by: float) -> float:
        def raised(x: float) -> float:
            return 0.5 * (1 + math.tanh((logit(x) + raised_by) / 2))

        return mean(raised, raised) - 0.5

    calls = (sensitivity + false) * (2 - sensitivity - false)
    return {
        "auroc": float(norm.cdf(distance / math.sqrt(2))),
        "average_precision": float(quad(precision, -8, distance + 6, limit=500)[0]),
        "accuracy": (sensitivity + specificity) / 2,
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "sensitivity": sensitivity,
        "specificity": specificity,
        "f1": 2 * sensitivity / (1 + sensitivity + false),
        "mcc": (sensitivity - false) / math.sqrt(calls),
        "ppv": sensitivity / (sensitivity + false),
        "npv": specificity / (specificity + 1 - sensitivity),
        "brier": mean(lambda x: (1 - chance(x)) ** 2, lambda x: chance(x) ** 2),
        "loss": mean(lambda x: np.logaddexp(0, -logit(x)), lambda x: np.logaddexp(0, logit(x))),
        "calibration_slope": 1 / SLOPE,
        "calibration_intercept": brentq(excess, -3, 3),
        "ece": math.nan,
        "ppv_at_prevalence": sensitivity / (sensitivity + false * rare),
        "npv_at_prevalence": specificity * rare / (specificity * rare + 1 - sensitivity),
    }


def density(x: float) -> float:
    """Of the standard normal distribution."""
    return math.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def above(x: float) -> float:
    """The share of the standard normal distribution above x."""
    return math.erfc(x / math.sqrt(2)) / 2


def one_changed(rng: np.random.Generator) -> float:
    """The largest move of a bound where one of 20 patches of each of 5 patients changes its score
    to that of the other class's farthest one, from perfect scores or from others, with both classes
    in each patient or with one."""
    patient = np.arange(100) // 20
    labels = patient % 2 if rng.integers(2) else np.arange(100) % 2
    scores = 2.0 * rng.integers(1, 5) * labels + rng.normal(size=100) * 0.7
    changed = scores.copy()
    which = rng.integers(100)
    changed[which] = scores.min() - 1 if labels[which] else scores.max() + 1
    before, after = (auroc_interval(labels, s, patient) for s in (scores, changed))
    return max(abs(before.low - after.low), abs(before.high - after.high))


if __name__ == "__main__":
    main()
