"""What the verb `quantize` starts from: an .onnx file with its external data, or a function that makes an nn.Module."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
from onnx import ModelProto, TensorProto
from onnx.external_data_helper import ExternalDataInfo

from distill.benchmarks.onnx_file.external_data import external_file, external_files, external_tensors, part_of
from distill.benchmarks.onnx_file.signature import load_proto
from distill.benchmarks.timing.callables import TorchCallable
from distill.errors import UserError
from distill.export.graph import STANDARD, all_graphs, all_nodes
from distill.export.parity_check import first_line
from distill.output_paths import require_apart
from distill.quantize.float_graph import why_not_quantizable
from distill.single_stage.inputs import built, drawn_weights, logits_in, named_inputs, parameters_of, told_of
from distill.single_stage.options import ModuleLike, QuantizeOptions, read_arguments, shown
from distill.tasks.rows import label_name, read_rows
from distill.types import Array

if TYPE_CHECKING:
    from torch import nn

Remarks = tuple[str, ...]
_MOST_BYTES = 2**31 - 1  # of one protobuf message
_EXAMPLE_ROWS = 2


def read_source(options: QuantizeOptions) -> tuple[ModelProto, dict[str, Array], Remarks]:
    """Return the float graph, the rows by input name, and remarks on the weights of a module.

    Raises:
        UserError: the model cannot be read, built or exported; an option is not for it, or would write over it.
    """
    model, data = options.model, options.data
    if isinstance(model, ModelProto):
        _refuse_options_of_modules(options, "an ONNX graph")
        return model, read_rows(data, next((value.name for value in model.graph.input), "x")), ()
    if not isinstance(model, str | Path):
        return _exported(options, model, shown(model))
    reference = TorchCallable.named(str(model))
    path = Path(model if reference is None else reference.reference.rpartition(":")[0])
    read = [("the model itself", path), ("the data", data), ("the weights", options.weights)]
    require_apart(options.outputs, [(title, file) for title, file in read if isinstance(file, Path)])
    if reference is not None:
        if reference.form != "eager":
            name = f"{reference.form}:{reference.reference}"
            raise UserError(f"{name}: an export has no {reference.form} form; give {reference.reference}")
        return _exported(options, reference.reference, reference.reference)
    if path.suffix == ".py" and path.is_file():
        raise UserError(f"{path}: name the function in it that makes the module, as {path}:make")
    _refuse_options_of_modules(options, path)
    path, source_remarks = _without_preprocessing(path)
    core, extra = _read_graph(path)
    require_apart(options.outputs, [("external data of the model", file) for file in extra])
    return core, read_rows(data, next((value.name for value in core.graph.input), "x")), source_remarks


def _exported(options: QuantizeOptions, model: ModuleLike, name: str) -> tuple[ModelProto, dict[str, Array], Remarks]:
    """Build a module, load its weights where there are some, and export it by the rows."""
    module, weight_remarks = built(model, read_arguments(options.arg), options.weights, options.seed, field="")
    arrays = read_rows(options.data, next(iter(parameters_of(module)), "x"))
    drawn = drawn_weights(options, model, module, "its speed means something, what int8 loses does not")
    return _export_module(module, arrays, options.labels, name), arrays, (*weight_remarks, *drawn)


def _refuse_options_of_modules(options: QuantizeOptions, model: object) -> None:
    """Refuse options that make a module, where there is a graph already."""
    for option, value in (("--weights", options.weights), ("--arg", options.arg)):
        if value:
            raise UserError(f"{option} {shown(value)}: {model} has its own; leave {option} out")


def _without_preprocessing(path: Path) -> tuple[Path, Remarks]:
    """Return, for the `model.onnx` of a run's stage, the file beside it without preprocessing in front; say so."""
    core = path.with_name("core.onnx")
    if path.name != "model.onnx" or not core.is_file() or not path.with_name("stage.json").is_file():
        return path, ()
    return core, (
        f"{core} was quantised, which is {path.name} without its preprocessing: rows are what that gives, and "
        "preprocessing goes in front again by `run`",
    )


def _garbled_name(proto: ModelProto) -> bytes | None:
    """Return a name of an operator or a value that is no text; protobuf gives such as the bytes that it found."""
    nodes = [*all_nodes(proto.graph), *(node for function in proto.functions for node in function.node)]
    texts = [text for node in nodes for text in (node.op_type, node.domain, node.name, *node.input, *node.output)]
    values = [(*graph.input, *graph.output, *graph.initializer) for graph in all_graphs(proto.graph)]
    texts += [value.name for named in values for value in named]
    return next((text for text in texts if isinstance(text, bytes)), None)


def _read_graph(path: Path) -> tuple[ModelProto, list[Path]]:
    """Read a float32 file whole; returns it with the files beside it that hold its external data.

    Raises:
        UserError: the file, or its external data, are missing or broken, or it is quantised already.
    """
    proto = load_proto(path)
    garbled = _garbled_name(proto)
    if garbled is not None:
        raise UserError(f"{path}: its graph has the name {garbled[:40]!r}, which is not UTF-8; export it again")
    why = why_not_quantizable(proto)
    domains = [imported.domain for imported in proto.opset_import]
    if proto.ir_version < 1 or len(domains) != len(set(domains)):
        raise UserError(f"{path}: its IR version is {proto.ir_version}, its operator sets {domains}; export it again")
    if any(tensor.HasField("segment") for tensor in proto.graph.initializer):
        raise UserError(f"{path}: a constant of its lies in segments, which nothing reads; export it again")
    if why is not None:
        raise UserError(f"{path}: {why}; give the float32 export")
    unknown = _unknown_operators(proto)
    if unknown:
        raise UserError(
            f"{path}: onnxruntime has no {', '.join(unknown)}; operators of a library of your own cannot run here; "
            "quantise the part without them"
        )
    extra = external_files(path, proto)
    tensors = [(tensor, part_of(path, tensor)) for tensor in external_tensors(proto)]
    size = sum(file.stat().st_size for file in (path, *extra))
    # Several tensors may name the same bytes.
    read = sum(info.length or 0 for _, info in tensors)
    if max(size, read) > _MOST_BYTES:
        raise UserError(f"{path}: is larger than 2 GB with its external data, and an ONNX graph in memory cannot be")
    for tensor, info in tensors:
        _take_in(tensor, info, path)
    return proto, extra


def _unknown_operators(proto: ModelProto) -> list[str]:
    """Name the operators of domains other than the standard's that neither onnxruntime nor the file defines."""
    from onnxruntime.capi import _pybind_state

    foreign = {(node.domain, node.op_type) for node in all_nodes(proto.graph) if node.domain not in STANDARD}
    foreign -= {(function.domain, function.name) for function in proto.functions}
    registered = (
        {(schema.domain, schema.name) for schema in _pybind_state.get_all_operator_schema()} if foreign else set()
    )
    return sorted("::".join(names) for names in foreign - registered)


def _take_in(tensor: TensorProto, info: ExternalDataInfo, path: Path) -> None:
    """Put external data into their tensor; onnx's own reader follows no links, as caches of models have them."""
    file = external_file(path, info.location)
    with file.open("rb") as opened:
        opened.seek(info.offset or 0)
        tensor.raw_data = opened.read(-1 if info.length is None else info.length)
    tensor.data_location = TensorProto.DEFAULT
    del tensor.external_data[:]
    try:
        onnx.numpy_helper.to_array(tensor)
    except ValueError as error:
        raise UserError(
            f"{path}: its external data {info.location!r} end too early for {tensor.name!r}; copy them again"
        ) from error


def _export_module(module: nn.Module, arrays: Mapping[str, Array], labels: str | None, name: str) -> ModelProto:
    """Export a module by a few of the rows [n, …]; ``name`` is what messages call it.

    Arrays whose names are those of forward's parameters are passed by name, the others in the order of the file. Which
    of them holds ``labels``, if any does, is found out by itself where they have a usual name.

    Raises:
        UserError: forward does not take these arrays, or it cannot be exported.
    """
    import torch

    from distill.export import export_onnx

    key = label_name(arrays, labels, parameters_of(module) if labels is None else ())
    tensors = {}
    for array, value in arrays.items():
        if array != key:
            try:
                tensors[array] = torch.from_numpy(value[:_EXAMPLE_ROWS].copy())
            except (TypeError, IndexError) as error:
                raise UserError(f"{name}: {array} cannot become a tensor ({first_line(error)})") from error
    take = logits_in(None, mend="wrap it in a module that returns the logits alone")
    with told_of(name):
        inputs = named_inputs(module, [*tensors], take)
        args, kwargs = inputs.call(tensors)
        return export_onnx(module, args=args, kwargs=kwargs, logits=take, input_names=inputs.names)
