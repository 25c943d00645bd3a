"""Keep a run's agent as one of the Zoo's trained agents: what playing needs, in a few megabytes, with its card.

    python scripts/trained_agent.py logs/learning/ddqn/runs/ddqn-PongNoFrameskip-v4-1/ddqn/PongNoFrameskip-v4_1 \\
        --record results/learning/ddqn-PongNoFrameskip-v4-500000-1.json
    python -m rl_zoo3.enjoy --algo ddqn --env PongNoFrameskip-v4 --folder rl-trained-agents

The record is what scripts/bench_learning.py wrote of the run. The agent is the run's last one, which the record's
scores are of; its optimizer's moments are left out, and its target network is the network itself. More than 8 MB are
refused: that is a network larger than the plain one.
"""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from bench_learning import settings_of
from huggingface_sb3 import EnvironmentName

from dqn_ext import DDQN
from dqn_ext.hub.push import training_args

MOST_BYTES = 8_000_000


def slim(agent: DDQN) -> None:
    """Leave in it only what playing needs; a network that two names share is written once."""
    agent.policy.optimizer.state.clear()
    agent._last_obs = agent._last_original_obs = None  # of all environments
    for parameter, target in zip(agent.q_net.parameters(), agent.q_net_target.parameters(), strict=True):
        target.data = parameter.data


def card(record: dict[str, Any], log_folder: str) -> str:
    """How it was trained and evaluated, in Markdown."""
    scores = np.array(record["scores"])
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    return f"""# {record["algo"]} on {record["env"]}

{scores.mean():.1f} +/- {scores.std():.1f} in {len(scores)} games (mean - std: {scores.mean() - scores.std():.1f}).

    python -m rl_zoo3.enjoy --algo {record["algo"]} --env {record["env"]} --folder {log_folder}

- Trained for {record["steps"]:,} steps, seed {record["seed"]}, in {record["hours"]:.1f} hours
  ({record["machine"]}; threads: {record["threads"]}; attempts: {record["attempts"]}; {record["date"]}, commit
  {record["commit"]}):
  `{record["command"]}`
- Evaluated: {record["protocol"]} (epsilon {record["epsilon"]:g}).
- Scores: {", ".join(f"{score:g}" for score in sorted(scores))}.
- Versions: {versions}.

The optimizer's state is left out: the agent plays, and can be trained on (`-i`), but not from where it stopped.
"""


def write(folder: Path, agent: DDQN, run: Path, env: str, training: dict[str, Any]) -> None:
    """The folder as ``enjoy`` expects it.

    :param run: whence the agent is
    :param training: what is kept of the arguments of its training
    """
    (folder / env).mkdir(parents=True)
    slim(agent)
    agent.save(folder / f"{env}.zip")
    for name in ("config.yml", "vecnormalize.pkl"):
        if (run / env / name).exists():
            shutil.copy(run / env / name, folder / env / name)
    (folder / env / "args.yml").write_text(yaml.dump(training))
    shutil.copy(run / "evaluations.npz", folder / "evaluations.npz")


def main() -> None:
    """Write the folder anew, all of it or nothing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the run's folder, with ENV.zip in it")
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--folder", type=Path, default=Path("rl-trained-agents"))
    args = parser.parse_args()

    try:
        record = json.loads(args.record.read_text())
        env = EnvironmentName(record["env"])
        of_card = card(record, str(args.folder))
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.exit(f"Error: {args.record} is no record of bench_learning.py's: {error!r}")
    training = training_args(args.run / env / "args.yml")
    if missing := [name for name in (f"{env}.zip", "evaluations.npz") if not (args.run / name).is_file()]:
        sys.exit(f"Error: {args.run} is no finished run of {env} with evaluations: it has no {', no '.join(missing)}.")
    agent = DDQN.load(args.run / f"{env}.zip", device="cpu")
    found = {**{name: training.get(name) for name in ("algo", "env", "seed")}, "steps": agent.num_timesteps}
    for name, value in found.items():
        if record[name] != value:
            sys.exit(f"Error: {args.run} has {name} {value}, and {args.record} is of {record[name]}.")
    if different := sorted(dict(settings_of(args.run, env).items() ^ record.get("settings", {}).items())):
        sys.exit(f"Error: {args.run} has other settings than {args.record}: {', '.join(different)}.")

    final = args.folder / record["algo"] / f"{env}_1"
    new, old = (final.with_name(f"{final.name}.{state}") for state in ("new", "old"))
    shutil.rmtree(new, ignore_errors=True)
    try:
        write(new, agent, args.run, env, training)
        (new / "README.md").write_text(of_card)
        if (size := sum(path.stat().st_size for path in new.rglob("*"))) > MOST_BYTES:
            sys.exit(f"Error: this agent has {size / 1e6:.1f} MB; a trained agent may have {MOST_BYTES / 1e6:g}.")
        shutil.rmtree(old, ignore_errors=True)
        if final.exists():
            os.replace(final, old)  # a folder takes no other's place
        os.replace(new, final)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    print(f"{final}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
