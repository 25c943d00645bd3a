"""Studies that several workers share: the Zoo's own command, on a real database and on a journal file."""

import contextlib
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import optuna
import pytest
from optuna.storages.journal import JournalFileOpenLock
from optuna.trial import TrialState

from dqn_ext.errors import InvalidInput
from dqn_ext.zoo import sweeps
from dqn_ext.zoo.manager import ExperimentManager
from dqn_ext.zoo.sweeps import open_storage, run_trials
from tests.waiting import wait_until
from tests.zoo.conftest import run_python
from tests.zoo.sweep_kills import Study, kill_workers, postgresql, postgresql_binaries

needs_postgresql = pytest.mark.skipif(
    postgresql_binaries() is None, reason="PostgreSQL is not installed; Debian's package is postgresql"
)
STORAGES = [pytest.param("postgresql", marks=needs_postgresql), "journal"]


@pytest.fixture
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "journal":
        yield str(tmp_path / "studies" / "study.log")
    else:
        pytest.importorskip("psycopg", reason="PostgreSQL's driver is not installed: pip install 'dqn-ext[sweeps]'")
        with postgresql() as url:
            yield url


@pytest.mark.parametrize("kind", [pytest.param("postgresql", marks=needs_postgresql), "sqlite"])
def test_workers_that_begin_at_once(kind: str, tmp_path: Path) -> None:
    """In a new database all of them make its tables."""
    with contextlib.ExitStack() as stack:
        if kind == "postgresql":
            pytest.importorskip("psycopg", reason="PostgreSQL's driver is not installed: pip install 'dqn-ext[sweeps]'")
            url = stack.enter_context(postgresql())
        else:
            url = f"sqlite:///{tmp_path / 'study.db'}"
        n_workers = 6
        together = threading.Barrier(n_workers)

        def begin(_: int) -> int:
            together.wait()
            study = optuna.create_study(storage=open_storage(url), study_name="s", load_if_exists=True)
            return study.ask().number

        with ThreadPoolExecutor(n_workers) as pool:
            assert sorted(pool.map(begin, range(n_workers))) == list(range(n_workers))


@pytest.mark.parametrize("storage", STORAGES, indirect=True)
def test_a_killed_workers_trial_is_run_again(storage: str, tmp_path: Path) -> None:
    study = Study(storage, tmp_path, total=6, steps=12_000)
    # Of the six, two that no later trial reaches at any of its evaluations: the pruner ends them all
    best = optuna.trial.create_trial(value=501, intermediate_values=dict.fromkeys(range(1, 6), 501.0))
    study.study.add_trials([best, best])
    try:
        study.start()
        study.start()
        study.wait_for(running=2)  # both are in mid-trial
        killed = {trial.number for trial in study.trials(TrialState.RUNNING)}
        study.kill(0)
        study.join()
        counts = study.check(kills=1)
    finally:
        study.close()
    assert (counts["failed"], counts["run again"], counts["left waiting"]) == (1, 1, 0)
    assert study.pid(study.trials(TrialState.FAIL)[0]) == study.workers[0].pid
    assert {trial.number for trial in study.trials(TrialState.FAIL)} <= killed
    assert (counts["complete"], counts["pruned"]) == (2, 4)


@pytest.mark.slow
@pytest.mark.parametrize("storage", STORAGES, indirect=True)
def test_twenty_kills(storage: str, tmp_path: Path) -> None:
    study = Study(storage, tmp_path, total=40, steps=3000)
    try:
        print(kill_workers(study, kills=20, workers=3))
    finally:
        study.close()


class Clock:
    """In place of the module ``time`` where signs of life are waited for: sleeping takes no time."""

    now = 0.0

    def time(self) -> float:
        return self.now

    monotonic = time

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(sweeps, "time", clock)
    return clock


class TestTwoWorkersOfOneJournal:
    """Each is a study object of its own on the same file, as in another process."""

    @pytest.fixture(autouse=True)
    def _quick(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("DQN_EXT_HEARTBEAT", "1")
        self.path = str(tmp_path / "study.log")

    def worker(self) -> optuna.Study:
        return optuna.create_study(storage=open_storage(self.path), study_name="s", load_if_exists=True)

    def test_the_total_is_exact_when_both_begin_the_last_trial(self) -> None:
        ours, theirs = self.worker(), self.worker()

        def objective(trial: optuna.Trial) -> float:
            if trial.number == 2:
                theirs.tell(theirs.ask(), 1.0)  # trial 3, which is the last of 4
                return trial.suggest_float("x", 0, 1)
            return 0.0

        def last(trial: optuna.Trial) -> float:
            raise AssertionError("not needed")

        run_trials(ours, objective, 1, total=4, n_jobs=1)
        assert [trial.state for trial in ours.trials] == [TrialState.COMPLETE] * 4
        run_trials(theirs, last, 1, total=4, n_jobs=1)
        assert len(ours.trials) == 4

    def test_one_trial_too_many_is_not_run(self) -> None:
        ours, theirs = self.worker(), self.worker()
        begun = []

        def objective(trial: optuna.Trial) -> float:
            begun.append(trial.number)
            if trial.number == 0:
                # They finish two, and begin a third that is running when ours counts
                for _ in range(2):
                    theirs.tell(theirs.ask(), 1.0)
            return 0.0

        # Between this worker's count (2 begun) and its next trial, another begins one
        ask = ours.ask

        def late_ask() -> optuna.Trial:
            if len(ours.get_trials(deepcopy=False)) == 3:
                theirs.tell(theirs.ask(), 1.0)
            return ask()

        ours.ask = late_ask  # type: ignore[method-assign, assignment]
        run_trials(ours, objective, 1, total=4, n_jobs=1)
        states = [trial.state for trial in ours.trials]
        assert begun == [0]
        assert states == [TrialState.COMPLETE] * 4 + [TrialState.FAIL]

    @pytest.mark.parametrize("kind", ["journal", "database"])
    def test_a_trial_that_never_gave_a_sign_of_life_is_run_again(self, kind: str, clock: "Clock") -> None:
        """Its worker died between beginning it and the first one."""
        if kind == "database":
            self.path = f"sqlite:///{self.path.replace('.log', '.db')}"
        self.worker().ask(fixed_distributions={"x": optuna.distributions.FloatDistribution(0, 1)})
        ours = self.worker()
        run_trials(ours, lambda trial: trial.suggest_float("x", 0, 1), 1, total=2, n_jobs=1)
        assert clock.now >= 3  # it might have been alive
        assert [trial.state.name for trial in ours.trials].count("COMPLETE") == 2
        assert ours.trials[0].state == TrialState.FAIL
        assert ours.trials[0].params in [trial.params for trial in ours.trials[1:]]

    def test_parameters_that_kill_each_worker_are_given_up(
        self, monkeypatch: pytest.MonkeyPatch, clock: "Clock"
    ) -> None:
        monkeypatch.setattr(sweeps, "MAX_RETRIES", 1)
        study = self.worker()
        for _ in range(3):
            self.worker().ask()  # and dies
            watcher = self.worker()
            optuna.storages.fail_stale_trials(watcher)  # begins to watch
            clock.sleep(3.1)
            optuna.storages.fail_stale_trials(watcher)
        # The first one and its retry; the third worker began another, which waits to be run again
        assert [trial.system_attrs.get("retry_history") for trial in study.trials] == [None, [0], None, [2]]

    def test_a_trial_given_to_another_is_counted_once(self, capsys: pytest.CaptureFixture[str]) -> None:
        ours, theirs = self.worker(), self.worker()

        def objective(trial: optuna.Trial) -> float:
            if trial.number == 0:  # this worker has been silent, say suspended: another fails its trial
                theirs._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
            return 1.0

        run_trials(ours, objective, 1, total=2, n_jobs=1)
        assert "was given to another" in capsys.readouterr().out
        assert [trial.state for trial in ours.trials] == [TrialState.FAIL, TrialState.COMPLETE, TrialState.COMPLETE]

    def test_whoever_loses_a_trial_runs_the_others(self) -> None:
        ours, theirs = self.worker(), self.worker()

        def objective(trial: optuna.Trial) -> float:
            if trial.number == 0:
                theirs._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
            return 1.0

        run_trials(ours, objective, 3, total=None, n_jobs=1)
        assert [trial.state for trial in ours.trials] == [TrialState.FAIL, TrialState.COMPLETE, TrialState.COMPLETE]

    def test_a_lock_that_a_killed_worker_has_left(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """Of a path with a folder, relative, as it is typed on the command line."""
        monkeypatch.chdir(tmp_path)
        storage = open_storage("studies/study.log")
        storage._backend._lock.grace_period = 1  # type: ignore[attr-defined]
        JournalFileOpenLock("studies/study.log").acquire()
        optuna.create_study(storage=storage, study_name="s")
        assert [path.name for path in Path("studies").iterdir()] == ["study.log"]

    def test_a_line_that_was_not_written_to_its_end(self) -> None:
        self.worker().tell(self.worker().ask(), 1.0)
        with open(self.path, "ab") as file:
            file.write(b'{"op_code": 5, "wor')
        for number in (1, 2):
            study = self.worker()
            assert len(study.trials) == number
            study.tell(study.ask(), 1.0)

    def test_a_disk_that_is_full_for_a_moment(self, capsys: pytest.CaptureFixture[str]) -> None:
        """The worker lives on, and what it writes then does not stand behind half a line."""
        study = self.worker()
        trial = study.ask()
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (Path(self.path).stat().st_size + 50, limits[1]))
        try:
            study._storage.record_heartbeat(trial._trial_id)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert "Warning: no sign of life in the study's journal: [Errno 27] File too large" in capsys.readouterr().out
        study.tell(trial, 1.0)
        assert self.worker().trials[0].value == 1.0

    def test_a_damaged_journal(self) -> None:
        self.worker()
        content = Path(self.path).read_bytes()
        Path(self.path).write_bytes(b"<<<<<<< HEAD\n" + content)
        with pytest.raises(InvalidInput, match=r"The journal '.*study.log' cannot be read and written: "):
            open_storage(self.path)
        assert Path(self.path).read_bytes() == b"<<<<<<< HEAD\n" + content


def test_nothing_is_pruned_at_its_last_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    def evaluate(self: ExperimentManager, trial: optuna.Trial) -> list[bool]:
        pruned = []
        for step in (1, 2, 3):
            trial.report(5.0, step)
            pruned.append(trial.should_prune())
        return pruned

    monkeypatch.setattr(ExperimentManager.__base__, "objective", evaluate)
    manager = object.__new__(ExperimentManager)
    manager._hyperparams, manager.frame_stack, manager.custom_hyperparams, manager.storage = {}, None, None, None
    manager.n_evaluations = 3
    trial = optuna.create_study(pruner=optuna.pruners.ThresholdPruner(lower=10)).ask()
    assert manager.objective(trial) == [True, True, False]  # type: ignore[comparison-overlap]


def test_ctrl_c_and_going_on(tmp_path: Path) -> None:
    """An interrupted trial is run again by the next session, and the same seed does not repeat its parameters."""
    storage = tmp_path / "studies" / "study.log"
    train = "-m rl_zoo3.train --algo ddqn --env CartPole-v1 -optimize --eval-episodes 1 --no-optim-plots --seed 0 "
    train += "--storage studies/study.log --study-name s"
    with subprocess.Popen(
        [sys.executable, *f"{train} -n 5000".split()], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    ) as worker:
        # The last parameter that is sampled
        wait_until(lambda: storage.exists() and b'"param_name":"net_arch"' in storage.read_bytes(), worker)
        worker.send_signal(signal.SIGINT)
        output, _ = worker.communicate(timeout=120)
    assert worker.returncode == 0
    assert "No trial of the study 's' is complete yet." in output

    process = run_python(f"{train} -n 100", cwd=tmp_path, check=False)
    assert "Error: The study 's' has n_timesteps 5000, not 100; another --study-name begins" in process.stderr
    run_python(f"{train} -n 5000 --n-trials 2", cwd=tmp_path)
    study = optuna.load_study(storage=open_storage(str(storage)), study_name="s")
    assert "-optimize" in study.user_attrs["command"]
    interrupted, again, another = study.trials
    assert [trial.state.name for trial in study.trials] == ["FAIL", "COMPLETE", "COMPLETE"]
    assert interrupted.params == again.params != another.params


class TestSentences:
    def test_a_heartbeat_that_is_no_number(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DQN_EXT_HEARTBEAT", "often")
        with pytest.raises(InvalidInput, match=r"DQN_EXT_HEARTBEAT must be a whole number .* not 'often'"):
            open_storage("sqlite://")

    @pytest.mark.parametrize(
        ("url", "sentence"),
        [
            ("postgresql+psycopg://zoo:secret@127.0.0.1:1/none", "zoo:\\*\\*\\*@127.0.0.1:1/none' cannot be opened"),
            ("mysql+nodriver://zoo:secret@host/none", "cannot be opened|is not installed"),
            ("no url", "'no url' cannot be opened"),
        ],
    )
    def test_a_storage_that_cannot_be_opened(self, url: str, sentence: str) -> None:
        if url.startswith("postgresql"):
            pytest.importorskip("psycopg")
        with pytest.raises(InvalidInput, match=sentence) as caught:
            open_storage(url)
        assert "secret" not in str(caught.value)


def test_other_algorithms_and_n_trials(tmp_path: Path) -> None:
    """``--n-trials`` counts one worker's trials, as the Zoo has it, on any database."""
    run_python(
        "-m rl_zoo3.train --algo dqn --env CartPole-v1 -optimize -n 300 --n-trials 2 --n-evaluations 2 "
        "--eval-episodes 1 --storage sqlite:///study.db --study-name s --no-optim-plots -f logs",
        cwd=tmp_path,
    )
    study = optuna.load_study(storage=f"sqlite:///{tmp_path}/study.db", study_name="s")
    assert [trial.state.is_finished() for trial in study.trials] == [True] * 2
    assert "-optimize" in study.user_attrs["command"]
    assert len(list(tmp_path.glob("logs/dqn/report_*_2-trials-300-*.csv"))) == 1
