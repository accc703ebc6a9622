from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from onnx import ModelProto
from quantize_zoo import normal, target

from distill.errors import UserError
from distill.export import run_onnx
from distill.intervals import Estimate
from distill.quantize import QuantizeSettings
from distill.quantize.choose_precision import FLOAT, Candidate, choose, decide
from distill.quantize.repair_loop import Loss
from distill.quantize.sensitivity import divergence


def candidate(
    name: str, drop: float, ratio: float | tuple[float, ...] | None, *, width: float = 0.02, size: int = 100
) -> Candidate:
    """Make one that was timed at as many batch sizes as it has ratios."""
    ratios = () if ratio is None else ratio if isinstance(ratio, tuple) else (ratio,)
    bounds = tuple(Estimate(each, each - width, each + width) for each in ratios)
    return Candidate(name, ModelProto(), None, Loss(drop, drop), drop <= 0.01, size, bounds)


PLAIN = candidate(FLOAT, 0.0, 1.0, size=400)


@pytest.mark.parametrize(
    ("others", "wins", "says"),
    [
        ([candidate("int8", 0.0, 0.4)], "int8", "2.50× as fast"),
        ([candidate("int8", 0.0, 0.4), candidate("int4", 0.0, 0.3)], "int4", "3.33× as fast"),
        ([candidate("int8", 0.0, 0.4), candidate("int4", 0.05, 0.3)], "int8", "2.50× as fast"),
        (
            [candidate("int8", 0.0, 0.99)],
            FLOAT,
            "is faster: int8 is 1.01× [0.99, 1.03] as fast",
        ),
        ([candidate("int8", 0.0, 1.7)], FLOAT, "0.59× ["),
        ([candidate("int8", 0.0, 0.9, width=0.5)], FLOAT, "whether int8 is faster could not be resolved"),
        ([candidate("int8", 0.0, 1.2, width=0.5)], FLOAT, "more --pairs or --seconds, or a quieter machine, may tell"),
        ([candidate("int8", 0.02, None), candidate("int4", 0.05, None)], FLOAT, "int8 comes closest and loses 2.00"),
        ([candidate("int8", 0.0, 0.40), candidate("int4", 0.0, 0.41, size=50)], "int4", "smaller than 1 that cannot"),
        (
            [candidate("int8", 0.0, 0.41), candidate("late", 0.0, 0.40, size=101)],
            "late",
            "2.50× as fast as float32",
        ),
        ([candidate("int8", 0.0, None), candidate("int4", 0.0, None, size=50)], "int4", "nothing was timed"),
        ([candidate("int8", 0.0, 0.5), candidate("int4", 0.0, None)], "int8", "2.00× as fast"),
    ],
)
def test_the_fastest_that_keeps_the_budget_wins(others: list[Candidate], wins: str, says: str) -> None:
    chosen, why = decide([PLAIN, *others], 0.01)
    assert chosen.name == wins
    assert says in why


@pytest.mark.parametrize(
    ("others", "wins", "says"),
    [
        # Faster in the mean, but the first one is what others have at the second size.
        ([candidate("int8", 0.0, (0.8, 0.6)), candidate("late", 0.0, (0.4, 0.7))], "int8", "1.44×"),
        ([candidate("int8", 0.0, (0.8, 0.6)), candidate("late", 0.0, (0.4, 0.61))], "late", "2.02×"),
        ([candidate("int8", 0.0, (0.8, 0.6)), candidate("late", 0.0, (0.4, 0.5))], "late", "2.24×"),
        # Slower than float32 at one size is slower, whatever it gains at the other.
        ([candidate("int8", 0.0, (1.2, 0.3))], FLOAT, "nothing that keeps the budget is faster at each batch size"),
        ([candidate("int8", 0.0, (1.2, 0.3)), candidate("late", 0.0, (0.9, 0.8))], "late", "1.18×"),
        # What is left need be no faster than one that cannot be chosen.
        ([candidate("int8", 0.02, (0.4, 0.4)), candidate("late", 0.0, (0.9, 0.8))], "late", "1.18×"),
        # As fast within the noise at one size, surely faster in the mean.
        ([candidate("int8", 0.0, (1.01, 0.5))], "int8", "1.41×"),
    ],
)
def test_one_file_serves_every_batch_size(others: list[Candidate], wins: str, says: str) -> None:
    chosen, why = decide([PLAIN, *others], 0.01)
    assert chosen.name == wins
    assert says in why


@pytest.fixture(autouse=True)
def no_profiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no kernel's time on this machine decide what is tried."""
    monkeypatch.setattr("distill.quantize.repair_loop.saved_seconds", lambda *_, **__: None)


def chosen_of(core: ModelProto, rows: Any, ratios: Sequence[float], **asked: Any) -> Any:
    reference = run_onnx(core, rows)

    def judge(model: ModelProto) -> Loss:
        answers = run_onnx(model, rows)
        return Loss(float((answers.argmax(-1) != reference.argmax(-1)).mean()), divergence(reference, answers))

    def measure(models: Sequence[ModelProto]) -> list[list[Estimate]]:
        return [[Estimate(value, value * 0.98, value * 1.02)] for value in ratios[: len(models)]]

    words = {"target": target("x86"), "calibration": rows, "rows": rows, "judge": judge, "measure": measure}
    return choose(core, QuantizeSettings(), **{**words, "max_drop": 0.1, **asked})


def test_a_network_of_products_is_tried_in_static_and_dynamic_int8(mlp: ModelProto) -> None:
    rows = [{"x": normal(200, 20)}]
    found = chosen_of(mlp, rows, (1.0, 0.5, 0.6, 0.8))
    assert [one.name for one in found.candidates] == [FLOAT, "int8", "int8, per layer", "dynamic int8"]
    assert found.chosen.name == "int8"
    assert found.chosen.loss.drop <= 0.1
    assert run_onnx(found.chosen.model, rows).shape == (200, 3)
    assert found.candidates[0].loss == Loss(0.0, 0.0)


def test_one_scale_a_layer_is_taken_where_it_is_faster_and_only_of_products(
    mlp: ModelProto, separable: ModelProto
) -> None:
    found = chosen_of(mlp, [{"x": normal(200, 20)}], (1.0, 0.6, 0.5, 0.8))
    assert found.chosen.name == "int8, per layer"
    assert found.chosen.record.per_channel is False
    rows = [{"x": normal(8, 3, 16, 16)}]
    found = chosen_of(separable, rows, (1.0, 0.6, 0.5), max_drop=1.0)
    assert [one.name for one in found.candidates] == [FLOAT, "int8", "dynamic int8"]


def test_a_network_that_int8_slows_down_ships_in_float_and_says_so(mlp: ModelProto) -> None:
    found = chosen_of(mlp, [{"x": normal(200, 20)}], (1.0, 1.3, 1.4, 2.0))
    assert found.chosen.name == FLOAT
    assert "int8 is 0.77× [" in found.why


def test_only_one_precision_where_one_is_asked_for(mlp: ModelProto) -> None:
    found = chosen_of(mlp, [{"x": normal(200, 20)}], (1.0, 0.9), precision="int4")
    assert [one.name for one in found.candidates] == [FLOAT, "int4 weights"]


def test_what_cannot_be_made_is_refused_with_every_reason(separable: ModelProto) -> None:
    rows = [{"x": normal(8, 3, 16, 16)}]
    found = chosen_of(separable, rows, (1.0, 0.5, 0.6))
    assert found.chosen.name.startswith("int8")
    half = chosen_of(separable, rows, (1.0, 0.5), target=target("cuda"))
    assert [one.name for one in half.candidates] == [FLOAT, "fp16"]
    with pytest.raises(UserError, match=r"int8: .*quantised already"):
        chosen_of(found.chosen.model, rows, (1.0,), precision="int8")
