"""PyTorch, eager or compiled: timm's DaViT and the two CNNs.

It gets what makes it fast: the memory format that is the faster of two for the network at hand,
Adam's fused kernel and, for compiled inference on a CPU, weights frozen into the program. Where its
build has a GPU, it runs there.
"""

import gc
import sys
import time
import types
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from stacks import protocol


class TorchStack(protocol.Stack):
    def build(self, spec: dict[str, Any]) -> dict[str, Any]:
        vars(self).clear()  # of a network before this one
        if spec["compiles"]:
            torch._dynamo.reset()  # or it would refuse to compile another network of this class
        if torch.cuda.is_available():
            gc.collect()
            # JAX rounds the factors of float32 products to TF32 by default, and so does this.
            rounds = spec.get("matmul_precision") is None
            torch.set_float32_matmul_precision("high" if rounds else "highest")
            torch.backends.cudnn.allow_tf32 = rounds
            torch.backends.cudnn.benchmark = True
        self._hand_back_memory()
        self.task, self.spec = spec["task"], spec
        self.compiles = spec["compiles"]
        self.autocasts = spec["precision"] == "bfloat16"
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.set_num_threads(spec["threads"])
        with np.load(spec["batch_file"]) as file:
            images = file["normalized"].transpose(0, 3, 1, 2)
            self.images = torch.from_numpy(np.ascontiguousarray(images)).to(self.device)
            self.labels = torch.from_numpy(file["label"].astype(np.float32)).to(self.device)
        self.model = _network(spec).to(self.device)
        self.model.train(self.task == "train")
        tensors = dict(self.model.named_parameters())
        return {"tensors": {name: list(tensor.shape) for name, tensor in tensors.items()}}

    def load(self, weights: str, frozen: list[str]) -> None:
        with np.load(weights) as file, torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(torch.from_numpy(np.ascontiguousarray(file[name])))
                parameter.requires_grad_(name not in frozen)
        self._choose_memory_format()
        if self.task == "train":
            trained = [p for p in self.model.parameters() if p.requires_grad]
            rate = self.spec["learning_rate"]
            self.optimizer = torch.optim.Adam(trained, lr=rate, eps=1e-7, fused=True)
        self._hand_back_memory()

    def export(self, path: str) -> dict[str, Any]:
        """Writes the network for ONNX Runtime."""
        self._to(torch.contiguous_format)
        torch.onnx.export(self.model, (self.images,), path, dynamo=True, optimize=True)
        return {}

    def describe(self) -> dict[str, Any]:
        settings = self.optimizer.defaults if self.task == "train" else {}
        modules = list(self.model.modules())
        windows = [m.window_size for m in modules if hasattr(m, "window_size")]
        drops = [m.p for m in modules if isinstance(m, nn.Dropout)]
        paths = [m.drop_prob for m in modules if hasattr(m, "drop_prob")]
        batch, channels, height, width = self.images.shape
        return {
            "work": {
                "parameters": sum(p.numel() for p in self.model.parameters()),
                "trained parameters": sum(
                    p.numel() for p in self.model.parameters() if p.requires_grad
                ),
                "window": int(windows[0][0]) if windows else 0,
                "dropout rate": max(drops, default=0.0),
                "drop path rate": max(paths, default=0.0),
                "images": [batch, height, width, channels],
                "learning rate": settings.get("lr", self.spec["learning_rate"]),
                "betas": list(settings.get("betas", (0.9, 0.999))),
                "epsilon": settings.get("eps", 1e-7),
                "threads": torch.get_num_threads(),
            },
            "versions": {
                "torch": torch.__version__,
                "timm": sys.modules["timm"].__version__ if "timm" in sys.modules else "not used",
                "numpy": np.__version__,
            },
            "settings": {
                "memory format": str(self.memory_format).removeprefix("torch."),
                "device": self.device,
            },
        }

    def compile(self) -> None:
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        if self.compiles:
            if self.task == "infer" and self.device == "cpu":
                torch._inductor.config.freezing = True
            self.forward = torch.compile(self.model)
        else:
            self.forward = self.model

    def once(self) -> list[float]:
        self.dispatch()
        return self.outcome.tolist()

    def dispatch(self) -> None:
        if self.task == "infer":
            with torch.no_grad():
                self.outcome = self._logits(self.forward)
            return
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._loss(self.forward)
        loss.backward()
        self.optimizer.step()
        self.outcome = loss.detach()[None]

    def wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def prepare(self) -> dict[str, Any]:
        report = super().prepare()
        self._hand_back_memory()
        return report

    def stream(self, steps: int) -> dict[str, Any]:
        report = super().stream(steps)
        self._hand_back_memory()
        return report

    def memory(self) -> dict[str, float]:
        if self.device == "cpu":
            return super().memory()
        return {"peak_mb": torch.cuda.max_memory_allocated() / 1e6}

    def _hand_back_memory(self) -> None:
        """On a GPU: another stack has its turn on it."""
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _logits(self, forward: Any) -> torch.Tensor:
        with torch.autocast(self.device, torch.bfloat16, enabled=self.autocasts):
            return forward(self.images)[:, 0].float()

    def _loss(self, forward: Any) -> torch.Tensor:
        return F.binary_cross_entropy_with_logits(self._logits(forward), self.labels)

    def _choose_memory_format(self) -> None:
        """Keeps the faster of the two, the better of two passes after one to warm up."""
        seconds = {}
        for layout in (torch.contiguous_format, torch.channels_last):
            self._to(layout)
            passes = []
            for _ in range(3):
                begun = time.perf_counter()
                if self.task == "train":
                    self._loss(self.model).backward()
                    self.model.zero_grad(set_to_none=True)
                else:
                    with torch.no_grad():
                        self._logits(self.model)
                if self.device == "cuda":
                    torch.cuda.synchronize()
                passes.append(time.perf_counter() - begun)
            seconds[layout] = min(passes[1:])
        self._to(min(seconds, key=lambda layout: seconds[layout]))

    def _to(self, memory_format: torch.memory_format) -> None:
        self.memory_format = memory_format
        self.model.to(memory_format=memory_format)
        self.images = self.images.contiguous(memory_format=memory_format)


def _network(spec: dict[str, Any]) -> nn.Module:
    if spec["architecture"] == "davit_tiny":
        return _timm().create_model(
            "davit_tiny",
            num_classes=1,
            window_size=spec["window"],
            head_norm_first=spec["head_norm_first"],
            **spec.get("options", {}),
        )
    if spec["architecture"] == "alexnet_mini":
        return AlexNetMini(spec["size"])
    return GoogLeNet()


def _timm() -> Any:
    """timm without torchvision, which its data loaders import and its networks do not need."""

    class Named(type):
        def __getattr__(cls, name: str) -> str:
            return name

    class Nothing(types.ModuleType):
        __path__: list[str] = []  # noqa: RUF012

        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return Named(name, (), {})

    parts = "datasets models models.feature_extraction ops ops.misc transforms"
    parts += " transforms.functional"
    names = ["torchvision", *(f"torchvision.{part}" for part in parts.split())]
    stand_ins = {name: Nothing(name) for name in names}
    for name, module in stand_ins.items():
        parent, _, part = name.rpartition(".")
        if parent:
            setattr(stand_ins[parent], part, module)
    sys.modules.update(stand_ins)
    try:
        import timm
    finally:
        for name in stand_ins:
            del sys.modules[name]
    return timm


class AlexNetMini(nn.Module):
    def __init__(self, size: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 96, 13, stride=3, padding=3)
        self.conv2 = nn.Conv2d(96, 256, 5, padding=2)
        self.conv3 = nn.Conv2d(256, 384, 3, padding=1)
        self.conv4 = nn.Conv2d(384, 384, 3, padding=1)
        self.conv5 = nn.Conv2d(384, 256, 3, padding=1)
        side = (size + 6 - 13) // 3 + 1
        for _ in range(2):
            side = (side - 3) // 2 + 1
        self.fc1 = nn.Linear((side // 2) ** 2 * 256, 128)
        self.fc2 = nn.Linear(128, 128)
        self.head = nn.Linear(128, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x), inplace=True), 3, 2)
        x = F.max_pool2d(F.relu(self.conv2(x), inplace=True), 3, 2)
        for conv in (self.conv3, self.conv4, self.conv5):
            x = F.relu(conv(x), inplace=True)
        x = F.max_pool2d(x, 2, 2)
        x = x.permute(0, 2, 3, 1).flatten(1)  # the order of the weights: rows, columns, channels
        x = F.relu(self.fc1(x), inplace=True)
        x = F.relu(self.fc2(x), inplace=True)
        return self.head(x)


class Inception(nn.Module):
    def __init__(self, inputs: int, widths: tuple[int, ...]):
        super().__init__()
        one, reduce3, three, reduce5, five, pool = widths
        self.conv1x1 = nn.Conv2d(inputs, one, 1)
        self.conv3x3_reduce = nn.Conv2d(inputs, reduce3, 1)
        self.conv3x3 = nn.Conv2d(reduce3, three, 3, padding=1)
        self.conv5x5_reduce = nn.Conv2d(inputs, reduce5, 1)
        self.conv5x5 = nn.Conv2d(reduce5, five, 5, padding=2)
        self.pool_proj = nn.Conv2d(inputs, pool, 1)
        self.outputs = one + three + five + pool

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        def relu(conv: nn.Module, x: torch.Tensor) -> torch.Tensor:
            return F.relu(conv(x), inplace=True)

        branches = (
            relu(self.conv1x1, x),
            relu(self.conv3x3, relu(self.conv3x3_reduce, x)),
            relu(self.conv5x5, relu(self.conv5x5_reduce, x)),
            relu(self.pool_proj, F.max_pool2d(x, 3, 1, padding=1)),
        )
        return torch.cat(branches, 1)


class GoogLeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2)
        self.conv2_reduce = nn.Conv2d(64, 192, 1)
        self.conv2 = nn.Conv2d(192, 192, 3, padding=1)
        channels = 192
        for block, widths in protocol.INCEPTION.items():
            inception = Inception(channels, widths)
            self.add_module(f"inception_{block}", inception)
            channels = inception.outputs
        self.fc = nn.Linear(channels, 1000)
        self.head = nn.Linear(1000, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # `same` as TensorFlow pads it: the odd row and column go below and to the right.
        down, right = (max((-(-n // 2) - 1) * 2 + 7 - n, 0) for n in x.shape[2:])
        x = F.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2))
        x = F.max_pool2d(F.relu(self.conv1(x), inplace=True), 3, 2)
        x = F.relu(self.conv2_reduce(x), inplace=True)
        x = F.max_pool2d(F.relu(self.conv2(x), inplace=True), 3, 2)
        for block in protocol.INCEPTION:
            x = getattr(self, f"inception_{block}")(x)
            if block in ("3b", "4e"):
                x = F.max_pool2d(x, 3, 2)
        x = F.relu(self.fc(x.mean((2, 3))), inplace=True)
        return self.head(x)


create = TorchStack
