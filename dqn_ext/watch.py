"""``python -m dqn_ext.watch --env SpaceInvadersNoFrameskip-v4 -f logs``: a run's checkpoints playing side by side.

A command like the Zoo's own, with their flags: it finds the run, loads its agents and makes their environment as
``enjoy`` does, and like ``enjoy`` it trusts what lies in the folder.
"""

import argparse
import copy
import itertools
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch as th
import yaml
from huggingface_sb3 import EnvironmentName
from PIL import Image
from stable_baselines3 import DQN
from stable_baselines3.common.env_util import unwrap_wrapper
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from dqn_ext.errors import InvalidInput
from dqn_ext.panels import Moment, Panel, frames_per_second, render, side_by_side, write_video
from dqn_ext.zoo import register

SHARES = (0.1, 0.5, 1.0)  # of the run, whose agents are shown


def find_checkpoints(run: Path, env_name: str) -> dict[int, Path]:
    """:return: the agents that a run has left, by the steps that they have been trained for, in that order"""
    found = {}
    # Of two with the same steps the later stays
    for path in [run / "best_model.zip", *run.glob("rl_model_*_steps.zip"), run / f"{env_name}.zip"]:
        match = re.fullmatch(r"rl_model_(\d+)_steps", path.stem)
        if match:
            found[int(match[1])] = path
        elif path.is_file():
            found[trained_steps(path)] = path
    return dict(sorted(found.items()))


def trained_steps(path: Path) -> int:
    """The steps that the agent in a model's zip has been trained for.

    :raises InvalidInput: where it is not there, or cannot be read
    """
    try:
        with zipfile.ZipFile(path) as model:
            return int(json.loads(model.read("data"))["num_timesteps"])
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise InvalidInput(f"{path} is not a readable model: it is empty, truncated or damaged ({error}).") from error


def choose(checkpoints: dict[int, Path]) -> list[int]:
    """:return: the steps nearest to each of :data:`SHARES` of the longest training, each once"""
    total = max(checkpoints)
    nearest = [min(checkpoints, key=lambda steps: abs(steps - share * total)) for share in SHARES]
    return sorted(set(nearest))


def play(model: DQN, env: VecEnv, stochastic: bool = False) -> Iterator[Moment]:
    """One whole game, life after life. The last moment is told with the final score.

    :param env: a single environment, with ``rgb_array`` rendering
    :param stochastic: act with the agent's own epsilon, not greedily
    """
    monitor = unwrap_wrapper(_gym_env(env), Monitor)  # knows raw scores, and games rather than lives
    assert isinstance(monitor, Monitor)
    model.policy.set_training_mode(False)
    observation: Any = env.reset()
    score = 0.0
    while True:
        with th.no_grad():
            q_values = model.q_net(model.policy.obs_to_tensor(observation)[0])[0].float().cpu().numpy()  # (A,)
        action, _ = model.predict(observation, deterministic=not stochastic)
        frame = render(env)
        yield Moment(frame, score, q_values, int(action[0]))
        observation, _, _, infos = env.step(action)
        if "episode" in infos[0]:
            yield Moment(frame, infos[0]["episode"]["r"], q_values, int(action[0]), over=True)
            return
        score = sum(monitor.rewards)


def _gym_env(env: VecEnv) -> gym.Env:
    vec_env = env.unwrapped
    assert isinstance(vec_env, DummyVecEnv)
    return vec_env.envs[0]


def action_names(env: gym.Env) -> list[str]:
    """What the actions are called, or their numbers where they have no names, or a wrapper has other actions."""
    assert isinstance(env.action_space, gym.spaces.Discrete)
    n_actions = int(env.action_space.n)
    names = list(env.unwrapped.get_action_meanings()) if hasattr(env.unwrapped, "get_action_meanings") else []
    return names if len(names) == n_actions else [str(action) for action in range(n_actions)]


def pictures(headline: str, panels: list[Panel], games: list[Iterator[Moment]], n_steps: int) -> Iterator[Image.Image]:
    """Draw until all games are over, or for ``n_steps``; a game that is over stays on its last moment."""
    moments = [next(game) for game in games]
    for _ in range(n_steps):
        yield side_by_side(headline, [panel.draw(moment) for panel, moment in zip(panels, moments, strict=True)])
        if all(moment.over for moment in moments):
            return
        moments = [next(game, moment) for game, moment in zip(games, moments, strict=True)]


def find_run(args: argparse.Namespace) -> Path:
    """:raises InvalidInput: where there is none"""
    from rl_zoo3.utils import get_latest_run_id

    runs = Path(args.folder, args.algo)
    exp_id = args.exp_id or get_latest_run_id(str(runs), args.env)
    run = runs / f"{args.env}_{exp_id}" if exp_id > 0 else runs
    if not run.is_dir() or exp_id == 0:
        raise InvalidInput(f"There is no run of {args.algo} on {args.env} in {args.folder!r}; -f names the log folder.")
    return run


def saved_args(run: Path, env_name: str) -> dict[str, Any]:
    """What the Zoo keeps of the command line of a run, whose folder it trusts; nothing where that is missing."""
    args_file = run / env_name / "args.yml"
    return dict(yaml.load(args_file.read_text(), Loader=yaml.UnsafeLoader)) if args_file.is_file() else {}


def trained_env_kwargs(hyperparams: dict[str, Any], args: dict[str, Any]) -> dict[str, Any]:
    """The ``env_kwargs`` of a run: its command's, or else its entry's."""
    return args.get("env_kwargs") or hyperparams.get("env_kwargs") or {}


def make_env(run: Path, env: EnvironmentName, seed: int, n_envs: int = 1, **more_env_kwargs: Any) -> VecEnv:
    """The run's environment, as ``enjoy`` makes it, with the ``env_kwargs`` that it was trained with."""
    from rl_zoo3.utils import create_test_env, get_saved_hyperparams

    hyperparams, stats_path = get_saved_hyperparams(str(run / env))
    hyperparams = copy.deepcopy(hyperparams)  # create_test_env takes out what it has used
    env_kwargs = trained_env_kwargs(hyperparams, saved_args(run, env))
    hyperparams.pop("env_kwargs", None)
    return create_test_env(
        env.gym_id,
        n_envs=n_envs,
        stats_path=stats_path,
        seed=seed,
        should_render=False,  # it would open a window for each
        hyperparams=hyperparams,
        env_kwargs={**env_kwargs, **more_env_kwargs},
        vec_env_cls=DummyVecEnv,
    )


def load(path: Path, algo: str, seed: int) -> DQN:
    """An agent to play with."""
    from rl_zoo3 import ALGOS

    # Playing needs no schedules, whose pickles may be another Python's, and no replay memory
    schedules = {"learning_rate": 0.0, "lr_schedule": lambda _: 0.0, "exploration_schedule": lambda _: 0.0}
    return ALGOS[algo].load(
        path, device="cpu", custom_objects=schedules, seed=seed, buffer_size=1, optimize_memory_usage=False
    )


def parse_args() -> argparse.Namespace:
    """Flags mean what they mean to the Zoo's ``enjoy`` and ``record_video``."""
    parser = argparse.ArgumentParser(
        prog="python -m dqn_ext.watch",
        description="Film checkpoints of one run, at 10%%, 50%% and 100%% of its steps, playing side by side.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--algo", help="RL algorithm", default="ddqn", choices=["ddqn", "dqn"])
    parser.add_argument("--env", help="environment ID", type=EnvironmentName, default="SpaceInvadersNoFrameskip-v4")
    parser.add_argument("-f", "--folder", help="log folder", default="logs")
    parser.add_argument("-o", "--output-folder", help="output folder; if not given, videos/ in the run's", default=None)
    parser.add_argument("--exp-id", help="experiment ID (0: latest, -1: no exp folder)", default=0, type=int)
    parser.add_argument("-n", "--n-timesteps", help="the clip's length; Atari has 15 a second", default=450, type=int)
    parser.add_argument("--seed", help="random generator seed, the same for all", default=0, type=int)
    parser.add_argument("--stochastic", help="act with each agent's own epsilon, not greedily", action="store_true")
    args = parser.parse_args()
    if args.n_timesteps < 1:
        raise InvalidInput(f"-n must be a whole number of at least 1, not {args.n_timesteps}.")
    return args


def main() -> None:
    """Find the run's checkpoints, let them play, and write the clip."""
    register()
    args = parse_args()
    run = find_run(args)
    checkpoints = find_checkpoints(run, args.env)
    if not checkpoints:
        raise InvalidInput(
            f"{run} holds no agent yet; train with --save-freq 10000, say, to get one every 10000 steps."
        )
    chosen, total = choose(checkpoints), max(*checkpoints, 1)
    print(f"{len(checkpoints)} agents in {run}, trained for {', '.join(map(str, checkpoints))} steps")
    for steps in chosen:
        print(f"Showing {checkpoints[steps].name} ({steps} steps, {steps / total:.0%})")
    if len(chosen) < len(SHARES):
        print("Training with --save-freq leaves more of them.")

    set_random_seed(args.seed)
    envs = [make_env(run, args.env, args.seed, render_mode="rgb_array") for _ in chosen]
    games = [
        play(load(checkpoints[steps], args.algo, args.seed), env, args.stochastic)
        for steps, env in zip(chosen, envs, strict=True)
    ]
    firsts = [next(game) for game in games]
    panels = [
        Panel(f"{steps:,} steps", f"{steps / total:.0%} of the run", action_names(_gym_env(env)), first.frame.shape)
        for steps, env, first in zip(chosen, envs, firsts, strict=True)
    ]
    games = [itertools.chain([first], game) for first, game in zip(firsts, games, strict=True)]
    headline = f"{args.algo} on {args.env}, seed {args.seed}"
    video = Path(args.output_folder or run / "videos", f"watch-{args.algo}-{args.env}.mp4")
    write_video(video, pictures(headline, panels, games, args.n_timesteps), frames_per_second(envs[0]))
    for env in envs:
        env.close()
    print(f"Saving video to {video}")


if __name__ == "__main__":
    main()
