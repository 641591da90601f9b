"""`benchmarks/device.py` at toy size on a CPU."""

import contextlib
import importlib
import json
import os
import pathlib
import subprocess
import sys
import time
import zipfile

import jax
import jax.numpy as jnp
import pytest
from jax import lax

ROOT = pathlib.Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "device.py"


def start(*arguments: str) -> subprocess.Popen:
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(the report after the first cell, the last one, what was printed, the report's path)."""
    out = tmp_path_factory.mktemp("device")
    file = out / "device.json"
    cells = ("golden", "products", "alexnet_mini train")
    process = start("--toy", "--out", str(out), "--cells", *cells)
    first = None
    while first is None and process.poll() is None:
        with contextlib.suppress(OSError):
            first = json.loads(file.read_text())
        time.sleep(0.02)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    return first, json.loads(file.read_text()), printed, file


def test_the_report_is_there_after_the_first_cell(run):
    first, last, printed, _ = run
    assert [row["cell"] for row in first["cells"]] == ["golden"]
    assert len(last["cells"]) == 3
    assert all(f"{row['cell']}: " in printed for row in last["cells"])
    assert all(row["seconds"] > 0 for row in last["cells"])
    assert last["machine"]["versions"]["jax"] == jax.__version__


def test_the_golden_outputs_are_compared_in_both_precisions(run):
    golden = run[1]["cells"][0]
    assert len(golden["cases"]) == 2
    for case in golden["cases"].values():
        for precision in ("highest", "default"):
            assert 0 < max(case[precision].values()) < 1e-4
    assert golden["failed"] == {}


def test_rates_are_measured_and_what_is_not_installed_is_named(run):
    cells = {row["cell"]: row for row in run[1]["cells"]}
    training = cells["alexnet_mini train float32 64"]
    ours = training["stacks"]["glomjax"]
    assert min(ours["images_per_second"]) > 0
    assert ours["outcome"][0] == pytest.approx(0.69, abs=0.1)
    assert ours["flops"] > 1e7
    assert set(training["stacks"]) | set(training["missing"]) == {"glomjax", "torch"}
    for why in training["missing"].values():
        assert "is not installed" in why
    assert all(min(rates) > 0 for rates in cells["products"]["tflops"].values())


def test_the_tables_are_printed_from_reports(run):
    process = start("--table", str(run[3]))
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "| alexnet_mini 224x224 | " in printed
    assert "| alexnet_mini train float32 64, 37 x 37 | " in printed
    assert "% of " in printed


def test_a_cell_that_there_is_no_time_for_is_left_out_and_named(tmp_path):
    process = start("--out", str(tmp_path), "--minutes", "0.1", "--cells", "golden")
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "no time was left for: golden" in printed
    report = json.loads((tmp_path / "device.json").read_text())
    assert report["cells"] == []
    assert report["left_out"] == ["golden"]


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


def test_a_worker_that_gives_no_reply_in_time_is_ended(benchmarks, tmp_path):
    compare = importlib.import_module("compare")
    with compare.Worker("checks", compare.Stack("checks", ""), tmp_path) as worker:
        with pytest.raises(compare.Overdue, match="checks was still at 'golden' after 0 s"):
            worker.receive("golden", 0.0)
        worker.process.wait(timeout=10)


def test_products_and_convolutions_are_counted(benchmarks):
    count = importlib.import_module("stacks.glomjax_stack").count

    def function(x, kernel, image):
        def body(carry, _):
            return carry @ carry, None  # 2 * 4 * 4 * 4, three times

        x, _ = lax.scan(body, x, None, length=3)
        x = lax.cond(x[0, 0] > 0, lambda x: x @ x, lambda x: x + 1, x)  # 128 at most
        # Of stride 2: 4 x 4 x 5 outputs, each of 3 x 3 x 2 products.
        layout = ("NHWC", "HWIO", "NHWC")
        return x, lax.conv_general_dilated(image, kernel, (2, 2), "SAME", dimension_numbers=layout)

    arguments = jnp.ones((4, 4)), jnp.ones((3, 3, 2, 5)), jnp.ones((1, 8, 8, 2))
    forward = 2 * 4 * 4 * 5 * 3 * 3 * 2
    assert count(jax.make_jaxpr(function)(*arguments).jaxpr) == 4 * 128 + forward

    def loss(kernel, image):
        return jnp.sum(function(arguments[0], kernel, image)[1] ** 2)

    # The gradients of a convolution have as many products as it has, whatever its stride.
    gradients = jax.make_jaxpr(jax.grad(loss, (0, 1)))(*arguments[1:]).jaxpr
    assert count(gradients) == pytest.approx(4 * 128 + 3 * forward, rel=0.15)


def test_wheels_of_what_is_missing_are_installed_aside(benchmarks, monkeypatch, tmp_path):
    device = importlib.import_module("device")
    (tmp_path / ".wheels").mkdir()
    for name in ("numpy", "absent_package"):
        information = f"{name}-1.0.dist-info"
        with zipfile.ZipFile(tmp_path / f".wheels/{name}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}.py", "ANSWER = 42\n")
            text = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
            wheel.writestr(f"{information}/METADATA", text)
            text = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            wheel.writestr(f"{information}/WHEEL", text)
            wheel.writestr(f"{information}/RECORD", "")
    monkeypatch.setattr(device, "ROOT", tmp_path)
    site, said = device.install_wheels(tmp_path / "site")
    assert said == "installed absent_package-1.0-py3-none-any.whl"
    assert (pathlib.Path(site) / "absent_package.py").is_file()
    assert not (pathlib.Path(site) / "numpy.py").exists()
