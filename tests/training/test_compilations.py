"""Every step of a run compiles once, and a run evaluates the average that it keeps."""

import json
import pathlib

import jax
import numpy as np
import pytest

from glomjax import checkpoints
from glomjax.evaluation import classification_metrics
from glomjax.training import default_config, phases, train_and_evaluate
from glomjax.training.progress import EpochBar

DECAY = 0.45


def grey(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8), np.arange(n) % 2


# 13 in batches of 4 leave one, 7 leave three, 6 leave two.
DATA = {"train": grey(13, 0), "validation": grey(7, 1), "test": grey(6, 2)}


def tiny_config(**changes):
    config = default_config()
    config.image_size = (32, 32)
    config.batch_size = 4
    config.report = "none"
    config.num_epochs = 4
    config.learning_rate = 1e-2
    config.model.options.update({"depths": (1,), "embed_dims": (8,), "num_heads": (1,)})
    config.freeze.regime = "scratch"
    config.early_stopping.patience = 9
    config.update_from_flattened_dict(changes)
    return config


class Recorder:
    """The steps that runs make, and the parameters after each training step."""

    def __init__(self, monkeypatch):
        self.train, self.evaluate, self.after = [], [], []
        make_train_step, make_predict_step = phases.make_train_step, phases.make_predict_step

        def train(*args, **options):
            step = make_train_step(*args, **options)
            self.train.append(step)

            def recorded(trainable, *rest):
                if not self.after:
                    self.after.append(jax.device_get(trainable))
                new = step(trainable, *rest)
                self.after.append(jax.device_get(new[0]))
                return new

            recorded.lower = step.lower
            return recorded

        def evaluate(*args, **options):
            self.evaluate.append(
                (options.get("part", "network"), make_predict_step(*args, **options))
            )
            return self.evaluate[-1][1]

        monkeypatch.setattr(phases, "make_train_step", train)
        monkeypatch.setattr(phases, "make_predict_step", evaluate)

    def compiled(self) -> tuple[list[int], dict[str, list[int]]]:
        """How often each training step and, by their part, each evaluation step compiled."""
        parts: dict[str, list[int]] = {}
        for part, step in self.evaluate:
            parts.setdefault(part, []).append(step._cache_size())
        return [step._cache_size() for step in self.train], parts


@pytest.fixture
def recorder(monkeypatch):
    return Recorder(monkeypatch)


def rows_of(workdir: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_each_step_compiles_once_through_odd_batches_new_rates_and_a_restart(
    recorder, tmp_path, monkeypatch
):
    # Nothing improves by so much, so the rate falls after each epoch but the first.
    config = tiny_config(
        **{"plateau.patience": 1, "plateau.min_delta": 9.0, "plateau.min_lr": 0.0, "clip_norm": 1.0}
    )
    advance, batches = EpochBar.advance, []

    def interrupted(bar, images):
        advance(bar, images)
        batches.append(images)
        if len(batches) == 2 * 4 + 2:  # in the third epoch
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(EpochBar, "advance", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_and_evaluate(config, tmp_path / "x", data=DATA)
    assert batches[:4] == [4, 4, 4, 1]
    assert recorder.compiled() == ([1], {"network": [1]})
    train_and_evaluate(config, tmp_path / "x", data=DATA)
    # A new process starts anew; its steps compile once, too.
    assert recorder.compiled() == ([1, 1], {"network": [1, 1]})
    rates = [row["learning_rate"] for row in rows_of(tmp_path / "x")]
    assert len(set(rates)) == 3


def test_each_regime_of_a_schedule_compiles_once(recorder, tmp_path, monkeypatch):
    monkeypatch.setenv("GLOMJAX_CACHE", str(tmp_path / "cache"))
    train_and_evaluate(tiny_config(num_epochs=1), tmp_path / "weights", data=DATA)
    before, _ = recorder.compiled()
    config = tiny_config(
        **{
            "num_epochs": 5,
            "pretrained.source": str(tmp_path / "weights"),
            "freeze.regime": "head_only",
            "freeze.until": "stem",
            "freeze.unfreeze": ("2:partial", "4:full:0.1"),
        }
    )
    train_and_evaluate(config, tmp_path / "x", data=DATA)
    train, evaluate = recorder.compiled()
    assert train[len(before) :] == [1, 1, 1]
    # One for all regimes; the features and their head belong to the first.
    assert evaluate == {"network": [1, 1], "embed": [1], "classify": [1]}


def test_a_run_evaluates_and_keeps_the_moving_average(recorder, tmp_path):
    # At a large constant rate of Adam the last weights are far from their average.
    config = tiny_config(num_epochs=1, ema_decay=DECAY, schedule="constant", learning_rate=0.1)
    train_and_evaluate(config, tmp_path / "x", data=DATA)
    config.num_epochs = 2  # the average goes on in the middle of its warm-up
    metrics = train_and_evaluate(config, tmp_path / "x", data=DATA)
    assert recorder.compiled() == ([1, 1], {"network": [1, 1]})
    assert len(recorder.after) == 1 + 2 * 4  # the start and each step
    averages = [recorder.after[0]]
    for step, trained in enumerate(recorder.after[1:], start=1):
        decay = min(DECAY, (1 + step) / (10 + step))
        averages.append(
            {p: decay * value + (1 - decay) * trained[p] for p, value in averages[-1].items()}
        )
    folder = tmp_path / "x" / "checkpoints"
    best, last = (checkpoints.restore(folder / name)[0] for name in ("best", "last"))
    expected = averages[4 * metrics["best_epoch"]]
    for path, value in expected.items():
        np.testing.assert_allclose(best[f"params/{path}"], value, rtol=1e-5, atol=1e-6)
        # Training goes on from the weights themselves.
        np.testing.assert_array_equal(last[f"params/{path}"], recorder.after[-1][path])
    _, (_, step) = recorder.evaluate

    def loss_of(params, split):
        images, labels = DATA[split]
        return classification_metrics(labels, np.asarray(step(params, images)), ("0", "1"))["loss"]

    for epoch, row in enumerate(rows_of(tmp_path / "x"), start=1):
        average, trained = (loss_of(p[4 * epoch], "validation") for p in (averages, recorder.after))
        assert row["val_loss"] == pytest.approx(average, abs=1e-5)
        assert abs(row["val_loss"] - trained) > 1e-3
    assert metrics["loss"] == pytest.approx(loss_of(expected, "test"), abs=1e-5)
