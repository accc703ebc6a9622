"""Wrong models, references and weights."""

from __future__ import annotations

import builtins
import importlib
import pickle
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from wrong.corpus import Prepare, Wrong


class Runs:
    """Pickles as a call that leaves a mark, as a checkpoint from a stranger may."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        """Return what an unpickler that trusts the file would call."""
        return builtins.open, ("ran", "w")


def _state() -> dict[str, torch.Tensor]:
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2)).state_dict()


def _pickle(folder: Path, patch: pytest.MonkeyPatch) -> None:
    (folder / "weights.pt").write_bytes(pickle.dumps({"0.weight": Runs()}))


def _zipped_pickle(folder: Path, patch: pytest.MonkeyPatch) -> None:
    torch.save({**_state(), "extra": Runs()}, folder / "weights.pt")


def _truncated(folder: Path, patch: pytest.MonkeyPatch) -> None:
    save_file(_state(), folder / "weights.safetensors")
    held = (folder / "weights.safetensors").read_bytes()
    (folder / "weights.safetensors").write_bytes(held[: len(held) // 2])


def _saved(change: Callable[[dict[str, torch.Tensor]], object]) -> Prepare:
    def prepare(folder: Path, patch: pytest.MonkeyPatch) -> None:
        torch.save(change(_state()), folder / "weights.pt")

    return prepare


def _with_nan(state: dict[str, torch.Tensor]) -> object:
    state["0.bias"][3] = torch.nan
    return state


def _absent(package: str) -> Prepare:
    return lambda folder, patch: patch.setitem(sys.modules, package, None)


def _broken(package: str) -> Prepare:
    """Make a package's import fail as that of a torchvision for another torch does."""

    def prepare(folder: Path, patch: pytest.MonkeyPatch) -> None:
        real = importlib.import_module

        def load(name: str, *rest: str) -> types.ModuleType:
            if name == package:
                raise RuntimeError("operator torchvision::nms does not exist")
            return real(name, *rest)

        patch.setattr(importlib, "import_module", load)

    return prepare


def _poor_timm(folder: Path, patch: pytest.MonkeyPatch) -> None:
    timm = types.ModuleType("timm")
    timm.list_models = lambda: ["resnet18", "resnet34"]  # type: ignore[attr-defined]
    patch.setitem(sys.modules, "timm", timm)


def _silent(folder: Path, patch: pytest.MonkeyPatch) -> None:
    warnings.simplefilter("ignore")  # torch's own quantisation is on its way out


def _made(name: str, body: str, *says: str, prepare: Prepare | None = None, **settings: object) -> Wrong:
    """Make a case of a teacher that ``make`` in mine.py returns."""
    return Wrong(
        name=name,
        prepare=prepare,
        settings={"teacher": {"model": "./mine.py:make"}, **settings},
        files={"mine.py": f"import torch\nfrom torch import nn\n{body}\n"},
        says=says,
    )


def _module(forward: str, made: str = "") -> str:
    """Return the source of a model that ends its forward of x [N, 4] and logits y [N, 2], and its constructor, so."""
    return (
        "class Mine(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.layer = nn.Linear(4, 2)\n"
        f"        {made}\n"
        "    def forward(self, x):\n"
        "        y = self.layer(x)\n"
        f"        {forward}\n"
        "make = Mine\n"
    )


def _teacher(name: str, model: str, *says: str, prepare: Prepare | None = None, **teacher: object) -> Wrong:
    return Wrong(name=name, settings={"teacher": {"model": model, **teacher}}, says=says, prepare=prepare)


def _weights(name: str, file: str, *says: str, prepare: Prepare | None = None) -> Wrong:
    where = f"teacher.weights={file}"
    return Wrong(name=name, settings={"teacher": {"weights": file}}, says=(where, *says), prepare=prepare)


REFERENCES = [
    _teacher("unknown-model", "resnet200", "teacher.model='resnet200'", "did you mean resnet20", "Built in"),
    _teacher(
        "arguments-refused", "mlp", "teacher.model='mlp'", "no parameter 'hiden'", "'hidden'", args={"hiden": [8]}
    ),
    _teacher("arguments-wrong", "mlp", "teacher", "hidden='wide'", args={"hidden": "wide"}),
    _teacher("resnet-for-rows", "resnet20", "teacher.model='resnet20'", "ResNet", "[2, 4]"),
    _teacher("timm-not-installed", "timm:resnet18", "timm", "pip install", "vision", prepare=_absent("timm")),
    _teacher("timm-broken", "timm:resnet18", "timm", "nms", "pip install torch", prepare=_broken("timm")),
    _teacher("timm-unknown", "timm:resnet180", "timm:resnet180", "near: resnet18", prepare=_poor_timm),
    _teacher(
        "torchvision-not-installed",
        "torchvision:resnet18",
        "torchvision",
        "pip install",
        prepare=_absent("torchvision"),
    ),
    _teacher("torchvision-broken", "torchvision:resnet18", "pip install torch", prepare=_broken("torchvision")),
    _teacher("reference-no-file", "./mime.py:make", "teacher.model", "mime.py", "no file"),
    _teacher("reference-no-function", "./tiny.py:modle", "teacher.model", "tiny.py", "did you mean 'model'"),
    _teacher("reference-no-module", "nowhere.models:make", "teacher.model", "no module 'nowhere'", "./path/file.py"),
    _teacher("reference-not-a-function", "./tiny.py:nn", "teacher.model", "module", "expected a function"),
    _made("reference-raises", "raise ValueError('no licence')", "teacher.model", "no licence", "mine.py:3"),
    _made("reference-needs-a-package", "import absent_package", "install 'absent_package'", "mine.py:3"),
    _made("reference-is-no-python", "def make(:", "SyntaxError", "mine.py:3"),
    _made("reference-exits", "raise SystemExit(3)", "teacher.model", "SystemExit", "mine.py:3"),
]

MODELS = [
    _made("factory-raises", "def make():\n    return {}['weights']", "teacher.model", "KeyError", "mine.py:4"),
    _made("factory-exits", "def make():\n    raise SystemExit(0)", "teacher.model", "SystemExit", "mine.py:4"),
    _made("factory-needs-arguments", "def make(width):\n    return nn.Linear(4, 2)", "teacher.model", "width"),
    _made("factory-returns-none", "def make():\n    pass", "teacher.model", "NoneType", "torch.nn.Module"),
    _made(
        "no-parameters", _module("return y", "self.requires_grad_(False)"), "Mine", "no parameter", "teacher.pretrained"
    ),
    _made(
        "lazy-parameters", "def make():\n    return nn.LazyLinear(2)", "teacher.model", "LazyLinear", "uninitialized"
    ),
    _made(
        "state-that-is-no-tensor",
        _module("return y\n    def get_extra_state(self):\n        return {'step': 1}"),
        "teacher.model",
        "dict",
        "argument of the factory",
    ),
    _made(
        "wrong-features", "def make():\n    return nn.Linear(7, 2)", "teacher.model", "Linear", "[2, 4]", "2x4 and 7x2"
    ),
    _made(
        "wrong-classes", "def make():\n    return nn.Linear(4, 5)", "teacher.model", "2x5", "[batch, 2]", "last layer"
    ),
    _made("wrong-rank", _module("return y[:, None]"), "teacher.model", "2x1x2", "[batch, 2]"),
    _made("wrong-batch", _module("return y[:1]"), "teacher.model", "Mine", "(1, 2)", "(2, 2)"),
    _made("returns-a-tuple", _module("return y, x"), "teacher.model", "tuple", "logits(output)"),
    _made("returns-a-dict", _module("return {'scores': y}"), "teacher.model", "dict", "scores", "logits"),
    _made(
        "returns-class-numbers", _module("return y.argmax(1, True).expand(-1, 2)"), "teacher.model", "int64", "floating"
    ),
    _made("forward-raises", _module("return y + self.bias"), "teacher.model", "Mine", "bias", "mine.py:10"),
    _made("gives-nan", _module("return y / 0 * 0"), "teacher", "nan"),
    _made(
        "gives-nan-and-is-not-trained",
        _module("return y / 0 * 0"),
        "teacher",
        "not finite",
        teacher={"model": "./mine.py:make", "pretrained": True},
    ),
    _made(
        "diverges",
        _module("return y**5"),
        "teacher.learning_rate=100",
        "lower it",
        teacher={"model": "./mine.py:make", "learning_rate": 100.0},
    ),
    _made("cannot-be-copied", _module("return y", "self.it = (n for n in 'abc')"), "Mine", "copied", "generator"),
    _made("cannot-be-exported", _module("return y if y.sum() > 0 else -y"), "Mine", "branches", "torch.where"),
    _made("fixed-batch", _module("return y.reshape(-1, 2)[torch.arange(int(x.shape[0]))]"), "Mine"),
    _made("random-in-evaluation", _module("return y + torch.rand_like(y)"), "Mine", "randomness"),
    _made(
        "on-meta",
        "def make():\n    with torch.device('meta'):\n        return nn.Linear(4, 2)",
        "weight is on the device meta",
        "to_empty",
    ),
    _made(
        "exported-program",
        "def make():\n    return torch.export.export(nn.Linear(4, 2), (torch.ones(2, 4),)).module()",
        "is an exported program",
        "the nn.Module that it was made from",
    ),
    _made(
        "scripted-inside",
        "def make():\n    return nn.Sequential(torch.jit.script(nn.Linear(4, 2)))",
        "its part '0' (RecursiveScriptModule) is TorchScript",
    ),
    _made(
        "a-class", "class Mine(nn.Linear):\n    pass\ndef make():\n    return Mine", "the class Mine", "such as Mine()"
    ),
    _made("a-function", "def make():\n    return lambda x: x", "returns function", "no layers to change"),
    _made(
        "quantised-by-torch",
        "def make():\n    q = torch.ao.quantization\n"
        "    return q.quantize_dynamic(nn.Sequential(nn.Linear(4, 2)), {nn.Linear}, torch.qint8)",
        "its part '0' (Linear) is quantised already, by torch",
        "the float model",
        prepare=_silent,
    ),
    _made(
        "integers-as-weights",
        _module(
            "return y", "self.layer.weight = nn.Parameter(torch.ones(2, 4, dtype=torch.int8), requires_grad=False)"
        ),
        "layer.weight is int8",
        "the float model",
    ),
    _made(
        "half-precision", _module("return y", "self.half()"), "its weights are float16 (layer.weight)", "model.float()"
    ),
    _made("double-precision", _module("return y", "self.double()"), "its weights are float64", "model.float()"),
    _made(
        "wants-whole-numbers",
        _module("return y", "self.layer = nn.Sequential(nn.Embedding(9, 2), nn.Flatten(), nn.Linear(8, 2))"),
        "in its layer 'layer.0', Embedding(9, 2)",
        "whole numbers from 0 to 8",
    ),
    _made(
        "another-device",
        _module("return y + self.shift", "self.shift = torch.ones(2, device='meta')"),
        "shift (meta) is on another device",
        "register_buffer",
    ),
    _made(
        "inputs-by-name",
        "class Mine(nn.Module):\n    def forward(self, **batch):\n        return batch['x']\nmake = Mine",
        "forward(**batch)",
        "it takes them by name",
        "return a dict of names and tensors",
    ),
    _made(
        "weights-of-nan",
        "def make():\n    made = nn.Linear(4, 2)\n    made.weight.data[1, 2] = torch.nan\n    return made",
        "before the first step",
        "weight holds NaN (1 of 8)",
    ),
    Wrong(
        name="student-of-other-classes",
        settings={"student": "./mine.py:make", "distill": {"epochs": 1, "control": False}},
        files={"mine.py": "from torch import nn\ndef make():\n    return nn.Linear(4, 3)\n"},
        says=("student.model='./mine.py:make'", "2x3", "[batch, 2]", "last layer"),
    ),
]

WEIGHTS = [
    _weights("weights-missing", "weights.safetensors", "no such file"),
    _weights("weights-are-a-folder", "run", "is a folder"),
    _weights("weights-truncated", "weights.safetensors", "not a safetensors file", prepare=_truncated),
    _weights("weights-a-pickle", "weights.pt", "unpickled", "safetensors", prepare=_pickle),
    _weights("weights-a-zipped-pickle", "weights.pt", "unpickled", "safetensors", prepare=_zipped_pickle),
    _weights("weights-a-module", "weights.pt", "unpickled", "state_dict()", prepare=_saved(lambda s: nn.Linear(4, 2))),
    _weights("weights-a-tensor", "weights.pt", "Tensor", "state dict", prepare=_saved(lambda s: s["0.bias"])),
    _weights("weights-numbered", "weights.pt", "state dict", prepare=_saved(lambda s: dict(enumerate(s.values())))),
    _weights("weights-with-text", "weights.pt", "0.bias", "str", prepare=_saved(lambda s: {**s, "0.bias": "x"})),
    _weights(
        "weights-of-another-model",
        "weights.pt",
        "another model",
        "head.weight",
        prepare=_saved(lambda s: {"head.weight": s["0.weight"]}),
    ),
    _weights(
        "weights-of-another-width",
        "weights.pt",
        "2.weight",
        "(3, 16)",
        "(2, 16)",
        prepare=_saved(lambda s: {**s, "2.weight": torch.zeros(3, 16), "2.bias": torch.zeros(3)}),
    ),
    _weights("weights-in-odd-places", "weights.pt", "a, b fit alike", prepare=_saved(lambda s: {"a": s, "b": dict(s)})),
    _weights(
        "weights-of-another-model-in-net",
        "weights.pt",
        "read under 'net', names without 'module.'",
        "unknown: 4.bias",
        prepare=_saved(lambda s: {"net": {f"module.{n}": v for n, v in [*s.items(), ("4.bias", s["0.bias"])]}}),
    ),
    _weights(
        "weights-of-other-classes",
        "weights.pt",
        "build the model with 3 outputs of '2', not 2",
        prepare=_saved(lambda s: {**s, "2.weight": torch.zeros(3, 16), "2.bias": torch.zeros(3)}),
    ),
    _weights(
        "weights-of-an-optimizer",
        "weights.pt",
        "an optimizer's state",
        prepare=_saved(lambda s: {"state": {0: {"exp_avg": s["0.bias"]}}, "param_groups": []}),
    ),
    _weights("weights-empty", "weights.pt", "it is empty", prepare=_saved(lambda s: {})),
    _weights(
        "weights-in-8-bits",
        "weights.pt",
        "0.weight is int8",
        prepare=_saved(lambda s: {n: v.char() for n, v in s.items()}),
    ),
    _weights(
        "weights-on-meta",
        "weights.pt",
        "device meta",
        prepare=_saved(lambda s: {n: v.to("meta") for n, v in s.items()}),
    ),
    _weights("weights-with-nan", "weights.pt", "0.bias", "not finite", prepare=_saved(_with_nan)),
]

CASES = [*REFERENCES, *MODELS, *WEIGHTS]
