"""Calibration streams: its memory does not grow with the samples."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SIZE = 224
# In a process of its own, whose peak is that of calibration alone. Rows are made as they are asked for, as a loader
# makes them; the network is small so that many rows take little time, its activations are as large as in a real one.
MEASURE = """
import resource, sys
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from distill.benchmarks import Target
from distill.quantize import QuantizeSettings, quantize_onnx

method, samples, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
draw = np.random.default_rng(0)


def constant(name, *shape):
    return numpy_helper.from_array(draw.standard_normal(shape).astype(np.float32) / 8, name)


nodes = [
    helper.make_node("Conv", ["x", "w1"], ["a"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    helper.make_node("Relu", ["a"], ["b"]),
    helper.make_node("Conv", ["b", "w2"], ["c"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    helper.make_node("GlobalAveragePool", ["c"], ["d"]),
    helper.make_node("Flatten", ["d"], ["e"]),
    helper.make_node("Gemm", ["e", "w3"], ["logits"]),
]
graph = helper.make_graph(
    nodes,
    "net",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, size, size])],
    [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 10])],
    [constant("w1", 8, 3, 3, 3), constant("w2", 8, 8, 3, 3), constant("w3", 8, 10)],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def rows():
    for _ in range(samples):
        yield {"x": draw.standard_normal((1, 3, size, size), dtype=np.float32)}


settings = QuantizeSettings(calibration=method, samples=samples, threads=1)
_, record = quantize_onnx(
    model, settings, target=Target("x86", "CPUExecutionProvider", "int8", "u8s8", False), calibration=rows()
)
assert record.samples == samples, record
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def peak_bytes(method: str, samples: int) -> int:
    # glibc gives every thread an arena of its own, and how many come to be is not for calibration to say.
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, method, str(samples), str(SIZE)],
        capture_output=True, text=True, check=True, timeout=1200, env=environment,
    )  # fmt: skip
    return int(done.stdout)


@pytest.mark.parametrize("method", ["minmax", "entropy"])
def test_eight_times_the_samples_need_no_more_memory(method: str) -> None:
    assert peak_bytes(method, 400) < 1.1 * peak_bytes(method, 50)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["minmax", "average", "percentile", "entropy", "mse"])
def test_a_hundred_times_the_samples_need_no_more_memory(method: str) -> None:
    few, many = peak_bytes(method, 50), peak_bytes(method, 5000)
    print(f"{method}: {few / 2**20:.0f} MiB for 50 samples, {many / 2**20:.0f} MiB for 5,000")
    assert many < 1.1 * few
