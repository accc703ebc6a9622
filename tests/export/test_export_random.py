"""Random valid graphs through `strip`, `simplify` and quantisation; see `random_campaign` for thousands of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from random_campaign import campaign
from random_checks import ALL_STEPS, KINDS, check_quantized, check_simplify, check_strip, drawn, session, usable

from distill.errors import UserError
from distill.export import simplify
from distill.quantize.torch_graph import GraphModule

# The same graphs every time: what is new belongs into a campaign, not into somebody's merge.
QUIET = [HealthCheck.filter_too_much, HealthCheck.too_slow]
QUICK = {"deadline": None, "derandomize": True, "suppress_health_check": QUIET}
SEEDS, SIZES = st.integers(0, 2**32 - 1), st.integers(1, 14)


@settings(max_examples=150, **QUICK)
@given(SEEDS, SIZES)
def test_strip_and_simplify_keep_answers_inputs_and_outputs(seed: int, steps: int) -> None:
    graph = drawn(seed, steps)
    feeds = usable(graph)
    assume(feeds)
    check_strip(graph, feeds)
    check_simplify(graph, feeds)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, **QUICK)
@given(SEEDS, st.integers(4, 12))
def test_quantisation_is_refused_in_words_or_answers_nearly_as_float(kind: str, seed: int, steps: int) -> None:
    graph = drawn(seed, steps)
    feeds = usable(graph)
    assume(feeds)
    check_quantized(graph, feeds, kind, seed)


@settings(max_examples=60, **QUICK)
@given(SEEDS, st.integers(1, 6))
def test_a_graph_answers_in_torch_as_in_onnxruntime_or_is_refused(seed: int, steps: int) -> None:
    graph = drawn(seed, steps)
    feeds = usable(graph)
    assume(feeds and graph.continuous)
    model = simplify(graph.model)
    try:
        found = GraphModule(model)(**{name: torch.from_numpy(value) for name, value in feeds[0].items()})
    except UserError:
        return
    expected = session(model).run(None, feeds[0])[0]
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-3, atol=1e-4)


def test_the_same_seed_gives_the_same_graph_and_all_kinds_of_steps_come_up() -> None:
    assert drawn(7, 9).model == drawn(7, 9).model
    models = [drawn(seed, 14).model for seed in range(60)]
    operators = {node.op_type for model in models for node in model.graph.node}
    assert len(operators) > 60 and len({model.opset_import[0].version for model in models}) == 11
    assert len(ALL_STEPS) > 45


def test_a_campaign_cuts_failures_down_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import random_campaign

    def check(self: object, seed: int, steps: int) -> list[tuple[str, str]]:
        return [("strip", "AssertionError: other answers" if seed == 1 and steps > 3 else "")]

    monkeypatch.setattr(random_campaign.Worker, "check", check)
    counts = campaign(3, out=tmp_path / "failures.jsonl")
    assert counts == {"graphs": 3, "strip": 2, "strip failed": 1}
    assert '"seed": 1, "steps": 4' in (tmp_path / "failures.jsonl").read_text()


@pytest.mark.slow
def test_twenty_thousand_graphs(tmp_path: Path) -> None:
    out = tmp_path / "failures.jsonl"
    campaign(20_000, out=out, seconds=3600)
    assert not out.exists(), out.read_text()
