"""What `device.py` measures: a cell is a function of a `Session` that gives a row of the report."""

import argparse
import dataclasses
import importlib.util
import math
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import compare
import numpy as np
from stacks import weights

from glomjax.errors import UserError

ROOT = pathlib.Path(__file__).parents[1]
STACKS = {
    "checks": compare.Stack("checks", ""),
    "golden": compare.Stack("checks", ""),
    "glomjax": compare.Stack("glomjax_stack", "", {"native": "auto"}),
    "torch": compare.Stack("torch_stack", "", {"compiles": False}),
    "torch.compile": compare.Stack("torch_stack", "", {"compiles": True}),
}
COMPARED = ("glomjax", "torch", "torch.compile")
GOLDEN_TOLERANCE = 1e-4  # that of the tests
# Of losses and logits between two stacks: exact products, those of TF32, those of bfloat16.
TOLERANCE = {"highest": 1e-3, "float32": 1e-2, "bfloat16": 3e-2}
ROUNDS, TURN_SECONDS = 5, 1.0
COMPILE_SECONDS = 150.0  # after which a stack is left out of a cell
# {network: (size of the images, and of a toy's, options of a toy)}
NETWORKS: dict[str, tuple[int, int, dict[str, Any]]] = {
    "davit_tiny_msft": (
        224,
        64,
        {"depths": (1, 1), "embed_dims": (16, 32), "num_heads": (2, 4)},
    ),
    "alexnet_mini": (280, 37, {}),
    "googlenet": (280, 96, {}),
}


@dataclasses.dataclass(frozen=True)
class Cell:
    """`run` gives what goes into the report, with the workers named; `seconds` is about how long
    it takes."""

    name: str
    seconds: float
    run: Callable[["Session"], dict[str, Any]]
    workers: tuple[str, ...] = ("checks",)


class Session:
    """The workers, which live on from cell to cell, and when the current cell has to end."""

    def __init__(self, folder: pathlib.Path, toy: bool, site: str):
        self.folder, self.toy = folder, toy
        self.ends = math.inf
        self.workers: dict[str, compare.Worker] = {}
        self.overdue: dict[tuple[str, str], str] = {}  # by stack and task, which is not tried again
        self.variables = {
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), site))),
            # The processes share the memory of one GPU. XLA never hands back what it has taken.
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            "XLA_CLIENT_MEM_FRACTION": "0.5",
        }

    def start(self, name: str) -> compare.Worker:
        if name not in self.workers:
            variables = dict(self.variables)
            if name == "golden":
                # Of its 34 programs each runs once, and choosing the fastest algorithm of each
                # convolution took more than three minutes on an H200.
                flags = (os.environ.get("XLA_FLAGS", ""), "--xla_gpu_autotune_level=0")
                variables["XLA_FLAGS"] = " ".join(filter(None, flags))
            worker = compare.Worker(name, STACKS[name], self.folder, 1, variables)
            self.workers[name] = worker
        return self.workers[name]

    def ask(self, name: str, command: str, **arguments: Any) -> dict[str, Any]:
        self.start(name).send(command, **arguments)
        return self.reply(name, command)

    def reply(self, name: str, command: str, seconds: float = 3600.0) -> dict[str, Any]:
        """Raises UserError; then the worker is ended, whatever state it is in."""
        left = max(0.0, min(seconds, self.ends - time.monotonic()))
        try:
            return self.workers[name].receive(command, left)
        except UserError:
            self.end(name)
            raise

    def end(self, name: str) -> None:
        """Ends a worker and gives its memory back."""
        if worker := self.workers.pop(name, None):
            worker.close()

    def close(self) -> None:
        for name in list(self.workers):
            self.end(name)


def golden(session: Session) -> dict[str, Any]:
    reply = session.ask("golden", "golden", toy=session.toy)
    session.end("golden")
    exact = [case["highest"] for case in reply["cases"].values() if "highest" in case]
    largest = max((max(differences.values()) for differences in exact), default=math.inf)
    problems = [f"{case}: {why}" for case, why in reply["failed"].items()]
    if largest > GOLDEN_TOLERANCE:
        problems.append(f"a golden output differs by {largest:.1e}")
    return reply | {"largest": largest} | failed_unless(not problems, "; ".join(problems))


def products(session: Session) -> dict[str, Any]:
    size, rounds, repeats = (64, 1, 1) if session.toy else (8192, 5, 20)
    reply = session.ask("checks", "products", size=size, rounds=rounds, repeats=repeats)
    session.end("checks")
    return reply


def operations(session: Session) -> dict[str, Any]:
    """What DaViT's own operations take, by `operations.py`, beside their plain definitions."""
    command = [sys.executable, str(ROOT / "benchmarks" / "operations.py"), "--dtype=bfloat16"]
    command += ["--batch", "1" if session.toy else "64", "--repeats", "1" if session.toy else "5"]
    command += ["--only", "depthwise 9"] if session.toy else ["--only", "depthwise", "channel_att"]
    command += [] if session.toy else ["window_attention of 7", "layer_norm_dense"]
    done = subprocess.run(
        command,
        env=os.environ | session.variables,
        capture_output=True,
        text=True,
        timeout=max(1.0, session.ends - time.monotonic()),
    )
    return {"table": done.stdout.splitlines()} | failed_unless(
        done.returncode == 0, done.stderr[-1000:]
    )


def demo(config: str, mode: str = "") -> Callable[[Session], dict[str, Any]]:
    def run(session: Session) -> dict[str, Any]:
        reply = session.ask("checks", "demo", config=config, mode=mode, toy=session.toy)
        session.end("checks")
        return reply

    return run


def agreement(session: Session) -> dict[str, Any]:
    """The losses of three updates with exact products."""
    report = beside_torch("davit_tiny_msft", "train", "float32", 8, "highest")(session)
    apart = [name for name, row in report["stacks"].items() if not row["agrees"]]
    return report | failed_unless(not apart, f"the losses of {', '.join(apart)} are not ours")


def beside_torch(
    network: str, task: str, precision: str, batch: int, matmul_precision: str | None = None
) -> Callable[[Session], dict[str, Any]]:
    """A cell that runs one network in all stacks; with exact products, neither measured for long
    nor compiled by PyTorch."""

    def run(session: Session) -> dict[str, Any]:
        size, toy_size, toy_options = NETWORKS[network]
        size, count = (toy_size, 2) if session.toy else (size, batch)
        args = argparse.Namespace(
            size=size, batch=count, precision=precision, freeze="full", devices=1
        )
        spec = compare.specify(network, task, args, session.folder)
        spec |= {"matmul_precision": matmul_precision}
        spec |= {"options": toy_options if session.toy else {}}
        names = ["glomjax", "torch"]
        if not session.toy and not matmul_precision:
            names.append("torch.compile")
        rows, missing = prepare(session, spec, names)
        compare_outcomes(rows, missing, TOLERANCE[matmul_precision or precision])
        brief = session.toy or matmul_precision is not None
        measure(session, rows, missing, 1 if brief else ROUNDS, 0.0 if brief else TURN_SECONDS)
        for name in list(rows):
            rows[name] |= session.ask(name, "memory")
        summarize(rows, count)
        what = {"network": network, "task": task, "precision": precision, "batch": count}
        return what | {"size": size, "stacks": rows, "missing": missing}

    return run


def prepare(
    session: Session, spec: dict[str, Any], names: Sequence[str]
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """({stack: what it says of itself and its first steps}, {stack that is left out: why}).

    Raises:
      UserError: ours failed.
    """
    rows: dict[str, dict[str, Any]] = {}
    missing: dict[str, str] = {}
    params: dict[str, np.ndarray] = {}
    for name in names:
        try:
            if lacking := lacks(name):
                raise UserError(f"{lacking} is not installed")
            if late := session.overdue.get((name, spec["task"])):
                raise UserError(f"not tried again: {late}")
            tensors = session.ask(name, "build", spec=spec | dict(STACKS[name].settings))["tensors"]
            file = session.folder / f"weights-{name}.npz"
            if name == "glomjax":
                session.ask(name, "export", path=str(file))
                with np.load(file) as arrays:
                    params = dict(arrays)
            else:
                rules = weights.rules_for(spec["architecture"], "torch")
                np.savez(file, **weights.translate(params, tensors, rules)[0])  # type: ignore[arg-type]
                session.ask(name, "load", weights=str(file), frozen=[])
            rows[name] = session.ask(name, "describe")
        except UserError as error:
            missing[name] = reason(error)
            if name == "glomjax":
                raise
    # Both compilers at the same time, which takes processors, and the GPU for moments.
    counts = spec["task"] == "train"
    for group in (["torch"], ["glomjax", "torch.compile"]):
        together = [name for name in group if name in rows]
        for name in together:
            session.start(name).send("prepare")
            if name == "glomjax" and counts:
                session.start(name).send("flops")
        for name in together:
            try:
                rows[name] |= session.reply(name, "prepare", COMPILE_SECONDS)
                if name == "glomjax" and counts:
                    rows[name] |= session.reply(name, "flops")
            except UserError as error:
                if name == "glomjax":
                    raise
                del rows[name]
                missing[name] = reason(error)
                if isinstance(error, compare.Overdue):
                    session.overdue[name, spec["task"]] = missing[name]
    return rows, missing


def compare_outcomes(
    rows: dict[str, dict[str, Any]], missing: dict[str, str], tolerance: float
) -> None:
    """Leaves out what does other work than ours, and says of the rest how far losses or logits
    are from ours, relative to the largest where that is above 1."""
    ours = rows["glomjax"]
    wanted = np.array(ours["outcome"])
    for name, row in list(rows.items()):
        try:
            compare.check_equal_work({"glomjax": ours, name: row}, math.inf)
            devices = {side["settings"]["device"] for side in (ours, row)}
            if len(devices) > 1:
                raise UserError(f"the stacks run on {' and '.join(sorted(devices))}")
        except UserError as error:
            missing[name] = reason(error)
            del rows[name]
            continue
        difference = np.abs(np.array(row["outcome"]) - wanted).max() / max(1, np.abs(wanted).max())
        row["difference"], row["agrees"] = float(difference), bool(difference <= tolerance)
    if "glomjax" not in rows:
        raise UserError(missing["glomjax"])


def measure(
    session: Session,
    rows: dict[str, dict[str, Any]],
    missing: dict[str, str],
    rounds: int,
    seconds: float,
) -> None:
    """Fills in `step_rates`, steps a second in each round."""
    for row in rows.values():
        row["step_rates"] = []
    for number in range(rounds):
        names = list(rows)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            steps = max(1, math.ceil(seconds / rows[name]["step_seconds"]))
            try:
                took = session.ask(name, "stream", steps=steps)["seconds"]
                rows[name]["step_rates"].append(steps / took)
            except UserError as error:
                if name == "glomjax":
                    raise
                missing[name] = reason(error)
                del rows[name]


def summarize(rows: dict[str, dict[str, Any]], batch: int) -> None:
    """Fills in `images_per_second`, one for each round, and `ours_over_this`, the median."""
    ours = rows["glomjax"]["step_rates"]
    for row in rows.values():
        rates = row.pop("step_rates")
        row["images_per_second"] = [batch * rate for rate in rates]
        row["ours_over_this"] = statistics.median(a / b for a, b in zip(ours, rates, strict=True))


def lacks(name: str) -> str:
    """The package that keeps a stack from running here; "" where there is none."""
    needed = ("torch", "timm") if name.startswith("torch") else ()
    return next((package for package in needed if not importlib.util.find_spec(package)), "")


def failed_unless(condition: bool, sentence: str) -> dict[str, str]:
    return {} if condition else {"error": sentence}


def reason(error: UserError) -> str:
    """The end of an error, which begins with a worker's log."""
    return str(error)[-1500:]


def all_cells(toy: bool) -> list[Cell]:
    """In the order of importance; of a toy one of each kind."""
    stacks = COMPARED[:2] if toy else COMPARED
    cells = [Cell("golden", 60, golden, ("golden",)), Cell("operations", 50, operations, ())]

    def add(network: str, task: str, seconds: float, *settings: tuple[str, int]) -> None:
        for precision, batch in settings[:1] if toy else settings:
            name = f"{network} {task} {precision} {batch}"
            run = beside_torch(network, task, precision, batch)
            cells.append(Cell(name, seconds, run, stacks))

    davit = "davit_tiny_msft"
    large, small = ("bfloat16", 256), ("float32", 64)
    others, both = (("bfloat16", 64), ("float32", 256)), (("float32", 64), ("bfloat16", 64))
    add(davit, "train", 70, large)
    cells.append(Cell("agreement", 40, agreement, stacks))
    if not toy:
        add(davit, "train", 70, small, *others)
    cells.append(Cell("products", 15, products))
    add(davit, "infer", 40, large, small)
    for task in ("train", "infer"):
        for network in ("alexnet_mini",) if toy else ("alexnet_mini", "googlenet"):
            add(network, task, 30, *both)
    cells.append(Cell("demo alexnet_mini", 50, demo("alexnet_mini")))
    if not toy:
        add(davit, "infer", 40, *others)
        cells.append(Cell("demo davit", 90, demo("davit", "scratch")))
    return cells
