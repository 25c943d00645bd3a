"""Train one packaged entry with several seeds, through the Zoo's own command, and evaluate the final agents.

python scripts/check_seeds.py --env CartPole-v1 --seeds 1 2 3 4 5 --episodes 100 --threshold 475
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from huggingface_sb3 import EnvironmentName
from records import write_record
from stable_baselines3.common.evaluation import evaluate_policy

import dqn_ext
from dqn_ext.watch import load, make_env
from dqn_ext.zoo import register


def train(env: EnvironmentName, seed: int, folder: str, zoo_args: list[str]) -> Path:
    """:return: the run's folder"""
    command = [sys.executable, "-m", "dqn_ext.zoo", "train", *zoo_args, "--algo", "ddqn", "--env", env.gym_id]
    command += ["--seed", str(seed), "-f", folder, "--eval-freq", "-1", "--num-threads", "1", "--verbose", "0"]
    if subprocess.run(command, stdout=subprocess.DEVNULL).returncode != 0:
        sys.exit(1)  # it has said why
    return Path(folder, "ddqn", f"{env}_1")


def main() -> None:
    """Train, evaluate, print a table, and keep a record if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", type=EnvironmentName, default="CartPole-v1", help="whose observations are vectors")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--episodes", type=int, default=100, help="evaluation episodes of each agent")
    parser.add_argument("--threshold", type=float, default=475.0, help="mean return that counts as solved")
    parser.add_argument("--output", type=Path, help="a json file for the record")
    args, zoo_args = parser.parse_known_args()
    register()

    runs = []
    print(f"{'seed':>6} {'mean':>8} {'std':>8} {'training s':>11}")
    for seed in args.seeds:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            run = train(args.env, seed, folder, zoo_args)
            seconds = time.perf_counter() - start
            agent = load(run / f"{args.env}.zip", "ddqn", seed)
            env = make_env(run, args.env, seed=10_000 + seed)
        mean, std = evaluate_policy(agent, env, n_eval_episodes=args.episodes, deterministic=True)
        runs.append({"seed": seed, "mean": float(np.mean(mean)), "std": float(np.mean(std)), "seconds": round(seconds)})
        print(f"{seed:>6} {mean:>8.1f} {std:>8.1f} {seconds:>11.1f}", flush=True)
        if args.output is not None:
            write_record(
                args.output,
                env=args.env.gym_id,
                protocol=f"final agent, greedy, {args.episodes} episodes",
                threshold=args.threshold,
                dqn_ext=dqn_ext.__version__,
                runs=runs,
            )
    solved = sum(run["mean"] >= args.threshold for run in runs)
    print(f"{solved} of {len(runs)} seeds reach {args.threshold:g}; median {np.median([r['mean'] for r in runs]):.1f}")


if __name__ == "__main__":
    main()
