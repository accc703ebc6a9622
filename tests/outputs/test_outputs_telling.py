"""What an output holds: told by values, labels and what the graph says, or asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from distill.errors import UserError
from distill.outputs import Evidence, Output, Tail, checked_labels, note, tell
from distill.types import Array

SIGMOID, LINEAR, LAST = Tail("Sigmoid", "sigmoid"), Tail("Gemm", "linear", 1), Tail("MatMul", "linear", 2)
SOFTMAX = Tail("Softmax", "softmax", 1)
SCALED = Tail("Sigmoid", "sigmoid", scaled=True)
MIXED = Tail("Concat of MatMul, Sigmoid", "mixed")
N = 12


def logits(*shape: int) -> Array:
    return np.random.default_rng(0).normal(size=(N, *shape)).astype(np.float32)


def chance(*shape: int) -> Array:
    return np.asarray(1 / (1 + np.exp(-logits(*shape))))


def shares(*shape: int, axis: int = 1) -> Array:
    grown = np.exp(logits(*shape))
    return np.asarray(grown / grown.sum(axis, keepdims=True))


def marks(*shape: int) -> Array:
    return (logits(*shape) > 0).astype(np.int64)


def told(values: Array, tail: Tail, labels: Array | None = None, **said: Any) -> Output:
    found = tell(Evidence("y", values, tail, labels), **said)
    if labels is not None:
        checked_labels(found, values, labels, "rows")
    return found


CLASS = np.arange(N) % 3
PLACES = np.arange(N * 4).reshape(N, 4) % 3


@pytest.mark.parametrize(
    ("values", "tail", "labels", "expected"),
    [
        (chance(1), SIGMOID, None, Output("binary", probabilities=True)),
        (chance(), SIGMOID, None, Output("binary", probabilities=True)),
        (chance(1), SIGMOID, CLASS % 2, Output("binary", probabilities=True)),
        (chance(1), SIGMOID, (CLASS % 2)[:, None].astype(np.float32), Output("binary", probabilities=True)),
        (chance(2), SIGMOID, None, Output("labels", probabilities=True)),
        (chance(2), SIGMOID, CLASS % 2, Output("classes", probabilities=True)),
        (chance(5), SIGMOID, marks(5), Output("labels", probabilities=True)),
        (chance(5), SIGMOID, marks(5).astype(np.float32), Output("labels", probabilities=True)),
        (chance(3), SIGMOID, np.eye(3, dtype=int)[CLASS], Output("labels", probabilities=True)),
        (chance(1, 8, 8), SIGMOID, marks(8, 8), Output("labels", probabilities=True)),
        (chance(8, 1), SIGMOID, marks(8), Output("labels", probabilities=True)),
        (chance(1), SIGMOID, chance(1), Output("numbers")),
        (logits(1), LINEAR, CLASS % 2, Output("binary")),
        (logits(1), LINEAR, logits(1), Output("numbers")),
        (logits(1), LINEAR, logits(), Output("numbers")),
        (logits(5), LINEAR, None, Output("classes")),
        (logits(5), LINEAR, CLASS, Output("classes")),
        (logits(5), LINEAR, marks(5), Output("labels")),
        (logits(5), LINEAR, logits(5), Output("numbers")),
        (logits(5), Tail("LSTM", "other"), CLASS, Output("classes")),
        (shares(3), SOFTMAX, None, Output("classes", probabilities=True)),
        (shares(3), Tail("Div", "other"), None, Output("classes", probabilities=True)),
        (shares(3, 4), Tail("Reshape", "other"), None, Output("classes", probabilities=True)),
        (shares(4, 3, axis=2), Tail("Softmax", "softmax", 2), None, Output("classes", 2, True)),
        (shares(3).astype(np.float16), SOFTMAX, None, Output("classes", probabilities=True)),
        (shares(2)[:, 1], Tail("Softmax", "softmax"), None, Output("binary", probabilities=True)),
        (np.log(shares(3)), Tail("LogSoftmax", "log_softmax", 1), None, Output("classes")),
        (logits(4, 4), LAST, PLACES, Output("classes", 2)),
        (logits(4, 3), Tail("MatMul", "linear", 2), PLACES, Output("classes", 2)),
        (logits(4, 3), Tail("Reshape", "other"), PLACES, Output("classes", 2)),
        (logits(4, 4), Tail("MatMul", "linear", 1), PLACES, Output("classes", 1)),
        (logits(14), MIXED, logits(14), Output("numbers")),
    ],
)
def test_graph_values_and_labels_tell(values: Array, tail: Tail, labels: Array | None, expected: Output) -> None:
    assert told(values, tail, labels) == expected


@pytest.mark.parametrize(
    ("values", "tail", "labels", "says"),
    [
        (logits(1), LINEAR, None, "--output binary"),
        (logits(), Tail("Gemm", "linear"), None, "--output numbers"),
        (logits(4, 4), LAST, None, "lie along axis 2"),
        (logits(4, 4), Tail("Reshape", "other"), PLACES, r"fit along axes \[1, 2\]; say --axis N"),
        (logits(3, 8, 8), Tail("Conv", "linear", 1), None, "--output classes with --axis N"),
        (logits(6), Tail("Tanh", "other"), None, "behind Tanh: neither graph nor labels"),
        (logits(14), MIXED, None, "Concat of MatMul, Sigmoid"),
        (logits(14), MIXED, CLASS, "values of several kinds side by side"),
        (0.3 * chance(1), SCALED, None, "neither graph nor labels"),
        (0.3 * chance(1), SCALED, CLASS % 2, "where yes begins"),
        (chance(1), SIGMOID, CLASS, "from 0 to 2.*--output numbers"),
        (logits(1), LINEAR, CLASS * 7, "from 0 to 14.*--output numbers"),
        (logits(3), LINEAR, np.eye(3, dtype=int)[CLASS], "one-hot"),
        (logits(3), LINEAR, CLASS.astype(float), "astype"),
        (logits(3), LINEAR, CLASS + 1, "from 1 to 3"),
        (logits(4, 3), LAST, CLASS, r"labels have the shape \[rows\]"),
        (logits(4, 3), Tail("", "other"), CLASS, r"the labels are \[rows\]"),
        (1.5 * chance(1), SIGMOID, None, "these are no probabilities"),
    ],
)
def test_what_is_not_told_is_asked_for(values: Array, tail: Tail, labels: Array | None, says: str) -> None:
    with pytest.raises(UserError, match=says):
        told(values, tail, labels)


def test_rows_that_come_out_as_they_went_in_are_no_classes() -> None:
    with pytest.raises(UserError, match="--output numbers"):
        tell(Evidence("y", logits(5), LINEAR, None, {(5,)}))


@pytest.mark.parametrize(
    ("values", "said", "expected"),
    [
        (logits(1), {"kind": "binary"}, Output("binary")),
        (chance(1), {"kind": "binary"}, Output("binary", probabilities=True)),
        (logits(5), {"kind": "labels"}, Output("labels")),
        (logits(5), {"kind": "numbers"}, Output("numbers")),
        (logits(4, 5), {"kind": "classes", "axis": 1}, Output("classes", 1)),
        (logits(4, 5), {"axis": -1}, Output("classes", 2)),
        (logits(1, 5), {"kind": "classes"}, Output("classes", 2)),
        (shares(5), {"kind": "classes"}, Output("classes", probabilities=True)),
    ],
)
def test_what_is_said_is_taken(values: Array, said: dict[str, Any], expected: Output) -> None:
    assert told(values, Tail("Reshape", "other"), **said) == expected


@pytest.mark.parametrize(
    ("values", "said", "says"),
    [
        (logits(5), {"kind": "boxes"}, "--output boxes: must be one of classes, binary, labels, numbers"),
        (logits(5), {"axis": 0}, r"axes that can hold classes: 1 \(axis 0 is the rows\)"),
        (logits(5), {"axis": 2}, "--axis 2"),
        (logits(1, 5), {"axis": 1}, "axes that can hold classes: 2"),
        (logits(5), {"kind": "numbers", "axis": 1}, "leave it out beside --output numbers"),
        (logits(5), {"kind": "binary"}, "--output labels"),
        (logits(1), {"kind": "classes"}, "--output binary"),
        (logits(4, 5), {"kind": "classes"}, "--axis N"),
    ],
)
def test_what_is_said_and_cannot_be_is_refused(values: Array, said: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        told(values, Tail("Reshape", "other"), **said)


def test_what_only_the_shape_tells_is_said_with_the_words_to_object() -> None:
    evidence = Evidence("y", logits(5), LINEAR)
    text = note(evidence, Output("classes"), stated=False, measure="accuracy")
    assert text == "output y is judged as classes along axis 1, by accuracy; say --output numbers where it holds none"
    assert "say" not in note(evidence, Output("classes"), stated=True, measure="accuracy")
    labelled = Evidence("y", logits(5), LINEAR, CLASS)
    assert "say" not in note(labelled, Output("classes"), stated=False, measure="accuracy")
