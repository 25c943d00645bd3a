"""Chosen in the YAML: the Zoo trains on native environments, and evaluates on its own."""

import argparse
from pathlib import Path

import pytest
from stable_baselines3.common.monitor import load_results
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, is_vecenv_wrapped

from dqn_ext.atari import AtariVecEnv
from dqn_ext.zoo.manager import ExperimentManager
from tests.zoo.conftest import run_python

GAME = "BreakoutNoFrameskip-v4"
KEY = "vec_env_wrapper: dqn_ext.atari.native_when_training"


def test_training_and_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture):
    manager = ExperimentManager(
        argparse.Namespace(),
        "ddqn",
        GAME,
        log_folder=str(tmp_path),
        seed=3,
        eval_freq=100,
        hyperparams={"n_envs": 2, "buffer_size": 100, "vec_env_wrapper": "dqn_ext.atari.native_when_training"},
        device="cpu",
    )
    model, _ = manager.setup_experiment()
    native = model.env.unwrapped
    assert isinstance(native, AtariVecEnv)
    assert is_vecenv_wrapped(model.env, VecFrameStack)
    assert model.observation_space.shape == (4, 84, 84)
    evaluation = manager.callbacks[-1]
    assert type(evaluation.eval_env.unwrapped) is DummyVecEnv
    # Trials of -optimize write no files
    trial = manager.create_envs(2, no_log=True)
    assert isinstance(trial.unwrapped, AtariVecEnv)
    assert {path.name for path in Path(manager.save_path).glob("*.csv")} == {"0.monitor.csv", "1.monitor.csv"}
    for env in (native, evaluation.eval_env, trial):
        env.close()
    assert "Training on the Zoo's environments" not in capsys.readouterr().out


def test_train_and_enjoy(tmp_path: Path):
    entry = Path(tmp_path, "native.yml")
    entry.write_text(
        f"{GAME}:\n"
        "  env_wrapper: [{stable_baselines3.common.atari_wrappers.AtariWrapper: {noop_max: 10}}]\n"
        "  frame_stack: 4\n"
        f"  {KEY}\n"
        "  policy: CnnPolicy\n"
        "  n_timesteps: 400\n"
        "  n_envs: 2\n"
        "  buffer_size: 1000\n"
        "  learning_starts: 100\n"
        "  train_freq: 8\n"
        "  env_kwargs: {max_num_frames_per_episode: 500}\n"
    )
    trained = run_python(
        f"-m rl_zoo3.train --algo ddqn --env {GAME} -conf {entry} --seed 0 --eval-freq 200 --eval-episodes 1",
        cwd=tmp_path,
    )
    assert "Training on the Zoo's environments" not in trained.stdout
    assert "Eval num_timesteps=200" in trained.stdout
    run = tmp_path / "logs" / "ddqn" / f"{GAME}_1"
    results = load_results(str(run))
    assert len(results) >= 2
    # 0 to 9 no-ops, which the cap does not count
    assert results["l"].between(200, 509).all()

    played = run_python(f"-m rl_zoo3.enjoy --algo ddqn --env {GAME} -f logs --no-render -n 130", cwd=tmp_path)
    assert "Atari Episode Score" in played.stdout
    assert len(load_results(str(run))) == len(results), "enjoy leaves the files of training alone"
