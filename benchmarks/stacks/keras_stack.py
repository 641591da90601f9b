"""Keras 2 on TensorFlow: kecam's DaViT and the two CNNs, trained by a compiled `tf.function`."""

from importlib import metadata
from typing import Any

import keras_cv_attention_models as kecam
import numpy as np
import tensorflow as tf

from stacks import protocol

layers = tf.keras.layers


class KerasStack(protocol.Stack):
    def build(self, spec: dict[str, Any]) -> dict[str, Any]:
        self.task, self.spec = spec["task"], spec
        tf.config.threading.set_intra_op_parallelism_threads(spec["threads"])
        tf.config.threading.set_inter_op_parallelism_threads(spec["threads"])
        if spec["precision"] == "bfloat16":
            tf.keras.mixed_precision.set_global_policy("mixed_bfloat16")
        with np.load(spec["batch_file"]) as file:
            self.images = tf.constant(file["normalized"])
            self.labels = tf.constant(file["label"], tf.float32)
        self.model = _network(spec["architecture"], spec["size"])
        self.weights = {
            f"{layer.name}/{weight.name.split('/')[-1].removesuffix(':0')}": weight
            for layer in self.model.layers
            for weight in layer.weights
        }
        return {"tensors": {name: w.shape.as_list() for name, w in self.weights.items()}}

    def load(self, weights: str, frozen: list[str]) -> None:
        with np.load(weights) as file:
            for name, weight in self.weights.items():
                weight.assign(file[name])
        for layer in self.model.layers:
            names = [name for name in self.weights if name.startswith(f"{layer.name}/")]
            still = {name in frozen for name in names}
            if len(still) == 2:
                raise ValueError(f"layer {layer.name} is frozen in part, which Keras cannot do")
            if still:
                layer.trainable = not still.pop()

    def describe(self) -> dict[str, Any]:
        window, drops = 0, {"dropout": 0.0, "drop path": 0.0}
        for layer in self.model.layers:
            if layer.name == "stack1_block1_attn_qkv":
                window = round(int(np.prod(layer.input_shape[1:-1])) ** 0.5)
            if isinstance(layer, layers.Dropout):
                # kecam drops paths by dropout that all of an example shares
                kind = "drop path" if layer.noise_shape is not None else "dropout"
                drops[kind] = max(drops[kind], layer.rate)
        optimizer = self.optimizer = tf.keras.optimizers.Adam(
            self.spec["learning_rate"], epsilon=1e-7
        )
        return {
            "work": {
                "parameters": self.model.count_params(),
                "trained parameters": sum(
                    int(np.prod(weight.shape)) for weight in self.model.trainable_weights
                ),
                "window": window,
                "dropout rate": drops["dropout"],
                "drop path rate": drops["drop path"],
                "images": self.images.shape.as_list(),
                "learning rate": round(float(optimizer.learning_rate.numpy()), 9),
                "betas": [optimizer.beta_1, optimizer.beta_2],
                "epsilon": optimizer.epsilon,
                "threads": tf.config.threading.get_intra_op_parallelism_threads(),
            },
            "versions": {
                "tensorflow": tf.__version__,
                "keras": metadata.version("keras"),
                "kecam": kecam.__version__,
                "numpy": np.__version__,
            },
            "settings": {},
        }

    def compile(self) -> None:
        model, optimizer = self.model, self.optimizer
        variables = model.trainable_variables

        def train(images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
            with tf.GradientTape() as tape:
                logits = tf.cast(model(images, training=True), tf.float32)[:, 0]
                losses = tf.nn.sigmoid_cross_entropy_with_logits(labels, logits)
                loss = tf.reduce_mean(losses)
            gradients = tape.gradient(loss, variables)
            optimizer.apply_gradients(zip(gradients, variables, strict=True))
            return loss

        def infer(images: tf.Tensor) -> tf.Tensor:
            return tf.cast(model(images, training=False), tf.float32)[:, 0]

        if self.task == "train":
            optimizer.build(variables)
            traced = tf.function(train).get_concrete_function(self.images, self.labels)
            self.function = lambda: [traced(self.images, self.labels)]
        else:
            traced = tf.function(infer).get_concrete_function(self.images)
            self.function = lambda: traced(self.images)

    def once(self) -> list[float]:
        return [float(value) for value in self.function()]


def _network(architecture: str, size: int) -> tf.keras.Model:
    if architecture == "davit_tiny":
        return kecam.davit.DaViT_T(
            input_shape=(size, size, 3),
            num_classes=1,
            pretrained=None,
            classifier_activation=None,
            drop_connect_rate=0,
        )
    inputs = layers.Input((size, size, 3))
    outputs = {"alexnet_mini": _alexnet_mini, "googlenet": _googlenet}[architecture](inputs)
    return tf.keras.Model(inputs, outputs)


def _conv(
    x: tf.Tensor, filters: int, size: int, name: str, stride: int = 1, padding: str = "same"
) -> tf.Tensor:
    return layers.Conv2D(filters, size, stride, padding, activation="relu", name=name)(x)


def _alexnet_mini(x: tf.Tensor) -> tf.Tensor:
    x = _conv(layers.ZeroPadding2D(3)(x), 96, 13, "conv1", stride=3, padding="valid")
    x = layers.MaxPooling2D(3, 2)(x)
    x = _conv(x, 256, 5, "conv2")
    x = layers.MaxPooling2D(3, 2)(x)
    for filters, name in ((384, "conv3"), (384, "conv4"), (256, "conv5")):
        x = _conv(x, filters, 3, name)
    x = layers.Flatten()(layers.MaxPooling2D(2, 2)(x))
    x = layers.Dense(128, "relu", name="fc1")(x)
    x = layers.Dense(128, "relu", name="fc2")(x)
    return layers.Dense(1, name="head")(x)


def _googlenet(x: tf.Tensor) -> tf.Tensor:
    x = layers.MaxPooling2D(3, 2)(_conv(x, 64, 7, "conv1", stride=2))
    x = _conv(_conv(x, 192, 1, "conv2_reduce"), 192, 3, "conv2")
    x = layers.MaxPooling2D(3, 2)(x)
    for block, widths in protocol.INCEPTION.items():
        one, reduce3, three, reduce5, five, pool = widths
        at = f"inception_{block}/"
        branches = (
            _conv(x, one, 1, at + "conv1x1"),
            _conv(_conv(x, reduce3, 1, at + "conv3x3_reduce"), three, 3, at + "conv3x3"),
            _conv(_conv(x, reduce5, 1, at + "conv5x5_reduce"), five, 5, at + "conv5x5"),
            _conv(layers.MaxPooling2D(3, 1, "same")(x), pool, 1, at + "pool_proj"),
        )
        x = layers.Concatenate()(branches)
        if block in ("3b", "4e"):
            x = layers.MaxPooling2D(3, 2)(x)
    x = layers.Dense(1000, "relu", name="fc")(layers.GlobalAveragePooling2D()(x))
    return layers.Dense(1, name="head")(x)


create = KerasStack
