"""Wrong data: tables, folders of images, and what a user's own function returns."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from wrong.corpus import Prepare, Wrong

_MLP = {"model": "mlp", "args": {"hidden": [8]}}
_CNN = {"model": "resnet", "args": {"widths": [8], "blocks": [1]}}


def _rows(count: int = 60) -> list[str]:
    return [f"{n % 7}.5,{n % 5},{'yes' if n % 2 else 'no'}" for n in range(count)]


def _text(rows: list[str], header: str = "size,age,bought") -> str:
    return "\n".join([header, *rows]) + "\n"


def _csv(name: str, text: str | bytes | None, *says: str, **data: object) -> Wrong:
    return Wrong(
        name=f"csv-{name}",
        settings={"teacher": _MLP, "data": {"source": "csv", "path": "rows.csv", "target": "bought", **data}},
        files={} if text is None else {"rows.csv": text},
        says=says,
    )


def _with(row: int, text: str) -> str:
    rows = _rows()
    rows[row] = text
    return _text(rows)


TABLES = [
    _csv("missing", None, "data.path", "rows.csv", "no such file"),
    _csv("missing-in-a-home", None, "data.path", "no such file", path="~nobody-of-this-name/rows.csv"),
    _csv("empty", "", "rows.csv", "empty", "header"),
    _csv("header-only", _text([]), "rows.csv", "no rows"),
    _csv("not-utf-8", "größe,bought\n".encode("latin-1"), "rows.csv", "UTF-8"),
    _csv("one-column", "bought\nyes\nno\n", "rows.csv line 1", "one column"),
    _csv("target-absent", _text(_rows()), "data.target='baught'", "did you mean 'bought'", target="baught"),
    _csv("target-not-named", _text(_rows()), "data.target", "is missing", target=None),
    _csv("target-has-gaps", _with(3, "1,2,"), "rows.csv line 5", "'bought'", "fill it in or remove"),
    _csv("ragged", _with(3, "1,2,3,yes"), "rows.csv line 5", "4 values", "3 columns"),
    _csv("one-class", _text(["1,2,yes", "2,3,yes"] * 30), "data.target='bought'", "'yes'", "two classes"),
    _csv("rare-class", _with(0, "1,2,perhaps"), "'perhaps'", "1 row", "add rows or remove"),
    _csv("a-quantity-for-target", _text([f"{n % 5},1,{n}.5" for n in range(60)]), "data.target", "quantities"),
    _csv("column-all-missing", _text([f",{n % 3},{n % 2}" for n in range(60)]), "'size'", "data.drop: [size]"),
    _csv("column-of-nan", _text([f"NAN,{n % 3},{n % 2}" for n in range(60)]), "'size'", "data.drop: [size]"),
    _csv("word-among-numbers", _with(3, "big,2,yes"), "'size'", "'big'", "rows.csv line 5", "data.missing"),
    _csv("thousands", _text([f'"{n},000",1,{n % 2}' for n in range(1, 61)]), "'1,000'", "two ways", "data.decimal"),
    _csv("per-cent", _text([f"{n} %,1,{n % 2}" for n in range(60)]), "'0 %'", "the sign %", "plain numbers"),
    _csv("quote-open", _text(_rows()) + '"1,2,yes\n', "rows.csv line 62", "a quote is not closed"),
    _csv("reserved-name", _text(_rows(), "file,age,bought"), "'file'", "vectors.npz", "rename the column"),
    _csv("numeric-unknown", _text(_rows()), "data.numeric='agee'", "did you mean 'age'", numeric=["agee"]),
    _csv("numeric-and-text", _text(_rows()), "numeric and categorical", "'age'", numeric=["age"], categorical=["age"]),
    _csv("infinite", _with(3, "inf,2,yes"), "rows.csv line 5", "'size'", "inf", "write NA"),
    _csv("split-unknown", _text(_rows()).replace("age", "part"), "line 2", "'part'", "expected train", split="part"),
    _csv("header-twice", _text(_rows(), "size,size,bought"), "line 1", "two columns", "'size'", "rename"),
    _csv("an-identifier", _text([f"id{n},{n % 5},{n % 2}" for n in range(120)]), "'size'", "data.drop: [size]"),
    _csv("too-few-rows", _text(_rows(12)), "train split", "fewer than 10", "bring more samples"),
    _csv("drop-unknown", _text(_rows()), "data.drop='agee'", "did you mean 'age'", drop=["agee"]),
    _csv("metric-unknown", _text(_rows()), "data.metric='acuracy'", "did you mean 'accuracy'", metric="acuracy"),
    _csv("positive-unknown", _text(_rows()), "data.positive='Yes'", "did you mean 'yes'", positive="Yes"),
    _csv("field-of-another-source", _text(_rows()), "augment='crop'", "not used", "csv", augment="crop"),
    _csv("nothing-left-to-train", _text(_rows()), "0.6", "0.5", "nothing for training", test=0.6, validation=0.5),
]


def _png(shade: int, side: int = 8) -> bytes:
    held = io.BytesIO()
    Image.fromarray(np.full((side, side), shade, np.uint8)).save(held, "png")
    return held.getvalue()


def _noise() -> bytes:
    held = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)).save(held, "png")
    return held.getvalue()


def _folder(changes: Mapping[str, bytes | None]) -> dict[str, bytes]:
    """Return two classes of images; None in ``changes`` removes a file."""
    files: dict[str, bytes | None] = {}
    for number in range(40):
        files[f"images/{'dark' if number % 2 else 'light'}/{number:02}.png"] = _png(number)
    return {name: held for name, held in {**files, **changes}.items() if held is not None}


def _images(name: str, files: Mapping[str, bytes], *says: str, prepare: Prepare | None = None, **data: object) -> Wrong:
    return Wrong(
        name=f"images-{name}",
        settings={"teacher": _CNN, "data": {"source": "imagefolder", "path": "images", **data}},
        files=files,
        prepare=prepare,
        says=says,
    )


def _two_names(folder: Path, patch: pytest.MonkeyPatch) -> None:
    (folder / "images/grey").symlink_to("dark")


def _empty_class(folder: Path, patch: pytest.MonkeyPatch) -> None:
    (folder / "images/grey").mkdir()


_ONE_CLASS = {f"images/dark/{number}.png": _png(number) for number in range(40)}

IMAGES = [
    _images("no-folder", {}, "data.path", "images", "does not exist"),
    _images("a-file", {"images": b"x"}, "data.path", "images", "is a file"),
    _images("no-classes", {"images/a.png": _png(1)}, "images", "directly", "images/<class>"),
    _images("empty-class", _folder({}), "grey", "holds no images", "remove the folder", prepare=_empty_class),
    _images("class-twice", _folder({}), "grey", "is a link to", "dark", "remove it", prepare=_two_names),
    _images(
        "test-twice", {f"images/{s}/a/1.png": _png(1) for s in ("train", "Test", "eval")}, "Test", "eval", "rename"
    ),
    _images("one-class", _ONE_CLASS, "images", "'dark'", "at least two"),
    _images("truncated", _folder({"images/dark/21.png": _noise()[:90]}), "21.png", "not a whole image", "replace"),
    _images("text-for-png", _folder({"images/dark/21.png": b"hello"}), "21.png", "not a whole image", "replace"),
    _images("other-size", _folder({"images/dark/21.png": _png(3, 9)}), "data.image_size", "9x9", "8x8"),
    _images("16-bits", _folder({"images/dark/21.png": b"P5 8 8 65535\n" + bytes(128)}), "21.png", "8 bits"),
    _images("too-large", _folder({}), "data.image_size", "90000", "[4, 2048]", image_size=90000),
    _images("mean-without-std", _folder({}), "data", "mean and std", "both or none", mean=[0.5]),
]


def _given(name: str, body: str, *says: str, **data: object) -> Wrong:
    """Make a case of a function ``data`` in mine.py; ``x`` [90, 4] and ``y`` [90] are samples that are right."""
    source = f"import torch\nfrom tiny import samples\nx, y = samples()\ndef data():\n    {body}\n"
    return Wrong(
        name=f"data-{name}",
        settings={"data": {"source": "./mine.py:data", **data}},
        files={"mine.py": source},
        says=says,
    )


_SPLITS = "'train': (x[:60], y[:60]), 'validation': (x[60:75], y[60:75]), 'test': (x[75:], y[75:])"

CUSTOM = [
    _given("raises", "return open('absent.npz')", "data.source", "FileNotFoundError", "absent.npz", "mine.py:5"),
    _given("returns-none", "pass", "mine.py:data", "NoneType", "'train'"),
    _given("wrong-key", "return {'trian': (x, y)}", "'trian'", "did you mean 'train'"),
    _given("no-train", "return {'test': (x, y)}", "no 'train'", "test"),
    _given("a-loader", "return torch.utils.data.DataLoader(x)", "DataLoader", "{'train': data"),
    _given("one-array", "return {'train': (x,)}", "train", "(x, y)"),
    _given("lengths-differ", "return {'train': (x, y[:50])}", "train", "length", "90", "50"),
    _given("empty", "return {'train': (x[:0], y[:0])}", "train", "empty"),
    _given("empty-test", "return {" + _SPLITS.replace("75:", "90:") + "}", "test", "empty"),
    _given("short-test", "return {" + _SPLITS.replace("75:", "85:") + "}", "test", "5 samples", "bring more"),
    _given("text-features", "return {'train': ([['a']] * 90, y)}", "train", "expected numbers"),
    _given("float-labels", "return {'train': (x, y.float())}", "float32", "whole numbers", "y.long()"),
    _given("column-of-labels", "return {'train': (x, y[:, None])}", "y.squeeze(1)", "class number a sample"),
    _given("labels-out-of-range", "return {'train': (x, y + 1), 'labels': ['a', 'b']}", "train", "is 2", "0 to 1"),
    _given("negative-labels", "return {'train': (x, y - 1)}", "train", "is -1", "0 or more"),
    _given("huge-labels", "return {'train': (x, y * 10**9)}", "1000000000", "out of range", "from 0"),
    _given("one-label", "return {'train': (x, y * 0)}", "every target", "two classes"),
    _given("labels-twice", "return {'train': (x, y), 'labels': ['a', 'a']}", "labels", "different names"),
    _given(
        "nan-features", "x[7, 2] = torch.nan; return {'train': (x, y)}", "train data", "holds NaN", "mend or remove"
    ),
    _given(
        "infinite-features", "x[7, 2] = torch.inf; return {'train': (x, y)}", "the loss became nan", "look at the data"
    ),
    _given("inputs-raise", "return {'train': (x, y), 'inputs': lambda b: b['x']}", "inputs raised", "mine.py:5"),
    _given("inputs-no-tensor", "return {'train': (x, y), 'inputs': lambda b: 'x'}", "input 0", "str", "tensors"),
    _given("loss-raises", "return {'train': (x, y), 'loss': lambda z, t: z @ t}", "loss raised", "mine.py:5"),
    _given("loss-a-number", "return {'train': (x, y), 'loss': lambda z, t: 0.5}", "loss", "float", "scalar tensor"),
    _given("loss-without-gradient", "return {'train': (x, y), 'loss': lambda z, t: t.sum().float()}", "loss", "grad"),
    _given("metrics-raise", "return {'train': (x, y), 'metrics': lambda z, t: z.nope}", "metrics raised", "nope"),
    _given("logits-wrong", "return {'train': (x, y), 'logits': lambda o: o[:, 0]}", "teacher.model", "[batch, 2]"),
    _given("hook-not-callable", "return {'train': (x, y), 'loss': 'hinge'}", "loss", "str", "function"),
    _given("preprocess-not-a-module", "return {'train': (x, y), 'preprocess': abs}", "preprocess", "nn.Module"),
    _given("arguments-refused", "return {'train': (x, y)}", "data.args", "'size'", args={"size": 3}),
    Wrong(
        name="data-preprocess-raises",
        settings={"data": {"source": "./mine.py:data"}},
        files={
            "mine.py": "from torch import nn\nfrom tiny import samples\n"
            "class Half(nn.Module):\n    def forward(self, x):\n        return x / self.two\n"
            "def data():\n    return {'train': samples(), 'preprocess': Half()}\n"
        },
        says=("preprocess", "two", "mine.py:5"),
    ),
    Wrong(
        name="data-item-raises",
        settings={"data": {"source": "./mine.py:data"}},
        files={
            "mine.py": "from tiny import samples\nx, y = samples()\n"
            "class Rows:\n    def __len__(self):\n        return 90\n"
            "    def __getitem__(self, n):\n        return x[n], y[n], [][n]\n"
            "def data():\n    return {'train': Rows()}\n"
        },
        says=("train", "item", "IndexError", "mine.py:7"),
    ),
    Wrong(name="data-unknown", settings={"data": {"source": "digitz"}}, says=("data.source='digitz'", "'digits'")),
]


def _nowhere(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Leave fashion-mnist neither in the system's place nor in the cache."""
    import dataclasses

    from distill.tasks import image_sets

    patch.setattr(image_sets, "FASHION", dataclasses.replace(image_sets.FASHION, system=(folder / "system",)))
    patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))


SETS = [
    Wrong(
        name="fashion-mnist-not-found",
        settings={"teacher": _CNN, "data": {"source": "fashion-mnist", "path": "images", "download": False}},
        prepare=_nowhere,
        says=("data.path=", "images is no folder", "dataset-fashion-mnist", "data.download is off"),
    ),
    Wrong(
        name="fashion-mnist-mirror-is-no-address",
        settings={"teacher": _CNN, "data": {"source": "fashion-mnist", "mirror": "file:///etc"}},
        prepare=_nowhere,
        says=("data.path", "dataset-fashion-mnist", "file:///etc", "http"),
    ),
]

CASES = [*TABLES, *IMAGES, *CUSTOM, *SETS]
