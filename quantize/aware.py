"""Quantisation-aware training: the float graph learns to answer like itself while it rounds as its integer graph will.

The graph is trained as it was exported (`GraphModule`), and rounds exactly where `static.integer_graph` puts its
QuantizeLinear nodes, with their scales as the beginning. Scales of activations are learned with the weights (Esser et
al., "Learned Step Size Quantization", 2020), and arrive in the file as they were learned. The teacher is the float
graph itself, so that no labels are needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from onnx import GraphProto, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from distill.benchmarks.target import Target
from distill.errors import UserError
from distill.export.graph import attribute, initializers, operator

from .calibrate import Feed, Progress
from .settings import QuantizeSettings
from .static import Calibrated, integer_graph, resolve
from .torch_graph import GraphModule

_LIMITS = {np.dtype(np.uint8): (0, 255), np.dtype(np.int8): (-128, 127)}
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

    def __init__(self, found: Calibrated, settings: QuantizeSettings, *, target: Target) -> None:
        super().__init__()
        plain = replace(settings, bias_correction=False, tables=False)
        whole, names = integer_graph(found, plain, target=target)
        self.graph = GraphModule(found.model)
        self.roundings, scales = _roundings(whole.graph)
        self.keys = {name: f"scale_{number}" for number, name in enumerate(sorted(scales))}
        self.log_scales = nn.ParameterDict(
            {self.keys[name]: nn.Parameter(torch.tensor(float(np.log(value)))) for name, value in scales.items()}
        )
        _, reduced = resolve(settings, target)
        self.steps = _REDUCED_STEPS if reduced else _WEIGHT_STEPS
        self.axes = _weight_axes(found.model.graph, names, per_channel=settings.per_channel)
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
        return learned.exp()

    def ranges(self) -> dict[str, tuple[float, float]]:
        """Return what the learned scales can represent, by tensor."""
        found = {}
        for name, how in self.roundings.items():
            scale = float(self.scale_of(name).detach())
            found[name] = ((how.low - how.zero) * scale, (how.high - how.zero) * scale)
        return found

    def _round(self, name: str, value: Tensor) -> Tensor:
        how = self.roundings.get(name)
        if how is None or not value.is_floating_point():
            return value
        scale = self.scale_of(name)
        steps = torch.clamp(value / scale + how.zero, how.low, how.high)
        return (_rounded(steps) - how.zero) * scale

    def _round_weight(self, name: str, value: Tensor) -> Tensor:
        axis = self.axes.get(name, "none")
        if axis == "none":
            return value
        others = None if axis is None else [i for i in range(value.ndim) if i != axis]
        largest = value.detach().abs().amax(dim=others, keepdim=True) if others else value.detach().abs().max()
        scale = torch.clamp(largest, min=1e-12) / self.steps
        return _rounded(value / scale) * scale


def train_aware(
    found: Calibrated,
    settings: QuantizeSettings,
    *,
    target: Target,
    batches: Sequence[Feed],
    epochs: int = 8,
    learning_rate: float = 1e-4,
    seed: int = 0,
    progress: Progress | None = None,
) -> Calibrated:
    """Train a calibrated graph to keep its answers when it is rounded; the one given is not changed.

    Args:
        found: the calibrated graph, which is also the teacher.
        settings: how it is quantised.
        target: what the file ships to.
        batches: unlabelled rows; as many as can be had.
        epochs: passes over them.
        learning_rate: of the weights; that of the scales is ten times as much. It falls to zero by a cosine.
        seed: of the order of batches.
        progress: called with ("aware training", batches done, batches).

    Raises:
        UserError: an operator cannot be trained, or the answers are no longer finite.
    """
    student, teacher = AwareModule(found, settings, target=target), GraphModule(found.model)
    weights = list(student.graph.parameters())
    groups = [
        {"params": weights, "lr": learning_rate},
        {"params": list(student.log_scales.parameters()), "lr": 10 * learning_rate},
    ]
    optimizer = torch.optim.Adam(groups)
    total = epochs * len(batches)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, total))
    order, done = np.random.default_rng(seed), 0
    for _ in range(epochs):
        for number in order.permutation(len(batches)):
            rows = {name: torch.from_numpy(value) for name, value in batches[number].items()}
            with torch.no_grad():
                answer = teacher(**rows)
            loss = distance(answer, student(**rows))
            if not bool(torch.isfinite(loss)):
                raise UserError(f"aware training: the loss became {float(loss.detach())}; lower the learning rate")
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            done += 1
            if progress is not None:
                progress("aware training", done, total)
    return replace(found, model=student.graph.written_into(found.model), ranges={**found.ranges, **student.ranges()})


def distance(teacher: Tensor, student: Tensor) -> Tensor:
    """Compare answers: Kullback-Leibler divergence of classes [n, k], relative squared error of anything else."""
    if teacher.ndim == 2 and teacher.shape[1] > 1:
        return functional.kl_div(
            torch.log_softmax(student, 1), torch.log_softmax(teacher, 1), reduction="batchmean", log_target=True
        )
    return (student - teacher).square().mean() / teacher.square().mean().clamp(min=1e-12)


def _rounded(value: Tensor) -> Tensor:
    """Round, with the gradient of not rounding."""
    return value + (value.round() - value).detach()


def _roundings(graph: GraphProto) -> tuple[dict[str, _Rounding], dict[str, float]]:
    """Read where a graph rounds activations, and the scales that it does so with."""
    constants = initializers(graph)
    found, scales = {}, {}
    for node in graph.node:
        if operator(node) == "QuantizeLinear" and node.input[0] not in constants:
            zero = numpy_helper.to_array(constants[node.input[2]])
            low, high = _LIMITS[zero.dtype]
            found[node.input[0]] = _Rounding(node.input[1], int(zero), low, high)
            scales[node.input[1]] = float(numpy_helper.to_array(constants[node.input[1]]))
    return found, scales


def _weight_axes(graph: GraphProto, names: set[str], *, per_channel: bool) -> dict[str, int | None]:
    """Name the weights that are rounded, with the axis of their scales; None for one scale."""
    constants, found = initializers(graph), dict[str, int | None]()
    for node in graph.node:
        if node.name in names and operator(node) in ("Conv", "Gemm", "MatMul") and node.input[1] in constants:
            first = operator(node) == "Conv" or bool(attribute(node, "transB", 0))
            axis = 0 if first else len(constants[node.input[1]].dims) - 1
            found[node.input[1]] = axis if per_channel else None
    return found
