"""What the intervals and tests of a comparison hold: coverage of paired differences by patient.

    python benchmarks/difference_coverage.py --draws 400

Two correlated networks score the same patches of 5 to 40 patients. Scores are normal in each class;
patients differ (variance rho, half of it shared by both classes of a patient); a patient has about
30 patches, equally many or unequal numbers (log-normal, sigma 0.8), with both classes, mostly one
or exactly one. The AUROC of the first network is 0.75 or 0.9, that of the second the same or 0.05
less. For each number of patients the script prints, over these cells, the mean and the least
coverage of the 95% intervals of the differences in AUROC and accuracy, their mean width, and how
often each test finds a difference at p < 0.05 where there is none: Student's of the AUROC,
McNemar's by patient (Durkalski), and the exact one, which takes patches for independent. Draws in
which fewer than two patients have a class are drawn again. The least of 72 cells is the least of 72
random shares, too: with 500 draws, each of which is within 0.02, it is 0.93 where all cover 0.95.
"""

import argparse
import collections
import itertools
import math

import numpy as np
from scipy.stats import norm

from glomjax.evaluation.comparison import mcnemar
from glomjax.evaluation.intervals import jackknife_interval, means_estimated

PATIENTS = (5, 6, 10, 20, 40)
CORRELATION = 0.6  # of the two networks' scores within a class
MIXES = ("both classes", "mostly one", "one class")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=400, help="of each cell")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(
        f"{'patients':<9}{'cells':>6}  {'AUROC difference':<26}{'accuracy difference':<26}"
        f"{'false positives (largest of a cell)'}\n"
        f"{'':<15}  {'covers':<8}{'least':<8}{'width':<10}{'covers':<8}{'least':<8}{'width':<10}"
        f"{'AUROC':<16}{'McNemar':<16}{'exact McNemar'}"
    )
    for patients in PATIENTS:
        found = collections.defaultdict(list)
        cells = itertools.product((0.1, 0.3, 0.5), MIXES, (0.0, 0.8), (0.75, 0.9), (0.0, 0.05))
        for number, (rho, mix, sigma, area, less) in enumerate(cells):
            rng = np.random.default_rng([args.seed, patients, number])
            for name, value in cell(rng, args.draws, patients, rho, mix, sigma, area, less).items():
                found[name].append(value)

        def spread(name: str, found: dict[str, list[float]] = found) -> str:
            return (
                f"{np.mean(found[name]):<8.3f}{np.min(found[name]):<8.3f}"
                f"{np.mean(found[name + ' width']):<10.3f}"
            )

        rates = "".join(
            f"{f'{np.mean(found[name]):.3f} ({np.max(found[name]):.3f})':<16}"
            for name in ("AUROC p", "McNemar p", "exact p")
        )
        count = len(found["AUROC"])
        print(f"{patients:<9}{count:>6}  {spread('AUROC')}{spread('accuracy')}{rates}", flush=True)


def cell(
    rng: np.random.Generator,
    draws: int,
    patients: int,
    rho: float,
    mix: str,
    sigma: float,
    area: float,
    less: float,
) -> dict[str, float]:
    """Shares of draws: which intervals cover, and, without a difference, which tests reject."""
    means = [math.sqrt(2) * float(norm.ppf(a)) for a in (area, area - less)]
    sums = collections.defaultdict[str, list[float]](list)
    for _ in range(draws):
        patient, y, scores = draw(rng, patients, rho, mix, sigma, means)
        sizes, means_of = np.bincount(patient), means_estimated(y, patient)
        one, two = (areas(s, y, patient, patients) for s in scores)
        interval, p = jackknife_interval(one[0] - two[0], one[1] - two[1], sizes, means_of)
        if interval.method != "none":
            sums["AUROC"].append(interval.low <= less <= interval.high)
            sums["AUROC width"].append(interval.high - interval.low)
        first, second = ((s > m / 2) == y for s, m in zip(scores, means, strict=True))
        excess = np.bincount(patient, first.astype(float) - second)
        whole = excess.sum() / sizes.sum()
        without = (excess.sum() - excess) / (sizes.sum() - sizes)
        interval, _ = jackknife_interval(whole, without, sizes, means_of)
        truth = norm.cdf(means[0] / 2) - norm.cdf(means[1] / 2)
        if interval.method != "none":
            sums["accuracy"].append(interval.low <= truth <= interval.high)
            sums["accuracy width"].append(interval.high - interval.low)
        if not less:
            sums["AUROC p"].append(p < 0.05)
            sums["McNemar p"].append(mcnemar(first, second, patient).p < 0.05)
            sums["exact p"].append(mcnemar(first, second).p < 0.05)
    return {name: float(np.mean(values)) for name, values in sums.items()}


def draw(
    rng: np.random.Generator,
    patients: int,
    rho: float,
    mix: str,
    sigma: float,
    means: list[float],
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """(patient of each patch, whether it is positive, its scores by both networks)."""
    while True:
        expected = 30 * np.exp(sigma * rng.normal(size=patients) - sigma**2 / 2)
        patient = np.repeat(np.arange(patients), np.maximum(rng.poisson(expected), 2))
        share = {
            "both classes": lambda: rng.beta(4, 4, patients),
            "mostly one": lambda: rng.beta(0.4, 0.4, patients),
            "one class": lambda: np.arange(patients) % 2,
        }[mix]()
        y = rng.random(len(patient)) < share[patient]
        if min(len(set(patient[y])), len(set(patient[~y]))) > 1:
            break

    def pair(*shape: int) -> tuple[np.ndarray, np.ndarray]:
        """Two arrays of standard normal numbers that correlate."""
        common, own = rng.normal(size=shape), rng.normal(size=(2, *shape))
        mixed = math.sqrt(CORRELATION) * common + math.sqrt(1 - CORRELATION) * own
        return mixed[0], mixed[1]

    scores = [
        mean * y
        + math.sqrt(rho / 2) * (of_patient[patient] + of_class[patient, y.astype(int)])
        + math.sqrt(1 - rho) * noise
        for mean, of_patient, of_class, noise in zip(
            means, pair(patients), pair(patients, 2), pair(len(patient)), strict=True
        )
    ]
    return patient, y, scores


def areas(
    scores: np.ndarray, y: np.ndarray, patient: np.ndarray, patients: int
) -> tuple[float, np.ndarray]:
    """(AUROC, AUROCs without each patient): the pairs that are ranked right, counted once for each
    two patients; no two scores are equal."""
    order = np.argsort(scores)
    own = np.eye(patients)[patient[order]]  # [N, K]
    positives = own * y[order][:, None]
    below = np.cumsum(own - positives, axis=0)
    wins = positives.T @ below  # [K of the positive, K of the negative]
    p, n = positives.sum(axis=0), (own - positives).sum(axis=0)
    left = wins.sum() - wins.sum(axis=0) - wins.sum(axis=1) + np.diag(wins)
    without = left / ((p.sum() - p) * (n.sum() - n))
    return float(wins.sum() / (p.sum() * n.sum())), without


if __name__ == "__main__":
    main()
