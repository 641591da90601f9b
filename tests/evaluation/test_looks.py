"""How often a test was looked at, as far as folders tell."""

import json

import numpy as np

from glomjax.evaluation.looks import DIGEST, images_digest, looks_beside, looks_line


def test_the_same_images_are_the_same_in_any_order():
    hashes = np.random.default_rng(0).integers(0, 2**64, (20, 4), dtype=np.uint64)
    assert images_digest(hashes) == images_digest(hashes[::-1])
    assert images_digest(hashes) != images_digest(hashes[1:])


def test_results_of_the_same_images_beside_a_folder_are_counted(tmp_path):
    def result(folder: str, name: str, text: str) -> None:
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).write_text(text)

    same, other = (json.dumps({DIGEST: digest}) for digest in ("a", "b"))
    for name in ("test_metrics.json", "test_metrics_after_2_epochs.json"):
        result("first", name, same)
        result("mine", name, same)
    result("second", "test_metrics.json", other)
    result("third", "test_metrics.json", "damaged")
    result("fourth", "test_metrics.json", "[]")
    result("earlier", "test_metrics.json", "{}")
    beside = looks_beside(tmp_path / "mine", "a")
    assert beside == {"first": 2}
    line = looks_line(2, beside)
    assert line.startswith("these test images were judged 4 times (2 here, 2 in 'first')")
    assert looks_line(1, {}).startswith("these test images were judged once, as far as")
    assert looks_beside(tmp_path / "not there" / "mine", "a") == {}
