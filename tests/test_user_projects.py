"""Projects as new users bring them: keywords in raw audio, and a packed table with odd names, through the command."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import task_samples as samples
import torch
from safetensors.torch import load_file
from tiny_run import check_vectors

from distill.cli import main

AUDIO = """
import math

import torch
from torch import nn

RATE, SAMPLES = 2000, 800


def word(kind, generator):
    time = torch.arange(SAMPLES) / RATE
    pitch = 200 + 200 * torch.rand((), generator=generator)
    noise = torch.randn(SAMPLES, generator=generator)
    waves = (
        torch.sin(2 * math.pi * pitch * time),
        torch.sin(2 * math.pi * (pitch * time + 600 * time * time)),
        noise * (torch.sin(2 * math.pi * 6 * time) > 0),
    )
    return waves[kind] + 0.05 * noise


def draw(count, seed):
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 3
    return torch.stack([word(kind, generator) for kind in y]), y


class LogMel(nn.Module):
    def __init__(self, bands=16, size=128):
        super().__init__()
        self.register_buffer("window", torch.hann_window(size))
        edges = torch.linspace(0, size // 2, bands + 2)
        rise = (torch.arange(size // 2 + 1) - edges[:-2, None]) / edges.diff()[:-1, None]
        self.register_buffer("bands", torch.minimum(rise, 2 - rise).clamp(min=0))

    def forward(self, audio):
        size = len(self.window)
        spectrum = torch.stft(audio, size, size // 2, window=self.window, return_complex=True)
        return torch.log(self.bands @ spectrum.abs().square() + 1e-4)[:, None]


def make_data():
    return {"train": draw(120, 1), "test": draw(48, 2), "labels": ["tone", "chirp", "noise"], "preprocess": LogMel()}


def network(width=16):
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(width, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 3),
    )
"""


def run(config: str, *words: str) -> Path:
    """Run the configuration in the current folder; return what it deploys."""
    Path("config.yaml").write_text(config, encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        main(["run", "config.yaml", "--out", "run", "--set", "benchmark=off", "--set", "max_drop=1", *words])
    assert ended.value.code == 0
    return Path("run/deploy")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_keywords_in_raw_audio_keep_their_spectrum_in_float(tmp_path: Path) -> None:
    Path("kws.py").write_text(AUDIO, encoding="utf-8")
    deploy = run(
        "data: ./kws.py:make_data\nteacher: {model: ./kws.py:network, epochs: 12, batch_size: 16}\n"
        "student: {model: ./kws.py:network, args: {width: 8}}\ndistill: {epochs: 3, batch_size: 16, control: false}\n"
        "prune: {epochs: 1, round_to: 4, batches: 2}\n"
    )
    check_vectors(deploy)
    stages = {stage["name"]: stage["status"] for stage in json.loads(Path("run/run.json").read_text())["stages"]}
    assert stages == dict.fromkeys(("teacher", "student", "prune", "quantize", "export"), "unmeasured") | {
        "control": "off"
    }
    graph = onnx.load(deploy / "model.onnx").graph
    types = [node.op_type for node in graph.node]
    first = types.index("QuantizeLinear")
    assert {"STFT", "MatMul", "Log"} <= set(types[:first]) and "Conv" in types[first:]
    assert not {"QuantizeLinear", "DequantizeLinear", "Cast"} & set(types[:first])
    inputs = {name for node in graph.node[:first] for name in node.input}
    tables = [tensor for tensor in graph.initializer if tensor.name in inputs]
    assert {tensor.data_type for tensor in tables} <= {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64}

    sys.path.insert(0, str(tmp_path))
    try:
        import kws  # type: ignore[import-not-found]

        model = kws.network().eval()
        front, audio = kws.LogMel(), np.load(deploy / "vectors.npz")["audio"]
    finally:
        sys.path.remove(str(tmp_path))
        samples.forget(tmp_path)
    model.load_state_dict(load_file("run/stages/01-teacher/model.safetensors"))
    expected = model(front(torch.from_numpy(audio))).detach().numpy()
    teacher = ort.InferenceSession("run/stages/01-teacher/model.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(teacher.run(None, {"audio": audio})[0], expected, atol=1e-3)


# The order of labels is that of their code points; none is a missing value, a formula, an option or markup here.
CLASSES = ["--1", "-0", "=1+1", "NaN", "`c` *b* [l](http://x)", "größe|日本", "none", 'say "hi", <b>&amp;', "x" * 300]


class Tags(HTMLParser):
    """Collects the tags of a page and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def write_odd_table(path: Path) -> None:
    drawn = np.random.default_rng(0)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["a|b", "<i>", "note", "class"])
    for row in range(450):
        place = row % len(CLASSES)
        number = "" if row % 17 == 5 else f"{place + drawn.normal() / 20:.3f}"
        note = "y" * 50_000 if row % 40 == 3 else "pq"[place % 2]
        writer.writerow([f"{place + drawn.normal() / 20:.3f}", number, note, CLASSES[place]])
    path.write_bytes(gzip.compress(text.getvalue().encode()))


def test_a_packed_table_with_odd_names_is_deployed_as_it_is_written(capfd: pytest.CaptureFixture[str]) -> None:
    write_odd_table(Path("train.csv.gz"))
    deploy = run(
        "data: {source: csv, path: train.csv.gz, target: class}\n"
        "teacher: {model: mlp, epochs: 40, batch_size: 16, learning_rate: 0.05}\n"
        "distill: {epochs: 1, views: 1, control: false}\nprune: off\n"
    )
    assert json.loads((deploy / "labels.json").read_text(encoding="utf-8")) == CLASSES
    metadata = {entry.key: entry.value for entry in onnx.load(deploy / "model.onnx").metadata_props}
    assert json.loads(metadata["labels"]) == CLASSES
    check_vectors(deploy)
    assert (deploy / "vectors.npz").stat().st_size < 1_000_000

    session = ort.InferenceSession(deploy / "model.onnx", providers=["CPUExecutionProvider"])
    for place in range(len(CLASSES)):
        numbers = np.full((1, 1), place, np.float32)
        row = {"a|b": numbers, "<i>": numbers, "note": np.array([["pq"[place % 2]]], object)}
        assert session.run(["logits"], row)[0].argmax() == place

    card = (deploy / "README.md").read_text(encoding="utf-8").splitlines()
    rows = [line.replace(r"\|", "") for line in card if line.startswith("| ")]
    assert [line.count("|") for line in rows] == [3] * 5
    assert any(r"`a\|b` float32 [batch, 1], `<i>` float32 [batch, 1], `note` string" in line for line in card)
    page, told = Tags(), " ".join(capfd.readouterr().out.split())
    page.feed(Path("run/report.html").read_text(encoding="utf-8"))
    assert "i" not in page.tags and "'<i>' 27 (empty 27)" in page.text
    assert "'<i>' 27 (empty 27)" in told and "'NaN' (50 rows)" in told
    assert "'&lt;i&gt;' 27" in Path("run/report.md").read_text(encoding="utf-8")
