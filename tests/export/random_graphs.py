"""Random valid ONNX graphs as exporters, converters and people write them, in small: the same seed, the same graph.

A graph of n steps is the beginning of that of n + 1 steps with the same seed, so that a failing one can be cut down.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import FunctionProto, ModelProto, NodeProto, TensorProto, TypeProto, ValueInfoProto, defs, helper
from onnx import numpy_helper as arrays
from onnx.shape_inference import InferenceError, infer_node_outputs

from distill.types import Array

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
BATCH = 3  # rows while shapes are worked out; the axis itself is open
OPSETS = tuple(range(13, 24))
SHAPES = ((6,), (4,), (5, 6), (3, 8, 8), (4, 6, 7), (2, 9), (1, 8, 8), (4, 4))
# What tensors are called: as `strip` would, as exporters do, and as nobody should.
NAMES = ("a", "b", "batch", "layer.0/act", "/x", "x/16", "probe/0", "input.1", "名", "t", "y_1", "out/in")


class Skip(Exception):  # noqa: N818
    """No tensor fits what a step wants."""


@dataclass(frozen=True)
class Value:
    """A tensor of a graph under construction."""

    name: str
    kind: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class RandomGraph:
    """A model, rows to run it on, and whether all that it computes changes little with its inputs."""

    model: ModelProto
    feeds: list[dict[str, Array]]
    continuous: bool


class Builder:
    """A graph under construction: steps take tensors from it and add nodes to it."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.opset = int(self.rng.choice(OPSETS))
        self.nodes: list[NodeProto] = []
        self.stored: list[TensorProto] = []
        self.inputs: list[ValueInfoProto] = []
        self.values: list[Value] = []
        self.known: dict[str, Array] = {}
        self.functions: list[FunctionProto] = []
        self.domains: set[str] = set()
        self.used: set[str] = set()
        self.inner: set[str] = set()  # names of tensors in nested graphs only
        self.continuous = True
        self.axis = self.pick(["batch", "N", "a", BATCH])

    def pick(self, choices: Sequence[Any]) -> Any:
        """Choose one of several."""
        return choices[int(self.rng.integers(len(choices)))]

    def chance(self, share: float) -> bool:
        """Say yes in a share of cases."""
        return bool(self.rng.random() < share)

    def normal(self, *shape: int) -> Array:
        """Draw float32 numbers."""
        return self.rng.normal(size=shape).astype(np.float32)

    def name(self) -> str:
        """Return a name that this graph does not have yet."""
        wanted = self.pick(NAMES) if self.chance(0.3) else f"v{len(self.used)}"
        while wanted in self.used:
            wanted += self.pick("_01")
        self.used.add(wanted)
        return str(wanted)

    def value(self, *, kind: int = FLOAT, ranks: Sequence[int] = (0, 1, 2, 3, 4, 5), least: int = 0) -> Value:
        """Take a tensor, a late one more often, whose axes have ``least`` elements or more."""
        fits = [v for v in self.values if v.kind == kind and len(v.shape) in ranks and min(v.shape, default=9) >= least]
        if not fits:
            raise Skip
        return fits[int(len(fits) * self.rng.random() ** 0.5)]

    def constant(self, value: Any, dtype: Any = np.float32, *, plain: bool = False) -> str:
        """Store a constant in one of the ways that there are."""
        array = np.asarray(value, dtype)
        name, way = self.name(), self.rng.random()
        listed = array.ndim == 1 and array.size and array.dtype in (np.float32, np.int64)
        if plain or way < 0.6 or array.dtype.kind not in "fi":
            tensor = arrays.from_array(array, name)
            if array.size and array.dtype == np.float32 and self.chance(0.3):  # stored as a list of numbers
                tensor = helper.make_tensor(name, FLOAT, array.shape, array.reshape(-1).tolist())
            self.stored.append(tensor)
        elif way < 0.7 and listed:
            form = {"value_floats" if array.dtype == np.float32 else "value_ints": array.tolist()}
            self.nodes.append(helper.make_node("Constant", [], [name], **form))
        elif way < 0.8 and array.ndim == 0 and array.dtype in (np.float32, np.int64):
            form = {"value_float" if array.dtype == np.float32 else "value_int": array.item()}
            self.nodes.append(helper.make_node("Constant", [], [name], **form))
        elif way < 0.9:
            self.nodes.append(helper.make_node("Constant", [], [name], value=arrays.from_array(array, "inner")))
        else:
            inner = self.constant(array, dtype, plain=True)
            self.nodes.append(helper.make_node("Identity", [inner], [name]))
        self.known[name] = array
        return name

    def add(
        self,
        op: str,
        inputs: Sequence[str],
        outputs: int = 1,
        *,
        domain: str = "",
        shapes: Sequence[tuple[int, tuple[int, ...]]] | None = None,
        **attributes: Any,
    ) -> list[Value]:
        """Add a node; ``shapes`` says what it makes, (kind, shape), where the standard does not."""
        names = [self.name() for _ in range(outputs)]
        node = helper.make_node(op, list(inputs), names, domain=domain, **attributes)
        if domain:
            self.domains.add(domain)
        if shapes is None:
            shapes = self._infer(node)
        made = [Value(name, kind, shape) for name, (kind, shape) in zip(names, shapes, strict=False)]
        self.nodes.append(node)
        self.values += [value for value in made if np.prod(value.shape, dtype=int) <= 4096]
        return made

    def _infer(self, node: NodeProto) -> list[tuple[int, tuple[int, ...]]]:
        types = {v.name: helper.make_tensor_type_proto(v.kind, v.shape) for v in self.values}
        data = {name: arrays.from_array(array, name) for name, array in self.known.items() if name in node.input}
        types |= {name: helper.make_tensor_type_proto(t.data_type, list(t.dims)) for name, t in data.items()}
        if any(name and name not in types for name in node.input):  # one that became too large
            raise Skip
        try:
            found = infer_node_outputs(
                defs.get_schema(node.op_type, self.opset, ""),
                node,
                {name: types[name] for name in node.input if name},
                data,
                opset_imports=[helper.make_opsetid("", self.opset)],
            )
        except (InferenceError, defs.SchemaError, RuntimeError) as error:
            raise Skip from error
        return [_concrete(found[name]) for name in node.output]

    def finish(self, outputs: int) -> RandomGraph:
        """Choose outputs and make the model."""
        fits = [v for v in self.values if v.kind in (FLOAT, INT64, BOOL)]
        inputs = {value.name for value in self.inputs}
        chosen = {fits[-1].name: fits[-1]}
        while len(chosen) < min(outputs, len(fits)):
            value = self.pick(fits)
            if value.name not in inputs or self.chance(0.1):
                chosen[value.name] = value
        stored = [t for t in self.stored if t.data_type == FLOAT and t.name not in inputs]
        if stored and self.chance(0.05):  # a constant as an output
            tensor = self.pick(stored)
            chosen[tensor.name] = Value(tensor.name, FLOAT, tuple(tensor.dims))
        stated = [self._stated(value) for value in chosen.values()]
        graph = helper.make_graph(self.nodes, "random", self.inputs, stated, self.stored)
        used = {"": self.opset, **dict.fromkeys(self.domains, 1)}
        imports = [helper.make_opsetid(domain, version) for domain, version in used.items()]
        model = helper.make_model(graph, opset_imports=imports, functions=self.functions, producer_name="random")
        model.ir_version = max(8, helper.find_min_ir_version_for(imports[:1]))
        return RandomGraph(model, [self._feed(rows) for rows in (BATCH, 1)], self.continuous)

    def _stated(self, value: Value) -> ValueInfoProto:
        open_ended = [f"{value.name}_{axis}" for axis in range(len(value.shape))]
        return helper.make_tensor_value_info(value.name, value.kind, open_ended)

    def _feed(self, rows: int) -> dict[str, Array]:
        feed, stored = {}, {tensor.name for tensor in self.stored}
        for value in self.inputs:
            dims = [d.dim_value or rows for d in value.type.tensor_type.shape.dim]
            if value.name not in stored:
                integers = value.type.tensor_type.elem_type == INT64
                feed[value.name] = self.rng.integers(0, 4, dims) if integers else self.normal(*dims)
        return feed


def _concrete(made: TypeProto) -> tuple[int, tuple[int, ...]]:
    tensor = made.tensor_type
    dims = tensor.shape.dim
    if not tensor.HasField("shape") or not all(d.HasField("dim_value") for d in dims):
        raise Skip
    return tensor.elem_type, tuple(d.dim_value for d in dims)


Step = Callable[[Builder], None]


def random_graph(seed: int, steps: int, catalogue: Sequence[tuple[Step, float]]) -> RandomGraph:
    """Make the graph of a seed after so many steps, each drawn from (step, weight)."""
    builder = Builder(seed)
    for _ in range(int(builder.rng.integers(1, 3))):
        add_input(builder)
    weights = np.array([weight for _, weight in catalogue])
    outputs = int(builder.rng.integers(1, 4))
    for state in builder.rng.integers(0, 2**63, size=steps):
        builder.rng = np.random.default_rng(state)
        step = catalogue[int(builder.rng.choice(len(catalogue), p=weights / weights.sum()))][0]
        try:
            step(builder)
        except Skip:
            continue
    builder.rng = np.random.default_rng(seed)
    return builder.finish(outputs)


def add_input(builder: Builder, kind: int = FLOAT) -> None:
    """Add an input that may be read or not; a few have a default value."""
    shape, name = builder.pick(SHAPES), builder.name()
    builder.inputs.append(helper.make_tensor_value_info(name, kind, [builder.axis, *shape]))
    builder.values.append(Value(name, kind, (BATCH, *shape)))
