from __future__ import annotations

from pathlib import Path

from distill.config.loading import load_config
from distill.runtime.smoke import smoke_task
from distill.tasks import data_settings, load_task


def test_a_smoke_run_cuts_a_copy_of_the_task_also_of_one_with_a_metric_of_the_users(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def rate(logits, target):\n    return (logits.argmax(1) == target).mean()\n")
    task = load_task(data_settings(source="digits", metric="./mine.py:rate"), seed=0, folder=tmp_path)
    whole = {name: len(data) for name, data in task.data.items()}
    short = smoke_task(task, load_config("digits", ["teacher.batch_size=16", "distill.batch_size=16"]))
    assert {len(data) for data in short.data.values()} == {32}
    assert {name: len(data) for name, data in task.data.items()} == whole
    assert short.metric == "rate"
