from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from distill.benchmarks import make_inputs
from distill.benchmarks.onnx_file.inputs import inputs_and_assumptions
from distill.errors import UserError

Save = Callable[..., Path]


def tensor(name: str, kind: int, shape: list[Any] | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def identity(save: Save, *inputs: onnx.ValueInfoProto) -> Path:
    nodes = [helper.make_node("Identity", [item.name], [f"{item.name}_out"]) for item in inputs]
    outputs = [tensor(f"{item.name}_out", item.type.tensor_type.elem_type, None) for item in inputs]
    return save(nodes, list(inputs), outputs)


@pytest.fixture
def mixed(save: Save) -> Path:
    """One input of every kind that is common, as an exporter would write them."""
    return identity(
        save,
        tensor("image", TensorProto.UINT8, ["batch", 4, 4, 3]),
        tensor("features", TensorProto.FLOAT, ["batch", 5]),
        tensor("half", TensorProto.FLOAT16, [None, 2]),
        tensor("ids", TensorProto.INT64, ["batch", 8]),
        tensor("attention_mask", TensorProto.INT64, ["batch", 8]),
        tensor("flag", TensorProto.BOOL, ["batch"]),
        tensor("city", TensorProto.STRING, ["batch", 1]),
    )


def test_inputs_follow_the_signature_and_run(mixed: Path) -> None:
    feeds = make_inputs(mixed, 3)
    assert {name: (value.dtype.name, value.shape) for name, value in feeds.items()} == {
        "image": ("uint8", (3, 4, 4, 3)),
        "features": ("float32", (3, 5)),
        "half": ("float16", (3, 2)),
        "ids": ("int64", (3, 8)),
        "attention_mask": ("int64", (3, 8)),
        "flag": ("bool", (3,)),
        "city": ("object", (3, 1)),
    }
    assert feeds["attention_mask"].min() == 1
    assert feeds["image"].max() > 200
    outputs = onnxruntime.InferenceSession(str(mixed), providers=["CPUExecutionProvider"]).run(None, feeds)
    assert all(len(output) == 3 for output in outputs)


def test_equal_seeds_give_equal_inputs_whatever_else_the_file_takes(save: Save, mixed: Path) -> None:
    feeds, again, other = make_inputs(mixed, 2), make_inputs(mixed, 2), make_inputs(mixed, 2, seed=1)
    assert all(np.array_equal(feeds[name], again[name]) for name in feeds)
    assert not np.array_equal(feeds["features"], other["features"])
    alone = make_inputs(identity(save, tensor("features", TensorProto.FLOAT, ["n", 5])), 2)
    assert np.array_equal(alone["features"], feeds["features"])


def test_indices_stay_within_the_table_that_they_look_up(save: Save) -> None:
    table = numpy_helper.from_array(np.zeros((3, 2), np.float32), "table")
    nodes = [helper.make_node("Cast", ["ids"], ["wide"], to=TensorProto.INT64)]
    nodes.append(helper.make_node("Gather", ["table", "wide"], ["y"]))
    path = save(nodes, [tensor("ids", TensorProto.INT32, ["n", 50])], [tensor("y", TensorProto.FLOAT, None)], [table])
    ids = make_inputs(path, 4)["ids"]
    assert ids.dtype == np.int32
    assert set(ids.ravel().tolist()) == {0, 1, 2}


def test_strings_are_categories_that_the_graph_knows(save: Save) -> None:
    encode = helper.make_node(
        "LabelEncoder", ["city"], ["y"], domain="ai.onnx.ml", keys_strings=["Bern", "Rom"], values_int64s=[0, 1]
    )
    inputs, outputs = [tensor("city", TensorProto.STRING, ["n", 1])], [tensor("y", TensorProto.INT64, ["n", 1])]
    path = save([encode], inputs, outputs, domains=("", "ai.onnx.ml"))
    assert set(make_inputs(path, 40)["city"].ravel()) == {"Bern", "Rom"}


def test_initializers_listed_as_inputs_are_not_asked_for(save: Save) -> None:
    w = numpy_helper.from_array(np.ones(2, np.float32), "w")
    inputs = [tensor("x", TensorProto.FLOAT, ["n", 2]), tensor("w", TensorProto.FLOAT, [2])]
    path = save([helper.make_node("Add", ["x", "w"], ["y"])], inputs, [tensor("y", TensorProto.FLOAT, None)], [w])
    assert list(make_inputs(path, 1)) == ["x"]


def test_another_open_axis_needs_real_rows_which_settle_it_everywhere(save: Save) -> None:
    path = identity(
        save,
        tensor("ids", TensorProto.INT64, ["batch", "length"]),
        tensor("mask", TensorProto.INT64, ["batch", "length"]),
        tensor("table", TensorProto.FLOAT, [8, "length"]),
    )
    with pytest.raises(UserError, match=r"'ids'.*'length' \(axis 1\).*give example rows"):
        make_inputs(path, 2)
    feeds = make_inputs(path, 5, rows={"ids": np.arange(14).reshape(2, 7)})
    assert [feeds[name].shape for name in ("ids", "mask", "table")] == [(5, 7), (5, 7), (8, 7)]
    assert np.array_equal(feeds["ids"][4], feeds["ids"][0])


def test_the_batch_may_be_further_in(save: Save) -> None:
    path = identity(save, tensor("x", TensorProto.FLOAT, [3, "batch", 2]))
    assert make_inputs(path, 4)["x"].shape == (3, 4, 2)


def test_rows_are_cut_along_every_axis_of_the_batchs_name(save: Save) -> None:
    for called in ("batch", "s0"):
        path = identity(
            save, tensor("x", TensorProto.FLOAT, [called, 5]), tensor("state", TensorProto.FLOAT, [2, called, 3])
        )
        rows = {"x": np.ones((8, 5), np.float32), "state": np.arange(48, dtype=np.float32).reshape(2, 8, 3)}
        feeds, assumed = inputs_and_assumptions(path, 3, rows=rows)
        assert [value.shape for value in feeds.values()] == [(3, 5), (2, 3, 3)]
        assert np.array_equal(feeds["state"], rows["state"][:, :3])
        assert assumed == []
        assert [value.shape for value in make_inputs(path, 4).values()] == [(4, 5), (2, 4, 3)]
    path = identity(
        save, tensor("x", TensorProto.FLOAT, ["batch", 5]), tensor("state", TensorProto.FLOAT, [2, "batch", 3])
    )
    feeds, assumed = inputs_and_assumptions(path, 2, rows={**rows, "state": rows["state"][:, :1]})
    assert feeds["state"].shape == (2, 2, 3)
    assert "8 in x:0, 1 in state:1" in assumed[0]


@pytest.mark.parametrize("called", ["?", "", None, "unk", "unknown", "None", "-1", "dynamic"])
def test_axes_without_a_name_are_free(save: Save, called: str | None) -> None:
    path = identity(save, tensor("x", TensorProto.FLOAT, [called, 3, called, called]))
    rows = np.zeros((4, 3, 48, 192), np.float32)
    assert make_inputs(path, 1, rows={"x": rows})["x"].shape == (1, 3, 48, 192)
    assert make_inputs(path, 2, dims={"x:2": 6, "x:3": 7})["x"].shape == (2, 3, 6, 7)
    with pytest.raises(UserError, match="the size of axis 2 is open; say --dim x:2=SIZE"):
        make_inputs(path, 1)


@pytest.mark.parametrize("called", ["s1", "u0", "unk__12", "DynamicDimension.0", "x_dynamic_axes_1"])
def test_axes_that_an_exporter_numbered_are_of_one_size_unless_given_rows_are_not(save: Save, called: str) -> None:
    path = identity(
        save, tensor("x", TensorProto.FLOAT, ["n", called, called]), tensor("y", TensorProto.FLOAT, ["n", called])
    )
    feeds, assumed = inputs_and_assumptions(path, 1, rows={"x": np.zeros((1, 4, 4), np.float32)})
    assert (feeds["y"].shape, assumed) == ((1, 4), [])
    rows = {"x": np.zeros((1, 4, 6), np.float32), "y": np.zeros((1, 9), np.float32)}
    feeds, assumed = inputs_and_assumptions(path, 1, rows=rows)
    assert [value.shape for value in feeds.values()] == [(1, 4, 6), (1, 9)]
    assert f"called '{called}' are 4 in x:1, 6 in x:2, 9 in y:1" in assumed[0]


def test_axes_of_one_name_that_a_person_gave_are_of_one_size(save: Save) -> None:
    path = identity(save, *(tensor(name, TensorProto.FLOAT, ["n", "length"]) for name in ("x", "mask")))
    rows = {"x": np.zeros((1, 7), np.float32), "mask": np.zeros((1, 8), np.float32)}
    with pytest.raises(UserError, match="'mask': the given rows have 8 on axis 1, the file takes 7 as 'length' is in"):
        make_inputs(path, 1, rows=rows)


@pytest.mark.parametrize("shape", [[], [1]])
def test_a_number_that_selects_a_branch_is_one_of_the_graphs_own_and_is_told(save: Save, shape: list[int]) -> None:
    rate = numpy_helper.from_array(np.array(16000), "rate")
    then, other = (
        helper.make_graph([helper.make_node(op, ["x"], [op])], op, [], [tensor(op, TensorProto.FLOAT, None)])
        for op in ("Relu", "Tanh")
    )
    nodes = [
        helper.make_node("Cast", ["sr"], ["wide"], to=TensorProto.INT64),
        helper.make_node("Equal", ["wide", "rate"], ["fast"]),
        helper.make_node("If", ["fast"], ["y"], then_branch=then, else_branch=other),
    ]
    inputs = [tensor("x", TensorProto.FLOAT, ["n", 2]), tensor("sr", TensorProto.INT32, shape)]
    path = save(nodes, inputs, [tensor("y", TensorProto.FLOAT, None)], [rate])
    feeds, assumed = inputs_and_assumptions(path, 2)
    assert feeds["sr"].item() == 16000
    assert assumed == ["its input 'sr' was drawn as 16000; give yours with --inputs"]
    feeds, assumed = inputs_and_assumptions(path, 2, rows={"sr": np.full(shape, 8000, np.int32)})
    assert (feeds["sr"].shape, feeds["sr"].item(), assumed) == (tuple(shape), 8000, [])


def test_given_rows_are_cut_to_the_batch_and_strings_may_be_numpy_text(mixed: Path) -> None:
    rows = {"features": np.eye(5, dtype=np.float32), "city": np.array([["a"], ["b"]])}
    feeds = make_inputs(mixed, 2, rows=rows)
    assert np.array_equal(feeds["features"], np.eye(5, dtype=np.float32)[:2])
    assert feeds["city"].tolist() == [["a"], ["b"]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"nothing": np.zeros(1)}, "not in its signature; it takes image, features"),
        ({"features": np.zeros((1, 5))}, "'features': given rows are float64, the file takes float32"),
        ({"features": np.zeros((1, 6), np.float32)}, "have 6 on axis 1, the file takes 5"),
        ({"features": np.zeros(5, np.float32)}, r"shape \[5\], the file takes \[batch, 5\]"),
        ({"features": np.zeros((0, 5), np.float32)}, "give at least one"),
        ({"city": np.zeros((1, 1))}, "takes str"),
    ],
)
def test_given_rows_that_do_not_fit(mixed: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_inputs(mixed, 1, rows=given)


def test_a_fixed_batch_is_not_silently_replaced(conv: Callable[..., Path]) -> None:
    path = conv(batch=4)
    assert make_inputs(path, 4)["x"].shape == (4, 2, 6, 6)
    with pytest.raises(UserError, match=r"fixed at 4, 2 was asked for; export it with a dynamic batch"):
        make_inputs(path, 2)
    with pytest.raises(UserError, match="batch=0"):
        make_inputs(path, 0)


def test_types_that_cannot_be_made(save: Save) -> None:
    with pytest.raises(UserError, match=r"'x'.*BFLOAT16"):
        make_inputs(identity(save, tensor("x", TensorProto.BFLOAT16, ["n"])), 1)
    with pytest.raises(UserError, match="'x' has no shape"):
        make_inputs(identity(save, tensor("x", TensorProto.FLOAT, None)), 1)
