"""This project's own step and inference, made of the parts that a run uses."""

import contextlib
import math
import re
from collections.abc import Iterator
from typing import Any

import flax
import jax
import jaxlib
import numpy as np
from flax import nnx
from jax.interpreters import partial_eval

from glomjax.inference.steps import make_predict_step
from glomjax.models import create_model, params_of
from glomjax.models.layers import DropPath
from glomjax.ops import native
from glomjax.ops.compilation import compile_now
from glomjax.preprocessing.preprocessing import IMAGENET
from glomjax.training import default_config, parameter_groups
from glomjax.training.optimizers import make_optimizer
from glomjax.training.sharding import Placement
from glomjax.training.steps import init_state, make_train_step, zero_sums
from stacks import protocol

CHANNEL_QKV = re.compile("channel/attention/qkv/kernel$")
CALM_SIZE = 280  # of images up to which initial values are left as they are


class GlomjaxStack(protocol.Stack):
    def build(self, spec: dict[str, Any]) -> dict[str, Any]:
        vars(self).clear()  # of a network before this one
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
        options |= spec.get("options", {})
        size = (spec["size"], spec["size"])

        def create() -> nnx.Module:
            return create_model(spec["architecture"], image_size=size, rngs=nnx.Rngs(0), **options)

        self.model: Any = nnx.eval_shape(create)
        for _, module in nnx.iter_modules(self.model):
            if isinstance(module, nnx.Dropout):
                module.rate = 0.0  # GoogLeNet's is no option
        (phase,) = parameter_groups.plan(self.model, spec["regime"])
        params = params_of(create())
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
            optimizer = make_optimizer(default_config(), parameter_groups.thaw_groups((phase,)))
            self.state = put(init_state(optimizer, self.trainable))
            self.step: Any = make_train_step(
                graphdef,
                IMAGENET,
                optimizer,
                precision=spec["precision"],
                constrain=self.placement.constrain,
            )
        else:
            self.step = make_predict_step(
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
            window, _ = self.model.window((self.spec["size"], self.spec["size"]))
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
            "settings": {
                "native": self.native,
                "devices": self.placement.devices,
                "device": {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend()),
            },
        }

    def compile(self) -> None:
        self.batch = self.placement.batch(self.rows)
        self.key = jax.random.key(0)
        self.sums = self.placement.put(zero_sums())
        with self._tracing():
            self.compiled = compile_now(self.step, *self._arguments())

    def once(self) -> list[float]:
        if self.task == "infer":
            return np.asarray(self.compiled(*self._arguments()))[:, 0].tolist()
        self.sums = self.placement.put(zero_sums())
        self.dispatch()
        self.wait()
        return [float(self.sums["loss"]) / float(self.sums["count"])]

    def dispatch(self) -> None:
        if self.task == "infer":
            self.logits = self.compiled(*self._arguments())
        else:
            self.trainable, self.state, self.sums = self.compiled(*self._arguments())

    def wait(self) -> None:
        jax.block_until_ready(self.logits if self.task == "infer" else (self.trainable, self.state))

    def flops(self) -> dict[str, float]:
        """Floating-point operations of the products and convolutions of a step."""
        with self._tracing():
            jaxpr = self.step.trace(*self._arguments()).jaxpr.jaxpr
        # Backward passes trace values that nothing uses and that XLA leaves out as well.
        jaxpr, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
        return {"flops": count(jaxpr)}

    def memory(self) -> dict[str, float]:
        if jax.default_backend() == "cpu":
            return super().memory()
        # The allocator's own peak cannot be set back, and would be that of all networks so far.
        needs: Any = self.compiled.memory_analysis()
        held = needs.argument_size_in_bytes + needs.output_size_in_bytes
        held += needs.temp_size_in_bytes - needs.alias_size_in_bytes
        return {"peak_mb": held / 1e6}

    @contextlib.contextmanager
    def _tracing(self) -> Iterator[None]:
        precision = self.spec.get("matmul_precision")
        with native.setting(self.spec["native"]), jax.default_matmul_precision(precision):
            yield

    def _arguments(self) -> tuple[Any, ...]:
        if self.task == "infer":
            return {**self.trainable, **self.frozen}, self.batch["image"]
        return (
            self.trainable,
            self.frozen,
            self.state,
            self.sums,
            self.batch,
            self.rate,
            self.key,
        )


def count(jaxpr: Any) -> float:
    """Floating-point operations of all products and convolutions, two to a multiplication.

    Of the branches of a conditional (`jax.lax.platform_dependent` is one) the largest counts, and
    what a loop repeats counts as often. What works on single elements is left out, as in other
    counts of what a network costs.
    """
    total = 0.0
    for equation in jaxpr.eqns:
        params, name = equation.params, equation.primitive.name
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
            total += 2.0 * math.prod(out) * math.prod(left[i] for i in contracted)
        elif name == "conv_general_dilated":
            kernel, out = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
            outputs = kernel[params["dimension_numbers"].rhs_spec[0]]
            dilution = math.prod(params["lhs_dilation"])  # by zeros, in gradients of strides
            total += 2.0 * math.prod(out) * math.prod(kernel) / outputs / dilution
        elif name == "cond":
            total += max(count(branch.jaxpr) for branch in params["branches"])
        else:
            inner = [getattr(value, "jaxpr", value) for value in params.values()]
            repeats = params.get("length", 1) if name == "scan" else 1
            total += repeats * sum(count(value) for value in inner if hasattr(value, "eqns"))
    return total


create = GlomjaxStack
