"""An exported ONNX graph as a PyTorch module, so that it can be trained as it will run.

Training for int8 has to round where the integer graph rounds. A module of somebody's own says nothing about that; its
exported graph does, tensor by tensor. So the graph itself is what is trained: its weights are parameters, every
operator is a few lines of torch, and ``observe`` is called on each tensor as it is read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from distill.errors import UserError
from distill.export.graph import copy_of

from .torch_operators import DTYPES, OPERATORS

Observe = Callable[[str, Tensor], Tensor]


class GraphModule(nn.Module):
    """A float32 graph that runs in torch.

    Weights and biases of Conv, Gemm and MatMul, and gains and shifts of normalisations, are parameters by the name of
    their initializer (dots and slashes replaced); all other constants are buffers. ``observe(name, value)`` may replace
    every computed tensor and every input for its readers, but for those (node, tensor) in ``unobserved``, and
    ``observe_weight(name, value)`` every parameter.
    """

    def __init__(self, model: ModelProto) -> None:
        super().__init__()
        graph = model.graph
        unknown = sorted({node.op_type for node in graph.node if node.op_type not in OPERATORS or node.domain})
        if unknown:
            raise UserError(f"model: its operators {', '.join(unknown)} cannot be trained here")
        several = sorted({node.op_type for node in graph.node if len(node.output) > 1} - {"Split"})
        if several:
            raise UserError(f"model: second outputs of {', '.join(several)} cannot be trained here")
        self.nodes = [copy_of(node) for node in graph.node]
        self.attributes = [_attributes(node) for node in graph.node]
        self.inputs = [value.name for value in graph.input]
        self.outputs = [value.name for value in graph.output]
        self.places: dict[str, str] = {}
        trained = {name for node in graph.node for name in _trained(node)}
        for number, tensor in enumerate(graph.initializer):
            if tensor.data_type not in DTYPES:
                kind = TensorProto.DataType.Name(tensor.data_type)
                raise UserError(f"model: constants of the type {kind}, as {tensor.name!r}, cannot be trained here")
            value = torch.from_numpy(np.array(numpy_helper.to_array(tensor)))
            place = f"{re.sub(r'[^0-9A-Za-z_]', '_', tensor.name)}_{number}"
            self.places[tensor.name] = place
            if tensor.name in trained and value.dtype == torch.float32:
                self.register_parameter(place, nn.Parameter(value))
            else:
                self.register_buffer(place, value)
        self.observe: Observe | None = None
        self.observe_weight: Observe | None = None
        self.unobserved: Collection[tuple[str, str]] = ()

    def weight(self, name: str) -> Tensor:
        """Return a parameter or buffer by the name of its initializer."""
        value = getattr(self, self.places[name])
        assert isinstance(value, Tensor)
        return value

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        """Run the graph on its inputs, by position or name, and return its first output."""
        values: dict[str, Tensor] = dict(zip(self.inputs, args, strict=False)) | kwargs
        observed: dict[str, Tensor] = {}
        for name in self.places:
            value = self.weight(name)
            is_parameter = isinstance(value, nn.Parameter)
            values[name] = self.observe_weight(name, value) if is_parameter and self.observe_weight else value
            observed[name] = values[name]
        for node, attributes in zip(self.nodes, self.attributes, strict=True):
            inputs = [self._read(node.name, name, values, observed) if name else None for name in node.input]
            result = OPERATORS[node.op_type](*inputs, **attributes)
            values.update(zip(node.output, result if isinstance(result, tuple | list) else (result,), strict=False))
        return values[self.outputs[0]]

    def _read(self, reader: str, name: str, values: Mapping[str, Tensor], observed: dict[str, Tensor]) -> Tensor:
        """Return a tensor as a node reads it; what is observed is observed once for all readers."""
        if self.observe is None or (reader, name) in self.unobserved:
            return values[name]
        if name not in observed:
            observed[name] = self.observe(name, values[name])
        return observed[name]

    def written_into(self, model: ModelProto) -> ModelProto:
        """Return a copy of the graph with the parameters as they are now."""
        result = copy_of(model)
        for tensor in result.graph.initializer:
            value = self.weight(tensor.name)
            if isinstance(value, nn.Parameter):
                tensor.CopyFrom(numpy_helper.from_array(value.detach().cpu().numpy(), tensor.name))
        return result


def _attributes(node: NodeProto) -> dict[str, object]:
    """Read a node's attributes by name, text decoded; a Split is told how many parts it has."""
    values = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    if node.op_type == "Split":
        values.setdefault("num_outputs", len(node.output))
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}


def _trained(node: NodeProto) -> Sequence[str]:
    """Name the inputs of a node that are weights, where they are constants."""
    if node.op_type in ("Conv", "Gemm", "LayerNormalization"):
        return list(node.input[1:3])
    return list(node.input) if node.op_type in ("MatMul", "Add") else []
