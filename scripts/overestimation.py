"""Does it overestimate? The value of states as an agent estimates it, against the return that it then obtained.

    python -m rl_zoo3.train --algo ddqn --env PongNoFrameskip-v4 --save-freq 100000 -f double ...
    python -m rl_zoo3.train --algo ddqn --env PongNoFrameskip-v4 --save-freq 100000 -f single -params double_q:False ...
    python scripts/overestimation.py double=double/ddqn/PongNoFrameskip-v4_1 single=single/ddqn/PongNoFrameskip-v4_1

Cf. figure 3 of van Hasselt, Guez, Silver 2016 (https://arxiv.org/abs/1509.06461), where the target is all that differs:
the packaged dqn and ddqn differ in more. Each agent that a run has saved plays at its final epsilon in the environments
in which it learned: rewards are clipped, and a life that is lost ends an episode. Of all states that it meets, the
estimate is the mean of ``max_a Q(s, a)``, the return the mean of the discounted sum of the rewards that followed. At a
time limit that sum is not known: the last states before one are left out, all to which what is missing may add more
than 1% of its value. Runs are the Zoo's folders, ``LABEL=FOLDER`` names them; of several with one name, which must
differ in their seeds, the mean is drawn, and from the least to the greatest. Rows of other runs that stand in the
output file are kept; its command and date are those of the last call.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import ale_py
import gymnasium as gym
import numpy as np
import torch as th
from huggingface_sb3 import EnvironmentName
from records import write_record
from saved_agents import SavedAgents, saved_agents
from stable_baselines3 import DQN
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from dqn_ext.watch import load, make_env
from dqn_ext.zoo import register


def discounted_returns(rewards: list[float], gamma: float) -> np.ndarray:
    """``G_t = r_t + gamma * G_{t+1}`` of each step of an episode."""
    returns = np.zeros(len(rewards) + 1)
    for t in reversed(range(len(rewards))):
        returns[t] = rewards[t] + gamma * returns[t + 1]
    return returns[:-1]


Episode = tuple[np.ndarray, np.ndarray]  # estimates and returns of its states


def play_episodes(agent: DQN, env: VecEnv, n_states: int) -> list[Episode]:
    """Whole episodes, until ``n_states`` have been met or some more."""
    obs: Any = env.reset()
    values: list[list[float]] = [[] for _ in range(env.num_envs)]
    rewards: list[list[float]] = [[] for _ in range(env.num_envs)]
    episodes = []
    n_met, playing = 0, set(range(env.num_envs))
    # Steps after which a reward counts for less than 1%
    horizon = np.inf if agent.gamma == 1 else np.log(0.01) / np.log(agent.gamma) if agent.gamma > 0 else 0
    while playing:
        with th.no_grad():
            q_values = agent.q_net(agent.policy.obs_to_tensor(obs)[0])
        actions, _ = agent.predict(obs, deterministic=False)
        obs, reward, dones, infos = env.step(actions)
        n_met += env.num_envs
        for index in list(playing):
            values[index].append(float(q_values[index].max()))
            rewards[index].append(float(reward[index]))
            if dones[index]:
                length = len(rewards[index])
                is_known = length - np.arange(length) >= (horizon if infos[index].get("TimeLimit.truncated") else 0)
                returns = discounted_returns(rewards[index], agent.gamma)
                episodes.append((np.array(values[index])[is_known], returns[is_known]))
                values[index], rewards[index] = [], []
                if n_met >= n_states:  # an episode that has begun is seen to its end
                    playing.remove(index)
    return episodes


def measure(saved: SavedAgents, n_states: int, n_envs: int) -> list[dict[str, Any]]:
    """A row of each saved agent."""
    label, algo, run, args, paths = saved
    rows: list[dict[str, Any]] = []
    for steps, path in paths.items():
        env = make_env(run, EnvironmentName(args["env"]), steps, n_envs)
        if unwrap_vec_normalize(env) is not None:
            raise SystemExit(f"Error: {run} has normalized rewards, of which the Zoo shows the raw ones.")
        agent = load(path, algo, seed=steps)
        agent.exploration_rate = agent.exploration_final_eps
        episodes = play_episodes(agent, env, n_states)
        env.close()
        if not any(len(returns) for _, returns in episodes):
            raise SystemExit(f"Error: {run} ends its episodes too early to tell what its states are worth.")
        row = {"label": label, "env": args["env"], "seed": args["seed"], "steps": steps, **summary(episodes)}
        rows.append({**row, "epsilon": agent.exploration_rate, "gamma": agent.gamma})
        found = f"estimated {row['estimate']:7.3f}, obtained {row['return']:7.3f} (+/- {row['standard_error']})"
        print(f"{label:12} {args['env']:32} {steps:>9} steps: {found}", flush=True)
    return rows


def summary(episodes: list[Episode]) -> dict[str, Any]:
    """Means over all states; the standard error is that of their difference, with episodes as the unit of chance.

    One episode alone tells nothing of it: ``None``.
    """
    estimates, returns = (np.concatenate(arrays) for arrays in zip(*episodes, strict=True))
    excess = float((estimates - returns).mean())
    of_episodes = [float((values - obtained - excess).sum()) for values, obtained in episodes]
    standard_error, n = None, len(episodes)
    if n > 1:
        standard_error = round(float(np.sqrt(np.square(of_episodes).sum() * n / (n - 1))) / len(returns), 4)
    return {
        "estimate": round(float(estimates.mean()), 4),
        "return": round(float(returns.mean()), 4),
        "standard_error": standard_error,
        "states": len(returns),
        "episodes": len(episodes),
    }


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
            n_seeds = len({row["seed"] for row in own})
            seeds = "1 seed" if n_seeds == 1 else f"{n_seeds} seeds"
            for key, style, what in (("estimate", "-", "estimated"), ("return", "--", "obtained")):
                found: dict[int, list[float]] = defaultdict(list)
                for row in own:
                    found[row["steps"]].append(row[key])
                steps = sorted(found)
                if not steps:
                    continue
                means = [float(np.mean(found[step])) for step in steps]
                axis.plot(steps, means, style, color=color, label=f"{label}, {what} ({seeds})")
                ends = [[end(found[step]) for step in steps] for end in (min, max)]
                axis.fill_between(steps, *ends, color=color, alpha=0.15, linewidth=0)
        axis.set(title=env_id, xlabel="steps (actions)", ylabel="discounted value")
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(picture, dpi=110)


def key_of(row: dict[str, Any]) -> tuple[str, str, int]:
    return row["label"], row["env"], row["seed"]


def main() -> None:
    """Measure, print, record and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="folders LOGS/ALGO/ENV_NUMBER, or LABEL=FOLDER")
    parser.add_argument("--states", type=int, default=10_000, help="that each agent meets, at least")
    parser.add_argument("--envs", type=int, default=8, help="environments at once")
    parser.add_argument("--output", type=Path, default=Path("overestimation.json"), help="picture beside it")
    args = parser.parse_args()

    gym.register_envs(ale_py)
    register()
    try:
        rows: list[dict[str, Any]] = json.loads(args.output.read_text())["rows"] if args.output.exists() else []
        _ = [(key_of(row), row["estimate"], row["return"]) for row in rows]
    except (ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"Error: {args.output} is no record of this script's, another --output would be.") from error
    # All of them, before the first one is measured
    runs: dict[tuple[str, str, int], SavedAgents] = {}
    for saved in map(saved_agents, args.runs):
        key = saved.label, saved.args["env"], saved.args["seed"]
        if key in runs:
            raise SystemExit(f"Error: two of these runs are of {key[0]} on {key[1]} with seed {key[2]}; LABEL=FOLDER.")
        runs[key] = saved
    for key, saved in runs.items():
        rows = [*(row for row in rows if key_of(row) != key), *measure(saved, args.states, args.envs)]
        write_record(args.output, rows=rows)
    draw(rows, args.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
