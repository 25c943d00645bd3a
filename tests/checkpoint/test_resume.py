"""A run that died and went on is the run that never died: every part of it, bit for bit."""

import os
import signal
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

import numpy as np
import pytest
import torch as th
from stable_baselines3 import DQN
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback
from stable_baselines3.common.vec_env import SubprocVecEnv

from dqn_ext import DDQN, learner
from dqn_ext.checkpoint import CheckpointFolder, ResumeCallback, callback, state
from dqn_ext.errors import Diverged, InvalidInput
from tests.checkpoint.runs import FREQ, TOTAL, Run, StopAt, Stopped, assert_same, interrupt, outcome

KINDS = {
    "one environment": {"precision": "auto"},
    "learning while the environment steps": {"overlap": True},
    "as packaged": {
        "n_envs": 2,
        "train_freq": 2,
        "n_steps": 3,
        "overlap": True,
        "reward_bound": 1,
        "learning_rate": lambda progress: 1e-3 * progress,
        "replay_buffer_kwargs": {"store": "raw", "priority_exponent": 0.6, "importance_exponent": 0.3},
    },
    "CartPole, normalized": {"env": "CartPole-v1", "n_steps": 3, "learning_rate": lambda progress: 1e-3 * progress},
    "SB3's DQN": {"algorithm": DQN},
    "episodes": {"env": "MountainCar-v0", "train_freq": (1, "episode"), "gradient_steps": 20},
}


@pytest.fixture(autouse=True)
def _one_thread():
    before = th.get_num_threads()
    th.set_num_threads(1)
    yield
    th.set_num_threads(before)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_run(tmp_path, kind, capsys):
    """Never interrupted and without checkpoints; with checkpoints; and interrupted twice."""
    kwargs = KINDS[kind]
    alone = Run(tmp_path / "alone", freq=0, **kwargs)
    wanted = outcome(alone.learn(), tmp_path / "alone")

    with_checkpoints = Run(tmp_path / "with", **kwargs)
    assert_same(outcome(with_checkpoints.learn(), tmp_path / "with"), wanted)

    if kind == "episodes":
        interrupt(tmp_path / "dead", 250, **kwargs)
    else:
        # Between two evaluations; and after one, whose best agent must not stay
        interrupt(tmp_path / "dead", FREQ * 2 + 10, **kwargs)
        interrupt(tmp_path / "dead", 190 if "CartPole" in kind else FREQ * 5 + 10, **kwargs)
    last = Run(tmp_path / "dead", **kwargs)
    assert last.resume.resumes
    capsys.readouterr()
    assert_same(outcome(last.learn(), tmp_path / "dead"), wanted)
    assert f"of {TOTAL}, kept in {tmp_path}/dead/checkpoint/" in capsys.readouterr().out


def test_rotation_and_files(tmp_path):
    """Two checkpoints are kept; what was written to the run's folder after the last one is taken back."""
    interrupt(tmp_path, FREQ * 3 + 5)
    folder = CheckpointFolder(tmp_path / "checkpoint")
    assert folder.steps() == [FREQ * 3, FREQ * 2]
    assert sorted(path.name for path in folder.at(FREQ * 3).iterdir()) == [
        "manifest.json",
        "model.zip",
        "replay_buffer.pkl",
        "run",
        "state.pt",
    ]
    kept = (folder.at(FREQ * 3) / "run" / "0.monitor.csv").read_bytes()
    with (tmp_path / "0.monitor.csv").open("ab") as file:
        file.write(b"1.0,50,2.5\n1.0,")
    (tmp_path / "evaluations.npz").write_bytes(b"torn")
    run = Run(tmp_path)
    run.close()
    assert (tmp_path / "0.monitor.csv").read_bytes() == kept
    assert np.load(tmp_path / "evaluations.npz")["timesteps"].tolist() == [100]


def test_files_of_after_the_checkpoint_are_removed(tmp_path):
    interrupt(tmp_path, 115, env="CartPole-v1")
    assert (tmp_path / "evaluations.npz").exists()  # of step 100
    assert CheckpointFolder(tmp_path / "checkpoint").steps() == [80, 40]
    Run(tmp_path, env="CartPole-v1").close()
    assert not (tmp_path / "evaluations.npz").exists()
    assert not (tmp_path / "best_model.zip").exists()
    assert (tmp_path / "0.monitor.csv").exists()


def test_precision_and_memory_layout_go_on(tmp_path):
    """From the first step on: actions chosen in another precision, or from turned arrays, may be others."""
    kept = {}

    class Look(BaseCallback):
        def _on_rollout_start(self) -> None:
            observation = self.model._last_obs
            kept[self.num_timesteps] = self.model.is_learning, observation.strides, observation.tobytes()

        def _on_step(self) -> bool:
            return True

    interrupt(tmp_path, 90, others=(Look(),), precision="auto")
    before = kept.pop(80)
    kept.clear()
    interrupt(tmp_path, 90, others=(Look(),), precision="auto")
    assert before[0]
    assert kept[80] == before


@pytest.mark.parametrize(
    "kwargs",
    [{"env": "CartPole-v1", "vec_env_cls": SubprocVecEnv, "n_steps": 3}, {"env": "native"}],
    ids=["SubprocVecEnv", "native"],
)
def test_games_that_start_anew(tmp_path, capsys, kwargs):
    """Their state cannot be read: everything else goes on, and it is said. Nobody counts the seconds in between."""

    class Look(BaseCallback):
        def _on_training_start(self) -> None:
            self.seconds = [time.time() - start for start in self.training_env.get_attr("t_start")]
            memory = self.model.replay_buffer
            if isinstance(memory, NStepReplayBuffer):  # no return runs from an old game into a new one
                assert np.logical_or(memory.dones, memory.timeouts)[memory.pos - 1].all()

        def _on_step(self) -> bool:
            return True

    kwargs = {"n_envs": 2, "train_freq": 2, **kwargs}
    interrupt(tmp_path, 230, **kwargs)
    rows = [len((tmp_path / f"{i}.monitor.csv").read_text().splitlines()) for i in range(2)]
    kept = th.load(tmp_path / "checkpoint" / "200" / "state.pt", weights_only=True)
    rows_kept = [len((tmp_path / f"checkpoint/200/run/{i}.monitor.csv").read_text().splitlines()) - 2 for i in range(2)]
    time.sleep(1)
    look = Look()
    run = Run(tmp_path, others=(look,), **kwargs)
    model = run.learn(2 * TOTAL)
    if (statistics := kept["normalization"]) is not None:
        # Gone on with, not begun anew
        assert run.env.obs_rms.count > statistics["obs_rms"]["part"]["count"] + 2 * TOTAL - 230
    said = capsys.readouterr().out
    assert f"Going on from step 200 of {2 * TOTAL}" in said
    kind = "SubprocVecEnv" if "vec_env_cls" in kwargs else "AtariVecEnv"
    assert f"its games start anew (the state of {kind} cannot be read)" in said
    assert model.num_timesteps == 2 * TOTAL
    for i in range(2):
        lines = (tmp_path / f"{i}.monitor.csv").read_text().splitlines()
        assert sum(line.startswith("#") for line in lines) == 1
        assert len(lines) > rows[i] > 2
        times = [float(line.split(",")[2]) for line in lines[2:]]
        assert times == sorted(times)
        assert kept["seconds"][i] < look.seconds[i] < kept["seconds"][i] + 0.9
        assert look.seconds[i] < times[rows_kept[i]]


# ---------------------------------------------------------------------- signals


class Signal(BaseCallback):
    """Sends one to this process at a step."""

    def __init__(self, number: int, step: int) -> None:
        super().__init__()
        self.number, self.step = number, step

    def _on_step(self) -> bool:
        if self.num_timesteps == self.step:
            signal.raise_signal(self.number)
        return True


@pytest.mark.parametrize("name", callback.EXIT_CODES)
def test_signals(tmp_path, name, capsys):
    """Kept at once, not at the next interval; the handlers are put back; and the run ends as if nothing had been."""
    wanted = outcome(Run(tmp_path / "alone", freq=0, env="CartPole-v1").learn(), tmp_path / "alone")
    assert {100, 200, 300} == set(wanted["timesteps"])  # the games of evaluations go on, too
    number = getattr(signal, name)
    before = signal.getsignal(number)
    run = Run(tmp_path / "run", env="CartPole-v1", others=(Signal(number, 150),))
    with pytest.raises(SystemExit) as left:
        run.learn()
    assert left.value.code == {"SIGTERM": 143, "SIGINT": 130, "SIGUSR1": 75}[name]
    assert signal.getsignal(number) is before
    # train_freq is 4: 150 is in the midst of a rollout
    assert f"{name}: step 152 is kept in {tmp_path}/run/checkpoint/152" in capsys.readouterr().out
    run.close()
    last = Run(tmp_path / "run", env="CartPole-v1")
    assert_same(outcome(last.learn(), tmp_path / "run"), wanted)


def test_a_second_signal_ends_the_process(tmp_path):
    """Whatever the first one is waiting for."""
    code = f"""
import signal
from pathlib import Path
from tests.checkpoint.runs import Run
from tests.checkpoint.test_resume import Signal
Run(Path({str(tmp_path)!r}), others=(Signal(signal.SIGINT, 150), Signal(signal.SIGINT, 150)), env="CartPole-v1").learn()
"""
    process = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True)
    assert process.returncode == -signal.SIGINT
    assert CheckpointFolder(tmp_path / "checkpoint").steps() == [120, 80]


# ---------------------------------------------------------------------- divergence


class Poison(BaseCallback):
    """Makes one reward infinite, as a broken environment may."""

    def _on_step(self) -> bool:
        if self.num_timesteps == 150:
            self.training_env.old_reward[:] = np.inf
        return True


def test_an_infinite_loss(tmp_path):
    run = Run(tmp_path, env="CartPole-v1", others=(Poison(),), batch_size=150)
    run.env.norm_reward = False
    with pytest.raises(Diverged, match=r"Learning has diverged: the loss is (inf|nan) at step 1[56]"):
        run.learn()
    run.close()
    assert CheckpointFolder(tmp_path / "checkpoint").steps() == [120, 80]
    for weights in Run(tmp_path, env="CartPole-v1").model.policy.parameters():
        assert weights.isfinite().all()


def test_weights_that_are_no_numbers_are_not_kept(tmp_path):
    run = Run(tmp_path, env="CartPole-v1", learning_starts=10_000)
    with th.no_grad():
        next(run.model.policy.parameters())[0] = np.nan
    with pytest.raises(Diverged, match="a weight is infinite or not a number at step 0"):
        run.learn()
    run.close()
    assert not list((tmp_path / "checkpoint").glob("[0-9]*"))


# ---------------------------------------------------------------------- what does not fit


def test_other_settings(tmp_path, capsys):
    interrupt(tmp_path, FREQ + 5, env="CartPole-v1", settings={"gamma": "0.9", "seed": "5"})
    with pytest.raises(InvalidInput, match=r"None of the checkpoints in .* can be used; remove it to start anew"):
        Run(tmp_path, env="CartPole-v1", settings={"gamma": "0.8"})
    assert "it is of another run (gamma is 0.9 there and 0.8 here)" in capsys.readouterr().err
    run = Run(tmp_path, env="CartPole-v1", settings={"gamma": "0.9"})
    assert run.resume.settings["seed"] == "5"
    run.close()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"env": "MountainCar-v0"}, "its observation space is Box.* and here it is Box"),
        ({"n_envs": 2}, "its environments is 1, and here it is 2"),
        ({"policy_kwargs": {"net_arch": [3]}}, "size mismatch"),
    ],
)
def test_another_game_or_agent(tmp_path, changes, sentence):
    interrupt(tmp_path, FREQ + 5, env="CartPole-v1")
    run = Run(tmp_path, **{"env": "CartPole-v1", **changes})
    with pytest.raises(InvalidInput, match=rf"The run cannot go on from {tmp_path}/checkpoint/40: .*{sentence}"):
        run.learn()
    run.close()


def test_another_learn_goes_on_from_where_the_first_ended(tmp_path, capsys):
    interrupt(tmp_path, FREQ + 5, env="MountainCar-v0")
    run = Run(tmp_path, env="MountainCar-v0")
    run.model.learn(TOTAL, callback=run.callbacks)
    weights = [parameter.clone() for parameter in run.model.q_net.parameters()]
    run.model.learning_starts = 10**6  # nothing more is learned
    run.model.learn(8, callback=run.callbacks, reset_num_timesteps=False)
    run.close()
    assert run.model.num_timesteps == TOTAL + 8
    assert all(map(th.equal, weights, run.model.q_net.parameters()))
    assert capsys.readouterr().out.count("Going on from step") == 1


def test_another_run_from_its_start(tmp_path, capsys):
    """Checkpoints of a run before it, with more steps, are not taken for its own."""
    interrupt(tmp_path, TOTAL, env="MountainCar-v0")
    run = Run(tmp_path, env="MountainCar-v0")
    run.model.learn(TOTAL, callback=run.callbacks)
    run.model.learn(2 * FREQ + 5, callback=run.callbacks)
    run.close()
    assert CheckpointFolder(tmp_path / "checkpoint").steps() == [2 * FREQ, FREQ]


def test_files_that_cannot_be_put_back(tmp_path):
    """A folder stands in a file's place; another process may try again."""
    interrupt(tmp_path, FREQ + 5, env="MountainCar-v0")
    (tmp_path / "0.monitor.csv").unlink()
    (tmp_path / "0.monitor.csv").mkdir()
    for _ in range(2):
        with pytest.raises(InvalidInput, match=rf"The files of {tmp_path} cannot be as they were: .*Is a directory"):
            Run(tmp_path, env="MountainCar-v0")
    assert not list(tmp_path.glob(".*.tmp"))
    (tmp_path / "0.monitor.csv").rmdir()
    Run(tmp_path, env="MountainCar-v0").close()


def test_settings_of_callbacks_are_the_commands():
    saving = CheckpointCallback(save_freq=400, save_path="here")
    saving.n_calls = 7
    kept = state._callback_state(saving)
    assert kept["n_calls"] == 7
    assert "save_freq" not in kept


def test_two_processes(tmp_path):
    """Only one of them may write."""
    run = Run(tmp_path, env="CartPole-v1")
    code = f"""
from pathlib import Path
from dqn_ext.checkpoint import ResumeCallback
ResumeCallback(Path({str(tmp_path)!r}), 10)
"""
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    assert f"InUse: {tmp_path} is being trained by another process." in process.stderr
    with pytest.raises(InvalidInput, match=r"by another callback of this process; its folder.unlock\(\) lets go\."):
        ResumeCallback(tmp_path, 10)
    run.close()
    ResumeCallback(tmp_path, 10).folder.unlock()


def test_after_an_error_signals_are_for_those_who_came_before(tmp_path):
    """SB3 tells no callback that learn() ended by an error. In a notebook Ctrl-C must stop the next cell."""
    run = Run(tmp_path, env="CartPole-v1", others=(StopAt(50),))
    with pytest.raises(Stopped):
        run.model.learn(TOTAL, callback=run.callbacks)
    assert signal.getsignal(signal.SIGINT) == run.resume._handle

    def cell() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

    with pytest.raises(KeyboardInterrupt):
        cell()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    # Nor does the signal end the next learn()
    run.callbacks.pop()
    run.learn(100)
    assert run.model.num_timesteps == 100


def test_records_of_callbacks(tmp_path):
    class Records(BaseCallback):
        def __init__(self) -> None:
            super().__init__()
            self.numbers, self.by_step, self.newest = [], {}, deque(maxlen=3)

        def _on_step(self) -> bool:
            self.numbers.append(self.num_timesteps)
            self.by_step[self.num_timesteps] = self.n_calls
            self.newest.append(self.num_timesteps)
            return True

    interrupt(tmp_path, 90, others=(Records(),), env="CartPole-v1")
    records = Records()
    Run(tmp_path, others=(records,), env="CartPole-v1").learn(120)
    assert records.numbers == list(records.by_step) == [*range(1, 121)]
    assert records.newest == deque([118, 119, 120], maxlen=3)


@pytest.mark.parametrize("before", [th.bfloat16, th.float32])
def test_what_auto_has_chosen_goes_on(tmp_path, monkeypatch, before):
    """A processor that is busy with other things may measure otherwise when the run goes on."""
    after = th.float32 if before == th.bfloat16 else th.bfloat16
    monkeypatch.setattr(learner, "_has_bfloat16", lambda device: True)
    monkeypatch.setattr(learner, "_seconds_per_product", lambda dtype: 1.0 if dtype == before else 2.0)
    interrupt(tmp_path, 90, precision="auto")
    monkeypatch.setattr(learner, "_seconds_per_product", lambda dtype: 1.0 if dtype == after else 2.0)
    dtypes = []

    class Look(BaseCallback):
        def _on_step(self) -> bool:
            dtypes.append(self.model.q_net.compute_dtype)
            return True

    Run(tmp_path, others=(Look(),), precision="auto").learn(100)
    assert set(dtypes) == {before}
    new = DDQN("MlpPolicy", "CartPole-v1", precision="auto", device="cpu")
    new.prepare_learning()
    assert new.q_net.compute_dtype == after


# ---------------------------------------------------------------------- kills


def kill_loop(folder: Path, options: str) -> str:
    process = subprocess.run(
        [sys.executable, "-m", "tests.checkpoint.kill_loop", str(folder), *options.split()],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_a_few_kills(tmp_path):
    said = kill_loop(tmp_path, "--env CartPole-v1 --kills 5 --in-writing 14")
    assert "5 kills" in said
    assert "killed at " in said


@pytest.mark.slow
def test_a_hundred_kills(tmp_path):
    assert "100 kills" in kill_loop(tmp_path, "--kills 100")


@pytest.mark.slow
def test_kills_at_each_call_of_a_checkpoints_writing(tmp_path):
    assert "killed at " in kill_loop(tmp_path, "--in-writing 1")


def test_writing_leaves_no_memory_behind(tmp_path):
    """The weights that a checkpoint holds, 32 MB here, are not kept in the process as well."""
    code = f"""
import psutil
from pathlib import Path
from stable_baselines3.common.callbacks import BaseCallback
from tests.checkpoint.runs import Run
def megabytes():
    return psutil.Process().memory_info().rss / 1e6
class Watch(BaseCallback):
    most = 0.0
    def _on_step(self):
        self.most = max(self.most, megabytes())
        return True
watch = Watch()
changes = dict(policy_kwargs=dict(net_arch=[2000, 2000]), buffer_size=500, learning_starts=1000)
run = Run(Path({str(tmp_path)!r}), 100, env="MountainCar-v0", others=(watch,), **changes)
before = megabytes()
run.learn()
print(watch.most - before)
"""
    process = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        # each matrix is given back to the system once it is free; malloc would keep some, now more and now fewer
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"},
        text=True,
        capture_output=True,
        check=True,
    )
    assert float(process.stdout.splitlines()[-1]) < 20
