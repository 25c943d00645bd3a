r"""Transitions per second, side by side: how fast training goes once learning has started.

    python scripts/bench_throughput.py
    python scripts/bench_throughput.py --runs dqn ddqn "ddqn precision:float32" --game Pong --windows 5
    python scripts/bench_throughput.py --runs dqn ddqn sbx tianshou cleanrl:CLEANRL/cleanrl/dqn_atari.py

A run is an algorithm of the Zoo's with its entry for the game, and changes to the entry if any are named; or a peer,
with a batch of 32 and one update per 4 transitions, too: ``sbx`` and ``tianshou`` where they are installed (sbx-rl,
tianshou), CleanRL's script where its repository lies (it needs tyro). Every run stands in a process of its own; windows
of training are measured in turn, so that a noisy machine disturbs all of them, and the ratio to the first run is the
median over the windows. A last window tells where the time of the Zoo's runs goes.
"""

import argparse
import ast
import math
import os
import runpy
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from records import write_record
from stable_baselines3.common.utils import get_device
from worker import Worker, WorkerEnded, answer

# As through most of a training: at the start of one, when all actions are random, nobody asks the network
EPSILON = 0.01
ACTING = {"exploration_initial_eps": EPSILON, "exploration_final_eps": EPSILON}
PARTS = ("environment", "acting", "replay", "forward", "backward", "optimizer", "recorded")  # whole updates on a GPU


# ---------------------------------------------------------------------- a run


class Stopwatch:
    """Seconds spent in each part of the loop."""

    def __init__(self, model: Any) -> None:
        import torch as th

        from dqn_ext import cuda_graph, learner

        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._depth = 0
        self._is_on_gpu = model.device.type == "cuda"
        # One after the other: an overlapped update stands between them
        self._wrap(model.env, "step_async", "environment")
        self._wrap(model.env, "step_wait", "environment")
        self._wrap(model, "predict", "acting")
        for name in ("add", "sample"):
            self._wrap(model.replay_buffer, name, "replay")
        for network in (model.q_net, model.q_net_target):
            self._wrap(network, "forward", "forward")
        if hasattr(model.q_net, "prepare"):
            self._wrap(model.q_net, "prepare", "forward")
        self._wrap(th.Tensor, "backward", "backward")
        self._wrap(model.policy.optimizer, "step", "optimizer")
        # Clipping belongs to the optimizer's part
        for name in ("clip_grad_norm_", "get_total_norm", "clip_grads_with_norm_"):
            self._wrap(th.nn.utils, name, "optimizer")
        self._wrap(learner, "total_norm", "optimizer")
        self._wrap(cuda_graph.Recording, "repeat", "recorded")

    def _wrap(self, owner: Any, name: str, part: str) -> None:
        function: Callable[..., Any] = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start, self._depth = time.perf_counter(), self._depth + 1
            try:
                return function(*args, **kwargs)
            finally:
                if self._is_on_gpu:
                    sys.modules["torch"].cuda.synchronize()
                self._depth -= 1
                if self._depth == 0:  # the forward pass of acting is acting
                    self.seconds[part] += time.perf_counter() - start

        setattr(owner, name, timed)


class Gate:
    """Lets transitions pass while a window is open, and stands still until one is asked for.

    :param learning_starts: the first window opens some updates later, since the first ones are slow
    """

    def __init__(self, learning_starts: int) -> None:
        self.n_transitions, self.end, self.end_time = 0, learning_starts + 500, math.inf
        self.start = (0.0, 0.0, 0)
        self.stopwatch: Stopwatch | None = None

    def pass_through(self, n_transitions: int, model: Any = None) -> bool:
        """:return: whether to go on"""
        self.n_transitions += n_transitions
        if self.n_transitions < self.end and time.perf_counter() < self.end_time:
            return True
        process = psutil.Process()
        seconds, cpu_seconds, first = self.start
        children = process.children()
        cpu = sum(process.cpu_times()[:2]) + sum(sum(child.cpu_times()[:2]) for child in children)
        own = sum(child.memory_full_info().uss for child in children)  # what they do not share with it
        n = self.n_transitions - first
        parts = self.stopwatch.seconds if self.stopwatch else {}
        answer(
            {
                "transitions_per_s": n / (time.perf_counter() - seconds),
                "cpu_s_per_1000": (cpu - cpu_seconds) / n * 1000,
                "ms_per_transition": {part: 1000 * value / n for part, value in parts.items()},
                "memory_mb": (process.memory_info().rss + own) / 1e6,
            }
        )
        line = sys.stdin.readline().split()
        if not line:
            return False
        if line[1] == "profile" and hasattr(model, "q_net"):  # SBX's has none
            self.stopwatch = Stopwatch(model)
        self.start = (time.perf_counter(), cpu, self.n_transitions)
        self.end, self.end_time = self.n_transitions + int(line[0]), self.start[0] + float(line[2])
        return True


def work(run: str, env: str, learning_starts: int) -> None:
    """Train until the windows are over; each is asked for by a line that says how many transitions it has."""
    name, *changes = run.split()
    kind, _, path = name.partition(":")
    gate = Gate(learning_starts)
    if kind == "cleanrl":
        work_cleanrl(path, env, gate, learning_starts)
    elif kind == "tianshou":
        work_tianshou(env, gate, learning_starts)
    else:
        work_sb3(kind, changes, env, gate, learning_starts)


def work_sb3(algo: str, changes: list[str], env: str, gate: Gate, learning_starts: int) -> None:
    """An algorithm of the Zoo's, or SBX's DQN."""
    import rl_zoo3.train  # noqa: F401  registers the games

    from dqn_ext.zoo import register

    register()
    from rl_zoo3.exp_manager import ExperimentManager
    from stable_baselines3.common.callbacks import BaseCallback

    class Gatekeeper(BaseCallback):
        def _on_step(self) -> bool:
            return gate.pass_through(self.training_env.num_envs, self.model)

    if algo == "sbx":
        from sbx import DQN
        from stable_baselines3.common.env_util import make_atari_env
        from stable_baselines3.common.vec_env import VecFrameStack

        # SBX's own defaults: a batch of 32, and an update every 4 transitions
        model = DQN(
            "CnnPolicy",
            VecFrameStack(make_atari_env(env), 4),
            learning_starts=learning_starts,
            **ACTING,
            buffer_size=100_000,
            optimize_memory_usage=True,
            replay_buffer_kwargs={"handle_timeout_termination": False},
        )
        model.learn(10**9, Gatekeeper())
        return
    hyperparams = {"learning_starts": learning_starts, **ACTING}
    for change in changes:
        name, _, value = change.partition(":")
        try:
            hyperparams[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            hyperparams[name] = value  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as folder:
        manager = ExperimentManager(
            argparse.Namespace(), algo, env, folder, n_timesteps=10**9, hyperparams=hyperparams, eval_freq=-1, verbose=0
        )
        model, _ = manager.setup_experiment()
        model.learn(10**9, Gatekeeper())


def work_cleanrl(path: str, env: str, gate: Gate, learning_starts: int) -> None:
    """CleanRL's script as it stands, with a gate in its environment."""
    import ale_py
    import gymnasium as gym

    gym.register_envs(ale_py)
    # The script's gymnasium had other names for these
    gym.wrappers.GrayScaleObservation = gym.wrappers.GrayscaleObservation
    gym.wrappers.FrameStack = gym.wrappers.FrameStackObservation
    step = gym.vector.SyncVectorEnv.step

    def gated_step(self: Any, actions: Any) -> Any:
        if not gate.pass_through(self.num_envs):
            sys.exit()
        return step(self, actions)

    gym.vector.SyncVectorEnv.step = gated_step  # type: ignore[method-assign]
    settings = {"env-id": env, "total-timesteps": 10**9, "learning-starts": learning_starts, "buffer-size": 100_000}
    settings |= {"start-e": EPSILON, "end-e": EPSILON}
    sys.argv = [path, *(f"--{name}={value}" for name, value in settings.items())]
    sys.path.insert(0, str(Path(path).resolve().parents[1]))
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(path).resolve())
        os.chdir(folder)
        runpy.run_path(path, run_name="__main__")


def work_tianshou(env: str, gate: Gate, learning_starts: int) -> None:
    """tianshou's DQN with its own Atari network, wrappers and buffer, 8 environments in processes, as its examples."""
    import ale_py
    import gymnasium as gym
    from tianshou.algorithm.modelfree.dqn import DQN, DiscreteQLearningPolicy
    from tianshou.algorithm.optim import AdamOptimizerFactory
    from tianshou.data import Collector, VectorReplayBuffer
    from tianshou.env import ShmemVectorEnv
    from tianshou.env.atari import atari_wrapper
    from tianshou.env.atari.atari_network import DQNet, ScaledObsInputActionReprNet

    def make() -> Any:
        gym.register_envs(ale_py)
        # It gives an abstract type, which today's numpy refuses
        atari_wrapper.get_space_dtype = lambda space: np.uint8
        return atari_wrapper.wrap_deepmind(gym.make(env))

    n_envs = 8
    envs = ShmemVectorEnv([make] * n_envs)
    space: Any = envs.action_space[0]
    network = ScaledObsInputActionReprNet(DQNet(4, 84, 84, space.n)).to(get_device("auto"))
    policy = DiscreteQLearningPolicy(model=network, action_space=space, eps_training=EPSILON)
    # In updates, as the Zoo's entry: 1000 of its transitions are 250 updates
    algorithm = DQN(policy=policy, optim=AdamOptimizerFactory(lr=1e-4), target_update_freq=250)
    buffer = VectorReplayBuffer(100_000, n_envs, ignore_obs_next=True, save_only_last_obs=True, stack_num=4)
    collector = Collector(algorithm, envs, buffer, exploration_noise=True)
    collector.reset()
    collector.collect(n_step=learning_starts)
    gate.n_transitions = learning_starts
    policy.is_within_training_step = True
    while gate.pass_through(n_envs):
        collector.collect(n_step=n_envs)
        for _ in range(n_envs // 4):
            algorithm.update(buffer=buffer, sample_size=32)
    envs.close()


# ---------------------------------------------------------------------- the table


def main() -> None:
    """Print the table, and keep a record if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--game", default="SpaceInvaders")
    parser.add_argument(
        "--runs", nargs="+", default=["dqn", "ddqn", "ddqn precision:float32"], help="the first is what is compared to"
    )
    parser.add_argument("--windows", type=int, default=3)
    parser.add_argument("--transitions", type=int, default=1000, help="of a window, at most")
    parser.add_argument("--seconds", type=float, default=math.inf, help="of a window, at most")
    parser.add_argument("--learning-starts", type=int, default=2000, help="of all runs")
    parser.add_argument("--output", type=Path, help="a json file for the record")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.windows < 1:
        parser.error("--windows must be at least 1")
    env = f"{args.game}NoFrameskip-v4"
    if args.worker:
        work(args.worker, env, args.learning_starts)
        return

    # A script goes without its path, a change of an entry's is part of the name
    names = ["cleanrl" if run.startswith("cleanrl:") else run for run in args.runs]
    if len(set(names)) < len(names):
        parser.error("--runs must differ; the same run has as many windows as --windows says")
    runs: dict[str, Worker] = {}
    windows: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    parts: dict[str, dict[str, float]] = {name: {} for name in names}
    device = get_device("auto").type
    try:
        for name, run in zip(names, args.runs, strict=True):
            arguments = ["--worker", run, "--game", args.game, "--learning-starts", str(args.learning_starts)]
            runs[name] = Worker(*arguments)
        for _ in range(args.windows):
            for name, worker in runs.items():
                windows[name].append(worker.ask(args.transitions, "plain", args.seconds))
                print(
                    f"{name}: {windows[name][-1]['transitions_per_s']:.0f} transitions/s", file=sys.stderr, flush=True
                )
            if args.output:  # what there is, should something end this
                write_record(args.output, device, rows=rows_of(windows, parts))
        for name, worker in runs.items():
            parts[name] = worker.ask(args.transitions, "profile", args.seconds)["ms_per_transition"]
            worker.close()
    except WorkerEnded as error:
        sys.exit(f"Error: the run {name} has ended: {error}")

    rows = rows_of(windows, parts)
    if args.output:
        write_record(args.output, device, rows=rows)
    print(f"{args.game}, windows of {args.transitions} transitions, {args.seconds:g} s; ms per transition of each part")
    print(f"{'':28}{'per s':>8}{'ratio':>7}{'CPU s/1000':>12}{'MB':>7}" + "".join(f"{part:>13}" for part in PARTS))
    for name, row in rows.items():
        print(
            f"{name:28}{row['transitions_per_s']:>8}{row['ratio']:>7}{row['cpu_s_per_1000']:>12}{row['memory_mb']:>7}"
            + "".join(f"{parts[name].get(part, math.nan):>13.3f}" for part in PARTS)
        )


def rows_of(windows: dict[str, list[dict[str, Any]]], parts: dict[str, dict[str, float]]) -> dict[str, dict[str, Any]]:
    """What is kept of each run: medians of its windows, and of their ratios to the first run's."""
    speeds = {name: np.array([window["transitions_per_s"] for window in found]) for name, found in windows.items()}
    first = next(iter(speeds.values()))
    return {
        name: {
            "transitions_per_s": round(float(np.median(speeds[name])), 1),
            "ratio": round(float(np.median(speeds[name] / first)), 2),
            "cpu_s_per_1000": round(float(np.median([window["cpu_s_per_1000"] for window in found])), 1),
            "memory_mb": round(found[-1]["memory_mb"]),
            "ms_per_transition": {part: round(value, 3) for part, value in parts[name].items()},
            "windows": speeds[name].round(1).tolist(),
        }
        for name, found in windows.items()
    }


if __name__ == "__main__":
    main()
