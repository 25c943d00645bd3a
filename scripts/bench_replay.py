r"""Replay memories side by side, on real frames: memory, adding, sampling, saving.

    python scripts/bench_replay.py --game SpaceInvaders --capacity 100000
    # The cost of size: a million transitions against ten thousand
    python scripts/bench_replay.py --contenders compressed --reference compressed --capacity 1000000 \
        --reference-capacity 10000

Every memory stands in a process of its own, filled beyond its capacity. Two at a time, it and SB3's, are measured in
turn, so that a noisy machine disturbs both; the ratio is the median over the rounds. Peers that are not installed are
left out: pip install cpprb torchrl tianshou dopamine-rl sb3-extra-buffers[zstd,isal]
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from records import write_record
from worker import Worker, WorkerEnded, answer

from dqn_ext.whole_files import replaced_when_whole

N_STACK = 4
Transition = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]


# ---------------------------------------------------------------------- real frames


def record(game: str, n_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Frames of play that looks trained (paddles follow the ball), and which of them start an episode."""
    import ale_py
    import gymnasium as gym
    from stable_baselines3.common.atari_wrappers import AtariWrapper

    gym.register_envs(ale_py)
    env = AtariWrapper(gym.make(f"{game}NoFrameskip-v4"))
    rng = np.random.default_rng(0)

    def act(ram: np.ndarray, last_action: int) -> int:
        if game == "Pong":
            return 2 if ram[54] < int(ram[51]) + 6 else 3
        if game == "Breakout":
            if ram[101] == 0 and rng.random() < 0.3:
                return 1
            distance = int(ram[99]) - int(ram[72]) - 8
            return 0 if abs(distance) < 3 else (2 if distance > 0 else 3)
        return last_action if rng.random() < 0.85 else int(rng.integers(env.action_space.n))  # type: ignore[attr-defined]

    frames: list[np.ndarray] = []
    starts: list[bool] = []
    action = 1
    obs, _ = env.reset(seed=0)
    starts.append(True)
    while len(frames) < n_frames:
        frames.append(obs[..., 0].copy())
        action = act(env.unwrapped.ale.getRAM(), action)  # type: ignore[attr-defined]
        obs, _, terminated, truncated, _ = env.step(action)
        starts.append(False)
        if terminated or truncated:
            frames.append(obs[..., 0].copy())
            obs, _ = env.reset()
            starts.append(True)
    return np.array(frames), np.array(starts[: len(frames)])


def transitions(frames: np.ndarray, starts: np.ndarray, n_envs: int) -> Iterator[Transition]:
    """The recording over and over, each environment from another place, as VecTransposeImage hands it on."""
    rng = np.random.default_rng(0)
    place = np.linspace(0, len(frames), n_envs, endpoint=False).astype(int)
    stacks = np.zeros((n_envs, 84, 84, N_STACK), np.uint8)
    stacks[..., -1] = frames[place]
    while True:
        next_stacks = np.roll(stacks, -1, axis=-1)
        place = (place + 1) % len(frames)
        next_stacks[..., -1] = frames[place]
        dones = starts[(place + 1) % len(frames)]
        next_obs = next_stacks.copy()
        for env in np.flatnonzero(dones):
            place[env] = (place[env] + 1) % len(frames)
            next_stacks[env] = 0
            next_stacks[env, ..., -1] = frames[place[env]]
        infos: list[dict[str, Any]] = [{} for _ in range(n_envs)]
        actions, rewards = rng.integers(0, 6, n_envs), rng.integers(-1, 2, n_envs).astype(np.float32)
        yield stacks.transpose(0, 3, 1, 2), next_obs.transpose(0, 3, 1, 2), actions, rewards, dones, infos
        stacks = next_stacks


# ---------------------------------------------------------------------- contenders


def spaces() -> tuple[Any, Any]:
    from gymnasium import spaces

    return spaces.Box(0, 255, (N_STACK, 84, 84), np.uint8), spaces.Discrete(6)


def sb3(capacity: int, n_envs: int, **kwargs: Any) -> Any:
    from stable_baselines3.common.buffers import ReplayBuffer

    return ReplayBuffer(capacity, *spaces(), "cpu", n_envs, **kwargs)


def ours(capacity: int, n_envs: int, **kwargs: Any) -> Any:
    from dqn_ext import FrameReplayBuffer

    return FrameReplayBuffer(capacity, *spaces(), "cpu", n_envs, **kwargs)


def extra_buffers(capacity: int, n_envs: int, method: str) -> Any:
    from sb3_extra_buffers.compressed import CompressedReplayBuffer

    return CompressedReplayBuffer(capacity, *spaces(), "cpu", n_envs, compression_method=method)


class Cpprb:
    """cpprb with both its memory options."""

    def __init__(self, capacity: int, n_envs: int) -> None:
        from cpprb import ReplayBuffer

        assert n_envs == 1, "stacks of one environment only"
        image = {"shape": (84, 84, N_STACK), "dtype": np.uint8}
        scalars = {"act": {"dtype": np.int64}, "rew": {}, "done": {}}
        self.buffer = ReplayBuffer(capacity, {"obs": image, **scalars}, next_of="obs", stack_compress="obs")

    def add(self, obs: Any, next_obs: Any, action: Any, reward: Any, done: Any, infos: Any) -> None:
        obs, next_obs = obs[0].transpose(1, 2, 0), next_obs[0].transpose(1, 2, 0)
        self.buffer.add(obs=obs, next_obs=next_obs, act=action, rew=reward, done=done)
        if done[0]:
            self.buffer.on_episode_end()

    def sample(self, batch_size: int) -> Any:
        import torch

        return {name: torch.as_tensor(array) for name, array in self.buffer.sample(batch_size).items()}


class Tianshou:
    """tianshou's buffer that keeps the newest frame only."""

    def __init__(self, capacity: int, n_envs: int) -> None:
        from tianshou.data import VectorReplayBuffer

        self.buffer = VectorReplayBuffer(
            capacity, n_envs, stack_num=N_STACK, ignore_obs_next=True, save_only_last_obs=True
        )

    def add(self, obs: Any, next_obs: Any, action: Any, reward: Any, done: Any, infos: Any) -> None:
        from tianshou.data import Batch

        self.buffer.add(
            Batch(
                obs=obs, obs_next=next_obs, act=action, rew=reward, terminated=done, truncated=done & False, info=infos
            )
        )

    def sample(self, batch_size: int) -> Any:
        import torch

        batch, _ = self.buffer.sample(batch_size)
        return [torch.as_tensor(batch[name]) for name in ("obs", "obs_next", "act", "rew", "terminated")]


class Torchrl:
    """torchrl's tensor storage."""

    def __init__(self, capacity: int, n_envs: int) -> None:
        from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer

        self.buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(capacity))

    def add(self, obs: Any, next_obs: Any, action: Any, reward: Any, done: Any, infos: Any) -> None:
        import torch
        from tensordict import TensorDict

        names = {"obs": obs, "next_obs": next_obs, "action": action, "reward": reward, "done": done}
        tensors = {name: torch.as_tensor(np.ascontiguousarray(array)) for name, array in names.items()}
        self.buffer.extend(TensorDict(tensors, batch_size=[len(obs)]))

    def sample(self, batch_size: int) -> Any:
        return self.buffer.sample(batch_size)


class Dopamine:
    """Dopamine's buffer, which compresses by default."""

    def __init__(self, capacity: int, n_envs: int) -> None:
        from dopamine.jax.replay_memory import accumulator, replay_buffer, samplers

        assert n_envs == 1, "one environment only"
        self.buffer = replay_buffer.ReplayBuffer(
            accumulator.TransitionAccumulator(N_STACK, 1, 0.99),
            samplers.UniformSamplingDistribution(seed=0),
            batch_size=32,
            max_capacity=capacity,
        )

    def add(self, obs: Any, next_obs: Any, action: Any, reward: Any, done: Any, infos: Any) -> None:
        from dopamine.jax.replay_memory import elements

        frame = np.ascontiguousarray(obs[0, -1])
        self.buffer.add(
            elements.TransitionElement(frame, int(action[0]), float(reward[0]), bool(done[0]), bool(done[0]))
        )

    def sample(self, batch_size: int) -> Any:
        return self.buffer.sample(batch_size)


CONTENDERS: dict[str, Callable[[int, int], Any]] = {
    "sb3": sb3,
    "sb3 optimized": lambda c, n: sb3(c, n, optimize_memory_usage=True, handle_timeout_termination=False),
    "raw": ours,
    "compressed": lambda c, n: ours(c, n, store="compressed"),
    "memmap": lambda c, n: ours(c, n, store="memmap"),
    "prioritized": lambda c, n: ours(c, n, priority_exponent=0.6),
    "compressed prioritized": lambda c, n: ours(c, n, store="compressed", priority_exponent=0.6),
    "cpprb": Cpprb,
    "tianshou": Tianshou,
    "torchrl": Torchrl,
    "dopamine": Dopamine,
    # Its binding of zstd reserves for each observation what the worst one would take, and keeps that
    "sb3-extra-buffers, zstd": lambda c, n: extra_buffers(c, n, "zstd1"),
    "sb3-extra-buffers, igzip": lambda c, n: extra_buffers(c, n, "igzip1"),
}
OURS = ("raw", "compressed", "memmap", "prioritized", "compressed prioritized")


# ---------------------------------------------------------------------- measuring


def work(name: str, recording: str, capacity: int, n_envs: int) -> None:
    """The process of one contender: build and fill it, then time what is asked for, line by line."""
    with np.load(recording) as arrays:
        stream = transitions(arrays["frames"], arrays["starts"], n_envs)
    next(stream)
    process = psutil.Process()

    memory: Any = None
    if name == "copy":  # the floor: the bytes of both stacks, from somewhere in as many frames as the others keep
        source = np.random.default_rng(0).integers(0, 256, (capacity, 84 * 84), np.uint8)
        copies = {size: np.empty((size * 2 * N_STACK, 84 * 84), np.uint8) for size in (32, 256)}

        def sample(size: int) -> Any:
            first = int(np.random.randint(capacity - len(copies[size])))
            np.copyto(copies[size], source[first : first + len(copies[size])])

        n_bytes = 0.0
    else:
        CONTENDERS[name](N_STACK * n_envs, n_envs)  # imports count for nothing
        before = process.memory_info().rss
        memory = CONTENDERS[name](capacity, n_envs)
        for _ in range(capacity // n_envs + 100):
            memory.add(*next(stream))
        n_bytes = (process.memory_info().rss - before) / capacity
        sample = memory.sample
    answer(n_bytes)

    prioritized = "prioritized" in name
    rng = np.random.default_rng(0)
    for line in sys.stdin:
        operation, size = line.split()
        seconds: list[float] = []
        if operation == "add" and memory is not None:
            for _ in range(100):
                transition = next(stream)
                start = time.perf_counter()
                memory.add(*transition)
                seconds.append((time.perf_counter() - start) / n_envs)
            # Compressing happens now and then: the mean counts
            result = float(np.mean(seconds))
        elif operation == "sample":
            for _ in range(100 if size == "32" else 20):
                td_errors = rng.random(int(size))
                start = time.perf_counter()
                batch = sample(int(size))
                if prioritized:
                    memory.update_priorities(batch.indices, td_errors)
                seconds.append(time.perf_counter() - start)
            result = float(np.median(seconds))
        elif operation == "warm":
            for _ in range(3 * capacity // 256):
                sample(256)
            result = 0.0
        elif operation == "save" and hasattr(memory, "save"):
            with tempfile.TemporaryDirectory(dir=".") as folder:
                start = time.perf_counter()
                memory.save(f"{folder}/memory")
                saved = time.perf_counter()
                memory.load(f"{folder}/memory")
                seconds = [saved - start, time.perf_counter() - saved]
                answer([*seconds, os.path.getsize(f"{folder}/memory")])
            continue
        else:
            answer(None)
            continue
        answer(result)


def contender(name: str, args: argparse.Namespace, capacity: int) -> Worker:
    """Its process, which has filled it.

    :raises WorkerEnded: if it could not
    """
    arguments = ["--worker", name, "--recording", args.recording]
    arguments += ["--capacity", str(capacity), "--n-envs", str(args.n_envs)]
    # As in a training, whose larger blocks have taught glibc to keep what is freed. Otherwise it is a matter of
    # chance whether a batch's memory comes from the system, page by page, and takes twice as long
    return Worker(*arguments, MALLOC_MMAP_THRESHOLD_=str(2**25), MALLOC_TRIM_THRESHOLD_=str(2**30))


OPERATIONS = {"add": ("add", 0), "sample32": ("sample", 32), "sample256": ("sample", 256)}


def rounded(value: Any, digits: int) -> float | None:
    """``None`` for what was not measured."""
    return round(float(value), digits) if np.isfinite(value) else None


def measure(worker: Worker, reference: Worker | None, rounds: int) -> dict[str, Any]:
    """A contender's row: medians, and those of the ratios to the reference.

    :raises WorkerEnded: if one of them does
    """
    row: dict[str, Any] = {"bytes": round(worker.first_answer)}
    for one in {worker, reference or worker}:
        one.ask("warm", 0)  # of memory that lies idle a system may have taken pages back
    pairs: dict[str, list[Any]] = {key: [] for key in OPERATIONS}
    for _ in range(rounds):
        for key, question in OPERATIONS.items():
            pairs[key].append((worker.ask(*question), reference and reference.ask(*question)))
    for key, found in pairs.items():
        times = np.array(found, dtype=float)
        row[f"{key}_us"] = rounded(1e6 * np.median(times[:, 0]), 1)
        row[f"{key}_reference_us"] = rounded(1e6 * np.median(times[:, 1]), 1)
        row[f"{key}_ratio"] = rounded(np.median(times[:, 0] / times[:, 1]), 3)
    return row


def main() -> None:
    """Print the table, and keep a record if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--game", default="SpaceInvaders", help="SpaceInvaders, Breakout, Pong, or any other")
    parser.add_argument("--capacity", type=int, default=100_000, help="transitions")
    parser.add_argument("--n-envs", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--contenders", nargs="+", default=["copy", *CONTENDERS])
    parser.add_argument("--reference", default="sb3", help="what the ratios are taken to; 'none' for no reference")
    parser.add_argument("--reference-capacity", type=int, help="transitions of the reference, if not the same")
    parser.add_argument("--save", action="store_true", help="also time saving and loading ours")
    parser.add_argument("--recording", help="where the frames are kept between runs")
    parser.add_argument("--output", type=Path, help="a json file for the record")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.worker, args.recording, args.capacity, args.n_envs)
        return
    args.recording = args.recording or str(Path(tempfile.gettempdir(), f"dqn_ext_{args.game}.npz"))
    if not Path(args.recording).exists():
        frames, starts = record(args.game, 20_000)
        with replaced_when_whole(Path(args.recording)) as unfinished, unfinished.open("wb") as file:
            np.savez_compressed(file, frames=frames, starts=starts)

    rows: dict[str, dict[str, Any]] = {}
    reference_capacity = args.reference_capacity or args.capacity
    try:
        reference = None if args.reference == "none" else contender(args.reference, args, reference_capacity)
    except WorkerEnded as error:
        sys.exit(f"Error: the reference {args.reference} cannot be measured: {error}")
    print(f"{args.game}, {args.capacity} transitions, {args.n_envs} environments; times and their ratio to")
    print(f"{args.reference}'s at {reference_capacity} transitions")
    print(f"{'':24}{'bytes':>8}{'add us':>9}{'':7}{'sample(32) us':>15}{'':7}{'sample(256) us':>15}")
    for name in args.contenders:
        is_reference = name == args.reference and args.capacity == reference_capacity
        try:
            worker = reference if is_reference and reference else contender(name, args, args.capacity)
            row = measure(worker, reference, args.rounds)
            if args.save and name in OURS:
                row["save_s"], row["load_s"], row["file_bytes"] = worker.ask("save", 0)
        except WorkerEnded as error:
            if error.worker is reference:
                sys.exit(f"Error: the reference {args.reference} has ended: {error}")
            print(f"{name:24} left out: {error}")
            continue
        if worker is not reference:
            worker.close()
        rows[name] = row
        cells = "".join(
            f"{row[f'{key}_us'] or '':>{w}}{row[f'{key}_ratio'] or '':>7}"
            for key, w in (("add", 9), ("sample32", 15), ("sample256", 15))
        )
        saved = (
            f"   save {row['save_s']:.1f} s, load {row['load_s']:.1f} s, {row['file_bytes'] / 1e6:.0f} MB"
            if "save_s" in row
            else ""
        )
        print(f"{name:24}{row['bytes']:>8}{cells}{saved}", flush=True)
        if args.output:
            write_record(args.output, rows=rows)


if __name__ == "__main__":
    main()
