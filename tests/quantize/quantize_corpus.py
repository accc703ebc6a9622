"""What a user of `quantize` can get wrong: what is written and said, and what the message must hold."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from quantize_zoo import target
from small_graphs import CLASSES, FEATURES, floats, graph, linear, rows, save_external, weight

from distill.quantize import quantize_onnx, to_blocks, to_half

Prepare = Callable[[], Any]
PLAIN = ("m.onnx", "--data", "rows.npz", "--out", "q.onnx")


@dataclass(frozen=True)
class Wrong:
    """A wrong input: what is written into the folder first, what is said, and words that the message must hold.

    `late` are those that only the making of a precision finds out.
    """

    name: str
    says: tuple[str, ...]
    prepare: Prepare | None = None
    words: tuple[str, ...] = PLAIN
    late: bool = False


def model(name: str, says: tuple[str, ...], prepare: Prepare, **more: Any) -> Wrong:
    return Wrong(f"model-{name}", ("bad.onnx", *says), prepare, ("bad.onnx", *PLAIN[1:]), **more)


def data(name: str, says: tuple[str, ...], prepare: Prepare) -> Wrong:
    return Wrong(f"data-{name}", ("bad.npz", *says), prepare, ("m.onnx", "--data", "bad.npz", "--out", "q.onnx"))


def labels(name: str, says: tuple[str, ...], values: Any, said: tuple[str, ...] = ()) -> Wrong:
    words = ("m.onnx", "--data", "bad.npz", "--out", "q.onnx", *said)
    return Wrong(
        f"labels-{name}", ("bad.npz" if not said else "--labels", *says), arrays(x=rows(), labels=values), words
    )


def option(name: str, says: tuple[str, ...], *words: str, prepare: Prepare | None = None) -> Wrong:
    return Wrong(f"option-{name}", says, prepare, (*PLAIN, *words))


def save(made: onnx.ModelProto) -> Prepare:
    return lambda: onnx.save(made, "bad.onnx")


def own_metric() -> None:
    Path("own.py").write_text("def fails(out, labels): return 1 / 0\ndef nothing(out, labels): return float('nan')\n")


def beside() -> onnx.ModelProto:
    """Put boxes beside scores."""
    nodes = [
        helper.make_node("Sigmoid", ["z"], ["s"]),
        helper.make_node("Gemm", ["x", "w", "b"], ["z"]),
        helper.make_node("Concat", ["z", "s"], ["logits"], axis=1),
    ]
    return graph([nodes[1], nodes[0], nodes[2]], outputs=[floats("logits", "batch", 2 * CLASSES)])


def narrow() -> onnx.ModelProto:
    """Give one logit a row."""
    weights = {"w": linear()["w"][:, :1], "b": linear()["b"][:1]}
    return graph(outputs=[floats("logits", "batch", 1)], weights=weights)


def normed() -> onnx.ModelProto:
    """Give vectors of length 1."""
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["z"]),
        helper.make_node("LpNormalization", ["z"], ["logits"], axis=1),
    ]
    return graph(nodes)


def arrays(**values: Any) -> Prepare:
    return lambda: np.savez("bad.npz", **values)


def half_of(name: str, source: str) -> Prepare:
    return lambda: Path(name).write_bytes(Path(source).read_bytes()[: Path(source).stat().st_size // 2])


def external(then: Prepare, location: str = "w.bin") -> Prepare:
    def prepare() -> None:
        save_external(graph(), Path("bad.onnx"), location)
        then()

    return prepare


def moved(location: str) -> Prepare:
    """Let a model look for its data elsewhere than where it was written."""

    def prepare() -> None:
        found = onnx.load("bad.onnx", load_external_data=False)
        for tensor in found.graph.initializer:
            tensor.external_data[0].value = location
        Path("bad.onnx").write_bytes(found.SerializeToString())

    return prepare


def quantised() -> None:
    feeds = [{"x": rows()}]
    onnx.save(quantize_onnx(graph(), target=target("x86"), calibration=feeds)[0], "bad.onnx")


def cut() -> onnx.ModelProto:
    made = graph()
    made.graph.initializer[0].raw_data = made.graph.initializer[0].raw_data[:8]
    return made


def qlinear() -> onnx.ModelProto:
    product = helper.make_node("QLinearMatMul", ["x", "s", "z", "w", "s", "z", "s", "z"], ["logits"])
    return graph([product], weights={"w": np.zeros((FEATURES, CLASSES), np.uint8)})


def corrupt() -> None:
    """Spoil the middle of a compressed array."""
    np.savez_compressed("bad.npz", x=rows())
    held = bytearray(Path("bad.npz").read_bytes())
    held[len(held) // 2 : len(held) // 2 + 40] = bytes(40)
    Path("bad.npz").write_bytes(held)


def single() -> None:
    with Path("bad.npz").open("wb") as file:
        np.save(file, rows())


RELU = helper.make_node("Relu", ["x"], ["logits"])
TYPED = helper.make_tensor_value_info
SEQUENCE = helper.make_tensor_sequence_value_info("logits", TensorProto.FLOAT, None)
WIDE = {"w": weight(32, CLASSES), "b": weight(CLASSES)}


def double() -> onnx.ModelProto:
    """Make a file of 64-bit floats; its inputs and outputs are float32."""
    weights = {name: value.astype(np.float64) for name, value in linear().items()}
    nodes = [
        helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.DOUBLE),
        helper.make_node("Gemm", ["wide", "w", "b"], ["scores"]),
        helper.make_node("Cast", ["scores"], ["logits"], to=TensorProto.FLOAT),
    ]
    return graph(nodes, weights=weights)


def quantised_branch() -> onnx.ModelProto:
    """Hold the pairs in the branches of an If alone."""
    branches = {
        name: helper.make_graph(
            [helper.make_node("DequantizeLinear", ["q", "scale"], [name])],
            name,
            [],
            [floats(name, FEATURES, CLASSES)],
            [numpy_helper.from_array(np.ones((FEATURES, CLASSES), np.int8), "q")],
        )
        for name in ("then_branch", "else_branch")
    }
    nodes = [
        helper.make_node("If", ["yes"], ["table"], **branches),
        helper.make_node("MatMul", ["x", "table"], ["logits"]),
    ]
    return graph(nodes, weights={"yes": np.array(True), "scale": np.float32(1)})


NOT_A_NUMBER = {"w": np.full((FEATURES, CLASSES), np.nan, np.float32), "b": weight(CLASSES)}

MODELS = [
    Wrong("model-missing", ("none.onnx", "does not exist", "give the path"), None, ("none.onnx", *PLAIN[1:])),
    Wrong("model-folder", ("is a folder",), lambda: Path("bad").mkdir(), ("bad", *PLAIN[1:])),
    model("text", ("not an ONNX file",), lambda: Path("bad.onnx").write_text("hello")),
    model("empty", ("holds no graph", "export it again"), lambda: Path("bad.onnx").touch()),
    model("truncated", ("truncated", "export it again"), half_of("bad.onnx", "m.onnx")),
    model("pairs", ("quantised already", "give the float32 export"), quantised),
    model("qlinear", ("quantised already", "QLinearMatMul"), save(qlinear())),
    model("half", ("16-bit floats already",), lambda: onnx.save(to_half(graph())[0], "bad.onnx")),
    model("blocks", ("quantised already", "MatMulNBits"), lambda: onnx.save(big_blocks(), "bad.onnx")),
    model("double", ("64-bit floats (double)", "give the float32 export"), save(double())),
    model("pairs-in-if", ("quantised already", "DequantizeLinear"), save(quantised_branch())),
    Wrong(
        "model-nothing-to-quantise",
        ("bad.onnx", "no Conv, Gemm or MatMul"),
        save(graph([RELU])),
        ("bad.onnx", *PLAIN[1:], "--output", "numbers"),
        late=True,
    ),
    model("nan-weights", ("NaN or infinite for 60 of 60 rows", "check its weights"), save(graph(weights=NOT_A_NUMBER))),
    model("unknown-operator", ("cannot load",), save(graph([helper.make_node("Frobnicate", ["x"], ["logits"])]))),
    model("weights-cut", ("cannot load",), save(cut())),
    model("external-missing", ("w.bin", "missing"), external(lambda: Path("w.bin").unlink())),
    model("external-above", ("outside its own folder",), external(moved("../w.bin"))),
    model("external-elsewhere", ("outside its own folder",), external(moved("/etc/hostname"))),
    model("external-short", ("w.bin", "end too early", "copy them again"), external(half_of("w.bin", "w.bin"))),
    model(
        "no-inputs",
        ("takes no inputs",),
        save(graph([helper.make_node("Identity", ["w"], ["logits"])], inputs=())),
    ),
    model(
        "no-outputs",
        ("no output", "export it again"),
        save(graph(outputs=())),
    ),
    model(
        "string-input", ("'x'", "strings"), save(graph(inputs=[TYPED("x", TensorProto.STRING, ["batch", FEATURES])]))
    ),
    model(
        "whole-numbers-out",
        ("'logits'", "int64", "floats [rows, classes] first"),
        save(
            graph([helper.make_node("ArgMax", ["x"], ["logits"])], outputs=[TYPED("logits", TensorProto.INT64, None)])
        ),
    ),
    model(
        "sequence-out",
        ("'logits'", "sequence", "plain tensor"),
        save(graph([helper.make_node("SequenceConstruct", ["x"], ["logits"])], outputs=[SEQUENCE])),
    ),
    model(
        "one-number-out",
        ("one number for all rows", "must be the batch"),
        save(graph([helper.make_node("ReduceMean", ["x"], ["logits"], keepdims=0)], outputs=[floats("logits")])),
    ),
    model(
        "one-row-out",
        ("2 answers for 60 rows", "must be the batch"),
        save(
            graph(
                [helper.make_node("ReduceMean", ["x"], ["logits"], axes=[0])], outputs=[floats("logits", 1, FEATURES)]
            )
        ),
    ),
    model(
        "batch-last",
        ("do not fit together", "must be the batch"),
        save(graph([helper.make_node("Transpose", ["x"], ["logits"])], outputs=[floats("logits", FEATURES, "batch")])),
    ),
    Wrong(
        "model-batch-too-large",
        ("60 rows", "batch of 64", "more rows"),
        save(graph(inputs=[floats("x", 64, FEATURES)], outputs=[floats("logits", 64, CLASSES)])),
        ("bad.onnx", *PLAIN[1:]),
    ),
]
DATA = [
    Wrong("data-missing", ("--data none.npz", "cannot be read"), None, ("m.onnx", "--data", "none.npz", *PLAIN[3:])),
    Wrong("data-folder", ("--data .", "cannot be read"), None, ("m.onnx", "--data", ".", *PLAIN[3:])),
    data("text", ("--data", "must be an .npz"), lambda: Path("bad.npz").write_text("hello")),
    data("empty-file", ("--data", "must be an .npz"), lambda: Path("bad.npz").touch()),
    data("truncated", ("--data", "must be an .npz"), half_of("bad.npz", "rows.npz")),
    data("corrupt", ("--data",), corrupt),
    data("single-array", ("write it by name",), single),
    data("objects", ("--data", "plain arrays"), arrays(x=np.array([rows(), "a"], object))),
    data("no-arrays", ("holds no arrays", "write rows by name"), arrays()),
    data("no-rows", ("rows {'x': 0}", "one at least"), arrays(x=rows(0))),
    data("one-number", ("x has the shape []", "[rows, 6]"), arrays(x=np.float32(1))),
    data("other-names", ("has image", "the model takes x"), arrays(image=rows())),
    data("more-names", ("has x, mask", "the model takes x"), arrays(x=rows(), mask=rows())),
    data("float64", ("x is float64", ".astype('float32')"), arrays(x=rows().astype(float))),
    data("rank", ("[60, 1, 6]", "[rows, 6]"), arrays(x=rows()[:, None])),
    data("flat", ("[360]", "[rows, 6]"), arrays(x=rows().ravel())),
    data("channels", ("[60, 7]", "[rows, 6]"), arrays(x=rows(features=7))),
    data(
        "nan",
        ("x holds NaN", "first in row 7"),
        arrays(x=np.concatenate([rows(7), np.full_like(rows(53), np.nan)])),
    ),
    data(
        "infinite",
        ("x holds NaN or infinite", "row 0"),
        arrays(x=np.full_like(rows(), np.inf)),
    ),
]
CLASS = np.arange(60) % CLASSES
LABELS = [
    labels("too-few", ("'x': 60", "'labels': 59", "the same number"), CLASS[:-1]),
    labels("floats", ("labels are float64", "astype('int64')"), CLASS.astype(float)),
    labels("words", ("labels are str", "class numbers"), CLASS.astype(str)),
    labels("one-hot", ("one-hot", "labels.argmax(axis=1)"), np.eye(CLASSES)[CLASS]),
    labels("columns", ("[rows, 1]", "labels.reshape(-1)"), CLASS[:, None]),
    labels("several-each", ("[rows, 2]", "[rows]"), np.stack([CLASS, CLASS], 1)),
    labels("from-one", ("from 1 to 3", "classes 0 to 2"), CLASS + 1),
    labels("negative", ("from -1 to 2", "classes 0 to 2"), np.where(CLASS == 1, -1, CLASS)),
    labels("unknown", ("--labels z", "x, labels"), CLASS, ("--labels", "z")),
    labels("input", ("--labels x", "is an input"), CLASS, ("--labels", "x")),
]
OUTPUTS = [
    model("several-kinds", ("Concat of", "--output", "--metric"), save(beside())),
    model("one-logit", ("behind Gemm", "--output binary"), save(narrow())),
    model("embedding", ("behind LpNormalization", "--output numbers"), save(normed())),
]
OPTIONS = [
    option("output", ("--output boxes", "classes, binary, labels, numbers"), "--output", "boxes"),
    option("axis-of-rows", ("--axis 0", "can hold classes: 1"), "--axis", "0"),
    option("axis-too-far", ("--axis 7", "can hold classes: 1"), "--axis", "7"),
    option("axis-of-numbers", ("--axis 1", "beside --output numbers"), "--axis", "1", "--output", "numbers"),
    option("binary-of-several", ("--output binary", "[rows, 3]", "--output labels"), "--output", "binary"),
    option("metric-missing", ("--metric", "no file"), "--metric", "none.py:f1"),
    option("metric-no-reference", ("--metric", "file.py:function"), "--metric", "f1"),
    option("metric-raises", ("--metric", "ZeroDivisionError"), "--metric", "own.py:fails", prepare=own_metric),
    option("metric-no-number", ("--metric", "nan"), "--metric", "own.py:nothing", prepare=own_metric),
    option("drop-nan", ("--max-drop",), "--max-drop", "nan"),
    option("drop-negative", ("--max-drop",), "--max-drop", "-0.1"),
    option("drop-percent", ("--max-drop",), "--max-drop", "1%"),
    option("seconds-nan", ("--seconds",), "--seconds", "nan"),
    option("batch-word", ("--batch many", "whole numbers"), "--batch", "many"),
    option("batch-none", ("--batch 0", "from 1 to"), "--batch", "0"),
    option("target", ("target='tpu'", "x86, arm"), "--target", "tpu"),
    option("precision", ("--precision int3", "int8"), "--precision", "int3"),
    option("calibration", ("--calibration max", "minmax"), "--calibration", "max"),
    option("samples", ("--samples",), "--samples", "0"),
    option("sensitivity-of-fp16", ("--sensitivity", "cuda", "--target"), "--sensitivity", "--target", "cuda"),
    Wrong(
        "option-other-batch",
        ("--batch 1,8", "fixed at a batch of 4", "leave --batch out"),
        save(graph(inputs=[floats("x", 4, FEATURES)], outputs=[floats("logits", 4, CLASSES)])),
        ("bad.onnx", *PLAIN[1:], "--batch", "1,8"),
    ),
]


def out(name: str, says: tuple[str, ...], path: str, prepare: Prepare | None = None) -> Wrong:
    return Wrong(f"out-{name}", ("--out", *says), prepare, (*PLAIN[:4], path))


def linked(link: Callable[[str, str], None]) -> Prepare:
    return lambda: link("m.onnx", "link.onnx")


PLACES = [
    out("no-folder", ("no/q.onnx", "does not exist", "make it first"), "no/q.onnx"),
    out("in-a-file", ("m.onnx/q.onnx", "is no folder"), "m.onnx/q.onnx"),
    out("folder", ("is a folder",), "q", lambda: Path("q").mkdir()),
    out("model", ("is the model itself",), "m.onnx"),
    out("model-by-a-longer-path", ("is the model itself",), "a/../m.onnx", lambda: Path("a").mkdir()),
    out("model-by-a-link", ("is the model itself",), "link.onnx", linked(os.symlink)),
    out("model-by-a-hard-link", ("is the model itself",), "link.onnx", linked(os.link)),
    out("data", ("is the data",), "rows.npz"),
    Wrong(
        "out-external-data",
        ("--out w.bin", "external data of the model"),
        lambda: save_external(graph(), Path("bad.onnx")),
        ("bad.onnx", "--data", "rows.npz", "--out", "w.bin"),
    ),
    option("record-no-folder", ("--record no/r.json", "does not exist"), "--record", "no/r.json"),
    option("record-folder", ("--record r", "is a folder"), "--record", "r", prepare=lambda: Path("r").mkdir()),
    option("record-model", ("--record m.onnx", "is the model itself"), "--record", "m.onnx"),
    option("record-out", ("--record q.onnx", "is what --out writes"), "--record", "q.onnx"),
    option("plot-no-folder", ("--plot no/p.svg", "does not exist"), "--plot", "no/p.svg"),
    option("plot-record", ("--plot a", "is what --record writes"), "--record", "a", "--plot", "./a"),
]
CASES = [*MODELS, *DATA, *LABELS, *OUTPUTS, *OPTIONS, *PLACES]


def big_blocks() -> onnx.ModelProto:
    return to_blocks(graph(inputs=[floats("x", "batch", 32)], weights=WIDE))[0]
