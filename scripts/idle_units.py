"""How much of a network is at work? Of each layer, the units that are never on, or always, and so tell nothing apart.

    python -m rl_zoo3.train --algo ddqn --env PongNoFrameskip-v4 -n 50000 --save-freq 10000 -f centered ...
    python -m rl_zoo3.train --algo ddqn --env PongNoFrameskip-v4 -n 50000 --save-freq 10000 -f plain ...
    python scripts/idle_units.py centered=centered/ddqn/PongNoFrameskip-v4_1 plain=plain/ddqn/PongNoFrameskip-v4_1

Each agent that a run has saved sees the same states, those of play at random, one in ten. Of the rectified units of its
features extractor, layer by layer, it says which share is on in none of them, and which in all (a filter is one unit:
on if it is so anywhere in the image, always on if it is so everywhere). And the standard deviation of
``max_a Q(s, a)`` over the states, which is 0 where the network cannot tell them apart. Cf. the dormant neurons of Sokar
et al. 2023 (https://arxiv.org/abs/2302.12902). Runs are the Zoo's folders, ``LABEL=FOLDER`` names them.
"""

import argparse
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
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from dqn_ext.watch import load, make_env
from dqn_ext.zoo import register

EVERY = 10  # steps between two states that are kept: neighbours are much alike


def states_of_random_play(env: VecEnv, n_states: int, seed: int) -> np.ndarray:
    """:return: observations of ``env``, (``n_states``, ...)"""
    rng = np.random.default_rng(seed)
    n_actions = env.get_attr("action_space")[0].n
    obs: Any = env.reset()
    states: list[np.ndarray] = []
    for step in range(1, EVERY * -(-n_states // env.num_envs) + 1):
        obs, *_ = env.step(rng.integers(n_actions, size=env.num_envs))
        if step % EVERY == 0:
            states.extend(np.array(obs))
    return np.array(states[:n_states])


def measure(agent: DQN, states: np.ndarray) -> dict[str, Any]:
    """:return: of each rectified layer the shares ``off`` and ``always_on``, and the ``spread`` of values"""
    off, always_on = [], []

    def note(_module: nn.Module, _inputs: Any, output: th.Tensor) -> None:
        is_on = (output > 0).float().mean(dim=[dim for dim in range(output.ndim) if dim != 1])
        off.append(round(float((is_on == 0).float().mean()), 3))
        always_on.append(round(float((is_on == 1).float().mean()), 3))

    layers = [layer for layer in agent.q_net.features_extractor.modules() if isinstance(layer, nn.ReLU)]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    with th.no_grad():
        q_values = agent.q_net(agent.policy.obs_to_tensor(states)[0])
    for hook in hooks:
        hook.remove()
    return {"off": off, "always_on": always_on, "spread": round(float(q_values.max(dim=1).values.std()), 4)}


def measure_run(saved: SavedAgents, n_states: int) -> list[dict[str, Any]]:
    """A row of each saved agent."""
    label, algo, run, args, paths = saved
    env = make_env(run, EnvironmentName(args["env"]), seed=0, n_envs=4)
    states = states_of_random_play(env, n_states, seed=0)
    env.close()
    rows = []
    for steps, path in paths.items():
        agent = load(path, algo, seed=0)
        row = {"label": label, "env": args["env"], "seed": args["seed"], "steps": steps, **measure(agent, states)}
        layers = ", ".join(f"{off:.0%}/{on:.0%}" for off, on in zip(row["off"], row["always_on"], strict=True))
        print(
            f"{label:12} {args['env']:24} {steps:>9} steps: off/always on {layers}; spread {row['spread']}", flush=True
        )
        rows.append(row)
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="folders LOGS/ALGO/ENV_NUMBER, or LABEL=FOLDER")
    parser.add_argument("--states", type=int, default=512, help="that each agent sees")
    parser.add_argument("--output", type=Path, help="for a record of all rows")
    args = parser.parse_args()
    gym.register_envs(ale_py)
    register()
    runs = [saved_agents(word) for word in args.runs]  # all of them, before the first one is measured
    rows = [row for saved in runs for row in measure_run(saved, args.states)]
    if args.output is not None:
        write_record(args.output, states=args.states, rows=rows)


if __name__ == "__main__":
    main()
