"""This project's own step and inference, made of the parts that a run uses."""

import re
from typing import Any

import flax
import jax
import jaxlib
import numpy as np
from flax import nnx

from glomjax.data.preprocessing import IMAGENET
from glomjax.models import create_model, params_of
from glomjax.models.layers import DropPath
from glomjax.ops import native
from glomjax.training import default_config, freezing
from glomjax.training.optimizers import make_optimizer
from glomjax.training.sharding import Placement
from glomjax.training.steps import (
    compile_now,
    init_state,
    make_eval_step,
    make_train_step,
    run_once,
    zero_sums,
)
from stacks import protocol

CHANNEL_QKV = re.compile("channel/attention/qkv/kernel$")
CALM_SIZE = 280  # of images up to which initial values are left as they are


class GlomjaxStack(protocol.Stack):
    def build(self, spec: dict[str, Any]) -> dict[str, Any]:
        self.task = spec["task"]
        self.rate = np.float32(spec["learning_rate"])
        self.placement = Placement(spec["devices"])
        with np.load(spec["batch_file"]) as file:
            self.rows = {name: file[name] for name in ("image", "label", "mask")}
        davit = {"preset": "kecam" if spec["head_norm_first"] else "msft"}
        options = {
            "alexnet_mini": {},
            "googlenet": {"preset": "notebook", "aux_heads": False},
        }.get(spec["architecture"], davit)
        size = (spec["size"], spec["size"])

        def create() -> nnx.Module:
            return create_model(spec["architecture"], image_size=size, rngs=nnx.Rngs(0), **options)

        self.model: Any = nnx.eval_shape(create)
        for _, module in nnx.iter_modules(self.model):
            if isinstance(module, nnx.Dropout):
                module.rate = 0.0  # GoogLeNet's is no option
        (phase,) = freezing.plan(self.model, spec["regime"])
        params = run_once(lambda: params_of(create()))
        # Channel attention sums over all tokens before its softmax. Random values saturate it on
        # large maps, and then the losses show how each stack rounds.
        calm = min(1.0, CALM_SIZE / spec["size"])
        self.initial = {
            path: np.asarray(value) * np.float32(calm if CHANNEL_QKV.search(path) else 1)
            for path, value in params.items()
        }
        put = self.placement.put
        self.trainable = {path: put(self.initial[path]) for path in phase.trainable}
        self.frozen = {p: put(v) for p, v in self.initial.items() if p not in self.trainable}
        self.spec = spec
        with native.setting(spec["native"]):
            self.native = native.status(spec["precision"])  # builds them, before any clock runs

        graphdef, _ = nnx.split(self.model, nnx.Param)
        if self.task == "train":
            optimizer = make_optimizer(default_config(), freezing.thaw_groups((phase,)))
            self.state = put(init_state(optimizer, self.trainable))
            self.step: Any = make_train_step(
                graphdef,
                IMAGENET,
                optimizer,
                precision=spec["precision"],
                constrain=self.placement.constrain,
            )
        else:
            self.step = make_eval_step(
                graphdef,
                IMAGENET,
                precision=spec["precision"],
                constrain=self.placement.replicated,
            )
        return {"tensors": {path: value.shape for path, value in self.initial.items()}}

    def export(self, path: str) -> dict[str, Any]:
        """Writes the initial weights; returns {"frozen": paths that do not train}."""
        np.savez(path, **self.initial)  # type: ignore[arg-type]
        del self.initial  # a run has no second copy either
        return {"frozen": list(self.frozen)}

    def describe(self) -> dict[str, Any]:
        window = 0
        if self.spec["architecture"].startswith("davit"):
            preset = -(-self.spec["size"] // 32) if self.model.preset == "kecam" else 7
            window = self.model.window_size or preset
        modules = [module for _, module in nnx.iter_modules(self.model)]
        trained, frozen = (
            sum(value.size for value in params.values()) for params in (self.trainable, self.frozen)
        )
        return {
            "work": {
                "parameters": trained + frozen,
                "trained parameters": trained,
                "window": window,
                "dropout rate": max(m.rate for m in modules if isinstance(m, nnx.Dropout)),
                "drop path rate": max(
                    (m.rate for m in modules if isinstance(m, DropPath)), default=0.0
                ),
                "images": list(self.rows["image"].shape),
                "learning rate": round(float(self.rate), 9),
                "betas": [0.9, 0.999],
                "epsilon": 1e-7,
                "threads": self.spec["threads"],
            },
            "versions": {m.__name__: m.__version__ for m in (jax, jaxlib, flax, np)},
            "settings": {"native": self.native, "devices": self.placement.devices},
        }

    def compile(self) -> None:
        with native.setting(self.spec["native"]):
            self.compiled = compile_now(self.step, *self._arguments())

    def once(self) -> list[float]:
        if self.task == "infer":
            return np.asarray(self.compiled(*self._arguments()))[:, 0].tolist()
        self.trainable, self.state, sums = self.compiled(*self._arguments())
        jax.block_until_ready((self.trainable, self.state))
        return [float(sums["loss"]) / float(sums["count"])]

    def _arguments(self) -> tuple[Any, ...]:
        batch = self.placement.batch(self.rows)
        if self.task == "infer":
            return {**self.trainable, **self.frozen}, batch["image"]
        sums = self.placement.put(zero_sums())
        return (
            self.trainable,
            self.frozen,
            self.state,
            sums,
            batch,
            self.rate,
            jax.random.key(0),
        )


create = GlomjaxStack
