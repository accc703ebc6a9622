from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_run import Finished
from torch import nn

from distill.distillation.losses import Kd
from distill.distillation.teachers import teacher_for
from distill.errors import UserError
from distill.tasks.base import Task
from distill.training import loop as training
from distill.training.forward import predict
from distill.training.lesson import Lesson
from distill.training.loop import TrainRecord, fit
from distill.training.settings import TrainSettings
from distill.training.taps import Answers

CPU = torch.device("cpu")
SETTINGS = TrainSettings(epochs=3, batch_size=32, learning_rate=0.05)


class StoppedError(Exception):
    """Stands for a kill."""


def network(seed: int = 0, width: int = 4) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, width, 3, stride=2), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2),
        nn.Linear(9 * width, 3),
    )  # fmt: skip


KD = Kd(temperature=4.0, weight=0.9)


def train(task: Task, settings: TrainSettings = SETTINGS, **options: Any) -> tuple[nn.Module, TrainRecord]:
    return fit(network(), task, settings, **{"seed": 0, "device": CPU, **options})


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def stopper(after: int) -> Any:
    def progress(what: str, done: int, total: int) -> None:
        if done == after:
            raise StoppedError

    return progress


def test_the_model_that_came_in_is_unchanged(tiny_task: Task) -> None:
    model = network().eval()
    before = copy.deepcopy(model)
    trained, _ = fit(model, tiny_task, SETTINGS, seed=0, device=CPU)
    assert same(model, before)
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not same(model, trained)


def test_training_learns(tiny_task: Task) -> None:
    _, record = train(tiny_task, replace(SETTINGS, epochs=6))
    assert record.curves["loss"][-1] < 0.8 * record.curves["loss"][0]
    assert record.curves["validation"][-1] > 0.6
    assert (record.epochs, record.steps, record.kept_epoch) == (6, 6 * (len(tiny_task.data["train"]) // 32), 6)


def test_equal_seeds_give_equal_weights_whatever_was_drawn_before(tiny_task: Task) -> None:
    one, first = train(tiny_task)
    torch.manual_seed(99)
    np.random.seed(99)
    other, second = train(tiny_task)
    assert same(one, other)
    assert first == second
    assert not same(one, train(tiny_task, seed=1)[0])


def test_the_callers_random_numbers_go_on_as_if_nothing_had_been_trained(tiny_task: Task) -> None:
    model = network()
    before = torch.get_rng_state()
    fit(model, tiny_task, SETTINGS, seed=0, device=CPU)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("select", ["last", "best"])
def test_a_training_that_was_killed_goes_on_to_the_same_weights(
    tiny_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str, select: str
) -> None:
    monkeypatch.setattr(training, "SAVE_EVERY_S", 0.0)
    settings = TrainSettings(
        epochs=4, batch_size=32, learning_rate=0.05 if optimizer == "sgd" else 0.01, optimizer=optimizer, select=select
    )
    expected, record = train(tiny_task, settings)
    steps = record.steps // 4
    checkpoint = tmp_path / "checkpoint.safetensors"
    for after in (2, steps + 1, 3 * steps, 3 * steps + 2):
        with pytest.raises(StoppedError):
            train(tiny_task, settings, checkpoint=checkpoint, progress=stopper(after))
    assert checkpoint.is_file()
    done: list[int] = []
    model, resumed = train(
        tiny_task, settings, checkpoint=checkpoint, progress=lambda what, now, total: done.append(now)
    )
    assert done[0] == 3 * steps + 1
    assert same(model, expected)
    assert resumed == record


def test_no_checkpoint_is_written_before_it_is_worth_it(tiny_task: Task, tmp_path: Path) -> None:
    train(tiny_task, checkpoint=tmp_path / "checkpoint.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_the_best_epoch_is_the_best_on_validation_data(tiny_task: Task) -> None:
    model, record = train(tiny_task, replace(SETTINGS, epochs=5, select="best"))
    best = max(record.curves["validation"])
    assert record.curves["validation"][record.kept_epoch - 1] == best
    logits, target = predict(model, tiny_task, tiny_task.data["validation"], CPU)
    assert tiny_task.metrics(logits, target)["accuracy"] == pytest.approx(best)


def test_cached_and_live_teachers_answer_alike_for_the_same_view(tiny_task: Task, tmp_path: Path) -> None:
    teacher = network(5).eval()
    cached = teacher_for(teacher, tiny_task, views=2, key="k", folder=tmp_path, device=CPU)
    live = teacher_for(teacher, tiny_task, views=0, key="k", folder=tmp_path, device=CPU)
    data, index = tiny_task.data["train"], torch.tensor([5, 3, 40, 77])
    for view in (0, 1):
        batch = data.fetch(index, view)
        kept, fresh = (teacher(index, batch, view).logits for teacher in (cached, live))
        # Half precision is how they are kept; nothing else may differ.
        torch.testing.assert_close(kept, fresh, rtol=2**-10, atol=1e-4)
        whole, _ = predict(teacher, tiny_task, data, CPU, view=view)
        assert torch.equal(kept, torch.from_numpy(whole)[index].half().float())
    assert not torch.equal(cached(index, None, 0).logits, cached(index, None, 1).logits)


def test_cached_logits_lead_to_what_live_logits_lead_to(tiny_task: Task, tmp_path: Path) -> None:
    teacher = network(5, width=8).eval()
    cached = teacher_for(teacher, tiny_task, views=2, key="k", folder=tmp_path, device=CPU)
    live = teacher_for(teacher, tiny_task, views=0, key="k", folder=tmp_path, device=CPU)
    one, first = train(tiny_task, lesson=Lesson(cached, KD, 2))
    other, second = train(tiny_task, lesson=Lesson(live, KD, 2))
    assert first.curves["loss"] == pytest.approx(second.curves["loss"], rel=1e-3)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.01)


def test_the_control_takes_as_many_steps_as_the_student(finished: Finished) -> None:
    control, student = (finished.result.stage(name).detail.training for name in ("control", "student"))
    assert control.steps == student.steps > 0
    assert control.epochs == student.epochs


def test_a_batch_larger_than_the_data_is_one_step_an_epoch(tiny_task: Task) -> None:
    assert train(tiny_task, replace(SETTINGS, batch_size=10_000))[1].steps == 3


def test_bfloat16_is_used_when_asked_for(tiny_task: Task) -> None:
    model, record = train(tiny_task, replace(SETTINGS, precision="bf16"))
    assert record.precision == "bf16"
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


@pytest.mark.parametrize(("value", "why"), [(torch.nan, "0.weight holds NaN (1 of "), (torch.inf, "holds infinities")])
def test_weights_that_are_no_numbers_are_named_before_training(tiny_task: Task, value: float, why: str) -> None:
    model = network()
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] = value
    with pytest.raises(UserError, match="before the first step") as caught:
        fit(model, tiny_task, SETTINGS, seed=0, device=CPU)
    assert why in str(caught.value) and "learning_rate" not in str(caught.value)


def test_a_first_loss_that_is_no_number_is_not_laid_to_the_learning_rate(tiny_task: Task) -> None:
    with pytest.raises(UserError, match=r"the trial: the loss became nan before the first step.*in the loss"):
        lesson = Lesson(lambda index, batch, view: Answers(torch.full((len(index), 3), torch.inf)), KD)
        fast = replace(SETTINGS, learning_rate=100.0, warmup=0)
        train(tiny_task, fast, title="the trial", section="teacher", lesson=lesson)


def test_a_model_without_anything_to_train_is_refused(tiny_task: Task) -> None:
    with pytest.raises(UserError, match="no parameter"):
        fit(network().requires_grad_(False), tiny_task, SETTINGS, seed=0, device=CPU)


@pytest.mark.parametrize(("classes", "shape"), [(5, r"\(32, 5\)"), (1, r"\(32, 1\)")])
def test_logits_of_another_shape_are_refused(tiny_task: Task, classes: int, shape: str) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
    with pytest.raises(UserError, match="logits"):
        fit(model, tiny_task, SETTINGS, seed=0, device=CPU)


def test_predicting_leaves_the_model_in_its_mode(tiny_task: Task) -> None:
    model = network()
    model[1].eval()
    predict(model, tiny_task, tiny_task.data["validation"], CPU)
    assert model.training
    assert not model[1].training
