"""Runs that an earlier version left are still its user's: one is used, the other goes on.

`tests/data/old_run` has a finished run, its converted weights, and the same run stopped by SIGTERM
within its second epoch, all written by commit 1331146 with `old_config()` and `old_data()` on
`PROCESSOR`, where what goes on must come to the very same bits; other processors round otherwise.
"""

import csv
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from glomjax import checkpoints, load_classifier
from glomjax.errors import UserError
from glomjax.models import params_of
from glomjax.pretrained import load_weights
from glomjax.training import default_config, train_and_evaluate

OLD = pathlib.Path(__file__).parent / "data" / "old_run"
PROCESSOR = "AuthenticAMD family 25 model 17, 2 processors"
JAX = "0.10.2"


def processor() -> str:
    """What decides how this machine rounds, where Linux tells it."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    facts: dict[str, list[str]] = {}
    for line in lines:
        name, _, value = line.partition(":")
        facts.setdefault(name.strip(), []).append(value.strip())
    vendor, family, model = (facts.get(n, ["?"])[0] for n in ("vendor_id", "cpu family", "model"))
    return f"{vendor} family {family} model {model}, {len(facts.get('processor', []))} processors"


def rounds_alike() -> bool:
    """Whether this machine computes the very numbers of the one that the old runs come from."""
    return (processor(), jax.__version__) == (PROCESSOR, JAX)


def stripes(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Stripes whose direction is the class, by a formula that depends on no generator."""
    labels = np.arange(n) % 2
    row, column = np.mgrid[:40, :32]
    images = []
    for i in range(n):
        phase = np.sin(12.9898 * (100 * seed + i)) * 43758.5453 % 1
        wave = np.sin(2 * np.pi * ((row if labels[i] else column) / 8 + phase))
        noise = np.sin(row * 12.9898 + column * 78.233 + 100 * seed + i) * 43758.5453 % 1
        grey = 120 + 50 * wave + 60 * (noise - 0.5)
        images.append(np.stack([grey + 30, grey - 20 * phase, grey], axis=-1))
    patients = np.array([f"{seed}-{i // 4}" for i in range(n)])
    return np.stack(images).clip(0, 255).astype(np.uint8), labels, patients


def old_data():
    return {"train": stripes(24, 1), "validation": stripes(16, 2), "test": stripes(20, 3)}


def old_config():
    config = default_config()
    config.image_size = (32, 32)
    config.batch_size = 8
    config.report = "none"
    config.num_epochs = 4
    config.learning_rate = 3e-3
    config.preprocessing = "standardize"
    config.ema_decay = 0.5
    config.augmentation.symmetries = 1.0
    config.ops.native = "off"
    config.model.options.update(
        {"depths": (1, 1), "embed_dims": (8, 16), "num_heads": (1, 2), "dropout_rate": 0.1}
    )
    config.freeze.regime = "scratch"
    return config


def rows_of(workdir: pathlib.Path) -> list[dict]:
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    # They counted epochs from 0 in this file.
    start = rows[0]["epoch"]
    rows = [row | {"epoch": row["epoch"] - start + 1} for row in rows]
    return [{name: row[name] for name in sorted(row) if name != "time"} for row in rows]


def test_a_run_that_an_earlier_version_began_goes_on_to_its_very_numbers(tmp_path):
    workdir = pathlib.Path(shutil.copytree(OLD / "unfinished", tmp_path / "run"))
    splits = (workdir / "splits.csv").read_bytes()
    metrics = train_and_evaluate(old_config(), workdir, data=old_data())
    assert (workdir / "splits.csv").read_bytes() == splits
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3, 4]
    # Its files became pixels by the first rules, and go on to.
    assert load_classifier(workdir).spec.preprocessing.decoding == 1
    expected = json.loads((OLD / "finished" / "test_metrics.json").read_text())
    best, _ = checkpoints.restore(workdir / "checkpoints" / "best")
    theirs, _ = checkpoints.restore(OLD / "finished" / "checkpoints" / "best")
    assert best.keys() == theirs.keys()
    if rounds_alike():
        assert rows_of(workdir) == rows_of(OLD / "finished")
        assert all(best[path].tobytes() == theirs[path].tobytes() for path in theirs)
        assert metrics["loss"] == expected["loss"]
    else:
        for ours, old in zip(rows_of(workdir), rows_of(OLD / "finished"), strict=True):
            assert ours == pytest.approx(old, rel=1e-3)
        assert metrics["loss"] == pytest.approx(expected["loss"], rel=1e-3)


def test_a_finished_run_of_an_earlier_version_says_so(tmp_path, capsys):
    workdir = pathlib.Path(shutil.copytree(OLD / "finished", tmp_path / "run"))
    metrics = train_and_evaluate(old_config(), workdir, data=old_data())
    assert metrics == json.loads((OLD / "finished" / "test_metrics.json").read_text())
    assert "is finished" in capsys.readouterr().out


def test_a_finished_run_of_an_earlier_version_predicts_what_it_predicted():
    classifier = load_classifier(OLD / "finished")
    assert (classifier.classes, classifier.spec.device_batch) == (("0", "1"), 8)
    assert classifier.spec.preprocessing.decoding == 1
    found = classifier.predict(old_data()["test"][0])
    with open(OLD / "finished" / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    # It wrote nine digits; and on its own processor these are the same.
    digits = 9 if rounds_alike() else 4
    for row, chance in zip(rows, found.probabilities[:, 1], strict=True):
        assert f"{chance:.{digits}g}" == f"{float(row['probability_1']):.{digits}g}"


def test_a_weight_file_of_an_earlier_version_loads_and_asks_to_be_converted_again():
    file = OLD / "finished.safetensors"
    model = load_classifier(OLD / "finished").spec.create_model()
    load_weights(model, file)
    best, _ = checkpoints.restore(OLD / "finished" / "checkpoints" / "best")
    loaded = params_of(model)
    assert all(np.array_equal(loaded[path], best[f"params/{path}"]) for path in loaded)
    with pytest.raises(UserError, match="holds weights without .*, or a weight file that was conv"):
        load_classifier(file)
