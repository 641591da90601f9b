"""ONNX Runtime, which infers with a network that the PyTorch stack has exported."""

from typing import Any

import numpy as np
import onnxruntime

from stacks import protocol


class OnnxRuntimeStack(protocol.Stack):
    def build(self, spec: dict[str, Any]) -> dict[str, Any]:
        self.task, self.spec = spec["task"], spec
        with np.load(spec["batch_file"]) as file:
            self.images = np.ascontiguousarray(file["normalized"].transpose(0, 3, 1, 2))
        return {"tensors": {}}

    def describe(self) -> dict[str, Any]:
        return {
            "work": {},  # that of the stack that exported it
            "versions": {"onnxruntime": onnxruntime.__version__, "numpy": np.__version__},
            "settings": {},
        }

    def compile(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.spec["threads"]
        self.session = onnxruntime.InferenceSession(
            self.spec["onnx_file"], options, providers=["CPUExecutionProvider"]
        )
        self.name = self.session.get_inputs()[0].name

    def once(self) -> list[float]:
        (logits,) = self.session.run(None, {self.name: self.images})
        return logits[:, 0].tolist()


create = OnnxRuntimeStack
