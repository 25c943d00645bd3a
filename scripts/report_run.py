"""Say where the newest run is, what it scored, and how to watch, plot and continue it.

python scripts/report_run.py --env PongNoFrameskip-v4 [-f logs]
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from dqn_ext.hub.metrics import episodes


def main() -> None:
    """Print the report; other flags of the Zoo's are passed over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", required=True)
    parser.add_argument("-f", "--log-folder", default="logs")
    args, _ = parser.parse_known_args()

    runs = Path(args.log_folder, "ddqn").glob(f"{args.env}_*/{args.env}.zip")
    agent = max(runs, key=lambda path: path.stat().st_mtime, default=None)
    if agent is None:
        sys.exit(f"No agent of ddqn for {args.env} below {args.log_folder}.")
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

    agent_args = f"--algo ddqn --env {args.env} -f {args.log_folder}"
    # The commands are those of the interpreter that runs this
    python = Path(sys.executable)
    name = python.relative_to(Path.cwd()) if python.is_relative_to(Path.cwd()) else python
    print(f"""
Watch it:    {name} -m rl_zoo3.enjoy {agent_args}
Film it:     {name} -m rl_zoo3.record_video {agent_args} -n 1000
Plot it:     {name} -m rl_zoo3.plots.plot_train -a ddqn -e {args.env} -f {args.log_folder}
Continue it: {name} -m rl_zoo3.train {agent_args} -P -i {agent}
""")


if __name__ == "__main__":
    main()
