"""What checkpoints cost: seconds to write and to go on from, megabytes, and their share of a run's time.

    python scripts/bench_checkpoint.py
    python scripts/bench_checkpoint.py --game Pong --transitions 100000 1000000 --freq 50000

Trains ddqn's entry for Atari, compressed replay memory and all. Whenever the memory has grown to one of the sizes, it
measures the pace of learning without checkpoints, then writes some, and reads the last one back. The share is that of
one checkpoint in the time between two of them, `--freq` transitions apart, at that pace.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import ale_py
import gymnasium as gym
import yaml
from bench_throughput import ACTING
from records import write_record
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack

from dqn_ext import DDQN
from dqn_ext.atari import AtariVecEnv
from dqn_ext.checkpoint import ResumeCallback
from dqn_ext.zoo.manager import ZOO_KEYS

WRITES, WARM_UP, WINDOW = 5, 500, 1000


class Bench(BaseCallback):
    """Measures at the given sizes of the replay memory."""

    def __init__(self, resume: ResumeCallback, sizes: list[int], freq: int) -> None:
        super().__init__()
        self.resume, self.sizes, self.freq = resume, sorted(sizes), freq
        self.rows: list[dict[str, Any]] = []
        self._writes: list[float] = []
        self._window: tuple[int, float] | None = None  # step and time at which it opened

    def _on_rollout_start(self) -> None:
        step = self.model.num_timesteps
        # To fill the memory is enough, in between
        is_measuring = bool(self.sizes) and step >= self.sizes[0]
        self.model.learning_starts = 0 if is_measuring else 10**12  # type: ignore[attr-defined]
        if not is_measuring:
            return
        if self._window is None:
            if step >= self.sizes[0] + WARM_UP:  # the first updates are slow, on a GPU by far
                self._window = step, time.perf_counter()
        elif step >= self._window[0] + WINDOW:
            if not self._writes:
                self._pace = (step - self._window[0]) / (time.perf_counter() - self._window[1])
            begin = time.perf_counter()
            self.resume.save()
            self._writes.append(time.perf_counter() - begin)
            if len(self._writes) == WRITES:
                self._report(self.resume.folder.at(step))

    def _report(self, path: Path) -> None:
        seconds = statistics.median(self._writes)
        n_bytes = {file.name: file.stat().st_size for file in path.rglob("*") if file.is_file()}
        self.rows.append(
            {
                "transitions": self.sizes.pop(0),
                "MB": round(sum(n_bytes.values()) / 1e6, 1),
                "of it replay memory": round(n_bytes["replay_buffer.pkl"] / 1e6, 1),
                "write, s": round(seconds, 2),
                "transitions/s": round(self._pace),
                "share, %": round(100 * seconds / (seconds + self.freq / self._pace), 2),
            }
        )
        self._writes, self._window = [], None
        print(self.rows[-1], flush=True)

    def _on_step(self) -> bool:
        return bool(self.sizes)


def make_env(game: str, n_envs: int, run: Path, resumes: bool) -> VecEnv:
    monitor = {"monitor_dir": str(run), "monitor_kwargs": {"override_existing": not resumes}}
    games = make_atari_env(f"{game}NoFrameskip-v4", n_envs, seed=0, **monitor)  # type: ignore[arg-type]
    return VecFrameStack(AtariVecEnv(games), 4)


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--game", default="SpaceInvaders")
    parser.add_argument("--transitions", type=int, nargs="+", default=[20_000, 100_000], help="in the replay memory")
    parser.add_argument("--freq", type=int, default=100_000, help="transitions from one checkpoint to the next")
    parser.add_argument("--folder", help="on the disk to be measured; by default the system's for temporary files")
    parser.add_argument("--output", type=Path, help="a JSON file for the record")
    options = parser.parse_args()

    gym.register_envs(ale_py)
    entry = yaml.safe_load((Path(__file__).parent.parent / "hyperparams/ddqn.yml").read_text())["atari"]
    # The agent's own settings; a constant rate, SB3's, which is RL Zoo's, too
    agent = {name: value for name, value in entry.items() if name not in {*ZOO_KEYS, "learning_rate"}} | ACTING
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        run = Path(folder)
        resume = ResumeCallback(run, freq=10**12)
        bench = Bench(resume, options.transitions, options.freq)
        model = DDQN(env=make_env(options.game, entry["n_envs"], run, resumes=False), seed=0, **agent)
        model.learn(10**7, callback=[resume, bench])
        resume.folder.unlock()

        begin = time.perf_counter()
        resume = ResumeCallback(run, freq=10**12)
        model = DDQN(env=make_env(options.game, entry["n_envs"], run, resumes=True), seed=0, **agent)
        model.learn(1, callback=[resume])  # the end has been reached: it restores, and stops
        seconds = time.perf_counter() - begin

    names = list(bench.rows[0])
    print(f"\n| {' | '.join(names)} |\n|{'---:|' * len(names)}")
    for row in bench.rows:
        print(f"| {' | '.join(str(row[name]) for name in names)} |")
    print(f"\nGoing on from the last one took {seconds:.1f} s, with the building of agent and games.")
    if options.output:
        write_record(
            options.output,
            model.device.type,
            game=options.game,
            freq=options.freq,
            rows=bench.rows,
            resume_seconds=round(seconds, 1),
        )


if __name__ == "__main__":
    main()
