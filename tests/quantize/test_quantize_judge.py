from __future__ import annotations

import math

import numpy as np
import pytest
from onnx import ModelProto, helper
from small_graphs import CLASSES, FEATURES, GEMM, floats, graph, linear, rows, weight

from distill.errors import UserError
from distill.intervals import paired_drop, wilson
from distill.outputs import Output
from distill.single_stage.calibration_rows import GraphRows
from distill.single_stage.judge import AnswerSettings, GraphJudge


def given_rows(labels: np.ndarray | None = None, count: int = 60) -> GraphRows:
    return GraphRows(
        source_name="rows", calibration=[], judged=[{"x": rows(count)}], labels=labels, batch=None, remarks=()
    )


def test_the_float_graph_itself_loses_nothing() -> None:
    loss = GraphJudge.of(graph(), given_rows())(graph())
    assert (loss.drop, loss.divergence, loss.fault) == (0.0, 0.0, None)
    assert loss.interval == wilson(0, 60)


def test_changed_answers_and_lost_accuracy_are_counted() -> None:
    other = graph(weights=linear() | {"w": -linear()["w"]})
    judge = GraphJudge.of(graph(), given_rows())
    after = np.argmax(rows() @ -linear()["w"] + linear()["b"], axis=1)
    answers = judge.comparison.output.answers(judge.comparison.before)
    changed = int((after != answers).sum())
    assert judge(other).interval == wilson(changed, 60)
    labelled = GraphJudge.of(graph(), given_rows(answers))
    assert labelled(other).interval == paired_drop(changed, 0, 60)
    assert labelled(other).drop == pytest.approx(changed / 60)


@pytest.mark.parametrize(("value", "says"), [(np.nan, "NaN or infinite for 60 of 60"), (0, "all zero")])
def test_answers_that_are_none_lose_without_end(value: float, says: str) -> None:
    broken = graph(weights={name: np.full_like(one, value) for name, one in linear().items()})
    loss = GraphJudge.of(graph(), given_rows())(broken)
    assert says in (loss.fault or "")
    assert loss.drop == loss.divergence == math.inf
    assert loss.interval is None


def test_labels_of_one_logit_are_zero_and_one() -> None:
    weights = {"w": linear()["w"][:, :1], "b": linear()["b"][:1]}
    one = graph([GEMM], outputs=[floats("logits", "batch", 1)], weights=weights)
    labels = np.arange(60) % 2
    judge = GraphJudge.of(one, given_rows(labels))
    assert judge(one).drop == 0
    assert judge.comparison.output.unit == "nats an answer"
    with pytest.raises(UserError, match="--output binary"):
        GraphJudge.of(one, given_rows())
    assert (
        GraphJudge.of(one, given_rows(), AnswerSettings("numbers")).comparison.output.unit
        == "share of the answers' energy"
    )


def test_what_makes_a_comparison_prove_little_is_remarked() -> None:
    constant = graph(weights=linear() | {"b": np.array([0, 100, 0], np.float32)})
    assert any("same answer (class 1)" in text for text in GraphJudge.of(constant, given_rows()).remarks)
    nodes = [GEMM, helper.make_node("Relu", ["logits"], ["other"])]
    two = graph(nodes, outputs=[floats("logits", "batch", 3), floats("other", "batch", 3)])
    assert any("--output NAME judges another: other" in text for text in GraphJudge.of(two, given_rows()).remarks)
    assert GraphJudge.of(graph(), given_rows()).remarks == ()


def sigmoid_graph(shift: float = 0.0) -> ModelProto:
    """One probability a row, of which about half are above 0.5; the same for every row where it is shifted."""
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["z"]), helper.make_node("Sigmoid", ["z"], ["logits"])]
    weights = {"w": linear()["w"][:, :1] * (0 if shift else 1), "b": np.array([shift], np.float32)}
    return graph(nodes, outputs=[floats("logits", "batch", 1)], weights=weights)


def test_a_probability_is_judged_at_a_half_and_a_constant_is_no_answer() -> None:
    judge = GraphJudge.of(sigmoid_graph(), given_rows())
    assert judge.comparison.output.kind == "binary"
    assert "above 0.5 is yes" in judge.note
    assert judge(sigmoid_graph()).drop == 0
    constant = judge(sigmoid_graph(shift=2.0))
    assert constant.drop == math.inf
    assert constant.fault == "its answers are equal for all 60 rows, whatever is in them"


def test_a_graph_that_says_one_thing_only_is_remarked() -> None:
    judge = GraphJudge.of(graph(), given_rows())
    stuck = graph(weights=linear() | {"b": np.array([0, 100, 0], np.float32)})
    assert judge.remarks_on("int8", graph()) == ()
    (text,) = judge.remarks_on("int8", stuck)
    assert "int8 gives all 60 judged rows the same answer (class 1), which the float32 model does not" in text


def test_scores_by_position_are_judged_along_the_classes() -> None:
    """The maximum over positions would not see a class that all positions lose alike."""
    x = [floats("x", "batch", 4, FEATURES)]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["logits"])]
    outputs, values = [floats("logits", "batch", 4, CLASSES)], weight(60, 4, FEATURES, seed=3)
    scales = np.array([0.1, 1, 1], np.float32)
    labels = (values @ linear()["w"]).argmax(2)
    rows = GraphRows(source_name="rows", calibration=[], judged=[{"x": values}], labels=labels, batch=None, remarks=())
    judge = GraphJudge.of(graph(nodes, x, outputs, {"w": linear()["w"]}), rows)
    assert judge.comparison.output == Output("classes", 2)
    changed = (values @ (linear()["w"] * scales)).argmax(2) != labels
    assert changed.mean() > 0.1
    assert judge(graph(nodes, x, outputs, {"w": linear()["w"] * scales})).drop == pytest.approx(changed.mean())


def test_a_metric_of_the_users_judges_whatever_it_is() -> None:
    def least(values: np.ndarray, labels: np.ndarray | None) -> float:
        assert labels is not None
        assert labels.shape == (len(values), 2, 2)
        return float(values.min())

    judge = GraphJudge.of(graph(), given_rows(np.zeros((60, 2, 2))), AnswerSettings(metric=least))
    assert judge.note == "output logits is judged by least"
    lower = graph(weights=linear() | {"b": linear()["b"] - 1})
    assert judge(lower).drop == pytest.approx(1, abs=1e-5)


def test_a_float_model_that_is_no_better_than_the_most_frequent_class_is_remarked() -> None:
    answers = GraphJudge.of(graph(), given_rows()).comparison.before.argmax(1)
    (remark,) = GraphJudge.of(graph(), given_rows((answers + 1) % 3)).remarks
    assert "the float32 model is right in 0.0 % of the answers that judge" in remark
    assert GraphJudge.of(graph(), given_rows(answers)).remarks == ()
