"""Rows as users hold them: byte orders, tensors with a history, sparse, masked, or without values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distill.benchmarks.parse import read_npz
from distill.errors import UserError
from distill.tasks.arrays import as_array
from distill.tasks.custom_data import as_data
from distill.tasks.rows import read_rows, tensor_of

ROWS = np.arange(12, dtype=np.float32).reshape(4, 3)
READ: dict[str, Any] = {
    "big-endian": ROWS.astype(">f4"),
    "Fortran": np.asfortranarray(ROWS),
    "reversed": ROWS[::-1][::-1],
    "read-only": np.frombuffer(ROWS.tobytes(), np.float32).reshape(4, 3),
    "masked nowhere": np.ma.masked_array(ROWS),
    "history": torch.tensor(ROWS, requires_grad=True) * 1,
    "transposed": torch.tensor(ROWS.T.copy()).T,
    "sparse": torch.tensor(ROWS).to_sparse(),
    "bfloat16": torch.tensor(ROWS).bfloat16(),
    "list": ROWS.tolist(),
}


@pytest.mark.parametrize("name", READ)
def test_numbers_are_read_from_whatever_holds_them(name: str) -> None:
    assert np.array_equal(np.asarray(as_array("rows", READ[name]), np.float32), ROWS)
    arrays = as_data((READ[name], np.arange(4)), "train", None, 0).fetch(torch.arange(4), None)
    assert np.array_equal(arrays[0].float().numpy(), ROWS)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (torch.zeros(4, 3, device="meta"), "on the device meta, which has no values"),
        (np.ma.masked_equal(ROWS, 5), "has masked values; write what stands for them with .filled"),
        ([[1, 2], [3]], "is no array of numbers"),
    ],
)
def test_rows_without_values_are_refused(values: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_rows({"x": values}, "x")
    with pytest.raises(UserError, match=words):
        as_data((values, np.arange(4)), "train", None, 0)


@pytest.mark.parametrize("type_name", [">f4", ">i8", ">i4", "<f4"])
def test_an_npz_of_another_byte_order_becomes_tensors(tmp_path: Path, type_name: str) -> None:
    path = tmp_path / "rows.npz"
    np.savez(path, x=ROWS.astype(type_name))
    assert read_npz(path)["x"].dtype.isnative
    assert np.array_equal(tensor_of("--data", "x", read_rows(path, "x")["x"]).numpy(), ROWS)


@pytest.mark.parametrize("values", [np.zeros(4, "f4,i4"), np.array(["a"] * 4), np.zeros(4, "M8[s]"), np.zeros(4, "V2")])
def test_rows_that_no_tensor_holds_are_refused(tmp_path: Path, values: Any) -> None:
    np.savez(tmp_path / "rows.npz", x=values)
    with pytest.raises(UserError, match="which no tensor can hold"):
        tensor_of("--data", "x", read_rows(tmp_path / "rows.npz", "x")["x"])
