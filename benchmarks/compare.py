"""The same training step and inference in this project, Keras, PyTorch and ONNX Runtime.

    python benchmarks/compare.py --setup
    python benchmarks/compare.py --networks davit_tiny --json OUT.json --plot OUT.png

`--setup` makes the other stacks' virtual environments in the cache folder (some 3 GB), once. Every
stack is a process of its own with the same initial weights, the same batch, Adam at 1e-7, binary
cross-entropy, no dropout and no drop path. The others get images that are normalised already; ours
normalises within its step, as in a run. First all take a few steps: the comparison is refused where
parameters, window, rates or the losses after three updates are not equal. Then, in every round, one
after another runs for some seconds while the others wait, in an order that rotates; the first step
of a turn is not measured.

Prints median images/s over the rounds with the lowest and the highest, the median over the rounds
of ours / theirs, the peak memory of the process (its libraries included) and the seconds of
compiling and of the first step, in which some stacks compile. `--native auto off` runs this project
twice, with its native kernels and without. The machine must be idle otherwise.
"""

import argparse
import contextlib
import dataclasses
import json
import math
import os
import pathlib
import platform
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from stacks import environments, weights

from glomjax.environment import processor, usable_cores
from glomjax.errors import UserError
from glomjax.preprocessing.preprocessing import IMAGENET

FOLDER = pathlib.Path(__file__).parent
OURS = "glomjax"
# Of 1e-6, three updates from random values amplify rounding to 4e-3 at 280 x 280.
LEARNING_RATE = 1e-7
# Of losses and logits between two stacks; products of bfloat16 round at 4e-3.
TOLERANCE = {"float32": 1e-3, "bfloat16": 3e-2}
REGIMES = {"full": "full", "published": "partial", "head_only": "head_only"}
IDLE_CORES = 0.05  # that a waiting worker may use before the figures are in doubt
SETTLE = 0.1  # seconds for the threads of the last turn, which may spin, to go to sleep


@dataclasses.dataclass(frozen=True)
class Stack:
    """How a stack is run: stacks/MODULE.py under an environment's Python ("" for ours)."""

    module: str
    environment: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tasks: tuple[str, ...] = ("train", "infer")
    precisions: tuple[str, ...] = ("float32", "bfloat16")


STACKS = {
    OURS: Stack("glomjax_stack", ""),
    "keras": Stack("keras_stack", "keras"),
    "torch": Stack("torch_stack", "torch", {"compiles": False}),
    "torch.compile": Stack("torch_stack", "torch", {"compiles": True}),
    "onnxruntime": Stack("onnxruntime_stack", "onnxruntime", {}, ("infer",), ("float32",)),
}


@dataclasses.dataclass(frozen=True)
class Network:
    """A network that all stacks but `without` have."""

    architecture: str
    head_norm_first: bool = False
    without: tuple[str, ...] = ()

    def window(self, size: int) -> int:
        """The side of DaViT's windows for images of `size`; 0 for a network without."""
        if not self.architecture.startswith("davit"):
            return 0
        return math.ceil(size / 32) if self.head_norm_first else 7


NETWORKS = {
    # As Keras (kecam) has it; timm takes the same window and order of the head as options.
    "davit_tiny": Network("davit_tiny", head_norm_first=True),
    # As the authors and timm have it.
    "davit_tiny_msft": Network("davit_tiny", without=("keras",)),
    "alexnet_mini": Network("alexnet_mini"),
    "googlenet": Network("googlenet"),
}


class Overdue(UserError):
    """A worker gave no reply in time."""


class Worker:
    """A stack's process, and what is asked of it; `variables` are environment variables of it."""

    def __init__(
        self,
        name: str,
        stack: Stack,
        folder: pathlib.Path,
        devices: int = 1,
        variables: Mapping[str, str] | None = None,
    ):
        self.name = name
        self.log = folder / f"{name}.log"
        python = environments.python_of(stack.environment) if stack.environment else sys.executable
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(
                [str(python), "-m", "stacks", stack.module],
                cwd=FOLDER,
                env=_environment(stack, folder, devices) | dict(variables or {}),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.replies: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        """Lines as they come, and "" where the process has ended."""
        assert self.process.stdout is not None
        with self.process.stdout as stdout:
            for line in stdout:
                self.replies.put(line)
        self.replies.put("")

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self.process.kill()
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # of a request that it never read
            self.process.stdin.close()
        self.process.wait()

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """The reply to a command of `stacks.protocol`. Raises UserError where it failed."""
        self.send(command, **arguments)
        return self.receive(command)

    def send(self, command: str, **arguments: Any) -> None:
        """Asks without waiting; replies come in the order of the commands."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps({"command": command, **arguments}) + "\n")
            self.process.stdin.flush()

    def receive(self, command: str, seconds: float | None = None) -> dict[str, Any]:
        """The next reply, which is that to `command`.

        Raises:
          UserError: the command failed.
          Overdue: there was no reply within `seconds`, and the process has been ended.
        """
        try:
            line = self.replies.get(timeout=seconds)
        except queue.Empty:
            self.process.kill()
            raise Overdue(
                f"{self.name} was still at {command!r} after {seconds:.0f} s, and was ended"
            ) from None
        if not line:
            self.replies.put("")  # what comes next would wait for a process that has ended
        reply = json.loads(line) if line else {"error": f"ended ({self.process.wait()})"}
        if "error" in reply:
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
            raise UserError(f"{tail}\n\n{self.name} failed at {command!r}: {reply['error']}")
        return reply

    def cpu_seconds(self) -> float:
        """CPU time so far of the process; NaN where the system has no /proc."""
        try:
            stat = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text()
        except OSError:
            return math.nan
        user, system = stat.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--setup", action="store_true", help="make the environments and end")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--stacks", nargs="+", choices=STACKS, default=list(STACKS))
    parser.add_argument(
        "--tasks", nargs="+", choices=("train", "infer"), default=["train", "infer"]
    )
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=280, help="the image's height and width")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a turn, at least")
    parser.add_argument("--freeze", choices=REGIMES, default="full")
    parser.add_argument("--precision", choices=TOLERANCE, default="float32")
    parser.add_argument("--native", nargs="+", choices=("auto", "off"), default=["auto"])
    parser.add_argument("--devices", type=int, default=1, help="virtual ones, for this project")
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--plot", type=pathlib.Path)
    args = parser.parse_args(argv)
    try:
        if args.setup:
            names = {STACKS[name].environment for name in args.stacks} - {""}
            names |= {"torch"} if "onnxruntime" in names else set()
            for name in sorted(names):
                environments.set_up(name)
        else:
            compare(args)
    except UserError as error:
        sys.exit(f"error: {error}")


def compare(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Every task of every network; prints a table for each and returns a row for each stack.

    Raises:
      UserError: a worker failed, or the stacks do not do the same work.
    """
    uncut = [n for n in args.networks if not NETWORKS[n].architecture.startswith("davit")]
    if args.freeze == "published" and uncut:
        raise UserError(
            f"there is no published cut of {', '.join(uncut)}; with --freeze published, name DaViT "
            "alone: --networks davit_tiny"
        )
    machine = describe_machine()
    print(f"{machine['cpu']}, {machine['cores']} cores, load {machine['load']:.1f}", flush=True)
    results: list[dict[str, Any]] = []
    for name in args.networks:
        for task in args.tasks:
            with tempfile.TemporaryDirectory(prefix="compare-") as folder:
                results += compare_stacks(name, task, args, pathlib.Path(folder))
            if args.json:  # what has been measured so far survives what comes
                settings = {
                    k: str(v) if k in ("json", "plot") else v for k, v in vars(args).items()
                }
                report = {"machine": machine, "settings": settings, "results": results}
                args.json.write_text(json.dumps(report, indent=2) + "\n")
    if args.plot:
        plot(results, args.plot)
    return results


def compare_stacks(
    name: str, task: str, args: argparse.Namespace, folder: pathlib.Path
) -> list[dict[str, Any]]:
    """One network and one task; `folder` takes weights, logs and what the stacks cache."""
    stacks = choose_stacks(name, task, args)
    spec = specify(name, task, args, folder)
    rows: dict[str, dict[str, Any]] = {}
    with contextlib.ExitStack() as running:
        workers: dict[str, Worker] = {}
        params: dict[str, np.ndarray] = {}
        frozen: set[str] = set()
        for stack_name, stack in stacks.items():
            worker = workers[stack_name] = running.enter_context(
                Worker(stack_name, stack, folder, args.devices)
            )
            own = spec | dict(stack.settings)
            inherited: dict[str, Any] = {}
            if stack.module == "onnxruntime_stack":
                own["onnx_file"], inherited = _export_onnx(spec, params, folder)
            tensors = worker.ask("build", spec=own)["tensors"]
            if not stack.environment:
                file = folder / "weights.npz"
                frozen = set(worker.ask("export", path=str(file))["frozen"])
                with np.load(file) as arrays:
                    params = dict(arrays)
            elif tensors:
                _load(worker, stack, spec, tensors, params, frozen, folder)
            described = worker.ask("describe")
            described["work"] = inherited | described["work"]
            rows[stack_name] = {"network": name, "task": task, "stack": stack_name} | described
            rows[stack_name] |= worker.ask("prepare")
            print(f"  {stack_name} is ready", file=sys.stderr, flush=True)
        check_equal_work(rows, TOLERANCE[args.precision])
        measure(rows, workers, args)
        for stack_name, worker in workers.items():
            rows[stack_name] |= worker.ask("memory")
            worker.ask("stop")
    summarize(rows)
    print_table(rows, args)
    return list(rows.values())


def choose_stacks(name: str, task: str, args: argparse.Namespace) -> dict[str, Stack]:
    """The stacks that take part, ours first."""
    chosen: dict[str, Stack] = {}
    for setting in dict.fromkeys(args.native):
        label = f"{OURS} (native {setting})" if chosen else OURS
        chosen[label] = dataclasses.replace(STACKS[OURS], settings={"native": setting})
    for stack_name in args.stacks:
        stack = STACKS[stack_name]
        if stack_name == OURS or task not in stack.tasks or stack_name in NETWORKS[name].without:
            continue
        if args.precision in stack.precisions:
            chosen[stack_name] = stack
    return chosen


def specify(name: str, task: str, args: argparse.Namespace, folder: pathlib.Path) -> dict[str, Any]:
    """What every stack is told to build, with the batch in a file.

    The batch: `image` uint8 [B, H, W, 3] of random squares under noise, so that no two images are
    alike on any scale; `normalized` float32, the same as a network takes it; `label`; `mask`.
    """
    rng = np.random.default_rng(0)
    coarse = -(-args.size // 16)
    squares = rng.integers(0, 192, (args.batch, coarse, coarse, 3))
    squares = squares.repeat(16, axis=1).repeat(16, axis=2)[:, : args.size, : args.size]
    image = (squares + rng.integers(0, 64, squares.shape)).astype(np.uint8)
    normalized = (image / 255 - np.array(IMAGENET.mean)) / np.array(IMAGENET.std)
    file = folder / "batch.npz"
    np.savez(
        file,
        image=image,
        normalized=normalized.astype(np.float32),
        label=(np.arange(args.batch) % 2).astype(np.int32),
        mask=np.ones(args.batch, np.float32),
    )
    network = NETWORKS[name]
    return {
        "architecture": network.architecture,
        "window": network.window(args.size),
        "head_norm_first": network.head_norm_first,
        "task": task,
        "size": args.size,
        "batch_file": str(file),
        "learning_rate": LEARNING_RATE,
        "regime": REGIMES[args.freeze],
        "precision": args.precision,
        "threads": usable_cores(),
        "devices": args.devices,
    }


def check_equal_work(rows: Mapping[str, Mapping[str, Any]], tolerance: float) -> None:
    """Refuses stacks that do not do what the first does.

    Args:
      rows: {stack: {"work": {name: value}, "outcome": losses or logits}}.
      tolerance: of an outcome, relative to the largest of them where that is above 1.

    Raises:
      UserError: names every difference.
    """
    (first, ours), *others = rows.items()
    problems = []
    for name, row in ((first, ours), *others):
        if not np.isfinite(row["outcome"]).all():
            problems.append(f"{name} gives {row['outcome']}")
    for name, row in others:
        for what in sorted({*ours["work"], *row["work"]}):
            value, wanted = (side["work"].get(what, "unknown") for side in (row, ours))
            # Some stacks keep their settings in float32.
            numbers = isinstance(value, float) and isinstance(wanted, float)
            equal = math.isclose(value, wanted, rel_tol=1e-6) if numbers else value == wanted
            if not equal:
                problems.append(f"{what} is {value} in {name} and {wanted} in {first}")
        given, wanted = np.array(row["outcome"]), np.array(ours["outcome"])
        if given.shape != wanted.shape:
            problems.append(f"{name} gives {given.size} numbers and {first} {wanted.size}")
        elif np.abs(given - wanted).max() > tolerance * max(1.0, np.abs(wanted).max()):
            problems.append(f"{name} gives {row['outcome']} and {first} {ours['outcome']}")
    if problems:
        raise UserError("the stacks do not do the same work: " + "; ".join(problems))


def measure(
    rows: Mapping[str, dict[str, Any]], workers: Mapping[str, Worker], args: argparse.Namespace
) -> None:
    """Rounds of turns. Fills in each row's `rounds`, the seconds of the steps of each round, and
    `idle_cores`, how many cores its worker used while others ran."""
    names = list(rows)
    used, waited = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    for row in rows.values():
        row["rounds"] = []
    for number in range(args.rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            steps = max(1, math.ceil(args.seconds / rows[name]["step_seconds"]))
            waiting = [other for other in names if other != name]
            time.sleep(SETTLE)
            before = {other: workers[other].cpu_seconds() for other in waiting}
            seconds = workers[name].ask("run", steps=steps)["seconds"]
            for other in waiting:
                used[other] += workers[other].cpu_seconds() - before[other]
                waited[other] += sum(seconds)
            rows[name]["rounds"].append(seconds)
        print(f"  round {number + 1} of {args.rounds}", file=sys.stderr, flush=True)
    for name, row in rows.items():
        row["idle_cores"] = used[name] / waited[name] if waited[name] else 0.0


def summarize(rows: Mapping[str, dict[str, Any]]) -> None:
    """Fills in each row's `images_per_second`, one for each round, and `ours_over_this`."""
    ours = next(iter(rows.values()))
    for row in rows.values():
        batch = row["work"]["images"][0]
        row["images_per_second"] = [batch * len(turn) / sum(turn) for turn in row["rounds"]]
        pairs = zip(ours["images_per_second"], row["images_per_second"], strict=True)
        row["ours_over_this"] = statistics.median(mine / other for mine, other in pairs)


def print_table(rows: Mapping[str, Mapping[str, Any]], args: argparse.Namespace) -> None:
    """A network's table for one task, under what the stacks agreed on."""
    first = next(iter(rows.values()))
    work, task = first["work"], first["task"]
    window = f"window {work['window']}, " if work["window"] else ""
    print(
        f"\n{first['network']}, {task}: {work['parameters']:,} parameters, "
        f"{work['trained parameters']:,} trained, {window}{args.size} x {args.size}, batch "
        f"{args.batch}, {args.precision}, {work['threads']} threads, {args.rounds} rounds"
    )
    width = max(map(len, rows)) + 2
    print("losses before and after each of three updates" if task == "train" else "logits")
    for name, row in rows.items():
        print(f"{name:<{width}}" + " ".join(f"{value:9.5f}" for value in row["outcome"][:8]))
    print(
        f"{'':<{width}}{'images/s':>10}{'lowest':>10}{'highest':>10}{'ours/this':>11}"
        f"{'peak MB':>10}{'compile s':>11}{'first step s':>14}"
    )
    for name, row in rows.items():
        rates = row["images_per_second"]
        print(
            f"{name:<{width}}{statistics.median(rates):>10.2f}{min(rates):>10.2f}{max(rates):>10.2f}"
            f"{row['ours_over_this']:>11.2f}{row['peak_mb']:>10.0f}"
            f"{row['compile_seconds']:>11.1f}{row['first_step_seconds']:>14.1f}",
            flush=True,
        )
        if row["idle_cores"] > IDLE_CORES:
            print(f"  {name} used {row['idle_cores']:.2f} cores while others ran: not a fair run")


def plot(results: Sequence[Mapping[str, Any]], path: pathlib.Path) -> None:
    """A panel for each network and task: the median of each stack, and every round as a dot."""
    from matplotlib.figure import Figure

    panels: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in results:
        panels.setdefault((row["network"], row["task"]), []).append(row)
    figure = Figure(figsize=(3.6 * len(panels), 3.4), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for (title, rows), ax in zip(panels.items(), axes, strict=True):
        for i, row in enumerate(rows):
            rates = row["images_per_second"]
            middle = statistics.median(rates)
            spread = [[middle - min(rates)], [max(rates) - middle]]
            color = "#0072B2" if row["stack"].startswith(OURS) else "#999999"
            ax.bar(i, middle, color=color, yerr=spread, capsize=4)
            ax.plot([i] * len(rates), rates, ".", color="black", markersize=4)
        names = [row["stack"] for row in rows]
        ax.set_xticks(range(len(rows)), names, rotation=30, ha="right")
        ax.set_title(" ".join(title))
        ax.set_ylabel("images/s")
    figure.savefig(path, dpi=150)


def describe_machine() -> dict[str, Any]:
    """Processor, cores, the vector extensions that matter, system, load and git commit."""
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    lines = (line.partition(":") for line in text.splitlines())
    fields = {name.strip(): value.strip() for name, _, value in lines}
    known = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16")
    flags = fields.get("flags", "").split()
    return {
        "cpu": processor(),
        "cores": usable_cores(),
        "flags": [flag for flag in known if flag in flags],
        "system": platform.platform(),
        "load": os.getloadavg()[0],
        "commit": _git("rev-parse", "HEAD"),
        "modified": bool(_git("status", "--porcelain")),
    }


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(("git", *arguments), cwd=FOLDER, capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.strip()


def _environment(stack: Stack, folder: pathlib.Path, devices: int) -> dict[str, str]:
    """The worker's environment variables: the default allocator, and no compiled code but its own
    of this run."""
    env = {
        name: value
        for name, value in os.environ.items()
        if name not in ("LD_PRELOAD", "PYTHONPATH") and not name.startswith(("MALLOC_", "OMP_"))
    }
    env |= {"TF_CPP_MIN_LOG_LEVEL": "2", "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}
    if not stack.environment:
        env |= {"PYTHONPATH": str(FOLDER.parent), "JAX_ENABLE_COMPILATION_CACHE": "0"}
        if devices > 1:
            env["JAX_PLATFORMS"] = "cpu"
            flags = f"{env.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
            env["XLA_FLAGS"] = flags.strip()
    return env


def _load(
    worker: Worker,
    stack: Stack,
    spec: Mapping[str, Any],
    tensors: Mapping[str, Sequence[int]],
    params: Mapping[str, np.ndarray],
    frozen: set[str],
    folder: pathlib.Path,
) -> None:
    """Hands our initial weights to another stack."""
    rules = weights.rules_for(spec["architecture"], stack.environment)
    arrays, paths = weights.translate(params, tensors, rules)
    file = folder / f"weights-{worker.name}.npz"
    np.savez(file, **arrays)  # type: ignore[arg-type]
    still = [name for name, path in paths.items() if path in frozen]
    worker.ask("load", weights=str(file), frozen=still)


def _export_onnx(
    spec: Mapping[str, Any], params: Mapping[str, np.ndarray], folder: pathlib.Path
) -> tuple[str, dict[str, Any]]:
    """The network as an ONNX file that PyTorch writes, and what PyTorch says that it does."""
    file = str(folder / "network.onnx")
    stack = STACKS["torch"]
    with Worker("exporter", stack, folder) as exporter:
        tensors = exporter.ask("build", spec=dict(spec) | dict(stack.settings))["tensors"]
        _load(exporter, stack, spec, tensors, params, set(), folder)
        exporter.ask("export", path=file)
        return file, exporter.ask("describe")["work"]


if __name__ == "__main__":
    main()
