"""How well does it learn? Games x algorithms x seeds at one budget, a record of each run, and the comparison drawn.

    python scripts/bench_learning.py --games Pong SpaceInvaders --algos dqn ddqn --seeds 1 2 3 -n 1000000
    # Other settings under a name of their own; flags after -- are the Zoo's
    python scripts/bench_learning.py --games Pong --algos ddqn --label "one step" -n 1000000 -- -params n_steps:1
    # Draw again what has been recorded
    python scripts/bench_learning.py --games Breakout SpaceInvaders --seeds -n 1000000 --records results/learning

Each run is the Zoo's own train command. What was interrupted goes on when the same command is given again: ddqn from
its checkpoints, dqn from those that ``-- -params checkpoint_freq:250000`` has it make (5.6 GB each on Atari, as its
replay memory), qrdqn from the beginning. A run's final agent plays 30 full games at its final epsilon after up to 30
no-ops; scores are unclipped, and games end after 108,000 frames (the papers have an epsilon of 0.05 and, with no-ops,
18,000 frames). Its record goes to ``--records``. A record that is not complete, or of another protocol, budget or
setting than the first of its kind, is left out of the picture, and it is said.

dqn and ddqn with their packaged entries differ in more than the target: in returns, replay and environments, too.
"""

import argparse
import ast
import itertools
import json
import os
import shlex
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ale_py
import gymnasium as gym
import machine
import numpy as np
import psutil
import torch as th
import yaml
from huggingface_sb3 import EnvironmentName
from records import replace
from sb3_contrib import QRDQN
from stable_baselines3 import DQN
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import load_results
from stable_baselines3.common.utils import get_device
from suite import Run, RunFailed, RunKilled, budget, environments, own_and_zoo_flags, prepare, table, train

from dqn_ext.watch import load, make_env, saved_args, trained_env_kwargs
from dqn_ext.zoo import register

N_GAMES, N_EVALUATIONS, N_EVALUATION_GAMES = 30, 20, 10
EVALUATION_SEED = 10_000
PROTOCOL = f"final agent, {N_GAMES} full games, unclipped scores, final epsilon, up to 30 no-ops"
MOST_FRAMES = 108_000  # of a NoFrameskip-v4 game: 30 minutes
PACKAGES = ("dqn-ext", "stable-baselines3", "rl-zoo3", "torch", "gymnasium", "ale-py")
FIELDS = {"label", "env", "seed", "n_timesteps", "steps", "settings", "protocol", "scores", "curve", "hours"}
FIELDS |= {"machine", "threads", "attempts"}
# In these, runs under one label may differ: they change nothing of what is learned, or stand elsewhere in the record
FREE_SETTINGS = {"checkpoint_freq", "compile", "n_timesteps"}
FREE_REPLAY_SETTINGS = {"store", "store_dir"}

# Of random play and of a human, as in dqn_zoo's atari_data.py (google-deepmind)
RANDOM_AND_HUMAN = {
    "SpaceInvaders": (148, 1669),
    "Pong": (-20.7, 14.6),
    "Breakout": (1.7, 30.5),
    "Seaquest": (68, 42055),
    "Qbert": (164, 13455),
    "MsPacman": (307, 6952),
    "BeamRider": (364, 16927),
    "Enduro": (0, 861),
    "Asterix": (210, 8503),
    "RoadRunner": (12, 7845),
}
# At 10 million steps, one run: benchmark.md of RL Baselines3 Zoo; at 50 million: van Hasselt et al. 2016, no-op starts
ZOO_DQN_10M = {
    "SpaceInvaders": 622.7,
    "Pong": 20.6,
    "Breakout": 358,
    "Seaquest": 2000,
    "Qbert": 9497,
    "MsPacman": 2683,
    "BeamRider": 4296,
    "Enduro": 831,
    "RoadRunner": 40396,
}
DOUBLE_DQN_50M = {
    "SpaceInvaders": 3155,
    "Breakout": 375,
    "Seaquest": 7995,
    "Qbert": 14875,
    "MsPacman": 3210,
    "BeamRider": 7654,
    "Enduro": 320,
    "Asterix": 15150,
    "RoadRunner": 48377,
}


# ---------------------------------------------------------------------- running


def record_path(run: Run, label: str, records: Path) -> Path:
    return records / f"{label}-{run.env_name}-{budget(run)}-{run.seed}.json".replace(" ", "_")


def command(run: Run) -> str:
    """As it can be pasted, without the folder."""
    return shlex.join(["python", *run.command[: run.command.index("-f")], *run.flags])


def check_record(path: Path, run: Run) -> None:
    """Where the run has a record already, it must be of this very command: it will not be run again."""
    with suppress(OSError, ValueError, KeyError):
        if (recorded := json.loads(path.read_text())["command"]) != command(run):
            sys.exit(
                f"Error: {path} is of another command ({recorded}), and this is {command(run)}; "
                f"give these runs a --label of their own, or leave seed {run.seed} out of --seeds."
            )


_recording = threading.Lock()  # the random generators and the cores are everybody's


def see_to_the_end(run: Run, label: str, records: Path) -> bool:
    """Train, evaluate and record one run, unless that has been done.

    :return: whether it has its record
    """
    path = record_path(run, label, records)
    if path.exists():
        print(f"{run.name}: recorded before, {path}", flush=True)
        return True
    try:
        train(run)
    except (RunFailed, RunKilled) as error:
        print(f"{run.name}: {error}", file=sys.stderr, flush=True)
        return False
    try:
        with _recording:
            content = record(run, label)
    except Exception as error:  # whatever it is, the other runs go on
        print(f"{run.name} has no record: {error!r}", file=sys.stderr, flush=True)
        return False
    replace(path, json.dumps(content) + "\n")
    print(f"{run.name}: {np.mean(content['scores']):.1f} +/- {np.std(content['scores']):.1f}", flush=True)
    return True


def record(run: Run, label: str) -> dict[str, Any]:
    """What is kept of a run."""
    from rl_zoo3.exp_manager import ExperimentManager

    evaluations = np.load(run.zoo_folder / "evaluations.npz")
    seed = evaluation_seed(run.seed)
    agent = load(run.agent, run.algo, seed)
    args = saved_args(run.zoo_folder, run.env_name)
    hours = hours_at(run.zoo_folder, agent.num_timesteps)
    # As the Zoo's evaluations act
    as_in_training = ExperimentManager.is_atari(run.env) or ExperimentManager.is_minigrid(run.env)
    acting = "at the epsilon of that moment" if as_in_training else "greedily"
    scores, lengths = play(run.zoo_folder, run.env, agent, seed)
    return {
        "label": label,
        "algo": run.algo,
        "env": run.env,
        "seed": run.seed,
        "n_timesteps": budget(run),
        "steps": agent.num_timesteps,
        "command": command(run),
        "settings": settings_of(run.zoo_folder, run.env_name),
        "commit": commit(),
        "versions": {name: version(name) for name in PACKAGES},
        # Of an interrupted run, machine, commit and threads are those of the last attempt
        "machine": machine.describe(get_device(args["device"]).type),
        "threads": args["num_threads"] if args["num_threads"] > 0 else int(os.environ["OMP_NUM_THREADS"]),
        "attempts": len((run.folder / "attempts").read_text().splitlines()),
        "date": time.strftime("%Y-%m-%d"),
        "hours": round(float(hours(agent.num_timesteps)), 5),
        "protocol": PROTOCOL,
        "epsilon": agent.exploration_rate,
        "scores": scores,
        "lengths": lengths,  # emulator frames on Atari
        "curve": {
            "protocol": f"{evaluations['results'].shape[1]} full games {acting}",
            "steps": evaluations["timesteps"].tolist(),
            "hours": [round(float(hours(step)), 5) for step in evaluations["timesteps"]],
            "scores": [[float(score) for score in scores] for scores in evaluations["results"]],
        },
    }


def settings_of(folder: Path, env_name: str) -> dict[str, str]:
    """What a run was trained with."""
    config = (folder / env_name / "config.yml").read_text()
    settings = dict(yaml.load(config, Loader=yaml.UnsafeLoader))  # written by that run
    settings["env_kwargs"] = trained_env_kwargs(settings, saved_args(folder, env_name))
    return {name: str(value) for name, value in sorted(settings.items())}


def evaluation_seed(seed: int) -> int:
    """Such that the environments of two runs' evaluations, which count on from it, have no seed in common."""
    return EVALUATION_SEED + 100 * seed


def play(
    folder: Path, env_id: str, agent: DQN, seed: int, n_games: int = N_GAMES, **env_kwargs: Any
) -> tuple[list[float], list[int]]:
    """Let a run's agent play in the environments in which the Zoo's ``enjoy`` shows it, or changed ones.

    :return: the games' scores, and their lengths, which are emulator frames on Atari
    """
    env = make_env(folder, EnvironmentName(env_id), seed, n_envs=6, **env_kwargs)
    scores, lengths = evaluate_policy(agent, env, n_games, deterministic=False, return_episode_rewards=True)
    env.close()
    return [float(score) for score in scores], [int(length) for length in lengths]  # type: ignore[union-attr]


def hours_at(folder: Path, n_timesteps: int) -> Any:
    """Wall-clock of a training, evaluations included, as a function of its steps; from the episodes' ends."""
    games = load_results(str(folder))
    steps = games["l"].cumsum() / games["l"].sum() * n_timesteps  # Monitor counts emulator frames on Atari
    return lambda step: np.interp(step, [0, *steps], [0, *(games["t"] / 3600)])


@cache
def commit() -> str:
    """Of the code that runs, with a plus if it is not quite that."""
    words = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=12", "--dirty=+"]
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


# ---------------------------------------------------------------------- drawing


def read_records(folder: Path, envs: list[str], n_timesteps: int) -> list[dict[str, Any]]:
    """The records of these games and this budget; what is left out is said."""
    records: list[dict[str, Any]] = []
    for path in sorted(folder.glob("*.json")):
        try:
            content = json.loads(path.read_text())
            missing = FIELDS - content.keys()
        except (ValueError, AttributeError):
            content, missing = {}, FIELDS
        if missing:
            print(f"{path} is left out: it lacks {', '.join(sorted(missing))}")
        elif content["env"] in envs:
            if reason := why_not(content, n_timesteps, records):
                print(f"{path} is left out: {reason}")
            else:
                records.append(content)
    return records


def why_not(content: dict[str, Any], n_timesteps: int, others: list[dict[str, Any]]) -> str | None:
    """Why a record is not to stand beside the others; ``None`` where it may."""
    if content["protocol"] != PROTOCOL or len(content["scores"]) != N_GAMES:
        return f"it is of another protocol ({content['protocol']})"
    if content["n_timesteps"] != n_timesteps:
        return f"it is of {content['n_timesteps']} steps"
    if content["steps"] < n_timesteps:
        return f"it ended after {content['steps']} of its steps"
    for other in others:
        if content["env"] != other["env"]:
            continue
        if content["curve"]["protocol"] != other["curve"]["protocol"]:
            return f"its curve is of another protocol ({content['curve']['protocol']}) than those before it"
        different = {name for name, _ in of_learning(content["settings"]) ^ of_learning(other["settings"])}
        if content["label"] != other["label"]:
            different &= {"env_kwargs"}  # the game is the same for all
        elif content["seed"] == other["seed"]:
            return f"there is one of {content['label']} with seed {content['seed']} already"
        if different:
            return f"it differs in {', '.join(sorted(different))} from those before it"
    return None


def of_learning(settings: dict[str, str]) -> set[tuple[str, str]]:
    """What decides the course of learning, of a record's settings."""
    kept = {name: value for name, value in settings.items() if name not in FREE_SETTINGS}
    with suppress(KeyError, ValueError, SyntaxError):  # those of another class may have no literal
        replay = ast.literal_eval(settings["replay_buffer_kwargs"])
        kept["replay_buffer_kwargs"] = str(
            sorted(item for item in replay.items() if item[0] not in FREE_REPLAY_SETTINGS)
        )
    return set(kept.items())


def by_label_and_game(records: Iterable[dict[str, Any]]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Records of all seeds, by label, then by game."""
    grouped: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for content in records:
        grouped[content["label"]][content["env"]].append(content)
    return grouped


def interquartile_means(records: list[dict[str, Any]], envs: list[str]) -> list[dict[str, Any]]:
    """Over games and seeds, of human-normalized scores (0: random play, 1: a human), with 95% bootstrap intervals.

    Of each label, those seeds that all of its games have. What is left out is said. Fewer than three seeds have no
    interval: there is nothing to draw again from.
    """
    from rliable import library, metrics

    if unknown := [game(env) for env in envs if game(env) not in RANDOM_AND_HUMAN]:
        print(f"No interquartile means: the scores of a human are not known for {', '.join(unknown)}.")
        return []
    rows = []
    for label, games in by_label_and_game(records).items():
        by_seed = {env: {content["seed"]: np.mean(content["scores"]) for content in games[env]} for env in envs}
        all_seeds = set().union(*by_seed.values())
        seeds = sorted(all_seeds.intersection(*by_seed.values()))
        if left_out := sorted(all_seeds.difference(seeds)):
            print(f"Left out of {label}'s interquartile mean, since not all games have them: seeds {left_out}")
        if not seeds:
            continue
        limits = np.array([RANDOM_AND_HUMAN[game(env)] for env in envs])  # (games, 2)
        scores = np.array([[by_seed[env][seed] for env in envs] for seed in seeds])  # (seeds, games)
        normalized = (scores - limits[:, 0]) / (limits[:, 1] - limits[:, 0])
        np.random.seed(0)
        points, intervals = library.get_interval_estimates(
            {label: normalized}, lambda x: np.array([metrics.aggregate_iqm(x)]), reps=2000
        )
        low, high = (round(float(limit[0]), 3) if len(seeds) > 2 else None for limit in intervals[label])
        row = {"label": label, "seeds": len(seeds), "games": len(envs), "IQM": round(float(points[label][0]), 3)}
        rows.append({**row, "95% from": low, "to": high})
    return rows


def game(env: str) -> str:
    return env.removesuffix("NoFrameskip-v4")


def draw(records: list[dict[str, Any]], envs: list[str], n_timesteps: int, path: Path) -> None:
    """Scores over steps and over hours; the mean of the seeds, and from the least to the greatest of them.

    A game's hours are those of one machine, used in one way, of runs that nothing interrupted; of others it is said
    that they are left out, and where none is left there are no hours.
    """
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    grouped = by_label_and_game(records)
    timed, others = of_one_machine(records)
    if others:
        print(f"Left out of the hours, since interrupted or measured otherwise: {', '.join(others)}")
    shown = [("steps", grouped), ("hours", timed)] if timed else [("steps", grouped)]
    envs = [env for env in envs if any(content["env"] == env for content in records)]
    size = (5.5 * len(shown), 3.4 * len(envs))
    figure, axes = plt.subplots(len(envs), len(shown), figsize=size, squeeze=False, sharey="row")
    colors = dict(zip(sorted(grouped), plt.rcParams["axes.prop_cycle"].by_key()["color"], strict=False))
    for row, env in zip(axes, envs, strict=True):
        for axis, (unit, runs) in zip(row, shown, strict=True):
            for label, color in colors.items():
                if not (seeds := runs[label][env]):
                    continue
                last = min(content["curve"][unit][-1] for content in seeds)
                grid = np.linspace(0, last, 100)[1:]
                first = max(content["curve"][unit][0] for content in seeds)
                grid = grid[grid >= first]
                curves = [(content["curve"][unit], np.mean(content["curve"]["scores"], axis=1)) for content in seeds]
                means = np.array([np.interp(grid, x, y) for x, y in curves])
                n_seeds = "1 seed" if len(seeds) == 1 else f"{len(seeds)} seeds"
                axis.plot(grid, means.mean(axis=0), color=color, label=f"{label}, {n_seeds}")
                axis.fill_between(grid, means.min(axis=0), means.max(axis=0), color=color, alpha=0.2, linewidth=0)
        left = row[0]
        limits = left.get_ylim()
        for name, scores, style in (
            ("RL Zoo's dqn after 10M", ZOO_DQN_10M, "--"),
            ("Double DQN's paper, after 50M", DOUBLE_DQN_50M, ":"),
        ):
            if (score := scores.get(game(env))) is not None:
                left.axhline(score, color="grey", linestyle=style, linewidth=1, label=f"{name}: {score:g}")
        left.set_ylim(limits)  # the curves', which such scores may lie far above
        left.set(ylabel="score")
        for axis, (unit, _) in zip(row, shown, strict=True):
            if not axis.lines:  # no hours that can be compared
                axis.set_axis_off()
                continue
            xlabel = "steps (actions)"
            if unit == "hours":
                ran = next(content for games in timed.values() for content in games[env])
                xlabel = f"hours ({ran['machine']}; threads: {ran['threads']})"
            axis.set(title=f"{game(env)}, {n_timesteps:,} steps", xlabel=xlabel)
            axis.legend(fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    print(f"{path} shows them.")


def of_one_machine(records: list[dict[str, Any]]) -> tuple[dict[str, dict[str, list[dict[str, Any]]]], list[str]]:
    """Of each game, the machine and number of threads that most labels ran on, else most runs.

    :return: records whose hours can be compared, as :func:`by_label_and_game` has them, and the names of others
    """
    timed: list[dict[str, Any]] = []
    for env in dict.fromkeys(content["env"] for content in records):
        by_machine: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
        for content in records:
            if content["env"] == env and content["attempts"] == 1:
                by_machine[content["machine"], content["threads"]].append(content)
        groups = sorted(by_machine.values(), key=lambda group: (len(by_label_and_game(group)), len(group)))
        timed += groups[-1] if groups else []
    others = [content for content in records if content not in timed]
    return by_label_and_game(timed), [f"{other['label']} {game(other['env'])} {other['seed']}" for other in others]


def rows(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every seed's result; ``cut`` games had not come to their end after 108,000 frames."""
    return [
        {
            "game": game(content["env"]),
            "label": content["label"],
            "seed": content["seed"],
            "mean": round(float(np.mean(content["scores"])), 1),
            "std": round(float(np.std(content["scores"])), 1),
            "mean - std": round(float(np.mean(content["scores"]) - np.std(content["scores"])), 1),
            "hours": round(content["hours"], 2),
            "cut": sum(length >= MOST_FRAMES for length in content["lengths"]) if "lengths" in content else "",
        }
        for content in sorted(records, key=lambda content: (content["env"], content["label"], content["seed"]))
    ]


def see_all_to_the_end(runs: dict[Run, str], records: Path, n_jobs: int) -> bool:
    """:return: whether all of them have their records"""
    pool = ThreadPoolExecutor(n_jobs)
    try:
        waiting = [pool.submit(see_to_the_end, *run, records) for run in runs.items()]
        recorded = [done.result() for done in waiting]
    except KeyboardInterrupt:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in psutil.Process().children(recursive=True):
            child.terminate()  # ddqn writes a checkpoint
        pool.shutdown()
        sys.exit(130)
    return all(recorded)


def main() -> None:
    """Run what has not been run, then print the tables and draw."""
    words, zoo_flags = own_and_zoo_flags(sys.argv[1:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--games", nargs="+", required=True, help="names of Atari games, or ids of environments")
    parser.add_argument("--algos", nargs="+", default=["dqn", "ddqn"])
    parser.add_argument("--label", help="what to call the runs of one algorithm; its name by default")
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2, 3], help="none: only draw")
    parser.add_argument("-n", "--n-timesteps", type=int, required=True, help="steps of each run")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once; they share the cores")
    parser.add_argument("-f", "--folder", type=Path, default=Path("logs/learning"), help="of the runs")
    parser.add_argument("--records", type=Path, help="of the records; FOLDER/records, if not given")
    parser.add_argument("--picture", type=Path, help="learning_STEPS.png beside the folder of records, if not given")
    args = parser.parse_args(words)
    args.records = args.records or args.folder / "records"
    if min(args.n_timesteps, args.jobs) < 1:
        parser.error("-n and --jobs must be at least 1")
    if args.label and len(args.algos) != 1:
        parser.error("--label names the runs of one algorithm, and --algos has several")

    gym.register_envs(ale_py)
    register()
    from rl_zoo3 import ALGOS

    envs = environments(args.games)
    if others := [algo for algo in args.algos if not issubclass(ALGOS.get(algo, object), (DQN, QRDQN))]:
        parser.error(f"--algos knows dqn, ddqn and qrdqn, whose agents have an epsilon, and not {', '.join(others)}")
    os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // args.jobs, 1)))
    th.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    every = str(max(args.n_timesteps // N_EVALUATIONS, 1))
    flags = ("-n", str(args.n_timesteps), "--eval-freq", every, "--eval-episodes", str(N_EVALUATION_GAMES), *zoo_flags)
    commit()  # now: the clone may move on while they run
    runs = {}
    for seed, env, algo in itertools.product(args.seeds, envs, args.algos):
        label = args.label or algo
        run = Run(str((args.folder / label).absolute()), algo, env, seed, flags)
        check_record(record_path(run, label, args.records), run)
        runs[run] = label
    for run in runs:
        prepare(run)
    all_done = see_all_to_the_end(runs, args.records, args.jobs)

    records = read_records(args.records, envs, args.n_timesteps)
    if not records:
        sys.exit(f"Error: {args.records} has no complete record of these games at {args.n_timesteps} steps.")
    print(f"\n{table(rows(records))}\n")
    if summary := interquartile_means(records, envs):
        print(f"{table(summary)}\n")
    draw(
        records,
        envs,
        args.n_timesteps,
        args.picture or args.records.parent / f"learning_{args.n_timesteps}.png",
    )
    if not all_done:
        sys.exit("Error: not all runs have come to their end; the same command goes on with them.")


if __name__ == "__main__":
    main()
