"""Preprocessing in front of a model: it is exported with the model, cut off from it, and stays in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, TensorProto
from torch import Tensor, nn
from torch.nn import functional as F

from distill.benchmarks.target import TARGETS
from distill.errors import UserError
from distill.export import run_onnx
from distill.export.front_graph import Halves
from distill.export.onnx_export import export_halves, export_onnx
from distill.quantize import quantize, to_dynamic, to_half

WINDOW = torch.hann_window(64)


class LogMel(nn.Module):
    """Audio [N, samples] -> log-mel [N, 1, bands, frames]; the bank is a buffer."""

    def __init__(self, bands: int = 12) -> None:
        super().__init__()
        self.register_buffer("bank", torch.rand(bands, 33, generator=torch.Generator().manual_seed(0)))

    def forward(self, audio: Tensor) -> Tensor:
        spectrum = torch.stft(audio, 64, 32, window=WINDOW, return_complex=True)
        return (self.bank @ spectrum.abs().square() + 1e-6).log().unsqueeze(1)


class Function(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


class Frames(nn.Module):
    """Self-attention over frames: it reads how many there are."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.head = nn.Linear(12, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.squeeze(1).transpose(1, 2)
        rows, frames, width = x.shape
        heads = self.query(x).view(rows, frames, 3, 4).transpose(1, 2)
        mixed = (heads @ heads.transpose(-1, -2) / frames).softmax(-1) @ heads
        return self.head(mixed.transpose(1, 2).reshape(rows, frames, width).mean(1))


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(20, 6), nn.Linear(11, 3)

    def forward(self, ids: Tensor, dense: Tensor, mask: Tensor) -> Tensor:
        return self.head(torch.cat([(self.table(ids) * mask.unsqueeze(-1)).mean(1), dense], 1))


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 3),
    ).eval()  # fmt: skip


def audio(rows: int = 3, length: int = 640) -> Tensor:
    return torch.randn(rows, length, generator=torch.Generator().manual_seed(rows))


def operators(proto: ModelProto) -> set[str]:
    return {node.op_type for node in proto.graph.node}


def halves_of(preprocess: nn.Module, model: nn.Module, *args: Tensor, **settings: Any) -> Halves:
    torch.manual_seed(0)
    return export_halves(model.eval(), preprocess=preprocess, args=args, **settings)


@pytest.fixture(scope="module")
def spoken() -> tuple[Halves, nn.Module]:
    torch.manual_seed(0)
    model = network()
    return halves_of(LogMel(), model, audio(), input_names=["audio"]), model


def test_log_mel_is_cut_off_and_both_halves_together_follow_the_modules(spoken: tuple[Halves, nn.Module]) -> None:
    halves, model = spoken
    assert "STFT" in operators(halves.whole) and not {"STFT", "Log"} & operators(halves.core)
    assert [value.name for value in halves.whole.graph.input] == ["audio"]
    for rows in (1, 5):
        expected = model(LogMel()(audio(rows))).detach().numpy()
        np.testing.assert_allclose(run_onnx(halves.whole, [{"audio": audio(rows).numpy()}]), expected, atol=1e-4)


def dynamic(core: ModelProto, samples: Any) -> ModelProto:
    return to_dynamic(core, target=TARGETS["x86"])[0]


def half(core: ModelProto, samples: Any) -> ModelProto:
    return to_half(core, samples=samples)[0]


def static(core: ModelProto, samples: Any) -> ModelProto:
    return quantize(core, target=TARGETS["x86"], calibration=samples)[0]


@pytest.mark.parametrize("convert", [static, dynamic, half])
def test_preprocessing_keeps_its_float32_numbers_when_the_model_is_quantized(
    convert: Callable[[ModelProto, Any], ModelProto], spoken: tuple[Halves, nn.Module]
) -> None:
    halves, model = spoken
    assert halves.front is not None
    rows = LogMel()(audio(64)).numpy()
    core = convert(halves.core, [{"preprocessed.0": rows}])
    assert operators(core) != operators(halves.core)
    whole = Halves(core, halves.front).whole
    onnx.checker.check_model(whole)
    stft = next(node for node in whole.graph.node if node.op_type == "STFT")
    floats = {t.name: t.data_type for t in whole.graph.initializer}
    assert floats[stft.input[2]] == TensorProto.FLOAT
    bank = [t for t in whole.graph.initializer if list(t.dims) == [12, 33]]
    assert [t.data_type for t in bank] == [TensorProto.FLOAT]
    expected = model(torch.from_numpy(rows)).detach().numpy()
    logits = run_onnx(whole, [{"audio": audio(64).numpy()}])
    assert np.abs(logits - expected).max() < 0.1 * np.abs(expected).max()


def test_a_model_that_reads_the_length_of_what_preprocessing_makes_takes_any_length() -> None:
    model = Frames()
    halves = halves_of(LogMel(), model, audio(), input_names=["audio"], open_axes={"audio": {1: "time"}})
    assert not {"STFT", "Log"} & operators(halves.core)
    for length in (320, 900):
        expected = model(LogMel()(audio(2, length))).detach().numpy()
        logits = run_onnx(halves.whole, [{"audio": audio(2, length).numpy()}])
        np.testing.assert_allclose(logits, expected, atol=1e-4)


IDS = torch.randint(0, 20, (3, 7), generator=torch.Generator().manual_seed(0))
DENSE = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("preprocess", "open_axes"),
    [
        (lambda ids, dense: {"ids": ids, "dense": dense * 2, "mask": (ids > 3).float()}, {}),
        (lambda ids, dense: (ids, dense - dense.mean(1, keepdim=True), (ids > 3).float()), {"ids": {1: "words"}}),
        (lambda ids, dense: (19 - ids, dense, (ids > 3).float() / 3), {}),
    ],
)
def test_several_tensors_whole_numbers_among_them_cross_the_boundary(
    preprocess: Callable[..., Any], open_axes: dict[str, Any]
) -> None:
    model = Words()
    halves = halves_of(Function(preprocess), model, IDS, DENSE, input_names=["ids", "dense"], open_axes=open_axes)
    assert [value.name for value in halves.core.graph.input] == [f"preprocessed.{place}" for place in range(3)]
    inner = preprocess(IDS, DENSE)
    expected = (model(**inner) if isinstance(inner, dict) else model(*inner)).detach().numpy()
    logits = run_onnx(halves.whole, [{"ids": IDS.numpy(), "dense": DENSE.numpy()}])
    np.testing.assert_allclose(logits, expected, atol=1e-5)


PICTURES = torch.rand(3, 3, 20, 18, generator=torch.Generator().manual_seed(0))
FRONTS: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {
    "frames of rfft": (lambda x: torch.fft.rfft(x.unfold(1, 64, 32) * WINDOW).abs(), audio()),
    "rfft": (lambda x: torch.fft.rfft(x, norm="ortho").abs(), audio()),
    "products of complex numbers": (lambda x: (lambda z: (z * z.conj()).real)(torch.fft.rfft(x)), audio()),
    "stft as real numbers": (
        lambda x: torch.view_as_real(torch.stft(x, 64, window=WINDOW, return_complex=True)).square().sum(-1),
        audio(),
    ),
    "antialiased": (
        lambda x: F.interpolate(x, size=(8, 8), mode="bilinear", antialias=True), PICTURES,
    ),
    "area": (lambda x: F.interpolate(x, size=(10, 9), mode="area"), PICTURES),
    "int16": (lambda x: x.float() / 32768, (audio() * 1000).to(torch.int16)),
    "pixels": (lambda x: x.permute(0, 3, 1, 2).float() / 255, (PICTURES * 255).to(torch.uint8)),
    "one-hot": (lambda x: F.one_hot(x, 20).float(), IDS),
    "row statistics": (lambda x: (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-5), audio()),
    "names of the boundary": (lambda preprocessed_0: preprocessed_0 * 2, DENSE),
}  # fmt: skip


@pytest.mark.parametrize("name", FRONTS)
def test_other_front_ends_are_exported_and_cut_off(name: str) -> None:
    function, example = FRONTS[name]
    width = function(example).flatten(1).shape[1]
    model = nn.Sequential(nn.Flatten(), nn.Linear(width, 3))
    raw = "preprocessed_0" if name == "names of the boundary" else "raw"
    halves = halves_of(Function(function), model, example, input_names=[raw])
    assert operators(halves.core) <= {"Gemm", "Reshape", "Flatten"}
    expected = model(function(example[:1])).detach().numpy()
    np.testing.assert_allclose(run_onnx(halves.whole, [{raw: example[:1].numpy()}]), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: torch.fft.rfft(x), "preprocess returns complex numbers; return .abs()"),
        (lambda x: torch.median(x, 1, keepdim=True)[0], "operator aten.median in its layer 'preprocess'"),
        (lambda x: torch.linalg.svdvals(x.reshape(-1, 8, 80)), "operator aten._linalg_svd in its layer 'preprocess'"),
    ],
)
def test_a_front_end_that_has_no_onnx_form_is_refused_by_its_operator(
    function: Callable[[Tensor], Tensor], words: str
) -> None:
    model = nn.Sequential(nn.Flatten(), Function(lambda x: x.abs()[:, :3]))
    with pytest.raises(UserError) as caught:
        halves_of(Function(function), model, audio(), input_names=["x"])
    assert words in str(caught.value)


def test_a_model_without_preprocessing_is_one_graph() -> None:
    model = nn.Linear(5, 3).eval()
    halves = export_halves(model, args=(DENSE,), input_names=["x"])
    assert halves.front is None and halves.whole == halves.core == export_onnx(model, args=(DENSE,), input_names=["x"])
