"""Does it overestimate? The value of states as an agent estimates it, against the return that it then obtained.

    python -m rl_zoo3.train --algo ddqn --env PongNoFrameskip-v4 --save-freq 100000 ...
    python scripts/overestimation.py logs/dqn/PongNoFrameskip-v4_1 logs/ddqn/PongNoFrameskip-v4_1

Cf. figure 3 of van Hasselt, Guez, Silver 2016 (https://arxiv.org/abs/1509.06461). Each agent that a run has saved plays
at its final epsilon in the environments in which it learned: rewards are clipped, and a life that is lost ends an
episode. Of all states that it meets, the estimate is the mean of ``max_a Q(s, a)``, the return the mean of the
discounted sum of the rewards that followed. Runs are the Zoo's folders, ``LABEL=FOLDER`` gives one another name.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import ale_py
import gymnasium as gym
import numpy as np
import torch as th
from huggingface_sb3 import EnvironmentName
from stable_baselines3 import DQN
from stable_baselines3.common.vec_env import VecEnv

from dqn_ext.watch import find_checkpoints, load, make_env
from dqn_ext.zoo import register


def discounted_returns(rewards: list[float], gamma: float) -> np.ndarray:
    """``G_t = r_t + gamma * G_{t+1}`` of each step of an episode."""
    returns = np.zeros(len(rewards) + 1)
    for t in reversed(range(len(rewards))):
        returns[t] = rewards[t] + gamma * returns[t + 1]
    return returns[:-1]


def estimates_and_returns(agent: DQN, env: VecEnv, n_states: int) -> tuple[np.ndarray, np.ndarray]:
    """Of the states of whole episodes, ``n_states`` of them or some more."""
    obs: Any = env.reset()
    values: list[list[float]] = [[] for _ in range(env.num_envs)]
    rewards: list[list[float]] = [[] for _ in range(env.num_envs)]
    estimates, returns = [], []
    n_met, playing = 0, set(range(env.num_envs))
    while playing:
        with th.no_grad():
            q_values = agent.q_net(agent.policy.obs_to_tensor(obs)[0])
        actions, _ = agent.predict(obs, deterministic=False)
        obs, reward, dones, _ = env.step(actions)
        n_met += env.num_envs
        for index in list(playing):
            values[index].append(float(q_values[index].max()))
            rewards[index].append(float(reward[index]))
            if dones[index]:
                estimates.append(np.array(values[index]))
                returns.append(discounted_returns(rewards[index], agent.gamma))
                values[index], rewards[index] = [], []
                if n_met >= n_states:  # an episode that has begun is seen to its end
                    playing.remove(index)
    return np.concatenate(estimates), np.concatenate(returns)


def measure(label: str, run: Path, n_states: int, n_envs: int) -> list[dict[str, Any]]:
    """A row of each saved agent."""
    algo, env_id = run.parent.name, run.name.rpartition("_")[0]
    rows = []
    for steps, path in find_checkpoints(run, env_id).items():
        if path.stem == "best_model":  # chosen, where the others are a sample
            continue
        env = make_env(run, EnvironmentName(env_id), steps, n_envs)
        agent = load(path, algo, seed=steps)
        agent.exploration_rate = agent.exploration_final_eps
        estimates, returns = estimates_and_returns(agent, env, n_states)
        env.close()
        rows.append(
            {
                "label": label,
                "env": env_id,
                "steps": steps,
                "estimate": round(float(estimates.mean()), 4),
                "return": round(float(returns.mean()), 4),
                "states": len(returns),
            }
        )
        found = f"estimated {estimates.mean():7.3f}, obtained {returns.mean():7.3f}"
        print(f"{label:12} {env_id:32} {steps:>9} steps: {found}", flush=True)
    return rows


def draw(rows: list[dict[str, Any]], picture: Path) -> None:
    """A panel for each game: estimates solid, returns dashed."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    envs, labels = sorted({row["env"] for row in rows}), sorted({row["label"] for row in rows})
    figure, axes = plt.subplots(1, len(envs), figsize=(5.5 * len(envs), 3.8), squeeze=False)
    for axis, env_id in zip(axes[0], envs, strict=True):
        for color, label in zip(plt.rcParams["axes.prop_cycle"].by_key()["color"], labels, strict=False):
            own = [row for row in rows if (row["env"], row["label"]) == (env_id, label)]
            for key, style, what in (("estimate", "-", "estimated"), ("return", "--", "obtained")):
                points = [(row["steps"], row[key]) for row in sorted(own, key=lambda row: row["steps"])]
                if points:
                    axis.plot(*zip(*points, strict=True), style, color=color, label=f"{label}, {what}")
        axis.set(title=env_id, xlabel="steps (actions)", ylabel="discounted value")
        axis.legend(fontsize=8)
    figure.tight_layout()
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=110)


def main() -> None:
    """Measure, print, record and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="folders LOGS/ALGO/ENV_NUMBER, or LABEL=FOLDER")
    parser.add_argument("--states", type=int, default=10_000, help="that each agent meets, at least")
    parser.add_argument("--envs", type=int, default=8, help="environments at once")
    parser.add_argument("--output", type=Path, default=Path("results/overestimation.json"), help="picture beside it")
    args = parser.parse_args()

    gym.register_envs(ale_py)
    register()
    rows: list[dict[str, Any]] = []
    for word in args.runs:
        label, _, folder = word.rpartition("=")
        run = Path(folder)
        new = measure(label or run.parent.name, run, args.states, args.envs) if run.is_dir() else []
        if not new:
            raise SystemExit(f"Error: {folder} is no run of the Zoo's with saved agents (--save-freq).")
        rows += new
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps({"date": time.strftime("%Y-%m-%d"), "rows": rows}, indent=1) + "\n")
    draw(rows, args.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
