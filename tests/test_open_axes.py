"""Texts of several lengths: the exported file takes any length, as the samples do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from tiny_run import TRAIN, Finished, check_vectors, run_quietly
from torch import nn

from distill.errors import UserError
from distill.export import export_onnx, run_onnx
from distill.export.graph import input_shape
from distill.tasks.dynamic_axes import seen_axes, stated_axes

TEXTS = '''
import torch
from torch import nn


class Texts(torch.utils.data.Dataset):
    """Four to nine tokens a text, of which the first says the class."""

    def __init__(self, count, seed):
        draw = torch.Generator().manual_seed(seed)
        self.y = torch.randint(3, (count,), generator=draw)
        lengths = torch.randint(3, 9, (count,), generator=draw).tolist()
        words = [torch.randint(5, 40, (length,), generator=draw) for length in lengths]
        self.texts = [torch.cat([1 + y[None], rest]) for y, rest in zip(self.y, words)]

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        return self.texts[i], self.y[i]


def collate(items):
    ids = nn.utils.rnn.pad_sequence([text for text, _ in items], batch_first=True)
    return ids, (ids > 0).long(), torch.stack([y for _, y in items])


def make_data():
    return {"train": Texts(96, 1), "validation": Texts(48, 2), "test": Texts(48, 3), "collate": collate}


class Reader(nn.Module):
    def __init__(self, width, longest=16):
        super().__init__()
        self.words = nn.Embedding(40, width)
        self.places = nn.Parameter(0.02 * torch.randn(1, longest, width))
        self.layer = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.0, batch_first=True)
        self.head = nn.Linear(width, 3)

    def forward(self, ids, mask):
        x = self.words(ids) + self.places[:, : ids.shape[1]]
        x = self.layer(x, src_key_padding_mask=mask == 0)
        weights = mask[:, :, None].float()
        return self.head((x * weights).sum(1) / weights.sum(1))


def make_teacher(width=16):
    return Reader(width)
'''


@pytest.fixture(scope="module")
def texts_run(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    place = tmp_path_factory.mktemp("texts") / "texts.py"
    place.write_text(TEXTS, encoding="utf-8")
    config = {
        "task": "texts",
        "data": f"{place}:make_data",
        "teacher": {"model": f"{place}:make_teacher", **TRAIN, "epochs": 1},
        "student": "teacher",
        "distill": "off",
        "prune": "off",
        "benchmark": "off",
        "device": "cpu",
        "max_drop": 0.9,
    }
    return run_quietly(config, place.parent / "run")


def test_the_shipped_file_takes_another_length(texts_run: Finished) -> None:
    path = texts_run.folder / "deploy/model.onnx"
    graph = onnx.load(path).graph
    assert [input_shape(graph, name) for name in ("ids", "mask")] == [["batch", "sequence"]] * 2
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    ids = np.random.default_rng(0).integers(1, 40, (3, 16))
    whole = session.run(None, {"ids": ids, "mask": np.ones_like(ids)})[0]
    assert whole.shape == (3, 3)
    assert np.isfinite(whole).all()
    padded = np.pad(ids[:, :4], ((0, 0), (0, 7)))
    short, long = ({"ids": x, "mask": (x > 0).astype(np.int64)} for x in (ids[:, :4], padded))
    np.testing.assert_allclose(session.run(None, short)[0], session.run(None, long)[0], atol=0.1)
    check_vectors(texts_run.folder / "deploy")


def test_axes_that_change_together_share_a_name() -> None:
    calls = [
        ((torch.zeros(1, n), torch.zeros(1, n, n)), {"mask": torch.zeros(1, n), "image": torch.zeros(1, 3, 2 * n, 5)})
        for n in (4, 7)
    ]
    assert seen_axes(calls) == ({1: "sequence"}, {1: "sequence", 2: "sequence"}, {1: "sequence"}, {2: "height"})
    assert seen_axes(calls[:1] * 3) == ()


@pytest.mark.parametrize("value", [{1: "sequence"}, [{0: "batch"}], [{2: "sequence"}], [{1: 128}], [{}, {}]])
def test_axes_that_an_input_has_not_are_refused(value: object) -> None:
    with pytest.raises(UserError, match=r"open_axes=.*expected one mapping an input \(1\)"):
        stated_axes(value, "mine.py:make_data", ((torch.zeros(2, 5),), {}))


def test_the_user_can_say_that_padded_texts_have_any_length(tmp_path: Path) -> None:
    assert stated_axes([{1: "words"}], "mine.py:make_data", ((torch.zeros(2, 5),), {})) == ({1: "words"},)


class Words(nn.Module):
    """Adds a table of positions to words, as far as the text goes or, `fixed`, always five of them."""

    def __init__(self, fixed: bool = False) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(20, 8), nn.Parameter(torch.randn(1, 9, 8))
        self.head, self.fixed = nn.Linear(8, 2), fixed

    def forward(self, ids):
        return self.head((self.words(ids) + self.places[:, : 5 if self.fixed else ids.shape[1]]).mean(1))


def test_an_open_axis_goes_as_far_as_the_table_of_positions() -> None:
    model, ids = Words().eval(), torch.randint(0, 20, (2, 5))
    core = export_onnx(model, args=(ids,), input_names=["ids"], open_axes={"ids": {1: "sequence"}})
    assert input_shape(core.graph, "ids") == ["batch", "sequence"]
    for length in (1, 9):
        text = torch.randint(0, 20, (3, length))
        answer = run_onnx(core, [{"ids": text.numpy()}])
        np.testing.assert_allclose(answer, model(text).detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("fixed", "length", "axes", "message"),
    [
        (True, 5, {"ids": {1: "sequence"}}, "forward fixes the length of axis 1"),
        (False, 1, {"ids": {1: "sequence"}}, "has the length 1 in the example; it must be 2 or more"),
        (False, 5, {"ids": {2: "sequence"}}, r"the example input has the shape \[2, 5\]"),
        (False, 5, {"mask": {1: "sequence"}}, r"open_axes=.'mask'.*the inputs are \['ids'\]"),
        (False, 5, {"ids": {1: "batch"}}, "'batch' is the name of axis 0"),
    ],
)
def test_an_axis_that_cannot_be_open_is_refused(fixed: bool, length: int, axes: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        export_onnx(
            Words(fixed).eval(),
            args=(torch.zeros(2, length, dtype=torch.int64),),
            input_names=["ids"],
            open_axes=axes,
        )
