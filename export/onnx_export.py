"""nn.Module -> ONNX: one graph, one output, any batch size, checked against the module before it is returned."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx
import torch
from onnx import GraphProto, ModelProto
from torch import Tensor, nn

from distill.errors import UserError
from distill.export.parity_check import first_line
from distill.export.rewritten_calls import RewrittenCalls
from distill.export.simplification import keep_padding, simplify
from distill.export.stripping import strip
from distill.export.wrapped_model import OUTPUT, Core, Tensors, prepare, quiet
from distill.references.calls import chain, failed_layer, in_layer

from .front_graph import Halves, boundary_name, cut
from .graph import input_shape, layer_names, opset_of
from .preprocessed import Preprocessed
from .probes import Axes, require_parity
from .settings import ExportSettings

BATCH = "batch"
_MISSING = re.compile(
    r"No (?:ONNX function|decompositions registered)[^\n]*?"
    r"(?:(aten\.\w+|[\w.]+::\w+)|op='([\w.]+)'|torch\._higher_order_ops\.(\w+))"
)
_NATIVE_OPSET = 18  # the exporter writes no older one; older ones are converted
_FIXED_BATCH = (
    "forward fixes the batch size. Usual causes: a tensor made with a literal batch size, a Python loop over the rows, "
    "int(x.shape[0]) or x.view(2, …). Write x.new_zeros(x.shape[0], …), batched operators, -1 in view"
)
_FIXED_AXIS = (
    "forward fixes the length of axis {axis}, which the data leave open. Usual causes: a table of positions that is "
    "added whole, int(x.shape[{axis}]), a literal length in view. Write table[:, : x.shape[{axis}]], -1 in view"
)


def export_onnx(
    model: nn.Module,
    *,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    logits: Callable[[Any], Tensor] | None = None,
    input_names: Sequence[str],
    open_axes: Mapping[str, Axes] | None = None,
    settings: ExportSettings | None = None,
) -> ModelProto:
    """Export a module in evaluation mode as a float32 graph with the one output ``logits``, stripped.

    Nodes are named by the modules that they come from.

    Args:
        model: any module, on any device, in any mode; it is not changed. Its hooks take part only where they change
            the output.
        args: the positional part of one example call. Tensors become inputs whose first axis is the dynamic ``batch``
            (a batch of one is repeated); anything else is built in as a constant.
        kwargs: the named part of the call, treated alike.
        logits: what to take from the module's output, for one that returns a tuple, dict or object.
        input_names: one name a tensor, positional ones first.
        open_axes: further axes of any length, by the input's name: ``{"ids": {1: "sequence"}}``. Axes of one name have
            one length, 2 or more in the example.
        settings: opset, and how closely the graph has to follow the module.

    Raises:
        UserError: the module cannot be exported for any batch size, or the graph's logits are not the module's; the
            message names the reason.
    """
    return export_halves(
        model,
        args=args,
        kwargs=kwargs,
        logits=logits,
        input_names=input_names,
        open_axes=open_axes,
        settings=settings,
    ).whole


def export_halves(
    model: nn.Module,
    *,
    preprocess: nn.Module | None = None,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    logits: Callable[[Any], Tensor] | None = None,
    input_names: Sequence[str],
    open_axes: Mapping[str, Axes] | None = None,
    settings: ExportSettings | None = None,
) -> Halves:
    """Export a module, and in front of it ``preprocess``, as graphs of their own; both together follow the modules.

    The arguments are those of ``export_onnx``, and of the preprocessing where there is one: what it returns is what the
    model is called with.

    Raises:
        UserError: as ``export_onnx``.
    """
    settings = settings or ExportSettings()
    module = model if preprocess is None else Preprocessed(preprocess, model)
    core, tensors = prepare(module, args, kwargs or {}, logits, input_names)
    axes = _checked_axes(open_axes or {}, tensors)
    expected, rows = core.eager(tensors), len(tensors[input_names[0]])
    if expected.ndim == 0 or len(expected) != rows:
        raise UserError(f"logits: shape {list(expected.shape)} for a batch of {rows}; the first axis must be the batch")
    if not torch.allclose(expected, core.eager(tensors), equal_nan=True):
        raise UserError(
            f"model={core.name}: two calls in eval mode differ, so nothing can be verified; remove the randomness"
        )
    halves = _halves(core, tensors, _export(core, tensors, axes, settings.opset), settings)
    _require_open_axes(core, halves.whole, tensors, axes)
    require_parity(core, halves.whole, tensors, axes, settings)
    return halves


def _halves(core: Core, tensors: Tensors, proto: ModelProto, settings: ExportSettings) -> Halves:
    """Bring what the exporter wrote into its final form, preprocessing apart from the model."""
    parts = cut(proto)
    if parts is None:
        return Halves(_slim(proto, settings))
    front, core_proto = _slim(parts[0], settings), parts[1]
    if core_proto is not None:
        return Halves(_slim(core_proto, settings), front)
    # The model reads lengths of the raw inputs, by which the exporter told all others: on its own it reads its own.
    args, kwargs = core.inner(tensors)
    dims = {value.name: value.type.tensor_type.shape.dim for value in front.graph.output}
    names = [boundary_name(place) for place in range(sum(isinstance(v, Tensor) for v in (*args, *kwargs.values())))]
    open_axes = {
        name: {axis: f"{name}_{axis}" for axis, dim in enumerate(dims.get(name, ())) if axis and dim.dim_param}
        for name in names
    }
    assert isinstance(core.model, Preprocessed)
    return Halves(
        export_onnx(
            core.model.model,
            args=args,
            kwargs=kwargs,
            logits=core.logits,
            input_names=names,
            open_axes=open_axes,
            settings=settings,
        ),
        front,
    )


def _slim(proto: ModelProto, settings: ExportSettings) -> ModelProto:
    slim = simplify(proto)
    keep_padding(slim)
    _name_nodes(slim.graph)
    return strip(_lower(slim, settings.opset), node_names=True)


def _checked_axes(open_axes: Mapping[str, Axes], tensors: Tensors) -> dict[str, Axes]:
    """Return the open axes of each input, and refuse those that the example cannot show."""
    lengths: dict[str, int] = {}
    for name, axes in open_axes.items():
        stated = f"open_axes={{{name!r}: {dict(axes)}}}"
        if name not in tensors:
            raise UserError(f"{stated}: the inputs are {list(tensors)}")
        shape = list(tensors[name].shape)
        for axis, label in axes.items():
            if not 0 < axis < len(shape):
                raise UserError(f"{stated}: the example input has the shape {shape}; give an axis beside the batch")
            if label == BATCH:
                raise UserError(f"{stated}: {BATCH!r} is the name of axis 0; choose another")
            if shape[axis] < 2 or lengths.setdefault(label, shape[axis]) != shape[axis]:
                raise UserError(
                    f"open_axes: axis {axis} ({label}) of {name!r} has the length {shape[axis]} in the example; it "
                    "must be 2 or more, and the same for all axes of this name"
                )
    return {name: open_axes.get(name, {}) for name in tensors}


def _export(core: Core, tensors: Tensors, axes: Mapping[str, Axes], opset: int) -> ModelProto:
    """Run the exporter, silently; explain what stopped it."""
    try:
        with torch.no_grad(), quiet(), RewrittenCalls():
            program = torch.onnx.export(
                core,
                tuple(tensors.values()),
                dynamo=True,
                opset_version=max(opset, _NATIVE_OPSET),
                dynamic_shapes=_dynamic(tensors, axes),
                input_names=list(tensors),
                output_names=[OUTPUT],
                verbose=False,
            )
    except Exception as error:
        raise UserError(f"model={core.name}: {_explain(error, core, tensors, axes)}") from error
    assert program is not None
    return program.model_proto


def _name_nodes(graph: GraphProto) -> None:
    """Name each node by the module that it comes from, in place; a second one of a module by its operator, too."""
    names, counts = layer_names(graph), Counter[str]()
    for node in graph.node:
        root, _, module = names.get(node.output[0], "").partition(".")
        known = module and root == "model"  # as Core calls it
        again = f"/{node.op_type}_{counts[module]}" if counts[module] else ""
        node.name = module + again if known else ""
        counts[module] += 1


def _explain(error: BaseException, core: Core, tensors: Tensors, axes: Mapping[str, Axes]) -> str:
    """Say in a line or two why an export failed: the reason, the line of the user's code, and a way out."""
    links = chain(error)
    reason = next((e for e in links if type(e).__module__.split(".")[:2] != ["torch", "onnx"]), links[-1])
    text = "\n".join(map(str, links))
    missing = _MISSING.search(text)
    if missing:
        operator = next(filter(None, missing.groups()))
        return (
            f"operator {operator}{_home(core, tensors, axes, operator)} has no ONNX form; replace it in forward by "
            "operators that have one"
        )
    line = _own_line(text)
    if "not a subset of src_bound" in text:
        return f"the size of a tensor depends on the values of another{line}; mask by torch.where, and keep the size"
    if "data-dependent" in text or "GuardOnDataDependent" in text:
        return (
            f"forward branches on the values of a tensor{line}, which a graph cannot follow; "
            "use torch.where, or move the branch out of forward"
        )
    fixed = ("specialized it to be a constant", "Constraints violated", "inferred a static shape")
    if any(part in text for part in fixed):
        fixed_axes = [int(axis) for axis in re.findall(r"(?:size\(\)|shape)\[(\d+)\]", text)]
        return _fixed_axis(max(fixed_axes, default=0))
    name, layer = failed_layer(error, core.model)
    unfollowed = f"torch.export cannot follow it{in_layer(name, layer)}{line}"
    if isinstance(layer, nn.RNNBase):
        return (
            f"{unfollowed}: {first_line(reason)}; if it is given a packed sequence, give it the padded batch, and take "
            "each row's last step by gather"
        )
    return f"{unfollowed}: {type(reason).__name__}: {first_line(reason)}"


def _own_line(trace: str) -> str:
    """Return the last file and line of a trace that lie in no library, in brackets; empty where none does."""
    places = re.findall(r'File "([^"]+)", line (\d+)', trace)
    own = [(file, line) for file, line in places if "site-packages" not in file]
    return f" ({own[-1][0]}:{own[-1][1]})" if own else ""


def _home(core: Core, tensors: Tensors, axes: Mapping[str, Axes], operator: str) -> str:
    """Say which module calls an operator, by the program that torch makes of the model; empty where it is not told."""
    try:
        with torch.no_grad(), quiet():
            program = torch.export.export(core, tuple(tensors.values()), dynamic_shapes=_dynamic(tensors, axes))
            nodes = [*program.graph.nodes, *program.run_decompositions().graph.nodes]
    except Exception:  # it is asked for an error's sake, and that error is told without it
        return ""
    for node in nodes:
        if str(node.target).startswith(operator):
            calls = [*node.meta.get("nn_module_stack", {}).values()]
            name = calls[-1][0].removeprefix("model").lstrip(".") if calls else ""
            return in_layer(name, core.model.get_submodule(name)) + _own_line(node.meta.get("stack_trace") or "")
    return ""


def _dynamic(tensors: Tensors, axes: Mapping[str, Axes]) -> tuple[Any, ...]:
    """Return what the exporter takes as the shapes that stay open."""
    batch = torch.export.Dim(BATCH)
    return (tuple({0: batch, **axes[name]} for name in tensors),)


def _fixed_axis(axis: int) -> str:
    """Say what fixes an axis that has to be open, the batch being axis 0."""
    return _FIXED_AXIS.format(axis=axis) if axis else _FIXED_BATCH


def _lower(proto: ModelProto, opset: int) -> ModelProto:
    """Convert to an opset older than the exporter can write."""
    if opset_of(proto) <= opset:
        return proto
    try:
        lowered = onnx.version_converter.convert_version(proto, opset)
    except Exception as error:  # the converter's C++ side raises RuntimeError or its own
        raise UserError(f"export.opset={opset}: the graph needs a newer one ({first_line(error)}); 18 works") from error
    return simplify(lowered)


def _require_open_axes(core: Core, proto: ModelProto, tensors: Tensors, axes: Mapping[str, Axes]) -> None:
    """Refuse a graph that takes only the example's sizes; the exporter makes such a graph without a word."""
    graph_inputs = {value.name for value in proto.graph.input}
    for name, tensor in tensors.items():
        if name not in graph_inputs:
            raise UserError(f"input_names: {name!r} does not take part in the logits of {core.name}; leave it out")
        shape = input_shape(proto.graph, name) or []
        if shape[:1] == [len(tensor)]:
            raise UserError(f"model={core.name}: the graph accepts batches of {len(tensor)} only: {_fixed_axis(0)}")
        for axis in axes[name]:
            if shape[axis] == tensor.shape[axis]:
                raise UserError(
                    f"model={core.name}: the graph accepts {name!r} of length {shape[axis]} only: {_fixed_axis(axis)}"
                )
