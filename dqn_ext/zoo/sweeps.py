"""Optuna studies that several workers share, on several machines, and of which any may die at any moment.

Optuna's own means: a worker gives signs of life while a trial runs; where they stop, whoever begins a trial next fails
the silent one and queues its parameters again. The Zoo asks for none of it: a killed worker's trial runs for ever, and
is counted by ``--max-total-trials``. Optuna has it for databases only; here the journal file has it, too.
"""

import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages._heartbeat import BaseHeartbeat  # the base that Optuna looks for; it has no public name
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.storages.journal._file import get_lock_file  # to hold a lock for a while; it has no public name
from optuna.study import MaxTrialsCallback
from optuna.trial import FrozenTrial, TrialState

from dqn_ext.errors import InvalidInput

MAX_RETRIES = 3  # of one trial: its parameters may be what kills the workers
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
BEGUN = (*FINISHED, TrialState.RUNNING)

Objective = Callable[[optuna.Trial], float]


def open_storage(storage: str) -> BaseStorage:
    """What ``--storage`` names: a journal file, ``*.log``, or the URL of a database.

    ``DQN_EXT_HEARTBEAT`` sets the seconds between two signs of life of a worker, 20 by default; after three times that
    without one its trial is given to another.

    :raises InvalidInput: where it cannot be opened or is damaged, or its driver is not installed
    """
    seconds = os.environ.get("DQN_EXT_HEARTBEAT", "20")
    if not seconds.isdecimal() or int(seconds) < 1:
        raise InvalidInput(f"DQN_EXT_HEARTBEAT must be a whole number of seconds of at least 1, not {seconds!r}.")
    interval = int(seconds)
    warnings.filterwarnings("ignore", message=".*[Hh]eartbeat", category=optuna.exceptions.ExperimentalWarning)
    if storage.endswith(".log"):
        try:
            Path(storage).parent.mkdir(parents=True, exist_ok=True)
            return _Journal(storage, interval)
        except (OSError, ValueError) as error:
            raise InvalidInput(f"The journal {storage!r} cannot be read and written: {error}") from error
    try:
        return _open_database(storage, interval)
    except ImportError as error:
        raise InvalidInput(
            f"The driver of the storage {without_password(storage)!r} is not installed; "
            f"PostgreSQL's comes with pip install 'dqn-ext[sweeps]'."
        ) from error
    except (sqlalchemy.exc.SQLAlchemyError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InvalidInput(f"The storage {without_password(storage)!r} cannot be opened: {reason}") from error


def _open_database(url: str, interval: int) -> "_Database":
    for seconds in (0.1, 0.3, 1, 2):
        try:
            return _Database(url, interval)
        # Of workers that begin at once in an empty database all make its tables, and one succeeds
        except (sqlalchemy.exc.IntegrityError, sqlalchemy.exc.ProgrammingError, AssertionError):
            pass
        except sqlalchemy.exc.OperationalError as error:
            if "already exists" not in str(error):
                raise
        time.sleep(seconds)
    return _Database(url, interval)


def run_trials(study: optuna.Study, objective: Objective, n_trials: int, total: int | None, n_jobs: int) -> None:
    """This worker's part of a study.

    :param n_trials: how many trials it runs, where ``total`` is ``None``
    :param total: trials that come to an end, complete or pruned, of all workers together: this one ends when the study
        has them, since until then a trial of another worker's may have to be run again
    :param n_jobs: threads, cf. Optuna
    """
    if total is None:
        begun = 0

        def counted(trial: optuna.Trial) -> float:
            nonlocal begun
            begun += 1
            return objective(trial)

        while begun < n_trials:  # again where one was given to another
            _optimize(study, counted, n_trials=n_trials - begun, n_jobs=n_jobs)
        return

    def objective_unless_too_many(trial: optuna.Trial) -> float:
        # Two workers may have begun the last one at once. Of both, and of a killed one's that waits, the first stays.
        states = (*BEGUN, TrialState.WAITING)
        if sum(other.number < trial.number for other in study.get_trials(deepcopy=False, states=states)) >= total:
            raise _TooMany(f"the study has its {total} trials")
        return objective(trial)

    told = False
    while len(study.get_trials(deepcopy=False, states=FINISHED)) < total:
        if len(study.get_trials(deepcopy=False, states=BEGUN)) < total:
            stop = MaxTrialsCallback(total, states=BEGUN)
            _optimize(study, objective_unless_too_many, n_jobs=n_jobs, callbacks=[stop], catch=(_TooMany,))
        else:
            if not told:
                print("The last trials run in other workers; this one waits, in case one of them dies.", flush=True)
            told = True
            time.sleep(study._storage.get_heartbeat_interval() / 2)
            optuna.storages.fail_stale_trials(study)


def _optimize(study: optuna.Study, objective: Objective, **kwargs: Any) -> None:
    try:
        study.optimize(objective, gc_after_trial=True, **kwargs)
    except (ValueError, AssertionError) as error:
        if "Cannot tell a FAIL trial" not in f"{error} {error.__context__}":
            raise
        print("Warning: this worker gave no sign of life for too long, and its trial was given to another.", flush=True)


class _TooMany(Exception):
    """The study does not need this trial."""


class _Watch:
    """How long values have been what they are, by this process's clock: those of several machines differ."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[Any, float]] = {}

    def unchanged_for(self, key: int, value: Any) -> float:
        """:return: seconds since this value was first seen; 0 if it is now"""
        if key not in self._seen or self._seen[key][0] != value:
            self._seen[key] = value, time.monotonic()
        return time.monotonic() - self._seen[key][1]


class _Database(RDBStorage):
    """Optuna's storage with its signs of life switched on."""

    def __init__(self, url: str, interval: int) -> None:
        self._watch = _Watch()
        super().__init__(
            url,
            engine_kwargs={"pool_pre_ping": True},  # a connection may not outlive a long trial
            heartbeat_interval=interval,
            grace_period=3 * interval,
            heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(MAX_RETRIES),
        )

    def record_heartbeat(self, trial_id: int) -> None:
        """Cf. Optuna's, whose thread ends for good on the first answer that fails to come."""
        try:
            super().record_heartbeat(trial_id)
        except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            print(f"Warning: the study's database does not answer: {str(error).splitlines()[0]}", flush=True)

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        # Optuna passes over a trial whose worker died between beginning it and the first sign of life
        with self.engine.connect() as connection:
            alive = set(connection.execute(sqlalchemy.text("SELECT trial_id FROM trial_heartbeats")).scalars())
        silent = [
            trial._trial_id
            for trial in self.get_all_trials(study_id, deepcopy=False, states=(TrialState.RUNNING,))
            if trial._trial_id not in alive and self._watch.unchanged_for(trial._trial_id, None) > self.grace_period
        ]
        return super()._get_stale_trial_ids(study_id) + silent


class _Journal(JournalStorage, BaseHeartbeat):
    """Optuna's journal file, with signs of life in it: some 100 bytes each."""

    def __init__(self, path: str, interval: int) -> None:
        self._watch, self._interval = _Watch(), interval
        # Optuna's other lock is a link to the path as it was typed; where that leads nowhere, from the lock's folder or
        # on another machine, a killed worker's is never broken
        file = _JournalFile(path, JournalFileOpenLock(path))
        file.cut_torn_line()
        super().__init__(file)

    def get_heartbeat_interval(self) -> int:
        return self._interval

    def get_heartbeat_stale_trial_callback(self) -> Callable[[optuna.Study, FrozenTrial], None]:
        return RetryHeartbeatStaleTrialCallback(MAX_RETRIES)

    def record_heartbeat(self, trial_id: int) -> None:
        try:
            self.set_trial_system_attr(trial_id, "heartbeat", time.time())
        except (OSError, RuntimeError) as error:  # also of a trial that is over, or a lock that another one has broken
            print(f"Warning: no sign of life in the study's journal: {error}", flush=True)

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        return [
            trial._trial_id
            for trial in self.get_all_trials(study_id, deepcopy=False, states=(TrialState.RUNNING,))
            if self._watch.unchanged_for(trial._trial_id, trial.system_attrs.get("heartbeat")) > 3 * self._interval
        ]


class _JournalFile(JournalFileBackend):
    """Optuna's, whose lines are whole."""

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        try:
            super().append_logs(logs)
        except OSError:
            self.cut_torn_line()
            raise

    def cut_torn_line(self) -> None:
        """Take off what a full disk or a crash has left of a last line: the next one would be written behind it."""
        with get_lock_file(self._lock), open(self._file_path, "r+b") as file:
            content = file.read()
            if len(content) != (whole := content.rfind(b"\n") + 1):
                file.truncate(whole)


def without_password(storage: str) -> str:
    try:
        return sqlalchemy.engine.make_url(storage).render_as_string(hide_password=True)
    except sqlalchemy.exc.ArgumentError:
        return storage
