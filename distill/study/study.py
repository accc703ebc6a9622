"""Optuna's study in the run folder: trials that go on after a kill, and what the best of them chooses.

A run that was killed goes on with the trials that it has. A sampler is made anew for each trial from the seed and the
trial's number, so that a resumed study proposes what an undisturbed one would.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from distill.bounds import Natural
from distill.config.loading import RunConfig
from distill.files import remove
from distill.runtime.artifacts import Artifact, weights_hash
from distill.runtime.context import Context
from distill.runtime.folder import RunFolder, damaged, digest, sources
from distill.stages.common import TRAINING
from distill.study.objective import pick, score
from distill.study.space import require_allowed, with_values

JOURNAL = "study.journal"
_NOTE = "study.json"


@dataclass(frozen=True)
class _Journal:
    """The journal as the last finished trial left it."""

    length: Natural
    sha256: str


def choose(ctx: Context, teacher: Artifact) -> tuple[RunConfig, dict[str, Any]]:
    """Return the configuration with the chosen values in it, and the decision as JSON values."""
    if "search" in ctx.replay:
        replayed = dict(ctx.replay["search"])
        return with_values(ctx.config, replayed["chosen"]), replayed
    trials = ctx.config.search.trials
    _require_own(ctx.folder)
    study = _opened(ctx.folder.path / JOURNAL, _key(ctx, teacher), ctx.config)
    ahead = ctx.logits(teacher.onnx, "validation")
    goal = float(ctx.task.metrics(ahead, ctx.class_numbers("validation"))[ctx.task.metric]) - ctx.config.max_drop
    for number in range(len(_finished(study)), trials):
        ctx.console.progress("searching", number, trials)
        study.sampler = _sampler(ctx.config.seed + number, number)
        trial = study.ask()
        study.tell(trial, score(ctx, teacher, trial))
        journal = (ctx.folder.path / JOURNAL).read_bytes()
        ctx.folder.note(_NOTE, _Journal(len(journal), hashlib.sha256(journal).hexdigest()))
    ctx.console.progress("searching", trials, trials)
    finished = _finished(study)[:trials]
    best = pick(finished, goal)
    metric, macs = best.values
    decision = {
        "chosen": best.params,
        # Its place among the finished ones: Optuna's own number also counts the trials that a kill cut off.
        "trial": finished.index(best),
        "metric": metric,
        "macs": macs,
        "goal": goal,
        "trials": [{"params": trial.params, "values": list(trial.values)} for trial in finished],
    }
    return with_values(ctx.config, best.params), decision


def _key(ctx: Context, teacher: Artifact) -> str:
    """Return the study's name: a hash of everything that decides what a trial reaches."""
    config = ctx.config
    sections = (config.search, config.distill, config.student, config.prune)
    plain = [dataclasses.asdict(part) if dataclasses.is_dataclass(part) else part for part in sections]
    code = sources("distill.study", "distill.prune", *TRAINING)
    return digest(plain, config.seed, config.max_drop, weights_hash(teacher.folder), ctx.data_key, code)


def _opened(path: Path, key: str, config: RunConfig) -> optuna.Study:
    """Open the study in the run folder, which may come from a stranger: its trials are ones that a search makes.

    Raises:
        UserError: the journal is damaged, or holds other trials.
    """
    try:
        study = _study(path, key)
        trials = _finished(study)
        whole = all(len(trial.values) == 2 and all(map(math.isfinite, trial.values)) for trial in trials)
    except OSError:
        raise  # a full disk, say: nothing is wrong with the journal
    except Exception as error:  # whatever optuna stumbles over in a journal that it did not write
        raise damaged(path, error, remove=path) from error
    if not whole:
        raise damaged(path, "a trial has no two figures", remove=path)
    for trial in trials:
        require_allowed(config, trial.params, f"{path}: a trial")
    return study


def _study(path: Path, key: str) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    _mend(path)
    storage = JournalStorage(JournalFileBackend(str(path)))
    study = optuna.create_study(
        storage=storage, study_name=key, directions=["maximize", "minimize"], load_if_exists=True
    )
    for cut_off in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        # A sampler shuns what it believes to be under way elsewhere.
        study.tell(cut_off.number, state=TrialState.FAIL)
    return study


def _require_own(folder: RunFolder) -> None:
    """Remove a journal that does not begin with what the last finished trial left: all trials are repeated then.

    What a killed trial added after it does not count.
    """
    path, noted = folder.path / JOURNAL, folder.noted(_NOTE, _Journal)
    if noted and path.is_file() and not path.is_symlink():
        begun = path.read_bytes()[: noted.length]
        if hashlib.sha256(begun).hexdigest() == noted.sha256:
            return
    if noted:
        folder.tell(f"{path} is not what the search left: its trials are repeated")
    remove(path)


def _mend(path: Path) -> None:
    """Clear what a kill left: a torn last line, at which Optuna would raise, and a lock that it would wait for.

    The run folder's own lock is held, so that nobody else writes the journal.
    """
    path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
    if not path.is_file():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole != len(content):
        path.write_bytes(content[:whole])


def _sampler(seed: int, number: int) -> optuna.samplers.BaseSampler:
    if number < 4:
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=4)


def _finished(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
