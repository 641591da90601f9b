"""Ours against PyTorch on a GPU, and what its outputs are there, within some minutes.

    python benchmarks/device_wheels.py                    # where the network is
    python benchmarks/device.py --out FOLDER              # where the GPU is
    python benchmarks/device.py --table FOLDER/device.json

The machine has JAX, Flax and PyTorch with timm; what else is missing comes from the wheels. One
cell after another, the most important first: golden outputs; DaViT's own operations beside their
plain definitions; DaViT-T's training and inference (224 x 224, the authors' windows of 7) and those
of the CNNs (280 x 280) beside PyTorch, eager and compiled; the losses of both stacks from the same
weights; the rate of large products, of which DaViT-T's training reaches a share; runs on the demo
data. Both stacks have the batch on the device
and round float32 products to TF32; PyTorch has the faster memory format, autocast for bfloat16 and
fused Adam. Stacks take turns, in an order that rotates: a turn dispatches steps for about a second
and waits for the last.

`device.json` is written again after each cell, so that a run that is killed loses one cell. A cell
is not begun with less time left than it takes, and ended after three times that. The exit code is 1
where one failed.
"""

import argparse
import importlib.metadata
import json
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # glomjax itself need not be installed

import compare  # noqa: E402
from device_cells import COMPARED, Session, all_cells, lacks  # noqa: E402

from glomjax.errors import UserError  # noqa: E402

PACKAGES = (
    *("jax", "jaxlib", "jax-cuda13-plugin", "jax-cuda12-plugin", "flax", "optax"),
    *("orbax-checkpoint", "grain", "numpy", "torch", "triton", "timm", "nvidia-cudnn-cu13"),
)
# TFLOP/s of dense products on an H100 or H200 (SXM); float32 is TF32.
DATA_SHEET = {"bfloat16": 989.0, "float32": 494.7}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default=pathlib.Path("runs/device"),
        help="folder of device.json (%(default)s)",
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="to stay below (%(default)g)")
    parser.add_argument(
        "--cells", nargs="+", default=[""], help="those whose names begin with one of these"
    )
    parser.add_argument("--toy", action="store_true", help="a small one of everything")
    parser.add_argument("--table", type=pathlib.Path, nargs="+", help="reports to print, and end")
    args = parser.parse_args(argv)
    try:
        if args.table:
            print(tables([json.loads(file.read_text()) for file in args.table]))
            return 0
        return run(args)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def run(args: argparse.Namespace) -> int:
    """All cells that there is time for; the exit code."""
    begun = time.monotonic()
    cells = all_cells(args.toy)
    chosen = [cell for cell in cells if cell.name.startswith(tuple(args.cells))]
    if not chosen:
        names = ", ".join(cell.name for cell in cells)
        raise UserError(f"no cell begins with {' or '.join(args.cells)}; there are {names}")
    args.out.mkdir(parents=True, exist_ok=True)
    left_out: list[str] = []
    report: dict[str, Any] = {"cells": [], "left_out": left_out}
    with tempfile.TemporaryDirectory(prefix="device-") as name:
        folder = pathlib.Path(name)
        site, report["wheels"] = install_wheels(folder / "site")
        report["machine"] = describe(site)
        if args.toy:
            report["toy"] = True
            print("toy sizes, whatever the names say: these figures mean nothing")
        print(", ".join(filter(None, map(str, report["machine"]["cards"]))), flush=True)
        session = Session(folder, args.toy, site)
        try:
            for worker in dict.fromkeys(name for cell in chosen for name in cell.workers):
                if not lacks(worker):
                    session.start(worker)  # which imports while the first cell runs
            for cell in chosen:
                now = time.monotonic()
                ends = begun + 60 * args.minutes
                if now + cell.seconds > ends:
                    left_out.append(cell.name)
                    continue
                session.ends = min(ends, now + 3 * cell.seconds)
                try:
                    row = cell.run(session)
                except Exception as error:  # the next cell may still be measured
                    session.close()  # a worker may still be at what was asked of it
                    row = {"error": f"{type(error).__name__}: {error}"[-2000:]}
                row = {"cell": cell.name, "seconds": time.monotonic() - now} | row
                report["cells"].append(row)
                report["seconds"] = time.monotonic() - begun
                write(args.out / "device.json", report)
                print(line(row), flush=True)
        finally:
            session.close()
    write(args.out / "device.json", report)
    if left_out:
        print(f"no time was left for: {', '.join(left_out)}")
    return int(any("error" in row for row in report["cells"]))


def install_wheels(site: pathlib.Path) -> tuple[str, str]:
    """(folder with the packages of `.wheels` that are not installed, what happened); ("", ...)
    where none is needed or it failed, which the cells will show."""
    wheels = []
    for wheel in sorted((ROOT / ".wheels").glob("*.whl")):
        try:
            importlib.metadata.version(wheel.name.partition("-")[0])
        except importlib.metadata.PackageNotFoundError:
            wheels.append(str(wheel))
    if not wheels:
        return "", "nothing to install"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    done = subprocess.run(
        [*pip, "--no-compile", "--target", str(site), *wheels], capture_output=True, text=True
    )
    if done.returncode:
        return "", f"failed: {done.stderr[-1000:]}"
    return str(site), f"installed {', '.join(pathlib.Path(w).name for w in wheels)}"


def describe(site: str) -> dict[str, Any]:
    """Cards with their drivers and memory, versions, and the machine and commit as `compare.py`
    gives them."""
    query = "--query-gpu=name,driver_version,memory.total"
    smi = shutil.which("nvidia-smi")
    lines = ""
    if smi:
        done = subprocess.run([smi, query, "--format=csv,noheader"], capture_output=True, text=True)
        lines = done.stdout
    machine = compare.describe_machine()
    versions = {"python": platform.python_version()}
    for distribution in importlib.metadata.distributions(path=[*filter(None, [site]), *sys.path]):
        if (name := distribution.name.lower()) in PACKAGES:
            versions.setdefault(name, distribution.version)
    return {"cards": lines.splitlines() or [machine["cpu"]], "versions": versions} | machine


def write(file: pathlib.Path, report: dict[str, Any]) -> None:
    """At once: a run that is killed leaves the report of before."""
    aside = file.with_suffix(".unfinished")
    aside.write_text(json.dumps(report, indent=1) + "\n")
    aside.replace(file)


def line(row: dict[str, Any]) -> str:
    """What a cell came to."""
    text = f"{row['seconds']:6.1f} s  {row['cell']}: "
    if "error" in row:
        return text + row["error"].strip().splitlines()[-1]
    if "stacks" in row:
        stacks = (f"{n} {statistics.median(rates(r)):.1f}" for n, r in row["stacks"].items())
        missing = (f"; no {n}: {why.splitlines()[-1]}" for n, why in row["missing"].items())
        return text + ", ".join(stacks) + " images/s" + "".join(missing)
    if "cases" in row:
        return text + f"largest difference {row['largest']:.1e}"
    if "table" in row:
        return text + "\n".join(row["table"])
    if "tflops" in row:
        found = (f"{n} {statistics.median(values):.1f}" for n, values in row["tflops"].items())
        return text + ", ".join(found) + " TFLOP/s"
    return text + f"test AUROC {row['test']['auroc']:.3f} in {row['run_seconds']:.0f} s"


def rates(row: dict[str, Any]) -> list[float]:
    return row["images_per_second"]


def tables(reports: Sequence[dict[str, Any]]) -> str:
    """The reports' tables in Markdown, as docs/performance.md has them; of a cell in several
    reports the last counts."""
    machine = reports[0]["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    cells = {row["cell"]: row for report in reports for row in report["cells"]}
    done = [row for row in cells.values() if "error" not in row or "cases" in row]
    parts = [f"{'; '.join(machine['cards'])}. {versions}."]
    if any(report.get("toy") for report in reports):
        parts.insert(0, "Toy sizes, whatever the names say: these figures mean nothing.")
    for name, row in cells.get("agreement", {}).get("stacks", {}).items():
        if name != "glomjax":
            parts.append(
                f"Losses of three updates with exact products, {name} and ours: "
                f"{row['difference']:.1e} apart."
            )
    if table := cells.get("operations", {}).get("table"):
        parts.append("\n".join(f"    {row}" for row in table))
    for found in (
        golden_table(done),
        stacks_table(done),
        share_table(done, machine["cards"][0]),
        demo_table(done),
    ):
        rows = list(found)
        if len(rows) > 2:
            parts.append("\n".join(rows))
    failed = [line(row) for row in cells.values() if "error" in row]
    return "\n\n".join(parts + failed)


def golden_table(cells: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield "| golden outputs: differences of logits, features | exact products | by default |"
    yield "|---|---|---|"
    for cell in cells:
        for name, case in cell.get("cases", {}).items():
            found = []
            for differences in (case.get("highest"), case.get("default")):
                if not differences:
                    found.append("failed")
                    continue
                logits = max(value for key, value in differences.items() if key != "features")
                features = differences.get("features")
                found.append(
                    f"{logits:.1e}" + (f", {features:.1e}" if features is not None else "")
                )
            yield f"| {name} | {' | '.join(found)} |"


def stacks_table(cells: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield (
        "| images/s: median (lowest, highest) | ours | PyTorch | ours/PyTorch | compiled "
        "| ours/compiled | memory, MB: ours, PyTorch, compiled | losses or logits apart |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    for cell in cells:
        if "stacks" not in cell or cell["cell"] == "agreement":
            continue
        stacks = [cell["stacks"].get(name, {}) for name in COMPARED]
        texts = [""] * 5
        for i, row in enumerate(stacks):
            if row:
                rates = row["images_per_second"]
                texts[max(2 * i - 1, 0)] = (
                    f"{statistics.median(rates):.0f} ({min(rates):.0f}, {max(rates):.0f})"
                )
                if i:
                    texts[2 * i] = f"{row['ours_over_this']:.2f}"
        memory = ", ".join(f"{row['peak_mb']:.0f}" if row else "-" for row in stacks)
        apart = ", ".join(f"{row['difference']:.0e}" for row in stacks[1:] if row)
        name = f"{cell['cell']}, {cell['size']} x {cell['size']}"
        yield f"| {name} | {' | '.join(texts)} | {memory} | {apart} |"


def share_table(cells: Sequence[dict[str, Any]], card: str) -> Iterator[str]:
    yield "| training step | GFLOP | TFLOP/s | of this card's products | of the data sheet |"
    yield "|---|---|---|---|---|"
    hopper = "H100" in card or "H200" in card
    products: dict[str, list[float]] = next(
        (cell["tflops"] for cell in cells if "tflops" in cell), {}
    )
    for cell in cells:
        ours = cell.get("stacks", {}).get("glomjax", {})
        if "flops" not in ours or cell["cell"] == "agreement":
            continue
        rate = ours["flops"] / cell["batch"] * statistics.median(ours["images_per_second"]) / 1e12
        found = []
        for best in (
            statistics.median(products.get(cell["precision"], [0.0])),
            DATA_SHEET[cell["precision"]] if hopper else 0.0,
        ):
            found.append(f"{100 * rate / best:.1f}% of {best:.0f}" if best else "")
        yield f"| {cell['cell']} | {ours['flops'] / 1e9:.1f} | {rate:.2f} | {' | '.join(found)} |"


def demo_table(cells: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield "| run | epochs | test loss | test AUROC | images/s | seconds, and to draw the data |"
    yield "|---|---|---|---|---|---|"
    for cell in cells:
        if "test" in cell:
            low, high = (cell["auroc_interval"][end] for end in ("low", "high"))
            yield (
                f"| {cell['cell']} | {cell['epochs']} | {cell['test']['loss']:.3f} "
                f"| {cell['test']['auroc']:.3f} ({low:.3f} to {high:.3f}) "
                f"| {cell['images_per_second']:.0f} "
                f"| {cell['run_seconds']:.0f}, {cell['drawing_seconds']:.0f} |"
            )


if __name__ == "__main__":
    sys.exit(main())
