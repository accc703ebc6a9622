from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import nn

from distill.benchmarks import TARGETS, Target
from distill.export import ImagePreprocess, export_onnx
from distill.models.resnet import ResNet

PIXELS = ImagePreprocess(28, 28, 1, (73,), (1 / 90,))


def target(name: str, *, reduce_range: bool = False) -> Target:
    """Name a target outright: what this machine can do must not decide what a test sees."""
    return dataclasses.replace(TARGETS[name], reduce_range=reduce_range)


@functools.cache
def saturates() -> bool:
    """Whether this processor adds pairs of 8-bit products in 16 bits: it is asked, as flags do not show everywhere."""
    constants = {
        "a_scale": np.float32(1), "a_zero": np.uint8(0), "w": np.full((8, 1), 127, np.int8), "w_scale": np.float32(1),
        "w_zero": np.int8(0), "y_scale": np.float32(2000), "y_zero": np.uint8(0),
    }  # fmt: skip
    graph = helper.make_graph(
        [helper.make_node("QLinearMatMul", ["a", *constants], ["y"])],
        "g",
        [helper.make_tensor_value_info("a", TensorProto.UINT8, [1, 8])],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, [1, 1])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    answer = int(session.run(None, {"a": np.full((1, 8), 255, np.uint8)})[0][0, 0])
    return answer != round(8 * 255 * 127 / 2000)


@pytest.fixture(params=[True, False], ids=["7 bits", "8 bits"])
def x86(request: pytest.FixtureRequest) -> Target:
    """Name a target with weights of 7 bits, exact everywhere, and one of 8, where this processor adds those exactly."""
    if not request.param and saturates():
        pytest.skip("sums of products of 8 bits saturate on this processor, which has no VNNI")
    return target("x86", reduce_range=request.param)


def executed(model: ModelProto, feed: dict[str, np.ndarray], folder: Path) -> list[str]:
    """Return the operators that onnxruntime really ran, in order, from a profiled session."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    session.run(None, feed)
    events = json.loads(Path(session.end_profiling()).read_text())
    kernels = [e for e in events if e.get("cat") == "Node" and e["name"].endswith("kernel_time")]
    return [event["args"]["op_name"] for event in kernels]


class Separable(nn.Module):
    """A depthwise-separable CNN with ReLU6, as MobileNets have it."""

    def __init__(self) -> None:
        super().__init__()

        def block(channels, out, stride):
            depthwise = nn.Conv2d(channels, channels, 3, stride, 1, groups=channels)
            return nn.Sequential(depthwise, nn.ReLU6(), nn.Conv2d(channels, out, 1), nn.ReLU6())

        self.features = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), block(16, 32, 1), block(32, 32, 2))
        self.head = nn.Linear(32, 5)

    def forward(self, x):
        return self.head(nn.functional.adaptive_avg_pool2d(self.features(x), 1).flatten(1))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(6, 16), nn.Linear(4, 16), nn.Linear(16, 3)

    def forward(self, x, *, y):
        features = torch.relu(self.left(x)) + torch.relu(self.right(y))
        return {"scores": self.head(features)}


class PreActivation(nn.Module):
    """Batch norms that no convolution can take in, around a shortcut, and a softmax gate that stays float."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.conv = nn.Conv2d(1, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, 1, 1)
        self.gate, self.head = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        x = self.stem(x)
        x = (x + self.conv(torch.relu(self.norm(x)))).mean((2, 3))
        return self.head(x * torch.softmax(self.gate(x), 1))


def normal(*shape: int, seed: int = 0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def randomise_norms(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    return model.eval()


def pixels(rows: int = 128, seed: int = 0) -> np.ndarray:
    """Smooth images, so that activations look like those of data rather than of noise."""
    coarse = np.random.default_rng(seed).integers(0, 256, (rows, 7, 7, 1), dtype=np.uint8)
    return coarse.repeat(4, axis=1).repeat(4, axis=2)


@pytest.fixture(scope="session")
def resnet() -> ModelProto:
    torch.manual_seed(0)
    model = ResNet(classes=10, channels=1, widths=(32, 64, 64), blocks=(1, 1, 1), stem_stride=2)
    return export_onnx(randomise_norms(model), args=(torch.randn(2, 1, 28, 28),), input_names=["x"])


@pytest.fixture(scope="session")
def mlp() -> ModelProto:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))
    return export_onnx(model, args=(torch.randn(2, 20),), input_names=["x"])


@pytest.fixture(scope="session")
def separable() -> ModelProto:
    torch.manual_seed(0)
    return export_onnx(Separable(), args=(torch.randn(2, 3, 16, 16),), input_names=["x"])


@pytest.fixture(scope="session")
def two_inputs() -> ModelProto:
    torch.manual_seed(0)
    return export_onnx(
        TwoInputs(),
        args=(torch.randn(2, 6),),
        kwargs={"y": torch.randn(2, 4)},
        logits=lambda output: output["scores"],
        input_names=["left", "right"],
    )


@pytest.fixture(scope="session")
def pre_activation() -> ModelProto:
    torch.manual_seed(0)
    return export_onnx(randomise_norms(PreActivation()), args=(torch.randn(2, 1, 12, 12),), input_names=["x"])
