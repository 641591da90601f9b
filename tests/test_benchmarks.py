"""The benchmark scripts do what they say, as far as that takes no training."""

import importlib.util
import pathlib

import numpy as np
from PIL import Image

from glomjax.data.folder import load_folder

SCRIPT = pathlib.Path(__file__).parents[1] / "benchmarks" / "real_tissue.py"


def test_real_tissue_splits_by_the_patients_that_are_named(tmp_path):
    spec = importlib.util.spec_from_file_location("real_tissue", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    rows = ["path,label,patient,stain"]
    for i in range(12):
        label, patient = ("glomerulus", "other")[i % 2], f"P{i // 4}"
        file = tmp_path / label / f"{i}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(file)
        rows.append(f"{label}/{i}.png,{label},{patient},PAS")
    (tmp_path / "manifest.csv").write_text("\n".join(rows))
    module.write_split(tmp_path, tmp_path / "split.csv", ["P2"], ["P0"])
    splits = load_folder(tmp_path / "split.csv")
    assert set(splits.test.patients) == {"P2"}
    assert set(splits.validation.patients) == {"P0"}
    assert set(splits.train.patients) == {"P1"}
    assert len(splits.train) == 4
