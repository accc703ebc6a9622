"""A module as it is exported: a copy on the CPU that takes tensors only and gives the logits only."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from distill.errors import UserError
from distill.export.parity_check import first_line
from distill.references.calls import why_call_failed
from distill.references.unwrapping import plain_copy, require_plain

from .preprocessed import Arguments, Preprocessed

OUTPUT = "logits"
_MIN_BATCH = 2  # torch.export takes a batch of 0 or 1 for a constant
Tensors = dict[str, Tensor]  # the inputs of a call by their names in the graph, in the order of the call


class Core(nn.Module):
    """Takes tensors only, gives the logits only; constants of the example call are built in."""

    def __init__(
        self, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], logits: Callable[[Any], Tensor]
    ) -> None:
        super().__init__()
        self.model = model
        self._args = [None if isinstance(value, Tensor) else (value,) for value in args]
        self._kwargs = {key: None if isinstance(value, Tensor) else (value,) for key, value in kwargs.items()}
        self.logits = logits

    @property
    def name(self) -> str:
        """How errors name the module."""
        if isinstance(self.model, Preprocessed):
            return f"{type(self.model.model).__name__} behind preprocess={type(self.model.preprocess).__name__}"
        return type(self.model).__name__

    def forward(self, *tensors: Tensor) -> Tensor:
        """Call the model with the tensors in the order of the example call."""
        args, kwargs = self._arguments(tensors)
        return self.logits(self.model(*args, **kwargs))

    def _arguments(self, tensors: Iterable[Tensor]) -> Arguments:
        queue = iter(tensors)
        args = tuple(next(queue) if fixed is None else fixed[0] for fixed in self._args)
        return args, {key: next(queue) if fixed is None else fixed[0] for key, fixed in self._kwargs.items()}

    def inner(self, tensors: Tensors) -> Arguments:
        """Return what the preprocessing in front of the model makes of the inputs."""
        assert isinstance(self.model, Preprocessed)
        args, kwargs = self._arguments(tensors.values())
        with torch.no_grad(), quiet():
            return self.model.inner(*args, **kwargs)

    def eager(self, tensors: Tensors) -> Tensor:
        """Call the module, on copies of the inputs so that one that writes into them changes nothing."""
        try:
            with torch.no_grad(), quiet():
                output = self(*(tensor.clone() for tensor in tensors.values()))
        except UserError:
            raise
        except Exception as error:
            why = why_call_failed(error, self.model, *self._arguments(tensors.values()))
            raise UserError(f"model={self.name}: fails on the CPU in eval mode: {why}") from error
        if not isinstance(output, Tensor) or not output.is_floating_point():
            kind = f"{output.dtype} {list(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
            raise UserError(f"logits: {kind}; must be a floating-point tensor [batch, …]")
        return output.detach().clone()


def prepare(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    logits: Callable[[Any], Tensor] | None,
    input_names: Sequence[str],
) -> tuple[Core, Tensors]:
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
    require_plain(model, f"model={type(model).__name__}")
    with quiet():
        try:
            copied = plain_copy(model).cpu().float().eval()
        except Exception as error:
            raise UserError(
                f"model={type(model).__name__}: cannot be copied for export: {first_line(error)}"
            ) from error
    with contextlib.suppress(Exception):  # transformers: other attention forms export badly or not at all
        copied.set_attn_implementation("eager")  # type: ignore[operator]
    _require_known_layers(copied)
    core = Core(copied, args, kwargs, logits or _only_tensor).eval()
    example = {name: _example(tensor) for name, tensor in zip(input_names, tensors, strict=True)}
    _drop_idle_hooks(core, example)
    return core, example


def _require_known_layers(model: nn.Module) -> None:
    """Refuse layers that the exporter writes a wrong graph of. Raises UserError."""
    for name, module in model.named_modules():
        if isinstance(module, nn.LSTM) and module.proj_size:
            raise UserError(
                f"model={type(model).__name__}: its layer {name!r}, {module}, has no ONNX form; leave proj_size out, "
                "and put a Linear behind it"
            )


def _only_tensor(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    raise UserError(f"model output is {type(output).__name__}, not a tensor: name the logits in it with logits=…")


def _example(tensor: Tensor) -> Tensor:
    """Bring an example to the CPU, in float32 where it is a float, with a batch of at least 2."""
    tensor = tensor.detach().cpu()
    tensor = tensor.float() if tensor.is_floating_point() else tensor
    return tensor if len(tensor) >= _MIN_BATCH else torch.cat([tensor] * _MIN_BATCH)


def _drop_idle_hooks(core: Core, tensors: Tensors) -> None:
    """Remove hooks that only watch, so that tracing does not run them; keep all of them if any changes the logits."""
    hooked = [module for module in core.modules() if module._forward_hooks or module._forward_pre_hooks]
    if not hooked:
        return
    before = core.eager(tensors)
    saved = [(m, m._forward_hooks.copy(), m._forward_pre_hooks.copy()) for m in hooked]
    for module in hooked:
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    try:
        same = torch.equal(before, core.eager(tensors))
    except UserError:  # a hook computed what forward needs, as old-style weight_norm does
        same = False
    if not same:
        for module, hooks, pre_hooks in saved:
            module._forward_hooks.update(hooks)
            module._forward_pre_hooks.update(pre_hooks)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
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
