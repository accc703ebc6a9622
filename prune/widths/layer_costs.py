"""What a layer costs on a device at every width: measured once, layer by layer, and remembered.

Latency is a staircase: kernels work in blocks of channels, so some widths cost as much as wider ones, and some more.
A layer is a graph of its own, of which only its kernel is timed; all widths of a layer take turns in one session.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from distill import files
from distill.benchmarks.target import Target, why_unmeasurable
from distill.benchmarks.timing.kernels import kernel_seconds
from distill.benchmarks.timing.machine import fingerprint
from distill.bounds import AboveZero
from distill.documents import read_as, read_json
from distill.sealed_files import Tell

Precision = Literal["float32", "int8"]
_BYTES = 1 << 26  # of inputs and weights in one session
_SECONDS, _LEAST_CALLS = 0.5, 8
_NODE_S = 1e-6  # what calling a kernel takes at least
_OPSET, _IR = 18, 10


@dataclass(frozen=True)
class LayerShape:
    """A convolution or a product as a kernel sees it.

    ``positions`` is the size of the input behind its channels for a convolution (height, width), and the number of
    rows for a product. ``parts`` is the number of groups; a depthwise convolution has as many as channels, whatever
    their number, and says 0.
    """

    operator: Literal["conv", "linear"]
    width_in: int
    width_out: int
    positions: tuple[int, ...]
    batch: int = 1
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    parts: int = 1

    def at(self, width_in: int, width_out: int) -> LayerShape:
        """Return the same layer with other widths; a depthwise one is as wide inside as outside."""
        return replace(self, width_in=width_out if self.parts == 0 else width_in, width_out=width_out)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one call, as if its output had the size of its input over the strides."""
        positions = prod(self.positions) // max(1, prod(self.stride))
        parts = self.width_in if self.parts == 0 else self.parts
        return self.batch * positions * prod(self.kernel) * self.width_out * self.width_in // parts


_TINY = LayerShape("conv", 1, 1, (1, 1), 1, (1, 1), (1, 1), (0, 0), (1, 1))


class Staircase:
    """Seconds of layers on a target that is this machine's processor.

    Args:
        target: threads, provider and kind of device.
        precision: of the kernels.
        cache: folder in which measurements are kept, by machine and version; None keeps them in memory only.
        tell: hears of a cache that is damaged, whose layers are timed again.
    """

    def __init__(
        self,
        target: Target,
        precision: Precision = "float32",
        cache: Path | None = None,
        tell: Tell = lambda text: None,
    ) -> None:
        self._tell = tell
        self._target, self._precision = target, precision
        self._path = None if cache is None else cache / f"staircase-{_identity(target, precision)}.json"
        self._seconds: dict[str, float] = {}
        if self._path is not None:
            self._seconds = _read(self._path, tell)

    @staticmethod
    def why_not(target: Target) -> str | None:
        """Say why layers cannot be timed one by one on a target, or None."""
        if not target.is_profiled:
            return f"layers are timed one by one on this machine's processor only, not on target {target.name}"
        return why_unmeasurable(target)

    def __call__(self, shapes: Iterable[LayerShape]) -> dict[LayerShape, float]:
        """Return the seconds of one call of each layer; what is not known yet is measured."""
        wanted = list(dict.fromkeys(shapes))
        missing = [shape for shape in wanted if _key(shape) not in self._seconds]
        for part in _parts(missing):
            self._seconds |= self._measured(part)
        if missing and self._path is not None:
            _write(self._path, self._seconds, self._tell)
        return {shape: self._seconds[_key(shape)] for shape in wanted}

    def _measured(self, shapes: Sequence[LayerShape]) -> dict[str, float]:
        model, feed = probes([_TINY, *shapes], self._precision)
        timed = kernel_seconds(
            model, feed, self._target.threads, seconds=_SECONDS, least=_LEAST_CALLS, provider=self._target.provider
        )
        # What a profile adds to every node is most of what the tiniest layer seems to take.
        added = max(0.0, _typical(timed, "p0") - _NODE_S)
        return {
            _key(shape): max(_NODE_S, _typical(timed, f"p{number}") - added)
            for number, shape in enumerate(shapes, start=1)
        }


def _typical(timed: Mapping[str, Sequence[float]], name: str) -> float:
    """Return the mean of a node's faster half: what else runs only adds time, and a clock of 1 µs needs a mean.

    The node may go by its output when it was fused, or laid out by blocks.
    """
    seconds = next((timed[key] for key in (name, f"{name}/y", f"{name}/out", f"{name}/q") if key in timed), None)
    if seconds is None:
        raise RuntimeError(f"onnxruntime ran no kernel for {name}; it ran {', '.join(sorted(timed))}")
    return float(np.mean(sorted(seconds)[: (len(seconds) + 1) // 2]))


def probes(shapes: Sequence[LayerShape], precision: Precision) -> tuple[bytes, dict[str, NDArray[np.float32]]]:
    """Write one graph in which every layer reads an input of its own, and inputs for it; node ``p<i>`` is layer i."""
    random = np.random.default_rng(0)
    nodes: list[Any] = []
    inputs, outputs, constants, feed = [], [], [], {}
    for number, shape in enumerate(shapes):
        name = f"p{number}"
        size = _input_size(shape)
        feed[f"{name}/x"] = random.standard_normal(size, np.float32)
        inputs.append(helper.make_tensor_value_info(f"{name}/x", TensorProto.FLOAT, size))
        outputs.append(helper.make_tensor_value_info(f"{name}/y", TensorProto.FLOAT, None))
        layer, weights = _layer(shape, name, random) if precision == "float32" else _integer(shape, name, random)
        nodes += layer
        constants += [numpy_helper.from_array(value, key) for key, value in weights.items()]
    graph = helper.make_graph(nodes, "probes", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR)
    return model.SerializeToString(), feed


def _input_size(shape: LayerShape) -> tuple[int, ...]:
    if shape.operator == "conv":
        return (shape.batch, shape.width_in, *shape.positions)
    return (shape.batch * int(np.prod(shape.positions or (1,))), shape.width_in)


def _layer(
    shape: LayerShape, name: str, random: np.random.Generator, suffix: tuple[str, str, str] = ("/x", "/y", "/w")
) -> tuple[list[Any], dict[str, NDArray[Any]]]:
    into, out, weight = (f"{name}{part}" for part in suffix)
    constants: dict[str, NDArray[Any]] = {f"{name}/b": np.zeros(shape.width_out, np.float32)}
    if shape.operator == "linear":
        constants[f"{name}/w"] = _normal(random, (shape.width_out, shape.width_in))
        return [helper.make_node("Gemm", [into, weight, f"{name}/b"], [out], name=name, transB=1)], constants
    parts = shape.width_out if shape.parts == 0 else shape.parts
    constants[f"{name}/w"] = _normal(random, (shape.width_out, shape.width_in // parts, *shape.kernel))
    attributes: dict[str, Any] = {
        "group": parts,
        "kernel_shape": shape.kernel,
        "strides": shape.stride,
        "pads": (*shape.padding, *shape.padding),
        "dilations": shape.dilation,
    }
    return [helper.make_node("Conv", [into, weight, f"{name}/b"], [out], name=name, **attributes)], constants


def _normal(random: np.random.Generator, size: tuple[int, ...]) -> NDArray[np.float32]:
    return random.standard_normal(size, np.float32) / np.float32(np.sqrt(np.prod(size[1:])))


def _integer(shape: LayerShape, name: str, random: np.random.Generator) -> tuple[list[Any], dict[str, NDArray[Any]]]:
    """Write a layer between pairs that the runtime fuses into an integer kernel: uint8 activations, int8 weights."""
    nodes, constants = _layer(shape, name, random, suffix=("/xf", "/out", "/wf"))
    weight = constants.pop(f"{name}/w")
    scales = np.abs(weight).reshape(len(weight), -1).max(axis=1) / 127
    scale = np.float32(0.05)
    constants |= {
        f"{name}/w": np.rint(weight / scales.reshape(-1, *[1] * (weight.ndim - 1))).astype(np.int8),
        f"{name}/ws": scales.astype(np.float32),
        f"{name}/wz": np.zeros(len(weight), np.int8),
        f"{name}/b": np.zeros(len(weight), np.int32),
        f"{name}/bs": (scales * scale).astype(np.float32),
        f"{name}/bz": np.zeros(len(weight), np.int32),
        f"{name}/s": np.asarray(scale),
        f"{name}/z": np.asarray(128, np.uint8),
    }
    pair = [f"{name}/s", f"{name}/z"]
    nodes[0].input[2] = f"{name}/bf"
    before = [
        helper.make_node("QuantizeLinear", [f"{name}/x", *pair], [f"{name}/xq"]),
        helper.make_node("DequantizeLinear", [f"{name}/xq", *pair], [f"{name}/xf"]),
        *(
            helper.make_node(
                "DequantizeLinear", [f"{name}/{k}", f"{name}/{k}s", f"{name}/{k}z"], [f"{name}/{k}f"], axis=0
            )
            for k in "wb"
        ),
    ]
    after = [
        helper.make_node("QuantizeLinear", [f"{name}/out", *pair], [f"{name}/q"]),
        helper.make_node("DequantizeLinear", [f"{name}/q", *pair], [f"{name}/y"]),
    ]
    return [*before, *nodes, *after], constants


def _parts(shapes: Sequence[LayerShape]) -> Iterator[list[LayerShape]]:
    """Split what is to be measured so that one session's inputs and weights stay within memory."""
    part: list[LayerShape] = []
    filled = 0
    for shape in shapes:
        size = 4 * (int(np.prod(_input_size(shape))) + shape.width_in * shape.width_out * int(np.prod(shape.kernel)))
        if part and filled + size > _BYTES:
            yield part
            part, filled = [], 0
        part.append(shape)
        filled += size
    if part:
        yield part


def _key(shape: LayerShape) -> str:
    return json.dumps(asdict(shape), sort_keys=True, separators=(",", ":"))


def _identity(target: Target, precision: Precision) -> str:
    """Hash what decides how long a kernel takes: machine, runtime, threads, kernels."""
    import onnxruntime

    parts = [fingerprint(), onnxruntime.__version__, target.provider, target.threads, precision]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _read(path: Path, tell: Tell) -> dict[str, float]:
    """Read what was measured; a file that cannot be read, or holds what no clock says, is as good as none."""
    try:
        return read_as(dict[str, AboveZero], read_json(path, finite=True))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        tell(f"{path} is damaged ({getattr(error, 'strerror', None) or error}): layers are timed again")
        with suppress(OSError):
            files.remove(path)
        return {}


def _write(path: Path, seconds: Mapping[str, float], tell: Tell) -> None:
    """Keep what was measured, where that is allowed; what another process adds at the same time is kept too."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({**_read(path, tell), **seconds}, indent=0)
        files.write_whole(path, text)
    except OSError as error:
        tell(f"{path} cannot be written ({error.strerror or error}): layers are timed again next time")
