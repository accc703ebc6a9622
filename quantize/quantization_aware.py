"""Quantisation-aware training: the float graph learns to answer like itself while it rounds as its integer graph will.

The graph is trained as it was exported (`GraphModule`), and rounds exactly where `static.integer_graph` puts its
QuantizeLinear nodes, with their scales as the beginning. Scales of activations are learned with the weights (Esser et
al., "Learned Step Size Quantization", 2020), and arrive in the file as they were learned. The teacher is the float
graph itself, so that no labels are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import numpy as np
import torch
from onnx import GraphProto, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from distill.benchmarks.target import Target
from distill.export.graph import initializers, operator
from distill.outputs import Output, of_shape
from distill.quantize.select_nodes import is_depthwise, output_axis
from distill.quantize.settings import QuantizeSettings
from distill.quantize.static import CalibratedGraph, integer_graph, resolve
from distill.quantize.torch_graph import GraphModule
from distill.types import Feed


class Train(Protocol):
    """Trains modules; whoever quantises brings it, so that this package knows no training loop."""

    @property
    def epochs(self) -> int:
        """Return how often it passes over the batches."""

    def __call__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        distance: Callable[[Tensor, Tensor], Tensor],
        batches: Sequence[Feed],
        /,
    ) -> nn.Module:
        """Return a trained copy of ``student``, whose ``distance(teacher's answer, student's answer)`` is less."""


_SCALE_RATE = 10  # Adam's steps have one length for all; a tenth of a scale's logarithm learns ten times as fast
_WEIGHT_STEPS, _REDUCED_STEPS = 127, 64  # on either side of zero, as onnxruntime's quantiser has them


@dataclass(frozen=True)
class _Rounding:
    """Where a tensor is rounded: `scale` names the constant, which several tensors may share."""

    scale: str
    zero: int
    low: int
    high: int


class AwareModule(nn.Module):
    """A float graph that rounds its weights and activations as the integer graph will, with gradients through both."""

    def __init__(self, calibrated: CalibratedGraph, settings: QuantizeSettings, *, target: Target) -> None:
        super().__init__()
        plain = replace(settings, bias_correction=False, tables=False)
        whole, names = integer_graph(calibrated, plain)
        self.graph = GraphModule(calibrated.model)
        self.roundings, scales = _roundings(whole.graph)
        self.keys = {name: f"scale_{number}" for number, name in enumerate(sorted(scales))}
        self.log_scales = nn.ParameterDict(
            {
                self.keys[name]: nn.Parameter(torch.tensor(float(np.log(value)) / _SCALE_RATE))
                for name, value in scales.items()
            }
        )
        _, reduced = resolve(settings, target)
        self.weights = _weight_roundings(
            calibrated.model.graph, names, per_channel=settings.per_channel, reduce_range=reduced
        )
        self.graph.observe, self.graph.observe_weight = self._round, self._round_weight
        # A tensor that integers and floats are made of is rounded for the former only.
        self.graph.unobserved = {
            (node.name, name) for node in whole.graph.node for name in node.input if name in self.roundings
        }

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        """Answer as the integer graph will."""
        answer = self.graph(*args, **kwargs)
        assert isinstance(answer, Tensor)
        return answer

    def scale_of(self, name: str) -> Tensor:
        """Return the scale of a rounded tensor."""
        learned: Tensor = self.log_scales[self.keys[self.roundings[name].scale]]
        return (_SCALE_RATE * learned).exp()

    def ranges(self) -> dict[str, tuple[float, float]]:
        """Return what the learned scales can represent, by tensor."""
        ranges = {}
        for name, how in self.roundings.items():
            scale = float(self.scale_of(name).detach())
            ranges[name] = ((how.low - how.zero) * scale, (how.high - how.zero) * scale)
        return ranges

    def _round(self, name: str, value: Tensor) -> Tensor:
        how = self.roundings.get(name)
        if how is None or not value.is_floating_point():
            return value
        scale = self.scale_of(name)
        steps = torch.clamp(value / scale + how.zero, how.low, how.high)
        return (_rounded(steps) - how.zero) * scale

    def _round_weight(self, name: str, value: Tensor) -> Tensor:
        if name not in self.weights:
            return value
        axis, steps = self.weights[name]
        others = [i for i in range(value.ndim) if i != axis] if axis is not None else None
        largest = value.detach().abs().amax(dim=others, keepdim=True) if others else value.detach().abs().max()
        scale = torch.clamp(largest, min=1e-12) / steps
        return _rounded(value / scale) * scale


def train_aware(
    calibrated: CalibratedGraph,
    settings: QuantizeSettings,
    *,
    target: Target,
    batches: Sequence[Feed],
    train: Train,
    output: Output | None = None,
) -> CalibratedGraph:
    """Train a calibrated graph to keep its answers when it is rounded; the one that came in is not changed.

    The float graph is also the teacher, so ``batches`` are unlabelled rows, as many as can be had.

    Raises:
        UserError: an operator cannot be trained, or the answers are no longer finite.
    """
    teacher = GraphModule(calibrated.model)
    student = train(
        AwareModule(calibrated, settings, target=target), teacher, partial(distance, output=output), batches
    )
    assert isinstance(student, AwareModule)
    return replace(
        calibrated, model=student.graph.written_into(calibrated.model), ranges={**calibrated.ranges, **student.ranges()}
    )


def distance(teacher: Tensor, student: Tensor, output: Output | None = None) -> Tensor:
    """Compare answers as `sensitivity.divergence` does, with gradients."""
    output = output or of_shape(tuple(teacher.shape))
    if output.kind == "numbers":
        return (student - teacher).square().mean() / teacher.square().mean().clamp(min=1e-12)
    log_p, log_q = (torch.log_softmax(output.class_logits(answer, torch), 1) for answer in (teacher, student))
    positions = log_p[0, 0].numel()
    return functional.kl_div(log_q, log_p, reduction="batchmean", log_target=True) / positions


def _rounded(value: Tensor) -> Tensor:
    """Round, with the gradient of not rounding."""
    return value + (value.round() - value).detach()


def _roundings(graph: GraphProto) -> tuple[dict[str, _Rounding], dict[str, float]]:
    """Read where a graph rounds activations, and the scales that it does so with."""
    constants = initializers(graph)
    roundings, scales = {}, {}
    for node in graph.node:
        if operator(node) == "QuantizeLinear" and node.input[0] not in constants:
            zero = numpy_helper.to_array(constants[node.input[2]])
            limits = np.iinfo(zero.dtype)
            roundings[node.input[0]] = _Rounding(node.input[1], int(zero), limits.min, limits.max)
            scales[node.input[1]] = float(numpy_helper.to_array(constants[node.input[1]]))
    return roundings, scales


def _weight_roundings(
    graph: GraphProto, names: set[str], *, per_channel: bool, reduce_range: bool
) -> dict[str, tuple[int | None, int]]:
    """Say of each weight that is rounded, by name, the axis of its scales, None for one, and the steps beside zero."""
    constants, roundings = initializers(graph), dict[str, tuple[int | None, int]]()
    for node in graph.node:
        if node.name in names and operator(node) in ("Conv", "Gemm", "MatMul") and node.input[1] in constants:
            axis = output_axis(node, len(constants[node.input[1]].dims))
            steps = _REDUCED_STEPS if reduce_range and not is_depthwise(node, constants) else _WEIGHT_STEPS
            roundings[node.input[1]] = (axis if per_channel else None, steps)
    return roundings
