"""One update of the Q-network against its floor: what the machine's arithmetic and memory would take for it.

    python scripts/bench_update.py

SB3's DQN and DDQN, in float32 and in what `precision: auto` means here (on a GPU recorded and compiled, too), make
updates of the same network in turn. The floor is the update's floating-point operations over the machine's rate in
large matrix products, plus Adam's seven walks over the weights (weights, gradients and two moments are read, all but
the gradients written) over its rate in copying. The ratio to SB3's DQN is the median over the rounds.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ale_py
import gymnasium as gym
import numpy as np
import torch as th
from records import write_record
from stable_baselines3 import DQN
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.vec_env import VecFrameStack
from torch.utils.flop_counter import FlopCounterMode

from dqn_ext import DDQN
from dqn_ext.learner import choose_dtype


def seconds(function: Callable[[], Any], repetitions: int) -> float:
    """Of one call, the median."""
    durations = []
    for _ in range(repetitions):
        begin = time.perf_counter()
        function()
        if th.cuda.is_available():
            th.cuda.synchronize()
        durations.append(time.perf_counter() - begin)
    return float(np.median(durations))


def matrix_rate(dtype: th.dtype, device: th.device) -> float:
    """Floating-point operations a second in the product of two large matrices."""
    size = 8192 if device.type == "cuda" else 2048  # a smaller one does not fill a GPU
    if device.type == "cuda":
        th.backends.cuda.matmul.allow_tf32 = th.backends.cudnn.allow_tf32  # as the convolutions have it
    a, b = (th.rand(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / seconds(lambda: a @ b, 10)


def copy_rate(device: th.device) -> float:
    """Bytes a second, read and written, in copying more than the caches hold."""
    source = th.rand(2**27, device=device)
    target = th.empty_like(source)
    return 2 * 4 * len(source) / seconds(lambda: target.copy_(source), 10)


def build(algorithm: type[DQN], game: str, device: str, **kwargs: Any) -> DQN:
    """An agent whose replay memory holds real frames."""
    model = algorithm(
        "CnnPolicy",
        VecFrameStack(make_atari_env(f"{game}NoFrameskip-v4", 2, seed=0), 4),
        buffer_size=10_000,
        learning_starts=10**9,
        target_update_interval=10**9,
        seed=0,
        device=device,
        **kwargs,
    )
    return model.learn(4000)


def main() -> None:
    """Print the table, and keep a record if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--game", default="SpaceInvaders")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[32, 256])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output", type=Path, help="a json file for the record")
    args = parser.parse_args()

    gym.register_envs(ale_py)
    models = {
        "dqn": build(DQN, args.game, args.device),
        "ddqn float32": build(DDQN, args.game, args.device),
        "ddqn auto": build(DDQN, args.game, args.device, precision="auto"),
    }
    device = models["dqn"].device
    if device.type == "cuda":
        # Sampled there, compiled and recorded, as the packaged entries have it
        kwargs = {"replay_buffer_kwargs": {"store": "device"}, "compile": "auto", "overlap": True}
        models["ddqn recorded"] = build(DDQN, args.game, args.device, precision="auto", **kwargs)
    bandwidth = copy_rate(device)
    print(f"copying {bandwidth / 1e9:.1f} GB/s", end="")
    rates = {}
    for name, model in models.items():
        dtype = choose_dtype(getattr(model, "precision", "float32"), device)
        rates[name] = matrix_rate(dtype, device)
        print(f", {name}: {str(dtype).removeprefix('torch.')} {rates[name] / 1e9:.0f} GFLOP/s", end="")
    print(
        f"\n{'batch':>5}  {'':14}{'GFLOP':>7}{'floor ms':>10}{'update ms':>11}{'/ floor':>9}{'speed-up over dqn':>19}"
    )

    rows = []
    for batch_size in args.batch_sizes:
        n_updates = max(1, 640 // batch_size)
        durations: dict[str, list[float]] = {name: [] for name in models}
        for round_ in range(args.rounds + 1):
            for name, model in models.items():
                per_update = seconds(partial(model.train, n_updates, batch_size), 1) / n_updates
                if round_ > 0:  # the first one warms up
                    durations[name].append(per_update)
        for name, model in models.items():
            counted = models["ddqn auto"] if name == "ddqn recorded" else model
            with FlopCounterMode(display=False) as counter:
                counted.train(1, batch_size)
            n_flop = counter.get_total_flops()
            n_bytes = 7 * 4 * sum(parameter.numel() for parameter in model.q_net.parameters())
            floor = n_flop / rates[name] + n_bytes / bandwidth
            update = float(np.median(durations[name]))
            speed_up = float(np.median(np.divide(durations["dqn"], durations[name])))
            row = {
                "batch_size": batch_size,
                "run": name,
                "gflop": round(n_flop / 1e9, 2),
                "floor_ms": round(1000 * floor, 2),
                "update_ms": round(1000 * update, 2),
                "over_floor": round(update / floor, 1),
                "speed_up_over_dqn": round(speed_up, 2),
            }
            rows.append(row)
            print(
                f"{batch_size:>5}  {name:14}{row['gflop']:>7}{row['floor_ms']:>10}{row['update_ms']:>11}"
                f"{row['over_floor']:>9}{speed_up:>19.2f}",
                flush=True,
            )
    if args.output:
        write_record(
            args.output,
            device.type,
            copy_GB_per_s=round(bandwidth / 1e9, 1),
            matrix_GFLOP_per_s={name: round(rate / 1e9) for name, rate in rates.items()},
            rows=rows,
        )


if __name__ == "__main__":
    main()
