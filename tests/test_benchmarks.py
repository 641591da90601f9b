"""The benchmark scripts do what they say, as far as that takes no training."""

import importlib.util
import pathlib

import numpy as np
import pytest
from PIL import Image

from glomjax.data.sources import load_source

BENCHMARKS = pathlib.Path(__file__).parents[1] / "benchmarks"


def script(name: str):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_patches(folder: pathlib.Path, count: int, patients: int) -> None:
    rows = ["path,label,patient,stain"]
    for i in range(count):
        label, patient = ("glomerulus", "other")[i % 2], f"P{i * patients // count}"
        file = folder / label / f"{i}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(file)
        rows.append(f"{label}/{i}.png,{label},{patient},PAS")
    (folder / "manifest.csv").write_text("\n".join(rows))


def test_real_tissue_splits_by_the_patients_that_are_named(tmp_path):
    write_patches(tmp_path, 12, 3)
    script("real_tissue").write_split(tmp_path, tmp_path / "split.csv", ["P2"], ["P0"])
    splits = load_source(tmp_path / "split.csv")
    assert set(splits.test.patients) == {"P2"}
    assert set(splits.validation.patients) == {"P0"}
    assert set(splits.train.patients) == {"P1"}
    assert len(splits.train) == 4


def test_transfer_trains_on_balanced_nested_subsets_with_the_same_patients_held_out(tmp_path):
    write_patches(tmp_path, 60, 10)
    transfer = script("transfer")
    whole = load_source(tmp_path, seed=3)
    names = {}
    for count in (6, 14, 0):
        transfer.write_subset(tmp_path, tmp_path / f"{count}.csv", count, 3)
        splits = load_source(tmp_path / f"{count}.csv")
        names[count] = {pathlib.Path(name).name for name in splits.train.ids}
        assert len(splits.train) == (count or len(whole.train))
        assert splits.train.labels.mean() == 0.5
        for split in ("validation", "test"):
            assert set(splits[split].patients) == set(whole[split].patients)
            assert len(splits[split]) == len(whole[split])
    assert names[6] < names[14] < names[0]


def test_transfer_reports_student_s_interval_over_the_seeds():
    interval = script("transfer").interval
    mean, low, high = interval([0.7, 0.8, 0.9])
    # 4.3027 is the 97.5% quantile of Student's t with 2 degrees of freedom.
    assert mean == pytest.approx(0.8)
    assert high - mean == pytest.approx(4.3027 * 0.1 / np.sqrt(3), rel=1e-4)
    assert mean - low == pytest.approx(high - mean)
    assert interval([0.7]) == (0.7, float("-inf"), float("inf"))
