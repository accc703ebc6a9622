"""Steps of random graphs with graphs inside: branches, loops, functions of the file's own, other operator domains."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import AttributeProto, FunctionProto, GraphProto, NodeProto, TensorProto, ValueInfoProto, helper
from onnx import numpy_helper as arrays
from random_graphs import BOOL, FLOAT, INT64, Builder, Skip, Step, Value

_PLAIN = ("Relu", "Neg", "Abs", "Sigmoid", "Tanh")


def _typed(names: Sequence[str], kinds: Sequence[int] | None = None, ranks: Sequence[int] = ()) -> list[ValueInfoProto]:
    kinds = kinds or [FLOAT] * len(names)
    shapes = [[None] * rank for rank in ranks] or [None] * len(names)
    return [helper.make_tensor_value_info(*entry) for entry in zip(names, kinds, shapes, strict=True)]


def _inner_name(g: Builder) -> str:
    """Name something inside: as its like in another branch, and now and then as a tensor that comes later outside."""
    if g.chance(0.03):
        return f"v{len(g.used) + int(g.rng.integers(3, 9))}"
    name = str(g.pick(["t", "y_1", "inner", "inner2"]))
    while name in g.used - g.inner:
        name += "'"
    g.inner.add(name)
    g.used.add(name)
    return name


def _branch(g: Builder, x: Value, outputs: int) -> GraphProto:
    """Compute something of a tensor from outside, with constants of its own."""
    nodes, stored, names = list[NodeProto](), [], list[str]()
    taken: set[str] = set()

    def fresh() -> str:
        name = _inner_name(g)
        while name in taken:
            name += "+"
        taken.add(name)
        return name

    for _ in range(outputs):
        first, second, kept = fresh(), fresh(), fresh()
        nodes.append(helper.make_node(g.pick(_PLAIN), [x.name], [first]))
        if g.chance(0.5):
            stored.append(arrays.from_array(np.float32(g.pick([0.5, 2.0])), kept))
        else:
            nodes.append(helper.make_node("Constant", [], [kept], value_float=float(g.pick([0.5, 2.0]))))
        nodes.append(helper.make_node("Identity" if g.chance(0.2) else g.pick(_PLAIN), [first], [second]))
        names.append(fresh())
        nodes.append(helper.make_node("Mul", [second, kept], [names[-1]]))
    return helper.make_graph(nodes, "branch", [], _typed(names, ranks=[len(x.shape)] * len(names)), stored)


def branch(g: Builder) -> None:
    """If: two ways, of whose outputs some are read by nobody."""
    x, outputs = g.value(), int(g.pick([1, 2, 3]))
    g.continuous = False
    if g.chance(0.5):
        total = g.add("ReduceSum", [x.name], keepdims=0)[0]
        decides = g.add("Greater", [total.name, g.constant(0.0)])[0].name
    else:
        decides = g.constant(g.pick([True, False]), np.bool_)
    both = {key: _branch(g, x, outputs) for key in ("then_branch", "else_branch")}
    g.add("If", [decides], outputs, shapes=[(FLOAT, x.shape)] * outputs, **both)


def loop(g: Builder) -> None:
    """Loop a few times over a tensor, reading another from outside; collects what it was."""
    x = g.value(ranks=(1, 2, 3))
    captured = g.value()
    if captured.shape != x.shape:
        captured = x
    on, state, made, half, number, going = (
        f"{name}{len(g.nodes)}" for name in ("on", "state", "made", "half", "i", "go")
    )
    nodes = [
        helper.make_node("Mul", [state, half], [made]),
        helper.make_node("Add", [made, captured.name], [f"{made}.2"]),
        helper.make_node("Tanh", [f"{made}.2"], [f"{made}.3"]),
        helper.make_node("Identity", [on], [going]),
    ]
    body = helper.make_graph(
        nodes,
        "body",
        _typed([number, on, state], [INT64, BOOL, FLOAT], [0, 0, len(x.shape)]),
        _typed([going, f"{made}.3", f"{made}.2"], [BOOL, FLOAT, FLOAT], [0, len(x.shape), len(x.shape)]),
        [arrays.from_array(np.float32(0.5), half)],
    )
    limit, start = g.constant(3, np.int64), g.constant(True, np.bool_) if g.chance(0.5) else ""
    g.add("Loop", [limit, start, x.name], 2, shapes=[(FLOAT, x.shape), (FLOAT, (3, *x.shape))], body=body)


def scan(g: Builder) -> None:
    """Scan over the rows of a tensor with a running sum; nobody may read the rows that it gives."""
    x = g.value(ranks=(2,), least=1)
    mark = len(g.nodes)
    names = [f"{name}{mark}" for name in ("sum", "row", "next", "out")]
    nodes = [helper.make_node("Add", names[:2], names[2:3]), helper.make_node("Tanh", names[2:3], names[3:])]
    body = helper.make_graph(nodes, "body", _typed(names[:2], ranks=[1, 1]), _typed(names[2:], ranks=[1, 1]))
    zero = g.constant(np.zeros(x.shape[1]))
    shapes = [(FLOAT, x.shape[1:]), (FLOAT, x.shape)]
    g.add("Scan", [zero, x.name], 2, shapes=shapes, body=body, num_scan_inputs=1)


def nested(g: Builder) -> None:
    """A branch inside a branch, which reads from the outermost graph."""
    x = g.value()
    g.continuous = False
    decides = g.constant(g.pick([True, False]), np.bool_, plain=True)
    deep = helper.make_node(
        "If", [decides], ["t"], then_branch=_renamed(_branch(g, x, 1), "d"), else_branch=_renamed(_branch(g, x, 1), "e")
    )
    if "t" in g.used - g.inner:
        raise Skip
    g.used.add("t")
    g.inner.add("t")
    outer = helper.make_graph([deep], "outer", [], _typed(["t"], ranks=[len(x.shape)]))
    both = {"then_branch": outer, "else_branch": _branch(g, x, 1)}
    g.add("If", [decides], shapes=[(FLOAT, x.shape)], **both)


def _renamed(graph: GraphProto, mark: str) -> GraphProto:
    """Keep what a branch defines apart from what lies around it."""
    own = {name for node in graph.node for name in node.output} | {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        node.input[:] = [name + mark if name in own else name for name in node.input]
        node.output[:] = [name + mark for name in node.output]
    for value in (*graph.initializer, *graph.output):
        value.name += mark
    return graph


def function(g: Builder) -> None:
    """An operator that the file itself defines, of its opset or another; it may have the name of a standard one."""
    x = g.value()
    name = g.pick(["Act", "Identity", "Relu", "Reshape"])
    if not any(made.name == name for made in g.functions):
        g.functions.append(_function(g, name))
    g.add(name, [x.name], 2, domain="mine", shapes=[(FLOAT, x.shape)] * 2, alpha=float(g.pick([0.01, 0.3])))


def _function(g: Builder, name: str) -> FunctionProto:
    leaky = helper.make_node("LeakyRelu", ["p"], ["q"])
    leaky.attribute.append(AttributeProto(name="alpha", ref_attr_name="alpha", type=AttributeProto.FLOAT))
    nodes = [
        helper.make_node("Neg", ["p"], ["r"]),
        leaky,
        helper.make_node("Constant", [], ["half"], value_float=0.5),
        helper.make_node("Mul", ["q", "half"], ["out"]),
    ]
    opset = g.opset
    if g.chance(0.4):  # of an older opset, of operators that have not changed since
        nodes, opset = [helper.make_node("Neg", ["p"], ["r"]), helper.make_node("Tanh", ["p"], ["out"])], 13
    return helper.make_function("mine", name, ["p"], ["out", "r"], nodes, [helper.make_opsetid("", opset)], ["alpha"])


def runtime_operator(g: Builder) -> None:
    """One of onnxruntime's own operators."""
    x = g.value(ranks=(2, 3), least=1)
    way = g.pick(["Gelu", "QuickGelu", "BiasGelu", "FusedMatMul"])
    if way == "FusedMatMul":
        other = g.constant(g.normal(x.shape[-1], 4))
        g.add(way, [x.name, other], domain="com.microsoft", shapes=[(FLOAT, (*x.shape[:-1], 4))], alpha=0.5)
        return
    more = [g.constant(g.normal(x.shape[-1]))] if way == "BiasGelu" else []
    g.add(way, [x.name, *more], domain="com.microsoft", shapes=[(FLOAT, x.shape)])


def sparse(g: Builder) -> None:
    """A constant that lists only what is not zero."""
    x = g.value(ranks=(2,), least=1)
    size = x.shape[1]
    name = g.name()
    held = arrays.from_array(np.array([2.0], np.float32), name)
    where = helper.make_tensor("", TensorProto.INT64, [1], [size - 1])
    tensor = helper.make_sparse_tensor(held, where, [size])
    g.nodes.append(helper.make_node("Constant", [], [name], sparse_value=tensor))
    g.known[name] = np.eye(size, dtype=np.float32)[-1] * 2
    g.add("Add", [x.name, name])


CONTROL_STEPS: list[tuple[Step, float]] = [
    (branch, 1.2), (loop, 0.7), (scan, 0.5), (nested, 0.3), (function, 0.8), (runtime_operator, 0.7), (sparse, 0.2),
]  # fmt: skip
