"""The agents that a run has saved on its way, for scripts that look into them."""

from pathlib import Path
from typing import Any, NamedTuple

from dqn_ext.watch import find_checkpoints, saved_args


class SavedAgents(NamedTuple):
    """Of one run: its name, algorithm and folder, the arguments of its command, and the agents by their steps."""

    label: str
    algo: str
    run: Path
    args: dict[str, Any]
    paths: dict[int, Path]


def saved_agents(word: str) -> SavedAgents:
    """:param word: ``FOLDER`` or ``LABEL=FOLDER``, as a command line has it; without a label it is the algorithm

    :raises SystemExit: where the folder is no run of the Zoo's, has no saved agents, or not one Q-network
    """
    label, _, folder = ("", "", word) if Path(word).is_dir() or "=" not in word else word.partition("=")
    run = Path(folder)
    algo, env_name = run.parent.name, next((path.parent.name for path in run.glob("*/args.yml")), "")
    if run.is_dir() and algo not in ("dqn", "ddqn"):
        raise SystemExit(f"Error: {run} is of {algo}, and only agents of dqn and ddqn estimate with one Q-network.")
    args = saved_args(run, env_name) if run.is_dir() else {}
    paths = find_checkpoints(run, env_name) if args else {}
    # The best one is chosen, where the others are a sample
    paths = {steps: path for steps, path in paths.items() if path.stem != "best_model"}
    if not paths:
        raise SystemExit(f"Error: {folder} is no run of the Zoo's with saved agents (--save-freq).")
    return SavedAgents(label or algo, algo, run, args, paths)
