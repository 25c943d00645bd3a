"""A small run on a real game, as a user's program would set it up, and what can be compared of two runs."""

import zipfile
from pathlib import Path
from typing import Any

import ale_py
import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecNormalize, VecTransposeImage

from dqn_ext import DDQN
from dqn_ext.atari import AtariVecEnv
from dqn_ext.checkpoint import ResumeCallback

gym.register_envs(ale_py)

TOTAL, FREQ = 320, 40
# Games of 50 steps: the emulator ends them
GAME, GAME_KWARGS = "BreakoutNoFrameskip-v4", {"max_num_frames_per_episode": 200}


class Run:
    """One process's part of a run; ``learn()`` begins or goes on.

    :param freq: transitions between checkpoints; 0: without any
    :param others: further callbacks
    :param changes: the algorithm's arguments
    """

    def __init__(
        self,
        folder: Path,
        freq: int = FREQ,
        *,
        env: str = "atari",
        n_envs: int = 1,
        vec_env_cls: type[VecEnv] | None = None,
        settings: dict[str, str] | None = None,
        others: tuple[BaseCallback, ...] = (),
        algorithm: type[DQN] = DDQN,
        **changes: Any,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.resume = ResumeCallback(folder, freq, settings) if freq else None
        monitor: dict[str, Any] = {
            "monitor_dir": str(folder),
            "monitor_kwargs": {"override_existing": not (self.resume and self.resume.resumes)},
            "vec_env_cls": vec_env_cls,
        }
        agent: dict[str, Any] = {"learning_starts": 40, "batch_size": 8, "train_freq": 4, "target_update_interval": 30}
        if env in ("atari", "native"):
            kwargs = {"env_kwargs": GAME_KWARGS}
            games = make_atari_env(GAME, n_envs, seed=3, **kwargs, **monitor)
            self.env: VecEnv = VecFrameStack(AtariVecEnv(games) if env == "native" else games, 4)
            eval_env: VecEnv = VecTransposeImage(VecFrameStack(make_atari_env(GAME, 1, seed=4, **kwargs), 4))
            small = {"features_extractor_kwargs": {"features_dim": 16}}
            agent |= {"policy": "CnnPolicy", "policy_kwargs": small, "buffer_size": 200}
            agent["replay_buffer_kwargs"] = {"store": "compressed"} if algorithm is DDQN else {}
        else:
            self.env, eval_env = make_vec_env(env, n_envs, seed=3, **monitor), make_vec_env(env, 1, seed=4)
            if env == "CartPole-v1":
                self.env = VecNormalize(self.env)
                eval_env = VecNormalize(eval_env, training=False, norm_reward=False)
            agent |= {"policy": "MlpPolicy", "buffer_size": 200}
        evaluation = EvalCallback(
            eval_env, n_eval_episodes=1, eval_freq=100, log_path=str(folder), best_model_save_path=str(folder)
        )
        evaluation.deterministic, evaluation.verbose = False, 0
        self.callbacks = [*([self.resume] if self.resume else []), evaluation, *others]
        self.model = algorithm(env=self.env, seed=1, **{**agent, **changes})

    def learn(self, total: int = TOTAL) -> DQN:
        self.model.learn(total, callback=self.callbacks)
        self.close()
        return self.model

    def close(self) -> None:
        """What the end of the process does."""
        self.env.close()
        if self.resume is not None:
            self.resume.on_training_end()
            self.resume.folder.unlock()


class StopAt(BaseCallback):
    """Ends this process's part at a step, as abruptly as an exception does."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def _on_step(self) -> bool:
        if self.num_timesteps >= self.step:
            raise Stopped
        return True


class Stopped(Exception):
    """See :class:`StopAt`."""


def interrupt(folder: Path, step: int, others: tuple[BaseCallback, ...] = (), **kwargs: Any) -> None:
    """Let a run go on until ``step``."""
    run = Run(folder, others=(*others, StopAt(step)), **kwargs)
    try:
        run.learn()
    except Stopped:
        run.close()
    else:
        raise AssertionError("it came to its end")


def outcome(model: DQN, folder: Path) -> dict[str, Any]:
    """All that two runs must have in common, bit for bit."""
    weights = {f"weights {name}": value.cpu().numpy() for name, value in model.policy.state_dict().items()}
    moments = {
        f"optimizer {index} {name}": np.asarray(value)
        for index, values in model.policy.optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }
    monitors = {}
    for file in sorted(folder.glob("*monitor.csv")):
        rows = file.read_text().splitlines()[2:]
        monitors[file.name] = np.array([[float(cell) for cell in row.split(",")[:2]] for row in rows])  # without time
    evaluations = dict(np.load(folder / "evaluations.npz"))
    with zipfile.ZipFile(folder / "best_model.zip") as best:
        weights["best"] = np.frombuffer(best.read("policy.pth"), np.uint8)
    counters = {name: np.asarray(getattr(model, name)) for name in ("num_timesteps", "_n_updates", "exploration_rate")}
    generators = {"numpy": np.random.get_state()[1], "torch": th.get_rng_state().numpy()}
    return {**weights, **moments, **monitors, **evaluations, **counters, **generators}


def assert_same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """:raises AssertionError: naming what differs"""
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not np.array_equal(ours[name], theirs[name])]
    assert not different, different
