from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.errors import UserError
from distill.export import (
    CategoryColumn,
    ColumnsPreprocess,
    FeaturesPreprocess,
    ImagePreprocess,
    InputSpec,
    NumericColumn,
    run_onnx,
    to_bytes,
    write_metadata,
)

offsets = st.one_of(st.integers(0, 255).map(float), st.floats(-50, 300, width=32))
scales = st.floats(2**-10, 1, width=32)
numbers = st.floats(-100, 100, width=32)


def agree(preprocess, core, raw):
    """The nodes in the graph compute what apply() computes, seen through the core graph."""
    shipped = preprocess.prepend(core, input_name="x")
    assert [value.name for value in shipped.graph.input] == [spec.name for spec in preprocess.input_spec()]
    expected = run_onnx(core, [{"x": preprocess.apply(raw)}])
    np.testing.assert_allclose(run_onnx(shipped, [raw]), expected, rtol=1e-5, atol=1e-4)
    return shipped


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([1, 3, 4]), st.booleans(), st.data())
def test_images_agree_with_numpy(make_core, channels, shared, data):
    length = 1 if shared else channels
    preprocess = ImagePreprocess(
        4,
        3,
        channels,
        tuple(data.draw(st.lists(offsets, min_size=length, max_size=length))),
        tuple(data.draw(st.lists(scales, min_size=length, max_size=length))),
    )
    raw = {"image": np.random.default_rng(0).integers(0, 256, (5, 4, 3, channels), dtype=np.uint8)}
    values = preprocess.apply(raw)
    assert values.dtype == np.float32 and values.shape == (5, channels, 4, 3)
    offset, scale = (np.broadcast_to(np.float64(v), channels) for v in (preprocess.offset, preprocess.scale))
    oracle = (raw["image"].astype(np.float64) - offset) * scale
    np.testing.assert_allclose(values, oracle.transpose(0, 3, 1, 2), rtol=1e-5, atol=1e-4)
    agree(preprocess, make_core((channels, 4, 3)), raw)


def test_one_integer_offset_is_one_dequantise_and_one_channel_moves_no_data(make_core):
    shipped = ImagePreprocess(4, 3, 1, (73,), (0.01,)).prepend(make_core((1, 4, 3)), input_name="x")
    assert [node.op_type for node in shipped.graph.node[:2]] == ["Reshape", "DequantizeLinear"]
    shipped = ImagePreprocess(4, 3, 3, (73, 73, 73), (0.01,) * 3).prepend(make_core((3, 4, 3)), input_name="x")
    assert [node.op_type for node in shipped.graph.node[:2]] == ["Transpose", "DequantizeLinear"]


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(numbers, numbers, scales), min_size=1, max_size=6), st.data())
def test_features_agree_with_numpy(make_core, columns, data):
    fill, mean, scale = (tuple(values) for values in zip(*columns, strict=True))
    rows = data.draw(
        st.lists(
            st.lists(st.one_of(numbers, st.just(np.nan)), min_size=len(fill), max_size=len(fill)),
            min_size=1,
            max_size=4,
        )
    )
    raw = {"features": np.asarray(rows, np.float32)}
    preprocess = FeaturesPreprocess(fill, mean, scale)
    filled = np.where(np.isnan(raw["features"]), np.float64(fill), raw["features"])
    np.testing.assert_allclose(preprocess.apply(raw), (filled - mean) * np.float64(scale), rtol=1e-4, atol=1e-3)
    agree(preprocess, make_core((len(fill),)), raw)


def table() -> ColumnsPreprocess:
    return ColumnsPreprocess(
        (
            NumericColumn("a", 1.0, 2.0, 0.5),
            NumericColumn("weight", 0.0, -1.0, 3.0),
            CategoryColumn("color of it", ("red", "grün", "青")),
            NumericColumn("core/x", 7.0, 0.0, 1.0),
            CategoryColumn("never seen", ()),
        )
    )


def test_columns_agree_with_numpy_and_missing_has_its_own_slot(make_core):
    raw = {
        "a": np.asarray([[4], [np.nan], [0]], np.float32),
        "weight": np.asarray([[1], [2], [np.nan]], np.float32),
        "color of it": np.asarray([["青"], [""], ["plaid"]], object),
        "core/x": np.asarray([[1], [2], [np.nan]], np.float32),
        "never seen": np.asarray([["u"], [""], ["v"]], object),
    }
    preprocess = table()
    expected = [
        [1.0, 6.0, 0, 0, 1, 0, 1.0, 1],
        [-0.5, 9.0, 0, 0, 0, 1, 2.0, 1],
        [-1.0, 3.0, 0, 0, 0, 1, 7.0, 1],
    ]
    np.testing.assert_array_equal(preprocess.apply(raw), np.asarray(expected, np.float32))
    shipped = agree(preprocess, make_core((8,)), raw)
    assert [(entry.domain, entry.version) for entry in shipped.opset_import] == [("", 18), ("ai.onnx.ml", 2)]
    assert sum(node.op_type == "IsNaN" for node in shipped.graph.node) == 2  # neighbouring numbers share their nodes
    assert preprocess.input_spec()[2] == InputSpec("color of it", "str", ("batch", 1))


def test_the_core_is_not_changed_and_metadata_travel_along(make_core):
    core = write_metadata(make_core((8,)), {"teacher": "r20"}, labels=["x", "y", "z"])
    before = to_bytes(core)
    shipped = table().prepend(core, input_name="x")
    assert to_bytes(core) == before
    assert [entry.key for entry in shipped.metadata_props] == ["labels", "teacher"]
    assert to_bytes(table().prepend(core, input_name="x")) == to_bytes(shipped)


def test_names_that_meet_do_not_collide(make_core):
    core = make_core((1, 4, 3), name="image")
    raw = {"image": np.full((2, 4, 3, 1), 9, np.uint8)}
    preprocess = ImagePreprocess(4, 3, 1, (0,), (1.0,))
    shipped = preprocess.prepend(core, input_name="image")
    np.testing.assert_allclose(run_onnx(shipped, [raw]), run_onnx(core, [{"image": preprocess.apply(raw)}]), rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: ImagePreprocess(4, 4, 3, (1, 2), (1,)), r"offset=\(1, 2\): give 1 or 3"),
        (lambda: ImagePreprocess(4, 4, 3, (1,), (0,)), "every pixel equal"),
        (lambda: ImagePreprocess(0, 4, 3, (1,), (1,)), "at least 1"),
        (lambda: FeaturesPreprocess((1,), (1, 2), (1,)), "one a feature"),
        (lambda: FeaturesPreprocess((np.nan,), (1,), (1,)), "finite"),
        (lambda: ColumnsPreprocess(()), "at least one"),
        (lambda: ColumnsPreprocess((NumericColumn("a", 0, 0, 1), NumericColumn("a", 0, 0, 1))), "name of its own"),
        (lambda: ColumnsPreprocess((CategoryColumn("a", ("u", "u")),)), "each category once"),
        (lambda: ColumnsPreprocess((NumericColumn("a", 0, np.inf, 1),)), "finite"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, reason):
    with pytest.raises(UserError, match=reason):
        make()


def test_a_core_that_does_not_fit_is_refused(make_core):
    core = make_core((1, 4, 3))
    with pytest.raises(UserError, match="the model has \\['x'\\]"):
        ImagePreprocess(4, 3, 1, (0,), (1.0,)).prepend(core, input_name="y")
    with pytest.raises(UserError, match=r"makes \[N, 1, 4, 4\]"):
        ImagePreprocess(4, 4, 1, (0,), (1.0,)).prepend(core, input_name="x")
    with pytest.raises(UserError, match="'logits'"):
        ColumnsPreprocess((NumericColumn("logits", 0, 0, 1),)).prepend(make_core((1,)), input_name="x")
