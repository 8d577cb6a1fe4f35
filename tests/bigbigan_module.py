"""A TensorFlow module with the graph that BigBiGAN's encoders are taken to have, weights drawn.

It stands in for DeepMind's modules, which need a network: the same signature `encode`, written in
TensorFlow's own operations, saved without tags as a TF1 Hub module is. It cannot tell whether the
real modules have this graph and these names; it tells that ours computes what TensorFlow does.
"""

import importlib
from pathlib import Path
from typing import Any

import numpy as np

tf: Any = importlib.import_module("tensorflow")
v1: Any = tf.compat.v1
EPSILON = 1e-3
LATENTS = 120


class Builder:
    """Layers with tf.layers' names and weights from one generator; images are [N, H, W, C]."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._counts: dict[str, int] = {}

    def _scope(self, kind: str) -> Any:
        number = self._counts.get(kind, 0)
        self._counts[kind] = number + 1
        return v1.variable_scope(kind + (f"_{number}" if number else ""))

    def _variable(self, name: str, values: Any) -> Any:
        return v1.get_variable(name, initializer=np.asarray(values, np.float32))

    def conv(self, x: Any, channels: int, size: int, stride: int = 1) -> Any:
        before, fan_in = (size - 1) // 2, size * size * int(x.shape[-1])
        with self._scope("conv2d"):
            shape = (size, size, int(x.shape[-1]), channels)
            kernel = self._variable("kernel", self._random.normal(0, fan_in**-0.5, shape))
        x = tf.pad(x, [[0, 0], [before, before], [before, before], [0, 0]])
        return tf.nn.conv2d(x, kernel, stride, "VALID")

    def norm(self, x: Any) -> Any:
        channels = int(x.shape[-1])
        with self._scope("batch_normalization"):
            values = [
                self._variable(name, low + (high - low) * self._random.random(channels))
                for name, low, high in (
                    ("gamma", 0.5, 1.5), ("beta", -0.5, 0.5),
                    ("moving_mean", -0.5, 0.5), ("moving_variance", 0.5, 2.0),
                )
            ]  # fmt: skip
        gamma, beta, mean, variance = values
        return tf.nn.batch_normalization(x, mean, variance, beta, gamma, EPSILON)

    def dense(self, x: Any, units: int) -> Any:
        inputs = int(x.shape[-1])
        with self._scope("dense"):
            kernel = self._variable("kernel", self._random.normal(0, inputs**-0.5, (inputs, units)))
            bias = self._variable("bias", self._random.normal(0, 0.1, units))
        return x @ kernel + bias

    def crelu(self, x: Any) -> Any:
        features = int(x.shape[-1])
        with v1.variable_scope("crelu"):
            mean = self._variable("accumulated_mean", self._random.normal(0, 0.3, features))
            variance = self._variable("accumulated_var", self._random.uniform(0.5, 2, features))
            self._variable("accumulation_counter", 1.0)
        normed = (x - mean) / tf.sqrt(variance + EPSILON)
        return tf.nn.relu(tf.concat([normed, -normed], 1))

    def stem(self, x: Any, channels: int) -> Any:
        x = tf.pad(self.conv(x, channels, 7, 2), [[0, 0], [1, 1], [1, 1], [0, 0]])
        return tf.nn.max_pool2d(x, 3, 2, "VALID")

    def resnet(self, x: Any, units: tuple[int, ...], factor: int) -> Any:
        x = self.stem(x, 16 * factor)
        for i, count in enumerate(units):
            channels = 64 * factor * 2**i
            for j in range(count):
                stride = 2 if i and not j else 1
                active = tf.nn.relu(self.norm(x))
                shortcut = x if j else self.conv(active, channels, 1, stride)
                y = self.conv(active, channels // 4, 1)
                y = self.conv(tf.nn.relu(self.norm(y)), channels // 4, 3, stride)
                x = shortcut + self.conv(tf.nn.relu(self.norm(y)), channels, 1)
        return tf.reduce_mean(tf.nn.relu(self.norm(x)), [1, 2])

    def revnet(self, x: Any, units: tuple[int, ...], factor: int) -> Any:
        channels = 64 * factor
        x = self.stem(x, channels)
        for i, count in enumerate(units):
            if i:
                x = tf.nn.avg_pool2d(x, 2, 2, "VALID")
                x = tf.pad(x, [[0, 0], [0, 0], [0, 0], [channels // 2, channels // 2]])
                channels *= 2
            x1, x2 = tf.split(x, 2, axis=3)
            for _ in range(count):
                y = self.conv(tf.nn.relu(self.norm(x2)), channels // 8, 1)
                y = self.conv(tf.nn.relu(self.norm(y)), channels // 8, 3)
                y = self.conv(tf.nn.relu(self.norm(y)), channels // 2, 1)
                x1, x2 = x2, x1 + y
            x = tf.concat([x1, x2], 3)
        return tf.reduce_mean(self.norm(x), [1, 2])

    def z_mean(self, x: Any, hidden: int) -> Any:
        x = tf.nn.relu(self.dense(x, hidden))
        for _ in range(3):
            x = x + tf.nn.relu(self.dense(x, hidden))
        mean = self.dense(x, LATENTS)
        self.dense(x, LATENTS)  # of the deviation
        return mean


def export(
    folder: Path,
    architecture: str,
    *,
    units: tuple[int, ...] = (3, 4, 6, 3),
    factor: int | None = None,
    hidden: int = 4096,
    seed: int = 0,
) -> None:
    """Writes the module of an architecture, `resnet50` or `revnet50x4`, to a new folder."""
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, (None, 256, 256, 3))
        with v1.variable_scope("module/Encoder"):
            builder = Builder(seed)
            if architecture == "resnet50":
                a = builder.resnet(x, units, factor or 4)
            else:
                a = builder.revnet(x, units, factor or 16)
            outputs = {
                "avepool_feat": a, "bn_crelu_feat": builder.crelu(a),
                "z_mean": builder.z_mean(a, hidden),
            }  # fmt: skip
        with v1.variable_scope("module/Generator"):
            builder.dense(tf.zeros((1, 3)), 5)  # the encoder is a part of the module alone
        session.run(v1.global_variables_initializer())
        saved = v1.saved_model.Builder(str(folder))
        signature = v1.saved_model.predict_signature_def({"x": x}, outputs)
        saved.add_meta_graph_and_variables(session, [], {"encode": signature})
        saved.save()
