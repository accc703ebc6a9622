from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest

from distill.benchmarks import (
    Target,
    make_inputs,
    open_session,
    providers_that_load,
    resolve_target,
    runner,
)
from distill.errors import NotMeasuredError, UserError


def test_threads_are_given_and_nothing_spins(conv: Callable[..., Path]) -> None:
    session = open_session(conv(), resolve_target(None, threads=2))
    options = session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 1)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert options.get_session_config_entry("session.inter_op.allow_spinning") == "0"
    assert session.get_providers() == ["CPUExecutionProvider"]


def test_the_optimised_graph_is_written(conv: Callable[..., Path], here: Target, tmp_path: Path) -> None:
    open_session(conv(), here, optimized_to=tmp_path / "optimised.onnx")
    assert (tmp_path / "optimised.onnx").stat().st_size > 0


def test_a_session_that_falls_back_is_not_measured(
    conv: Callable[..., Path], here: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime.InferenceSession, "get_providers", lambda self: ["OtherExecutionProvider"])
    with pytest.raises(NotMeasuredError, match="CPUExecutionProvider was asked for, OtherExecutionProvider runs"):
        open_session(conv(), here)


def test_a_provider_that_raises_is_told_from_a_broken_file(
    conv: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = onnxruntime.InferenceSession

    def fail(path: str, options: object, providers: list[object], **kwargs: object) -> object:
        if providers != ["CPUExecutionProvider"]:
            assert kwargs["enable_fallback"] == 0
            raise RuntimeError("no such library")
        return real(path, options, providers=providers)

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(runner, "preload", lambda provider: "")
    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    with pytest.raises(NotMeasuredError, match="CUDAExecutionProvider did not load: no such library"):
        open_session(conv(), resolve_target("cuda"))


def test_a_provider_that_this_build_lacks(conv: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(NotMeasuredError, match="no CUDAExecutionProvider, only CPUExecutionProvider"):
        open_session(conv(), resolve_target("cuda"))


@pytest.mark.parametrize("content", [b"", b"hello " * 50, b"\x00" * 64])
def test_a_broken_file_is_the_users_to_mend(tmp_path: Path, here: Target, content: bytes) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    for call in (lambda: open_session(path, here), lambda: make_inputs(path, 1)):
        with pytest.raises(UserError, match=r"broken\.onnx"):
            call()


def test_a_truncated_file_never_opens(conv: Callable[..., Path], tmp_path: Path, here: Target) -> None:
    whole = conv().read_bytes()
    path = tmp_path / "truncated.onnx"
    for length in [*range(0, len(whole), 7), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"truncated\.onnx"):
            open_session(path, here)


def test_missing_file_and_folder(tmp_path: Path, here: Target) -> None:
    with pytest.raises(UserError, match="does not exist"):
        open_session(tmp_path / "none.onnx", here)
    with pytest.raises(UserError, match="is a folder"):
        open_session(tmp_path, here)


def test_options_spell_out_what_decides_a_latency() -> None:
    assert resolve_target("x86").provider_options() == {}
    assert resolve_target("cuda").provider_options()["use_tf32"] == "1"
    assert resolve_target("tensorrt").provider_options()["trt_int8_enable"] == "1"
    names = [name for name, _ in runner.with_fallbacks(resolve_target("tensorrt").for_runner())]
    assert names == ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]


def test_the_cpu_loads_and_what_does_not_says_why() -> None:
    answers = providers_that_load()
    assert answers["CPUExecutionProvider"] == "loads"
    assert {"CUDAExecutionProvider", "TensorrtExecutionProvider"} <= set(answers)
    assert all(answers.values())


def test_cuda_libraries_are_preloaded_for_gpu_providers_only(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(
        onnxruntime, "preload_dlls", lambda: (calls.append(1), print("Failed to load x"))[0], raising=False
    )
    assert runner.preload({"device": "cpu"}) == ""
    assert runner.preload({"device": "cuda"}) == "Failed to load x"
    assert len(calls) == 1
    monkeypatch.delattr(onnxruntime, "preload_dlls")
    assert runner.preload({"device": "cuda"}) == ""
