"""Networks that plain int8 breaks, and what mends them: real weights, rescaled so that no answer changes.

    python -m distill.versus.repairs CASES results.jsonl --epochs 4

A rectifier passes a positive factor on, so a channel may be a thousand times louder if the next layer listens a
thousand times less. The float32 network stays what it was; a shared scale of that layer does not.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper

from distill.benchmarks import resolve_target
from distill.distillation.imitation import Imitation
from distill.errors import UserError
from distill.export.graph import attribute, consumers, initializers
from distill.export.parity_check import run_onnx
from distill.quantize.prepare import prepare
from distill.quantize.quantization_aware import train_aware
from distill.quantize.repair_loop import Loss, repair
from distill.quantize.sensitivity import divergence
from distill.quantize.settings import QuantizeSettings
from distill.quantize.static import calibrate_graph, write
from distill.versus.gate import append

from .quantize import read_part

Floats = NDArray[np.floating[Any]]
Factors = Callable[[int], Floats]
_BUDGET = 0.005


def one_loud(channels: int) -> Floats:
    """Return factors of which one is a thousand."""
    factors = np.ones(channels, np.float32)
    factors[channels // 2] = 1000
    return factors


def uneven(decades: float) -> Factors:
    """Return what draws factors over so many decades, with a fixed seed."""

    def factors(channels: int) -> Floats:
        return np.asarray(10 ** np.random.default_rng(0).uniform(-decades / 2, decades / 2, channels), np.float32)

    return factors


def rescaled(core: ModelProto, factors: Factors, *, depthwise: bool, layers: int) -> ModelProto:
    """Make channels between two convolutions louder by factors, the second quieter; answers stay as they were.

    Args:
        core: a float32 graph of convolutions and rectifiers.
        factors: one for each channel, given how many there are.
        depthwise: whether the first of the two has to be a depthwise convolution, or a dense one.
        layers: so many pairs, from the input on.

    Raises:
        UserError: there are not so many pairs.
    """
    model = prepare(core, fold_norms=True)
    constants, done = initializers(model.graph), 0
    for first, second in _pairs(model, depthwise):
        if done == layers:
            break
        drawn = factors(constants[first.input[1]].dims[0])
        _multiply(constants[first.input[1]], drawn, axis=0)
        if len(first.input) > 2:
            _multiply(constants[first.input[2]], drawn, axis=0)
        _multiply(constants[second.input[1]], 1 / drawn, axis=0 if _is_depthwise(second) else 1)
        done += 1
    if done < layers:
        raise UserError(f"only {done} pairs of convolutions around a rectifier, {layers} were asked for")
    return model


def _pairs(model: ModelProto, depthwise: bool) -> Iterator[tuple[NodeProto, NodeProto]]:
    """List convolutions that only a rectifier, and only one other convolution, reads."""
    readers = consumers(model.graph)
    for node in model.graph.node:
        if node.op_type != "Conv" or _is_depthwise(node) != depthwise:
            continue
        after = readers.get(node.output[0], [])
        if len(after) != 1 or after[0].op_type != "Relu":
            continue
        then = readers.get(after[0].output[0], [])
        if len(then) == 1 and then[0].op_type == "Conv" and (depthwise or not _is_depthwise(then[0])):
            yield node, then[0]


def _is_depthwise(node: NodeProto) -> bool:
    return attribute(node, "group", 1) != 1


def _multiply(tensor: Any, factors: Floats, axis: int) -> None:
    value = numpy_helper.to_array(tensor)
    shape = [-1 if number == axis else 1 for number in range(value.ndim)]
    tensor.CopyFrom(numpy_helper.from_array(value * factors.reshape(shape).astype(np.float32), tensor.name))


def mended(folder: Path, core: ModelProto, settings: QuantizeSettings) -> dict[str, Any]:
    """Repair on the validation rows within half a point, and judge the first attempt and the last on the test rows."""
    calibration, _ = read_part(folder, "calibration")
    rows, labels = read_part(folder, "validation")
    assert labels is not None
    reference = run_onnx(core, rows)

    def judge(model: ModelProto) -> Loss:
        answers = run_onnx(model, rows)
        drop = (reference.argmax(1) == labels).mean() - (answers.argmax(1) == labels).mean()
        return Loss(float(drop), divergence(reference, answers))

    target = resolve_target(None, threads=1)
    done = repair(
        core, settings, target=target, calibration=calibration, rows=rows[:8], judge=judge, max_drop=_BUDGET
    )  # fmt: skip
    return {
        "float": accuracy(folder, core),
        "plain": accuracy(folder, done.attempts[0].model),
        "mended": accuracy(folder, done.attempts[-1].model),
        "repair": done.attempts[-1].name,
        "tried": [(one.name, one.loss.drop) for one in done.attempts],
        "integer": [done.attempts[-1].record.nodes_quantized, done.attempts[-1].record.nodes_float],
    }


def trained(folder: Path, core: ModelProto, settings: QuantizeSettings, epochs: int) -> dict[str, Any]:
    """Train while rounding on 4,096 training rows, with the float network's answers as the target."""
    calibration, _ = read_part(folder, "calibration")
    training, _ = read_part(folder, "training")
    target = resolve_target(None, threads=1)
    graph = calibrate_graph(core, settings, target=target, calibration=calibration)
    plain, _ = write(graph, settings)
    learned = train_aware(graph, settings, target=target, batches=training, train=Imitation(epochs=epochs))
    after, record = write(learned, settings)
    return {
        "float": accuracy(folder, core),
        "plain": accuracy(folder, plain),
        "trained": accuracy(folder, after),
        "epochs": epochs,
        "rows": sum(len(next(iter(feed.values()))) for feed in training),
        "integer": [record.nodes_quantized, record.nodes_float],
    }


def accuracy(folder: Path, model: ModelProto) -> float:
    """Return the share of test rows that a graph gets right."""
    rows, labels = read_part(folder, "test")
    return float((run_onnx(model, rows).argmax(1) == labels).mean())


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m distill.versus.repairs", description=__doc__)
    parser.add_argument("cases", type=Path, help="with the cases resnet20 and depthwise, from finished runs")
    parser.add_argument("results", type=Path)
    parser.add_argument("--epochs", type=int, default=4)
    given = parser.parse_args()
    resnet, separable = given.cases / "resnet20", given.cases / "depthwise"
    loud = rescaled(onnx.load(str(resnet / "model.onnx")), one_loud, depthwise=False, layers=1)
    plain = onnx.load(str(separable / "model.onnx"))
    broken, hurt = (rescaled(plain, uneven(decades), depthwise=True, layers=3) for decades in (3.0, 2.0))
    per_layer = QuantizeSettings(per_channel=False)
    runs: tuple[tuple[str, Callable[[], dict[str, Any]]], ...] = (
        ("one channel of 1000 times the range", lambda: mended(resnet, loud, QuantizeSettings())),
        ("depthwise, weights per tensor", lambda: mended(separable, broken, per_layer)),
        ("depthwise, trained while rounding", lambda: trained(separable, hurt, per_layer, given.epochs)),
    )
    for name, made in runs:
        row = {"network": name} | made()
        append(given.results, row)
        print(row, flush=True)


if __name__ == "__main__":
    main()
