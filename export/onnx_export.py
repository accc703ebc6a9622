"""nn.Module -> ONNX: one graph, one output, any batch size, checked against the module before it is returned."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import ModelProto
from torch import Tensor, nn

from distill.errors import UserError
from distill.export.parity_check import first_line, parity, run_onnx
from distill.export.simplification import simplify
from distill.export.stripping import strip

from .graph import input_shape, opset_of
from .settings import ExportSettings

OUTPUT = "logits"
BATCH = "batch"
_MIN_BATCH = 2  # torch.export takes a batch of 0 or 1 for a constant
_PROBES = (1, 3)  # batch sizes other than the example's, at which the graph has to agree too
_NATIVE_OPSET = 18  # the exporter writes no older one; older ones are converted
_FIXED_BATCH = (
    "forward fixes the batch size. Usual causes: a tensor made with a literal batch size, a Python loop over the rows, "
    "int(x.shape[0]) or x.view(2, …). Write x.new_zeros(x.shape[0], …), batched operators, -1 in view"
)


def export_onnx(
    model: nn.Module,
    *,
    args: tuple[Any, ...] = (),
    kwargs: dict[str, Any] | None = None,
    logits: Callable[[Any], Tensor] | None = None,
    input_names: Sequence[str],
    settings: ExportSettings | None = None,
) -> ModelProto:
    """Export a module in evaluation mode as a float32 graph with the one output ``logits``, stripped.

    Args:
        model: any module, on any device, in any mode; it is not changed. Its hooks take part only where they change
            the output.
        args: the positional part of one example call. Tensors become inputs whose first axis is the dynamic ``batch``
            (a batch of one is repeated); anything else is built in as a constant.
        kwargs: the named part of the call, treated alike.
        logits: what to take from the module's output, for one that returns a tuple, dict or object.
        input_names: one name a tensor, positional ones first.
        settings: opset, and how closely the graph has to follow the module.

    Raises:
        UserError: the module cannot be exported for any batch size, or the graph's logits are not the module's; the
            message names the reason.
    """
    settings = settings or ExportSettings()
    core, tensors = _prepare(model, args, kwargs or {}, logits or _only_tensor, input_names)
    expected = _eager(core, tensors)
    if expected.ndim == 0 or len(expected) != len(tensors[0]):
        raise UserError(
            f"logits: shape {list(expected.shape)} for a batch of {len(tensors[0])}; the first axis must be the batch"
        )
    if not torch.allclose(expected, _eager(core, tensors), equal_nan=True):
        raise UserError(
            f"model={_name(model)}: two calls in eval mode differ, so nothing can be verified; remove the randomness"
        )
    proto = strip(_lower(simplify(_export(core, tensors, input_names, settings.opset)), settings.opset))
    _require_dynamic_batch(core, proto, tensors, input_names)
    _verify(core, proto, tensors, input_names, settings)
    return proto


class _Core(nn.Module):
    """Takes tensors only, gives the logits only; constants of the example call are built in."""

    def __init__(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], logits: Callable[[Any], Tensor]
    ) -> None:
        super().__init__()
        self.model = model
        self._args = [None if isinstance(value, Tensor) else (value,) for value in args]
        self._kwargs = {key: None if isinstance(value, Tensor) else (value,) for key, value in kwargs.items()}
        self._logits = logits

    def forward(self, *tensors: Tensor) -> Tensor:
        """Call the model with the tensors in the order of the example call."""
        queue = list(tensors)
        args = [queue.pop(0) if fixed is None else fixed[0] for fixed in self._args]
        kwargs = {key: queue.pop(0) if fixed is None else fixed[0] for key, fixed in self._kwargs.items()}
        return self._logits(self.model(*args, **kwargs))


def _only_tensor(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    raise UserError(f"model output is {type(output).__name__}, not a tensor: name the logits in it with logits=…")


def _prepare(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    logits: Callable[[Any], Tensor],
    input_names: Sequence[str],
) -> tuple[_Core, tuple[Tensor, ...]]:
    """Copy the module to the CPU in float32 and eval mode, and make the example fit to export."""
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    if len(tensors) != len(input_names) or len(set(input_names)) != len(input_names) or not tensors:
        raise UserError(f"input_names={list(input_names)}: needs one name for each of the {len(tensors)} input tensors")
    if OUTPUT in input_names:
        raise UserError(f"input_names={list(input_names)}: {OUTPUT!r} is the name of the output")
    batches = [len(tensor) if tensor.ndim else 0 for tensor in tensors]
    if min(batches) < 1 or len(set(batches)) > 1:
        sizes = dict(zip(input_names, (list(tensor.shape) for tensor in tensors), strict=True))
        raise UserError(f"example inputs {sizes}: the first axis of each must be the same batch, at least 1")
    if isinstance(model, torch.jit.ScriptModule):
        raise UserError(f"model={_name(model)}: TorchScript cannot be exported; give the module that it was made from")
    with _quiet():
        try:
            twin = copy.deepcopy(model, _computed_tensors(model)).cpu().float().eval()
        except Exception as error:
            raise UserError(f"model={_name(model)}: cannot be copied for export: {first_line(error)}") from error
    with contextlib.suppress(Exception):  # transformers: other attention forms export badly or not at all
        twin.set_attn_implementation("eager")  # type: ignore[operator]
    core = _Core(twin, args, kwargs, logits).eval()
    example = tuple(_example(tensor) for tensor in tensors)
    _drop_idle_hooks(core, example)
    return core, example


def _computed_tensors(model: nn.Module) -> dict[int, Any]:
    """Prepare a deepcopy to take values for tensors with a history, as old-style weight_norm leaves on its modules."""
    held = [value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    return {id(value): value.detach().clone() for value in held if value.grad_fn is not None}


def _example(tensor: Tensor) -> Tensor:
    """Bring an example to the CPU, in float32 where it is a float, with a batch of at least 2."""
    tensor = tensor.detach().cpu()
    tensor = tensor.float() if tensor.is_floating_point() else tensor
    return tensor if len(tensor) >= _MIN_BATCH else torch.cat([tensor] * _MIN_BATCH)


def _drop_idle_hooks(core: _Core, tensors: tuple[Tensor, ...]) -> None:
    """Remove hooks that only watch, so that tracing does not run them; keep all of them if any changes the logits."""
    hooked = [module for module in core.modules() if module._forward_hooks or module._forward_pre_hooks]
    if not hooked:
        return
    before = _eager(core, tensors)
    saved = [(m, m._forward_hooks.copy(), m._forward_pre_hooks.copy()) for m in hooked]
    for module in hooked:
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    try:
        same = torch.equal(before, _eager(core, tensors))
    except UserError:  # a hook computed what forward needs, as old-style weight_norm does
        same = False
    if not same:
        for module, hooks, pre_hooks in saved:
            module._forward_hooks.update(hooks)
            module._forward_pre_hooks.update(pre_hooks)


def _eager(core: _Core, tensors: Sequence[Tensor]) -> Tensor:
    """Call the module, on copies of the inputs so that one that writes into them changes nothing."""
    try:
        with torch.no_grad(), _quiet():
            output = core(*(tensor.clone() for tensor in tensors))
    except UserError:
        raise
    except Exception as error:
        shapes = [list(tensor.shape) for tensor in tensors]
        raise UserError(
            f"model={_name(core.model)}: fails on the CPU in eval mode with inputs {shapes}: "
            f"{type(error).__name__}: {first_line(error)}"
        ) from error
    if not isinstance(output, Tensor) or not output.is_floating_point():
        raise UserError(f"logits: {_kind(output)}; must be a floating-point tensor [batch, …]")
    return output.detach().clone()


def _export(core: _Core, tensors: tuple[Tensor, ...], input_names: Sequence[str], opset: int) -> ModelProto:
    """Run the exporter, silently; explain what stopped it."""
    batch = torch.export.Dim(BATCH)
    try:
        with torch.no_grad(), _quiet():
            program = torch.onnx.export(
                core,
                tensors,
                dynamo=True,
                opset_version=max(opset, _NATIVE_OPSET),
                dynamic_shapes=(tuple({0: batch} for _ in tensors),),
                input_names=list(input_names),
                output_names=[OUTPUT],
                verbose=False,
            )
    except Exception as error:
        raise UserError(f"model={_name(core.model)}: {_explain(error)}") from error
    assert program is not None
    return program.model_proto


def _lower(proto: ModelProto, opset: int) -> ModelProto:
    """Convert to an opset older than the exporter can write."""
    if opset_of(proto) <= opset:
        return proto
    try:
        lowered = onnx.version_converter.convert_version(proto, opset)
    except Exception as error:  # the converter's C++ side raises RuntimeError or its own
        raise UserError(f"export.opset={opset}: the graph needs a newer one ({first_line(error)}); 18 works") from error
    return simplify(lowered)


def _explain(error: BaseException) -> str:
    """Say in a line or two why an export failed: the reason, the line of the user's code, and a way out."""
    chain: list[BaseException] = []
    seen: BaseException | None = error
    while seen is not None and seen not in chain:
        chain.append(seen)
        seen = seen.__cause__ or seen.__context__
    reason = next((e for e in chain if type(e).__module__.split(".")[:2] != ["torch", "onnx"]), chain[-1])
    text = "\n".join(str(e) for e in chain)
    missing = re.search(r"No (?:ONNX function|decompositions registered)[^\n]*?(aten\.\w+|[\w.]+::\w+)", text)
    if missing:
        return f"operator {missing[1]} has no ONNX form; replace it in forward by operators that have one"
    place = re.findall(r'File "([^"]+)", line (\d+), in \w+|File "([^"]+)", line (\d+)', text)
    own = [(a or c, b or d) for a, b, c, d in place if "site-packages" not in (a or c)]
    where = f" ({own[-1][0]}:{own[-1][1]})" if own else ""
    if "data-dependent" in text or "GuardOnDataDependent" in text:
        return (
            f"forward branches on the values of a tensor{where}, which a graph cannot follow; "
            "use torch.where, or move the branch out of forward"
        )
    if "specialized it to be a constant" in text or "Constraints violated" in text:
        return _FIXED_BATCH
    return f"torch.export cannot follow it{where}: {type(reason).__name__}: {first_line(reason)}"


def _require_dynamic_batch(
    core: _Core, proto: ModelProto, tensors: Sequence[Tensor], input_names: Sequence[str]
) -> None:
    """Refuse a graph that takes only the example's batch; the exporter makes such a graph without a word."""
    graph_inputs = {value.name for value in proto.graph.input}
    for name, tensor in zip(input_names, tensors, strict=True):
        if name not in graph_inputs:
            raise UserError(
                f"input_names: {name!r} does not take part in the logits of {_name(core.model)}; leave it out"
            )
        shape = input_shape(proto.graph, name) or []
        if shape[:1] == [len(tensor)]:
            raise UserError(
                f"model={_name(core.model)}: the graph accepts batches of {len(tensor)} only: {_FIXED_BATCH}"
            )


def _verify(
    core: _Core,
    proto: ModelProto,
    tensors: Sequence[Tensor],
    input_names: Sequence[str],
    settings: ExportSettings,
) -> None:
    """Run the graph at several batch sizes and compare its logits with the module's."""
    for size in dict.fromkeys((len(tensors[0]), *_PROBES)):
        batch = [_resized(tensor, size) for tensor in tensors]
        expected = _eager(core, batch).float().numpy()
        try:
            got = run_onnx(proto, [_feed(batch, input_names)])
        except UserError as error:
            raise UserError(
                f"model={_name(core.model)}: exported, but does not run at batch {size}: {error}"
            ) from error
        if got.shape != expected.shape:
            raise UserError(
                f"model={_name(core.model)}: at batch {size} the graph gives {got.shape}, not {expected.shape}"
            )
        result = parity(expected, got, atol=settings.atol, rtol=settings.rtol)
        if np.isfinite(expected).all() and not result.ok:
            raise UserError(
                f"model={_name(core.model)}: at batch {size} the graph's logits are {result.max_abs:.3g} away from the "
                f"module's, more than {result.tolerance:.3g}; forward does something that its graph does not show"
                + "".join(f"; {warning}" for warning in result.warnings)
            )


def _resized(tensor: Tensor, size: int) -> Tensor:
    return tensor[torch.arange(size) % len(tensor)]


def _feed(tensors: Sequence[Tensor], names: Sequence[str]) -> dict[str, NDArray[Any]]:
    return {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the exporter prints, logs and warns about itself; its errors are explained by us."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            with contextlib.redirect_stderr(io.StringIO()):
                yield
    finally:
        logging.disable(before)


def _name(model: nn.Module | Tensor) -> str:
    return type(model).__name__


def _kind(value: object) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
