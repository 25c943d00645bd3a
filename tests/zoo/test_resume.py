"""The Zoo's own command, ended by a scheduler and run again."""

import argparse
import os
import pickle
import shlex
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
import yaml
from huggingface_sb3 import EnvironmentName

from dqn_ext import DDQN
from dqn_ext.checkpoint import CheckpointFolder
from dqn_ext.checkpoint.processes import EXIT_CODES, UnsignalledSubprocVecEnv
from dqn_ext.zoo.manager import ExperimentManager
from tests.waiting import wait_until
from tests.zoo.conftest import run_python

GAME = "BreakoutNoFrameskip-v4"
TRAIN = (
    f"-m rl_zoo3.train --algo ddqn --env {GAME} -n 240 --eval-freq 100 --eval-episodes 1 "
    "--env-kwargs max_num_frames_per_episode:200 "
    "-params learning_starts:60 buffer_size:200 n_envs:2 gradient_steps:1 checkpoint_freq:40 vec_env_wrapper:None"
)


def start(arguments: str, cwd: Path) -> "subprocess.Popen[str]":
    """``python ARGUMENTS``, whose process and its children are a group."""
    return subprocess.Popen(
        [sys.executable, *shlex.split(arguments)],
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def test_ended_by_a_signal_and_run_again(tmp_path):
    """The same run folder, the same seed, one line; no gap and no doubled row; and the end removes the checkpoints."""
    process = start(TRAIN, tmp_path)
    run = tmp_path / "logs/ddqn" / f"{GAME}_1"
    folder = CheckpointFolder(run / "checkpoint")
    while process.poll() is None and max(folder.steps(), default=0) < 120:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 128 + signal.SIGTERM, said
    step = folder.steps()[0]
    assert f"SIGTERM: step {step} is kept in logs/ddqn/{GAME}_1/checkpoint/{step}; the same command goes on" in said
    seed = yaml.unsafe_load((run / GAME / "args.yml").read_text())["seed"]
    # As after the Zoo's Ctrl-C there is an agent to watch
    assert (run / f"{GAME}.zip").is_file()

    # Where another process has it: a run of its own
    folder.lock()
    other = run_python(TRAIN, cwd=tmp_path)
    folder.unlock()
    assert f"logs/ddqn/{GAME}_1 is being trained by another process. This is a run of its own." in other.stderr
    assert (tmp_path / "logs/ddqn" / f"{GAME}_2" / f"{GAME}.zip").is_file()

    again = run_python(TRAIN, cwd=tmp_path)
    assert f"Going on from step {step} of 240, kept in logs/ddqn/{GAME}_1/checkpoint/{step}\n" in again.stdout
    assert yaml.unsafe_load((run / GAME / "args.yml").read_text())["seed"] == seed
    assert DDQN.load(run / f"{GAME}.zip").num_timesteps == 240
    assert not folder.path.exists()
    evaluations = np.load(run / "evaluations.npz")
    assert evaluations["timesteps"].tolist() == [100, 200]
    for i in range(2):
        lines = (run / f"{i}.monitor.csv").read_text().splitlines()
        assert [line for line in lines if line.startswith(("#", "r"))] == lines[:2]
        rows = np.array([[float(cell) for cell in line.split(",")] for line in lines[2:]])
        # Whole games of at most 200 frames: they add up to this environment's 480, and those before a game begins
        assert 400 <= rows[:, 1].sum() <= 480 + 50 * len(rows)
        assert (np.diff(rows[:, 2]) > 0).all()


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_signals_that_all_processes_of_a_run_get(tmp_path, name):
    """As by Ctrl-C, or by Slurm to what srun started: also those of the environments, for evaluations, too, which
    nobody closes.
    """
    process = start(
        "-m rl_zoo3.train --algo ddqn --env CartPole-v1 --vec-env subproc -n 1000000 --eval-freq 500 "
        "-params n_envs:2 learning_starts:1000000 checkpoint_freq:1000",
        tmp_path,
    )
    folder = CheckpointFolder(tmp_path / "logs/ddqn/CartPole-v1_1/checkpoint")
    wait_until(lambda: max(folder.steps(), default=0) > 0, process)
    os.killpg(process.pid, getattr(signal, name))
    said = process.communicate(timeout=120)[0]
    assert process.returncode == EXIT_CODES[name], said
    assert f"{name}: step {folder.steps()[0]} is kept in" in said
    assert "Traceback" not in said


def test_a_step_that_ctrl_c_interrupts():
    """Whatever answers have been taken, closing waits for none: a run without checkpoints still saves its agent."""
    env = UnsignalledSubprocVecEnv([partial(gym.make, "CartPole-v1")] * 2)
    env.reset()
    env.step_async(np.zeros(2, np.int64))
    env.remotes[0].recv()
    closing = threading.Thread(target=env.close, daemon=True)
    closing.start()
    closing.join(timeout=20)
    assert not closing.is_alive()
    assert not any(process.is_alive() for process in env.processes)
    env.close()


def cartpole(folder: Path, monkeypatch: pytest.MonkeyPatch, seed: int = 1, **settings: Any) -> ExperimentManager:
    """A run that is about to begin, or to go on."""
    monkeypatch.setattr(sys, "argv", ["train", "--seed", str(seed)])
    manager = ExperimentManager(
        argparse.Namespace(),
        "ddqn",
        "CartPole-v1",
        log_folder=str(folder),
        seed=seed,
        hyperparams={"checkpoint_freq": 20},
        device="cpu",
        **settings,
    )
    manager._preprocess_hyperparams(manager.read_hyperparameters()[0])
    manager._resume.folder.unlock()
    return manager


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", 2),
        ("n_timesteps", 500),
        ("eval_freq", 7),
        ("n_eval_episodes", 3),
        ("n_eval_envs", 2),
        ("env_kwargs", {"sutton_barto_reward": True}),
        ("eval_env_kwargs", {"sutton_barto_reward": True}),
        ("vec_env_type", "subproc"),
    ],
)
def test_a_run_of_other_settings_is_another_run(tmp_path, monkeypatch, capsys, name, value):
    first = cartpole(tmp_path, monkeypatch)._resume
    first.folder.write(20, {"settings": first.settings}, lambda folder: None)
    assert cartpole(tmp_path, monkeypatch)._resume.resumes
    assert not cartpole(tmp_path, monkeypatch, **{name: value})._resume.resumes
    assert f"{name.replace('_type', '_class')} is " in capsys.readouterr().out


def test_two_runs_that_choose_one_folder(tmp_path):
    """At the same moment, before either has made it: the second takes the next number."""
    other = CheckpointFolder(tmp_path / "CartPole-v1_1_uuid/checkpoint")
    other.lock()
    manager = object.__new__(ExperimentManager)
    manager.env_name, manager.save_path = EnvironmentName("CartPole-v1"), str(tmp_path / "CartPole-v1_1_uuid")
    resume = manager._new_run(100, {})
    other.unlock()
    resume.folder.unlock()
    assert manager.save_path == str(resume.run) == str(tmp_path / "CartPole-v1_2_uuid")
    assert manager.params_path == str(tmp_path / "CartPole-v1_2_uuid/CartPole-v1")


def test_an_agent_that_is_no_number(tmp_path):
    """With a progress bar, which has not begun when the first checkpoint is written."""
    agent = DDQN("MlpPolicy", "CartPole-v1", policy_kwargs={"net_arch": [256, 256]}, device="cpu")
    with th.no_grad():
        next(agent.policy.parameters()).fill_(th.nan)
    agent.save(tmp_path / "agent.zip")
    process = run_python(
        "-m rl_zoo3.train --algo ddqn --env CartPole-v1 -n 50 -P --eval-freq -1 -i agent.zip "
        "-params checkpoint_freq:20",
        cwd=tmp_path,
        check=False,
    )
    assert process.returncode == 1
    assert "Error: Learning has diverged: a weight is infinite or not a number at step 0." in process.stderr
    assert "Traceback" not in process.stderr


def test_divergence_is_one_sentence(tmp_path):
    process = run_python(
        "-m rl_zoo3.train --algo ddqn --env CartPole-v1 -n 3000 --eval-freq -1 --seed 1 "
        "-params checkpoint_freq:500 learning_rate:1e8 normalize:True",
        cwd=tmp_path,
        check=False,
    )
    assert process.returncode == 1
    sentence = process.stderr.strip().splitlines()[-1]
    good = "logs/ddqn/CartPole-v1_1/checkpoint/1000"
    assert sentence.startswith("Error: Learning has diverged: the ")
    assert f"The last good state is {good}; -i {good}/model.zip goes on from its agent" in sentence
    assert "Traceback" not in process.stderr
    # With the averages of that moment
    with (tmp_path / good / "CartPole-v1/vecnormalize.pkl").open("rb") as file:
        averages = pickle.load(file)
    kept = th.load(tmp_path / good / "state.pt", weights_only=True)["normalization"]
    assert averages.obs_rms.count == kept["obs_rms"]["part"]["count"] == pytest.approx(1001, abs=1)
    # And so it does
    process = run_python(
        f"-m rl_zoo3.train --algo ddqn --env CartPole-v1 -n 50 --eval-freq -1 -i {good}/model.zip "
        "-params checkpoint_freq:500 learning_rate:1e-3 normalize:True",
        cwd=tmp_path,
    )
    assert "CartPole-v1_1 has not come to its end, but it is another run than this: learning_rate is " in process.stdout
    assert "Loading saved VecNormalize stats" in process.stdout
    assert "Loading pretrained agent" in process.stdout
    assert "Loading replay buffer" in process.stdout


@pytest.mark.parametrize(("algo", "value"), [("ddqn", "-1"), ("ddqn", "0.5"), ("dqn", "-1")])
def test_checkpoint_freq(tmp_path, algo, value):
    process = run_python(
        f'-m rl_zoo3.train --algo {algo} --env CartPole-v1 -params "checkpoint_freq:{value}"', cwd=tmp_path, check=False
    )
    assert process.stderr.strip().splitlines()[-1] == (
        f"Error: checkpoint_freq must be a whole number of at least 0, not {value}."
    )
    assert not Path(tmp_path, "logs").exists()
