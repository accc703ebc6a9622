"""Preprocessing that travels inside the file: pixels and rows go in as the user has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper

from distill.errors import UserError
from distill.export.stripping import strip
from distill.types import Array

from .canonical import canonical
from .graph import add_constant, free_prefix, input_shape, output_names, refill, rename_all
from .raw_input import feed_raw_uint8

IMAGE = "image"
FEATURES = "features"
BATCH = "batch"


@dataclass(frozen=True)
class InputSpec:
    """One input of the shipped file: ``shape`` starts with ``batch``, ``dtype`` is numpy's name or "str"."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class Preprocess(Protocol):
    """Raw inputs -> what the core graph was trained on; in the graph and, for reference, in numpy."""

    def prepend(self, proto: ModelProto, *, input_name: str) -> ModelProto:
        """Return a model that takes the raw inputs in place of ``input_name``."""

    def apply(self, raw: Mapping[str, Array]) -> Array:
        """Compute what the added nodes compute, in numpy."""

    def input_spec(self) -> tuple[InputSpec, ...]:
        """Describe the raw inputs."""


@dataclass(frozen=True)
class ImagePreprocess:
    """``image`` uint8 [N, H, W, C] -> float32 [N, C, H, W], ``(x − offset[c]) · scale[c]`` with x in 0…255.

    One entry in ``offset`` and ``scale`` serves all channels. Where both are shared and the offset is a whole number
    in 0…255, that is one DequantizeLinear, and an int8 graph with uint8 activations takes the pixels as they are.

    Raises:
        UserError: a size below 1, or neither one nor ``channels`` entries.
    """

    height: int
    width: int
    channels: int
    offset: tuple[float, ...]
    scale: tuple[float, ...]

    def __post_init__(self) -> None:
        if min(self.height, self.width, self.channels) < 1:
            raise UserError(f"height, width, channels = {self.height}, {self.width}, {self.channels}: at least 1 each")
        for name, values in (("offset", self.offset), ("scale", self.scale)):
            if len(values) not in (1, self.channels) or not np.all(np.isfinite(values)):
                raise UserError(f"{name}={values}: give 1 or {self.channels} (channels) finite numbers")
        if 0 in self.scale:
            raise UserError(f"scale={self.scale}: 0 would make every pixel equal")

    @property
    def shared_integer_offset(self) -> int | None:
        """The zero-point, where one integer offset and one positive scale serve all channels; else None."""
        offset = self.offset[0]
        shared = len(set(self.offset)) == 1 and len(set(self.scale)) == 1 and self.scale[0] > 0
        return int(offset) if shared and float(offset).is_integer() and 0 <= offset <= 255 else None

    def input_spec(self) -> tuple[InputSpec, ...]:
        """Describe the one input ``image``."""
        return (InputSpec(IMAGE, "uint8", (BATCH, self.height, self.width, self.channels)),)

    def apply(self, raw: Mapping[str, Array]) -> Array:
        """Map ``image`` uint8 [N, H, W, C] to float32 [N, C, H, W]."""
        pixels = np.asarray(raw[IMAGE]).transpose(0, 3, 1, 2).astype(np.float32)
        return np.asarray((pixels - self._per_channel(self.offset)) * self._per_channel(self.scale))

    def prepend(self, proto: ModelProto, *, input_name: str) -> ModelProto:
        """Return a model with the input ``image`` in place of ``input_name``; the one given is not changed.

        Raises:
            UserError: the model has no such input, or it does not take [N, channels, height, width].
        """
        front = Front(proto, input_name, (self.channels, self.height, self.width), self.input_spec())
        zero_point = self.shared_integer_offset
        if zero_point is None:
            self._normalise(front)
            return front.finish()
        scale = front.constant("scale", np.asarray(self.scale[0], np.float32))
        zero = front.constant("zero", np.asarray(zero_point, np.uint8))
        pixels = front.name("pixels")
        if feed_raw_uint8(front.graph, front.target, pixels, scale, zero):
            # Integer convolutions run on channels-last data: onnxruntime cancels its own Transpose against this one.
            front.add("Transpose", [IMAGE], pixels, perm=[0, 3, 1, 2])
        else:
            front.add("DequantizeLinear", [self._to_channels_first(front), scale, zero], front.target)
        return front.finish()

    def _to_channels_first(self, front: Front) -> str:
        """Change the layout while a pixel is one byte; with one channel that moves no data."""
        if self.channels > 1:
            return front.add("Transpose", [IMAGE], perm=[0, 3, 1, 2])
        shape = np.asarray([-1, 1, self.height, self.width], np.int64)
        return front.add("Reshape", [IMAGE, front.constant("shape", shape)])

    def _normalise(self, front: Front) -> None:
        value = front.add("Cast", [self._to_channels_first(front)], to=TensorProto.FLOAT)
        if any(self.offset):
            value = front.add("Sub", [value, front.constant("offset", self._per_channel(self.offset))])
        front.add("Mul", [value, front.constant("scale", self._per_channel(self.scale))], front.target)

    def _per_channel(self, values: tuple[float, ...]) -> Array:
        numbers = np.asarray(values, np.float32)
        return numbers[0] if len(set(values)) == 1 else numbers.reshape(-1, 1, 1)


@dataclass(frozen=True)
class FeaturesPreprocess:
    """``features`` float32 [N, F] -> float32 [N, F]: NaN becomes ``fill``, then ``(x − mean) · scale``, by feature.

    Raises:
        UserError: the three are not of one length, or not finite.
    """

    fill: tuple[float, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]

    def __post_init__(self) -> None:
        if not len(self.fill) == len(self.mean) == len(self.scale) > 0:
            raise UserError(
                f"fill, mean, scale: {len(self.fill)}, {len(self.mean)}, {len(self.scale)} numbers; one a feature each"
            )
        if not np.all(np.isfinite([self.fill, self.mean, self.scale])):
            raise UserError("fill, mean, scale: every number must be finite")

    def input_spec(self) -> tuple[InputSpec, ...]:
        """Describe the one input ``features``."""
        return (InputSpec(FEATURES, "float32", (BATCH, len(self.fill))),)

    def apply(self, raw: Mapping[str, Array]) -> Array:
        """Map ``features`` float32 [N, F] to float32 [N, F]."""
        fill, mean, scale = (np.asarray(values, np.float32) for values in (self.fill, self.mean, self.scale))
        rows = np.asarray(raw[FEATURES], np.float32)
        return np.asarray((np.where(np.isnan(rows), fill, rows) - mean) * scale)

    def prepend(self, proto: ModelProto, *, input_name: str) -> ModelProto:
        """Return a model with the input ``features`` in place of ``input_name``; the one given is not changed.

        Raises:
            UserError: the model has no such input, or it does not take [N, F].
        """
        front = Front(proto, input_name, (len(self.fill),), self.input_spec())
        front.standardise(FEATURES, self.fill, self.mean, self.scale, front.target)
        return front.finish()


class Front:
    """A copy of a core graph that gives one input up for new ones, and collects the nodes that go in front of it.

    Raises:
        UserError: the graph has no such input, the input takes another shape, or a new name is taken already.
    """

    def __init__(
        self, proto: ModelProto, input_name: str, shape: tuple[int, ...], specs: tuple[InputSpec, ...]
    ) -> None:
        _check_fit(proto, input_name, shape, specs)
        self.model = canonical(proto)
        self.graph = self.model.graph
        columns = [spec.name for spec in specs]  # which may have any names
        self._prefix, self._new = (f"{free_prefix(columns, word)}/" for word in ("core", "pre"))
        outputs = output_names(proto.graph)  # which keep their names, even one that is the input itself
        self.target = input_name if input_name in outputs else self._prefix + input_name  # what the new nodes compute
        self._nodes: list[NodeProto] = []
        fixed = {value.name for value in proto.graph.input} - {input_name} | outputs
        rename_all(self.graph, lambda name: self._prefix + name, keep=fixed)
        new = [helper.make_tensor_value_info(s.name, _element_type(s.dtype), list(s.shape)) for s in specs]
        inputs = [entry for value in self.graph.input for entry in (new if value.name == self.target else [value])]
        refill(self.graph.input, inputs)

    def name(self, name: str) -> str:
        """Return a name that no input has."""
        return self._new + name

    def constant(self, name: str, value: Array) -> str:
        """Add a constant and return its name."""
        return add_constant(self.graph, self.name(name), np.asarray(value))

    def add(self, op: str, inputs: list[str], output: str | None = None, *, domain: str = "", **attributes: Any) -> str:
        """Add a node with one output and return the output's name."""
        name = output or self.name(str(len(self._nodes)))
        self._nodes.append(helper.make_node(op, inputs, [name], domain=domain, **attributes))
        return name

    def standardise(
        self,
        source: str,
        fill: tuple[float, ...],
        mean: tuple[float, ...],
        scale: tuple[float, ...],
        output: str | None = None,
    ) -> str:
        """Add ``(x − mean) · scale`` over [N, F], NaN filled first."""
        values = [np.asarray([numbers], np.float32) for numbers in (fill, mean, scale)]
        fill_name, mean_name, scale_name = map(self.constant, ("fill", "mean", "scale"), values)
        filled = self.add("Where", [self.add("IsNaN", [source]), fill_name, source])
        return self.add("Mul", [self.add("Sub", [filled, mean_name]), scale_name], output)

    def finish(self) -> ModelProto:
        """Put the nodes in front of the graph and strip the result."""
        refill(self.graph.node, [*self._nodes, *self.graph.node])
        return strip(self.model)


def _check_fit(proto: ModelProto, input_name: str, shape: tuple[int, ...], specs: tuple[InputSpec, ...]) -> None:
    expected = input_shape(proto.graph, input_name)
    if expected is None:
        raise UserError(f"input_name={input_name!r}: the model has {[value.name for value in proto.graph.input]}")
    fits = len(expected) == len(shape) + 1 and all(
        isinstance(want, str) or want == got for want, got in zip(expected[1:], shape, strict=True)
    )
    if not fits:
        result = ", ".join(map(str, ("N", *shape)))
        raise UserError(f"preprocessing makes [{result}], the model's {input_name!r} takes {expected}")
    used = {value.name for value in proto.graph.input} - {input_name} | output_names(proto.graph)
    for spec in specs:
        if spec.name in used:
            raise UserError(f"input {spec.name!r}: the model has an input or output of that name already; rename one")


def _element_type(dtype: str) -> int:
    return TensorProto.STRING if dtype == "str" else int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
