"""Say where the newest run is, what it scored, and how to watch, plot and continue it.

python scripts/report_run.py --env PongNoFrameskip-v4 [-f logs]
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from huggingface_sb3 import EnvironmentName

from dqn_ext.hub.metrics import episodes


def main() -> None:
    """Print the report; other flags of the Zoo's are passed over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algo", default="ddqn")
    parser.add_argument("--env", type=EnvironmentName, required=True)
    parser.add_argument("-f", "--log-folder", default="logs")
    parser.add_argument("-optimize", "--optimize-hyperparameters", action="store_true")
    args, _ = parser.parse_known_args()
    if args.optimize_hyperparameters:
        return  # a search leaves no agent

    runs = Path(args.log_folder, args.algo).glob(f"{args.env}_*/{args.env}.zip")
    agent = max(runs, key=lambda path: path.stat().st_mtime, default=None)
    if agent is None:
        sys.exit(f"No agent of {args.algo} for {args.env} below {args.log_folder}.")
    run = agent.parent
    print(f"\nThe agent: {agent}")
    scores = episodes(run)[:, 0]
    if len(scores) > 0:
        last = scores[-20:]
        print(
            f"Training:  {len(scores)} episodes, the last {len(last)} scored {np.mean(last):.1f} +/- {np.std(last):.1f}"
        )
    if (run / "evaluations.npz").is_file():
        evaluations = np.load(run / "evaluations.npz")
        for timesteps, results in zip(evaluations["timesteps"], evaluations["results"], strict=True):
            print(f"Evaluated: at step {timesteps}, {np.mean(results):.1f} +/- {np.std(results):.1f}")

    # Of few episodes the Zoo draws nothing with its window of 100
    window = max(1, min(100, len(scores) // 4))
    # As in the README: more of the same budget, without exploring from the start again
    go_on = "-n 1000000 -params exploration_initial_eps:0.01 learning_starts:1000 " if "NoFrameskip" in args.env else ""
    agent_args = f"--algo {args.algo} --env {args.env.gym_id} -f {args.log_folder}"
    # The commands are those of the interpreter that runs this
    python = Path(sys.executable)
    name = python.relative_to(Path.cwd()) if python.is_relative_to(Path.cwd()) else python
    print(f"""
Watch it:    {name} -m rl_zoo3.enjoy {agent_args}
Film it:     {name} -m rl_zoo3.record_video {agent_args} -n 1000
Plot it:     {name} -m rl_zoo3.plots.plot_train -a {args.algo} -e {args.env} -f {args.log_folder} -w {window}
Continue it: {name} -m rl_zoo3.train {agent_args} -P {go_on}-i {agent}
""")


if __name__ == "__main__":
    main()
