from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from distill.tasks.base import Batch, Task
from distill.training.batches import batches, shuffled


class Numbers:
    """Samples that are their own number."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def fetch(self, index: Tensor, view: int | None) -> Batch:
        return index.clone(), view


@settings(max_examples=50, deadline=None)
@given(count=st.integers(1, 60), size=st.integers(1, 70))
def test_plain_order_covers_every_sample_once(count: int, size: int) -> None:
    seen = [index for index, _ in batches(Numbers(count), size)]
    assert torch.equal(torch.cat(seen), torch.arange(count))
    assert all(len(one) == size for one in seen[:-1])


@settings(max_examples=50, deadline=None)
@given(count=st.integers(1, 60), size=st.integers(1, 70), seed=st.integers(0, 9), epoch=st.integers(0, 9))
def test_shuffled_batches_are_full_and_repeat_no_sample(count: int, size: int, seed: int, epoch: int) -> None:
    seen = [index for index, _ in shuffled(Numbers(count), size, seed=seed, epoch=epoch, view=3)]
    assert len(seen) == max(1, count // size)
    assert all(len(one) == min(size, count) for one in seen)
    assert len(torch.cat(seen).unique()) == len(seen) * min(size, count)


def test_order_depends_on_seed_and_epoch_only() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        torch.manual_seed(np.random.randint(1000))
        parts = [index for index, _ in shuffled(Numbers(50), 10, seed=seed, epoch=epoch, view=None)]
        return [int(one) for one in torch.cat(parts)]

    assert order(1, 2) == order(1, 2)
    assert len({tuple(order(*one)) for one in ((1, 2), (2, 1), (1, 3), (0, 0))}) == 4


def test_a_view_is_passed_to_the_data() -> None:
    assert {view for _, (_, view) in shuffled(Numbers(10), 5, seed=0, epoch=0, view=7)} == {7}


def test_augmented_pixels_are_the_same_whatever_batch_asks(tiny_task: Task) -> None:
    data = tiny_task.data["train"]
    together = tiny_task.inputs(data.fetch(torch.tensor([4, 9, 1]), 2))[0][0]
    alone = tiny_task.inputs(data.fetch(torch.tensor([9]), 2))[0][0]
    assert torch.equal(together[1:2], alone)
    everything = torch.arange(len(data))
    one, other = (tiny_task.inputs(data.fetch(everything, view))[0][0] for view in (2, 3))
    assert not torch.equal(one, other)
