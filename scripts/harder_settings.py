"""How does an agent play what it was not trained on? Sticky actions, and the game's other difficulties and modes.

    python scripts/harder_settings.py --env PongNoFrameskip-v4 -f rl-trained-agents --output results/harder_Pong.json

One thing of a NoFrameskip-v4 game's usual settings is changed at a time, by the Zoo's ``env_kwargs``; all else is the
protocol of scripts/bench_learning.py: full games, unclipped scores, the agent's own epsilon, up to 30 no-ops. A game is
cut after 108,000 frames; how many were is told.
``repeat_action_probability`` 0.25 is what Machado et al. 2018 recommend (https://arxiv.org/abs/1709.06009).
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import ale_py
import gymnasium as gym
import numpy as np
from bench_learning import EVALUATION_SEED, MOST_FRAMES, N_GAMES, play
from huggingface_sb3 import EnvironmentName
from records import write_record
from suite import table

from dqn_ext.watch import find_run, load
from dqn_ext.zoo import register


def other_settings(env_id: str) -> dict[str, dict[str, Any]]:
    """By name, what is changed of the environment; first of all nothing."""
    env = gym.make(env_id)
    ale = getattr(env.unwrapped, "ale", None)
    if ale is None:
        sys.exit(f"Error: --env must be a game of ale-py's, not {env_id}.")
    settings: dict[str, dict[str, Any]] = {"as trained": {}, "sticky actions": {"repeat_action_probability": 0.25}}
    settings |= {
        f"difficulty {number}": {"difficulty": number} for number in sorted(ale.getAvailableDifficulties())[1:]
    }
    settings |= {f"mode {number}": {"mode": number} for number in sorted(ale.getAvailableModes())[1:]}
    env.close()
    return settings


def main() -> None:
    """Play, print the table, and keep a record if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algo", default="ddqn")
    parser.add_argument("--env", type=EnvironmentName, required=True)
    parser.add_argument("-f", "--folder", default="logs")
    parser.add_argument("--exp-id", type=int, default=0, help="of the run; 0: the latest")
    parser.add_argument("--n-games", type=int, default=N_GAMES)
    parser.add_argument("--seed", type=int, default=EVALUATION_SEED)
    parser.add_argument("--output", type=Path, help="a json file for the record")
    args = parser.parse_args()
    if args.n_games < 1:
        parser.error("--n-games must be at least 1")

    gym.register_envs(ale_py)
    register()
    run = find_run(args)
    if not (run / f"{args.env}.zip").is_file():
        sys.exit(f"Error: {run} has not come to its end: it has no {args.env}.zip.")
    rows: list[dict[str, Any]] = []
    for name, env_kwargs in other_settings(args.env.gym_id).items():
        agent = load(run / f"{args.env}.zip", args.algo, args.seed)
        scores, lengths = play(run, args.env.gym_id, agent, args.seed, args.n_games, **env_kwargs)
        mean, std = round(float(np.mean(scores)), 1), round(float(np.std(scores)), 1)
        cut = sum(length >= MOST_FRAMES for length in lengths)
        rows.append({"setting": name, "mean": mean, "std": std, "cut": cut, "scores": scores, "lengths": lengths})
        print(f"{name}: {mean} +/- {std}", flush=True)
        if args.output:
            about = {"steps": agent.num_timesteps, "epsilon": agent.exploration_rate, "n_games": args.n_games}
            write_record(args.output, **about, rows=rows)
    print("\n" + table([{key: row[key] for key in ("setting", "mean", "std", "cut")} for row in rows]))


if __name__ == "__main__":
    main()
