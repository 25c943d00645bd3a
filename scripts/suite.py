"""Train games x algorithms x seeds on Ray: on this machine, or on a cluster by its address.

python scripts/suite.py --games SpaceInvaders Pong --algos dqn ddqn --seeds 1 2 3 -n 1000000
python scripts/suite.py ... --address auto --cpus 2 --gpus 0.25 -f /shared/suite -- --eval-freq 50000

Each run is the Zoo's own train command, with the flags after ``--``. One whose process or machine dies is run again
elsewhere; ddqn's runs go on from their checkpoints, those of other algorithms start anew. The same command later
passes over what has come to its end, and goes on with the rest. All machines must see the folder ``-f``.
"""

import argparse
import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from huggingface_sb3 import EnvironmentName
from records import replace
from stable_baselines3.common.monitor import LoadMonitorResultsError, load_results

from dqn_ext.checkpoint import CheckpointFolder
from dqn_ext.errors import InvalidInput
from dqn_ext.watch import trained_steps

# The training must not outlive its Ray worker, which dies with its machine's raylet: it would go on writing beside the
# retry. Linux can be told so by the child itself, which then becomes the Zoo's command.
DIE_WITH_PARENT = (
    f"import ctypes, os, sys; ctypes.CDLL(None).prctl(1, {int(signal.SIGKILL)}); "  # PR_SET_PDEATHSIG
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)
ENDED_FROM_OUTSIDE = (75, 130, 143)  # ddqn's exit codes after a signal, cf. dqn_ext.checkpoint
TOLD = ("Eval num_timesteps", "Going on from", "Error:")
# The Zoo's command would begin another run beside the one that is asked for
OF_ANOTHER_RUN = ("but it is another run than this", "This is a run of its own")


class Run(NamedTuple):
    """One run of the suite; its folder is ``runs/NAME`` in the suite's."""

    suite: str
    algo: str
    env: str
    seed: int
    flags: tuple[str, ...]

    @property
    def env_name(self) -> str:
        """As it stands in paths."""
        return EnvironmentName(self.env)

    @property
    def name(self) -> str:
        return f"{self.algo}-{self.env_name}-{self.seed}"

    @property
    def folder(self) -> Path:
        return Path(self.suite, "runs", self.name)

    @property
    def zoo_folder(self) -> Path:
        """Where the Zoo puts it."""
        return self.folder / self.algo / f"{self.env_name}_1"

    @property
    def agent(self) -> Path:
        """The last one."""
        return self.zoo_folder / f"{self.env_name}.zip"

    @property
    def command(self) -> list[str]:
        words = ["-m", "dqn_ext.zoo", "train", "--algo", self.algo, "--env", self.env, "--seed", str(self.seed)]
        return [*words, "-f", str(self.folder), *self.flags]

    @property
    def is_finished(self) -> bool:
        return (self.folder / "finished").exists()


class RunFailed(Exception):
    """The Zoo's command has ended with an error; the same command would again."""


class RunKilled(Exception):
    """The Zoo's command was ended from outside."""


def prepare(run: Run) -> None:
    """Make the run's folder, and let the Zoo's commands find it as ``-f SUITE --exp-id SEED``."""
    run.folder.mkdir(parents=True, exist_ok=True)
    record = run.folder / "flags.json"
    if record.exists() and json.loads(record.read_text()) != list(run.flags):
        was = " ".join(json.loads(record.read_text()))
        sys.exit(f"Error: {run.folder} holds a run with other flags ({was}); give the suite another folder, -f.")
    replace(record, json.dumps(run.flags))
    link = Path(run.suite, run.algo, f"{run.env_name}_{run.seed}")
    link.parent.mkdir(exist_ok=True)
    if not link.is_symlink():
        link.symlink_to(os.path.relpath(run.zoo_folder, link.parent))


def train(run: Run) -> None:
    """Begin the run or go on with it, and see it to its end. This is the task of Ray's.

    :raises RunFailed: with the last lines of its output
    :raises RunKilled: after which Ray tries again
    """
    with (run.folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the child holds it, too: wait for one that has not died yet
        if run.is_finished:
            return
        if run.zoo_folder.exists() and not CheckpointFolder(run.zoo_folder / "checkpoint").steps():
            if (steps_of(run) or 0) >= budget(run):  # this process's predecessor died when it should have said so
                (run.folder / "finished").touch()
                return
            shutil.rmtree(run.zoo_folder.parent)
        run.agent.unlink(missing_ok=True)  # of a run that a signal has ended; there is a checkpoint of it
        with (run.folder / "attempts").open("a") as attempts:
            attempts.write(f"{os.uname().nodename}\n")
        die_with_parent = ["-c", DIE_WITH_PARENT] if sys.platform == "linux" else []
        with (
            (run.folder / "log.txt").open("a") as log,
            subprocess.Popen(
                [sys.executable, *die_with_parent, *run.command],
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=[lock.fileno()],
                # Out of the terminal's reach: on Ctrl-C the Zoo would end dqn's run as if it were finished
                start_new_session=True,
            ) as process,
        ):
            assert process.stdout is not None
            lines = [""]
            for line in process.stdout:
                log.write(line)
                log.flush()
                lines = [*lines[-5:], line]
                if any(words in line for words in OF_ANOTHER_RUN):
                    process.kill()
                    raise RunFailed(f"{run.name}: {line.rstrip()} Give the suite another folder, -f.")
                if line.startswith(TOLD):
                    print(f"{run.name}: {line.rstrip()}", flush=True)  # Ray brings it to the driver
        if process.returncode < 0 or process.returncode in ENDED_FROM_OUTSIDE:
            raise RunKilled(f"{run.name} was ended from outside (exit code {process.returncode})")
        if process.returncode or not run.agent.exists():
            raise RunFailed(f"{run.name} failed; the end of {run.folder / 'log.txt'}:\n{''.join(lines)}")
        (run.folder / "finished").touch()


def budget(run: Run) -> int:
    return int(run.flags[run.flags.index("-n") + 1])


def steps_of(run: Run) -> int | None:
    """Of its last agent, if that can be read."""
    with contextlib.suppress(InvalidInput):
        return trained_steps(run.agent)
    return None


def row(run: Run) -> dict[str, Any]:
    """What the suite's table says of a run. Scores are means over an evaluation's games."""
    result: dict[str, Any] = {"game": run.env, "algo": run.algo, "seed": run.seed, "last": None, "best": None}
    with contextlib.suppress(OSError, EOFError, ValueError, zipfile.BadZipFile):  # as a kill may have left it
        means = np.load(run.zoo_folder / "evaluations.npz")["results"].mean(axis=1)
        result |= {"last": float(means[-1]), "best": float(means.max())}
    result |= {"steps": steps_of(run), "hours": None}
    with contextlib.suppress(OSError, LoadMonitorResultsError, ValueError):
        # Time of training, without what was lost and made up for
        result["hours"] = float(load_results(str(run.zoo_folder))["t"].max()) / 3600
    attempts = run.folder / "attempts"
    result["retries"] = max(len(attempts.read_text().splitlines()) - 1, 0) if attempts.exists() else 0
    return {**result, "state": "finished" if run.is_finished else "not finished"}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    formats = {"last": ".1f", "best": ".1f", "hours": ".2f"}
    cells = [list(rows[0])]
    cells += [["-" if value is None else format(value, formats.get(key, "")) for key, value in r.items()] for r in rows]
    cells.insert(1, ["---"] * len(rows[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def plot(suite: Path, algos: list[str], envs: list[str], n_timesteps: int) -> None:
    """The Zoo's curves of all seeds' evaluations, as ``results_ENV.png``, and its tables, as ``results.pkl``."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt
    from rl_zoo3.plots.all_plots import all_plots

    names = [EnvironmentName(env) for env in envs]  # ALE/Pong-v5's folders are ALE-Pong-v5_...
    sys.argv = ["all_plots", "-a", *algos, "-e", *names, "-f", str(suite), "-l", "suite", "-max", str(n_timesteps)]
    sys.argv += ["-o", str(suite / "results")]
    all_plots()
    for name in names:
        plt.figure(f"Results {name}").savefig(suite / f"results_{name}.png")


def run_on_ray(runs: list[Run], args: argparse.Namespace) -> None:
    """See all runs to their end, and say what comes of each."""
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # lines of two runs that differ in their numbers are not the same
    import ray

    ray.init(address=args.address or "local", include_dashboard=False if args.address is None else None)
    task = ray.remote(
        num_cpus=args.cpus,
        num_gpus=args.gpus,
        max_retries=args.retries,
        retry_exceptions=[RunKilled],
        scheduling_strategy="SPREAD",
    )(train)
    waiting = {task.options(name=run.name).remote(run): run for run in runs}
    while waiting:
        [done], _ = ray.wait(list(waiting))
        run = waiting.pop(done)
        try:
            ray.get(done)
            print(f"{run.name}: finished, {len(waiting)} to go", flush=True)
        except ray.exceptions.RayError as error:
            print(f"{run.name}: {error}", file=sys.stderr, flush=True)
    ray.shutdown()


def own_and_zoo_flags(words: list[str]) -> tuple[list[str], list[str]]:
    """What stands before ``--``, and what after it."""
    end = words.index("--") if "--" in words else len(words)
    return words[:end], words[end + 1 :]


def environments(games: list[str]) -> list[str]:
    """Ids from ids and names of Atari games."""
    return [game if "-v" in game else f"{game}NoFrameskip-v4" for game in games]


def main() -> None:
    """Run the suite, then print its table and draw its plots."""
    words, zoo_flags = own_and_zoo_flags(sys.argv[1:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--games", nargs="+", required=True, help="names of Atari games, or ids of environments")
    parser.add_argument("--algos", nargs="+", default=["ddqn"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("-n", "--n-timesteps", type=int, required=True, help="steps of each run")
    parser.add_argument("-f", "--folder", type=Path, default=Path("logs/suite"))
    parser.add_argument("--address", help="of a Ray cluster: auto, HOST:PORT or ray://HOST:PORT; else this machine")
    parser.add_argument("--cpus", type=float, default=1, help="CPU cores of each run")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of each run, or its share of one")
    parser.add_argument("--retries", type=int, default=3, help="how often a run that was killed is run again")
    parser.add_argument("--checkpoint-freq", type=int, default=100_000, help="steps between ddqn's checkpoints")
    args = parser.parse_args(words)

    suite = args.folder.absolute()
    envs = environments(args.games)
    flags = ["-n", str(args.n_timesteps), *zoo_flags]
    runs = []
    for algo in args.algos:
        own = flags if algo != "ddqn" else with_param(flags, f"checkpoint_freq:{args.checkpoint_freq}")
        runs += [Run(str(suite), algo, env, seed, tuple(own)) for seed in args.seeds for env in envs]
    for run in runs:
        prepare(run)

    unfinished = [run for run in runs if not run.is_finished]
    print(f"{len(runs)} runs in {suite}, {len(runs) - len(unfinished)} of them finished before", flush=True)
    if unfinished:
        run_on_ray(unfinished, args)

    rows = [row(run) for run in runs]
    replace(suite / "table.json", json.dumps(rows, indent=1) + "\n")
    print(f"\n{table(rows)}\n", flush=True)
    plot(suite, args.algos, envs, args.n_timesteps)
    print(f"{suite} has table.json, the plots and all runs.")
    if any(row["state"] != "finished" for row in rows):
        sys.exit("Error: not all runs have finished; the same command goes on with them.")


def with_param(flags: list[str], param: str) -> list[str]:
    """One more hyperparameter: of two ``-params`` the Zoo would take the last only."""
    for flag in ("-params", "--hyperparams"):
        if flag in flags:
            place = flags.index(flag) + 1
            return [*flags[:place], param, *flags[place:]]
    return [*flags, "-params", param]


if __name__ == "__main__":
    main()
