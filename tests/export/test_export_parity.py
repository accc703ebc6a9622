from __future__ import annotations

import json
import sys

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from distill.errors import NotMeasuredError, UserError
from distill.export import loaded_with, loads_in, parity, read_labels, read_metadata, run_onnx, to_bytes, write_metadata

pairs = st.tuples(st.integers(1, 5), st.integers(2, 4)).flatmap(
    lambda shape: st.tuples(*[arrays(np.float32, shape, elements=st.floats(-100, 100, width=32))] * 2)
)


@given(pairs)
def test_parity_is_what_float64_says(pair):
    reference, other = pair
    result = parity(reference, other, atol=0.1, rtol=0.01)
    distance = np.abs(reference.astype(np.float64) - other)
    tolerance = 0.1 + 0.01 * np.abs(reference).max()
    assert result.max_abs == distance.max() and np.isclose(result.mean_abs, distance.mean())
    assert np.isclose(result.tolerance, tolerance)
    assert result.ok == (distance.max() <= result.tolerance)
    assert result.top1_agreement == np.mean(reference.argmax(1) == other.argmax(1))
    assert result.samples == len(reference)


def test_what_is_not_a_number_is_not_parity():
    reference = np.asarray([[1.0, 2.0], [3.0, 4.0]])
    result = parity(reference, np.asarray([[1.0, np.nan], [3.0, 4.0]]), atol=1, rtol=1)
    assert not result.ok and "1 of 4 logits are NaN" in result.warnings[0]
    assert "every logit is zero" in parity(reference, np.zeros((2, 2)), atol=1, rtol=0).warnings


def test_one_logit_agrees_by_its_sign_and_dense_logits_by_position():
    assert parity(np.asarray([[1.0], [-1.0]]), np.asarray([[0.5], [0.5]]), atol=1, rtol=1).top1_agreement == 0.5
    assert parity(np.asarray([1.0, -1.0]), np.asarray([0.5, 0.5]), atol=1, rtol=1).top1_agreement == 0.5
    dense = np.zeros((1, 2, 2, 2))
    other = dense.copy()
    other[0, 1, 0, 0] = 1
    assert parity(dense, other, atol=1, rtol=1).top1_agreement == 0.75


@pytest.mark.parametrize("shapes", [((2, 3), (2, 4)), ((0, 3), (0, 3))])
def test_what_cannot_be_compared_is_refused(shapes):
    with pytest.raises(UserError, match="logits of shape"):
        parity(np.zeros(shapes[0]), np.zeros(shapes[1]), atol=1, rtol=1)


def test_run_onnx_joins_batches_and_says_what_is_wrong(make_core, tmp_path):
    core = make_core((4,))
    path = tmp_path / "m.onnx"
    path.write_bytes(to_bytes(core))
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    np.testing.assert_array_equal(run_onnx(path, ({"x": x[i : i + 2]} for i in (0, 2, 4))), run_onnx(core, [{"x": x}]))
    with pytest.raises(UserError, match="refuses the inputs y: float32"):
        run_onnx(core, [{"y": x}])
    with pytest.raises(UserError, match="no batch"):
        run_onnx(core, [])
    with pytest.raises(UserError, match="cannot load"):
        run_onnx(tmp_path / "missing.onnx", [{"x": x}])
    with pytest.raises(NotMeasuredError, match="provider=NoSuchProvider"):
        run_onnx(core, [{"x": x}], provider="NoSuchProvider")


def test_metadata_are_read_as_written(make_core, tmp_path):
    core = make_core((4,))
    before = to_bytes(core)
    proto = write_metadata(core, {"z": "1", "a": "ü"}, labels=["cat", "猫"])
    assert to_bytes(core) == before
    path = tmp_path / "m.onnx"
    path.write_bytes(to_bytes(proto))
    assert read_metadata(path) == {"z": "1", "a": "ü", "labels": json.dumps(["cat", "猫"], ensure_ascii=False)}
    assert read_labels(path) == ["cat", "猫"] and read_labels(core) is None
    assert read_metadata(write_metadata(proto, {"z": "2"}))["z"] == "2"
    with pytest.raises(UserError, match="are text"):
        write_metadata(core, {"z": 1})
    path.write_bytes(b"not a model")
    with pytest.raises(UserError, match="not an ONNX model"):
        read_metadata(path)


def test_a_file_loads_here_and_in_another_interpreter(make_core, tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(to_bytes(make_core((4,))))
    assert loaded_with(path) == loaded_with() == loads_in(sys.executable, path) == onnxruntime.__version__
    with pytest.raises(NotMeasuredError, match="python="):
        loads_in(tmp_path / "no-python", path)
    path.write_bytes(b"not a model")
    with pytest.raises(UserError, match="does not load it"):
        loads_in(sys.executable, path)
