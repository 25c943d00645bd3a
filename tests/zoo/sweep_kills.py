"""Workers of one study, killed again and again, and what must hold of the study at its end.

``python -m tests.zoo.sweep_kills FOLDER --kills 20`` does so on a PostgreSQL of its own, or with ``--journal`` on a
journal file, and prints what the study has become.
"""

import argparse
import contextlib
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from dqn_ext.zoo.sweeps import FINISHED, MAX_RETRIES, open_storage

HEARTBEAT = "2"  # seconds


def postgresql_binaries() -> Path | None:
    """Where the server's programs are; Debian keeps them out of the PATH."""
    found = [Path(path).resolve().parent for path in [shutil.which("initdb")] if path]
    found += [path.parent for path in sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)]
    return found[0] if found else None


@contextlib.contextmanager
def postgresql() -> Iterator[str]:
    """A server of its own with an empty database, on loopback and with a password; yields its URL."""
    binaries = postgresql_binaries()
    assert binaries is not None
    with tempfile.TemporaryDirectory(prefix="postgresql_") as name, socket.socket() as free:
        folder, password = Path(name), secrets.token_hex()
        (folder / "password").write_text(password)
        user = []
        if os.geteuid() == 0:  # as whom it refuses to run
            user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
            for path in (folder, folder / "password"):
                shutil.chown(path, "postgres", "postgres")
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        initdb = [binaries / "initdb", "-D", folder / "data", "-A", "scram-sha-256", "-U", "zoo"]
        subprocess.run([*user, *initdb, "--pwfile", folder / "password"], check=True, stdout=subprocess.DEVNULL)
        options = {"port": port, "listen_addresses": "127.0.0.1", "unix_socket_directories": folder}
        settings = [word for key, value in options.items() for word in ("-c", f"{key}={value}")]
        with (folder / "log").open("w") as log:
            server = subprocess.Popen([*user, binaries / "postgres", "-D", folder / "data", *settings], stderr=log)
        try:
            while subprocess.run([binaries / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]).returncode:
                assert server.poll() is None, (folder / "log").read_text()
                time.sleep(0.1)
            yield f"postgresql+psycopg://zoo:{password}@127.0.0.1:{port}/postgres"
        finally:
            server.send_signal(signal.SIGINT)  # a fast shutdown
            server.wait()


class Study:
    """A study of tiny trials on a real environment, and its workers: the Zoo's own command."""

    def __init__(self, storage: str, folder: Path, total: int, steps: int = 1000) -> None:
        self.folder, self.total = folder, total
        train = (
            f"-m rl_zoo3.train --algo ddqn --env CartPole-v1 -optimize -n {steps} --n-evaluations 5 --eval-episodes 1 "
            "--pruner median --n-startup-trials 2 --num-threads 1 --no-optim-plots --verbose 0 -f logs"
        )
        self.command = [sys.executable, *train.split()]
        self.command += ["--max-total-trials", str(total), "--storage", storage, "--study-name", "cartpole"]
        self.workers: list[subprocess.Popen[bytes]] = []
        self.study = optuna.create_study(
            storage=open_storage(storage), study_name="cartpole", direction="maximize", load_if_exists=True
        )

    def start(self) -> None:
        """Start one more worker."""
        with (self.folder / f"worker_{len(self.workers)}.txt").open("wb") as log:
            env = {**os.environ, "DQN_EXT_HEARTBEAT": HEARTBEAT, "OMP_NUM_THREADS": "1"}
            worker = subprocess.Popen(self.command, cwd=self.folder, stdout=log, stderr=subprocess.STDOUT, env=env)
        self.workers.append(worker)

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=states or None)

    def wait_for(self, running: int, timeout: float = 240) -> None:
        """Wait until so many trials run whose workers have said so, that is for an end of the workers' imports."""
        end = time.monotonic() + timeout
        while sum(self.pid(trial) != 0 for trial in self.trials(TrialState.RUNNING)) < running:
            assert time.monotonic() < end, self.log()
            time.sleep(0.05)

    @staticmethod
    def pid(trial: FrozenTrial) -> int:
        """Of the worker that runs it; 0 until that has said so."""
        return int(trial.user_attrs.get("worker", "host:0").rsplit(":", 1)[1])

    def kill(self, worker: int) -> None:
        self.workers[worker].kill()
        self.workers[worker].wait()

    def join(self, timeout: float = 400) -> None:
        """Wait until all workers that live have come to their end, and well."""
        for worker in self.workers:
            code = worker.wait(timeout)
            assert code in (0, -signal.SIGKILL), self.log()

    def close(self) -> None:
        for worker in self.workers:
            if worker.poll() is None:
                worker.kill()
                worker.wait()

    def log(self) -> str:
        return "\n".join(file.read_text()[-2000:] for file in sorted(self.folder.glob("worker_*.txt")))

    def check(self, kills: int) -> dict[str, int]:
        """Nothing is lost and nothing counted twice.

        :return: counts of what happened
        """
        trials = self.trials()
        states = Counter(trial.state for trial in trials)
        assert [trial.number for trial in trials] == list(range(len(trials)))
        assert not states[TrialState.RUNNING], "a dead worker's trial runs"
        assert sum(states[state] for state in FINISHED) == self.total, states
        assert all(trial.value is not None for trial in trials if trial.state == TrialState.COMPLETE)
        retries = [trial for trial in trials if trial.system_attrs.get("retry_history")]
        run_again = [trial.system_attrs["retry_history"][-1] for trial in retries]
        assert len(run_again) == len(set(run_again))
        for trial, number in zip(retries, run_again, strict=True):
            assert trials[number].state == TrialState.FAIL
            assert trials[number].params.items() <= trial.params.items()
        # All that failed were run again, but for those that had been often enough
        given_up = [trial for trial in retries if trial.state == TrialState.FAIL and trial.number not in run_again]
        assert all(len(trial.system_attrs["retry_history"]) == MAX_RETRIES for trial in given_up)
        failed = states[TrialState.FAIL]
        too_many = sum(not trial.params for trial in trials if trial.state == TrialState.FAIL) if failed else 0
        assert len(run_again) + len(given_up) <= failed <= len(run_again) + len(given_up) + too_many
        return {
            "asked for": self.total,
            "complete": states[TrialState.COMPLETE],
            "pruned": states[TrialState.PRUNED],
            "kills": kills,
            "failed": failed,
            "run again": len(run_again),
            "given up": len(given_up),
            "left waiting": states[TrialState.WAITING],
        }


def kill_workers(study: Study, kills: int, workers: int) -> dict[str, int]:
    """Kill them in mid-trial, at random moments all along the study; a new one takes each one's place."""
    for _ in range(workers):
        study.start()
    done = 0
    while done < kills:
        while len(study.trials(*FINISHED)) < done:
            time.sleep(0.05)
        time.sleep(random.uniform(0, 5))
        study.wait_for(running=1)
        alive = {worker.pid: index for index, worker in enumerate(study.workers) if worker.poll() is None}
        pids = {trial.number: study.pid(trial) for trial in study.trials(TrialState.RUNNING)}
        candidates = [number for number, pid in pids.items() if pid in alive]
        if not candidates:
            time.sleep(0.05)
            continue
        number = random.choice(candidates)
        study.kill(alive[pids[number]])
        done += any(study.pid(trial) == pids[number] for trial in study.trials(TrialState.RUNNING))
        study.start()
        print(f"{done} kills in mid-trial, {len(study.trials(*FINISHED))} trials finished", flush=True)
    study.join()
    counts = study.check(kills)
    assert counts["failed"] >= kills
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--journal", action="store_true", help="instead of PostgreSQL")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="a json file for the record")
    options = parser.parse_args()
    random.seed(options.seed)
    options.folder.mkdir(parents=True)
    begin = time.time()
    with contextlib.ExitStack() as stack:
        storage = str(options.folder / "study.log") if options.journal else stack.enter_context(postgresql())
        study = Study(storage, options.folder, options.trials, steps=3000)
        stack.callback(study.close)
        counts: dict[str, Any] = kill_workers(study, options.kills, options.workers)
    print(json.dumps(counts))
    if options.output is not None:
        command = " ".join(word for word in sys.argv[2:] if word not in ("--output", str(options.output)))
        records = json.loads(options.output.read_text()) if options.output.exists() else {}
        records["journal file" if options.journal else "PostgreSQL"] = {
            "command": f"python -m tests.zoo.sweep_kills FOLDER {command}",
            "date": time.strftime("%Y-%m-%d"),
            "machine": f"{os.cpu_count()} cores",
            "optuna": optuna.__version__,
            "seconds": round(time.time() - begin),
            **counts,
        }
        options.output.write_text(json.dumps(records, indent=1) + "\n")


if __name__ == "__main__":
    main()
