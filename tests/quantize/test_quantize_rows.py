from __future__ import annotations

import numpy as np
import pytest
from small_graphs import FEATURES, floats, graph, rows

from distill.errors import UserError
from distill.single_stage.calibration_rows import GraphRows, inputs_of, part_rows
from distill.tasks.rows import label_name


def parted(count: int, *, batch: int | str = "batch", seed: int = 0, samples: int = 512) -> GraphRows:
    """Part rows whose first value, and label, is their number."""
    x = rows(count)
    x[:, 0] = np.arange(count)
    inputs = inputs_of(graph(inputs=[floats("x", batch, FEATURES)]))
    arrays = {"x": x, "labels": np.arange(count)}
    return part_rows(arrays, inputs, source_name="rows", labels=None, samples=samples, seed=seed)


def numbers(feeds: list[dict[str, np.ndarray]]) -> list[int]:
    return [int(value) for feed in feeds for value in feed["x"][:, 0]]


def test_from_200_rows_on_those_that_judge_are_not_calibrated_on() -> None:
    found = parted(200)
    first, rest = numbers(found.calibration), numbers(found.judged)
    assert sorted(first + rest) == list(range(200))
    assert found.count == len(rest) == 100
    assert found.remarks == ()
    few = parted(199)
    assert sorted(numbers(few.calibration)) == sorted(numbers(few.judged)) == list(range(199))
    assert any("also judge" in text for text in few.remarks)


def test_states_are_parted_along_the_batch_and_scalars_are_the_same_for_all() -> None:
    taken = [floats("state", 2, "batch", 3), floats("rate"), floats("x", "batch", FEATURES)]
    number = np.arange(300, dtype=np.float32)
    x, state = np.tile(number[:, None], FEATURES), np.tile(number[None, :, None], (2, 1, 3))
    arrays = {"state": state, "rate": np.float32(16000), "x": x, "labels": np.arange(300)}
    parts = part_rows(
        {name: np.asarray(values) for name, values in arrays.items()},
        inputs_of(graph(inputs=taken)),
        source_name="rows",
        labels=None,
        samples=100,
        seed=0,
    )
    assert (parts.count, parts.batch) == (200, None)
    assert parts.labels is not None
    assert parts.labels.tolist() == numbers(parts.judged)
    for feed in [*parts.calibration, *parts.judged]:
        assert np.array_equal(feed["state"][1, :, 2], feed["x"][:, 0])
        assert feed["rate"] == 16000
    fixed = inputs_of(graph(inputs=[floats("state", 2, 1, 3), floats("rate", 1), floats("x", 1, FEATURES)]))
    arrays = {"state": state[:, :1], "rate": np.ones(1, np.float32), "x": x}
    parts = part_rows(arrays, fixed, source_name="rows", labels=None, samples=100, seed=0)
    assert (parts.count, parts.batch) == (200, 1)
    assert {tuple(feed["state"].shape) for feed in parts.judged} == {(2, 1, 3)}


def test_labels_go_with_their_rows() -> None:
    found = parted(300, batch=8)
    assert found.labels is not None
    assert found.labels.tolist() == numbers(found.judged)


@pytest.mark.parametrize(("count", "batch"), [(300, 8), (300, 180), (65, 64)])
def test_batches_of_a_fixed_size_are_whole(count: int, batch: int) -> None:
    found = parted(count, batch=batch)
    assert found.batch == batch
    assert found.calibration
    assert {len(feed["x"]) for feed in [*found.calibration, *found.judged]} == {batch}


def test_rows_that_are_not_needed_for_ranges_judge() -> None:
    found = parted(400, samples=50)
    assert (len(numbers(found.calibration)), found.count) == (50, 350)


def test_equal_seeds_part_alike() -> None:
    assert numbers(parted(300).judged) == numbers(parted(300).judged) != numbers(parted(300, seed=1).judged)


@pytest.mark.parametrize(
    ("arrays", "said", "inputs", "name"),
    [
        (("x", "labels"), None, ("x",), "labels"),
        (("x", "y"), None, ("x",), "y"),
        (("x", "y"), None, ("x", "y"), None),
        (("x", "y", "truth"), "truth", ("x", "y"), "truth"),
        (("x",), None, ("x",), None),
    ],
)
def test_labels_are_found_by_a_usual_name_that_is_no_input(
    arrays: tuple[str, ...], said: str | None, inputs: tuple[str, ...], name: str | None
) -> None:
    assert label_name(arrays, said, inputs) == name


def test_labels_that_are_not_there_are_an_error() -> None:
    with pytest.raises(UserError, match="--labels truth: is not in the data, which have x"):
        label_name(("x",), "truth", ("x",))
