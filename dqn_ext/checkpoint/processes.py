"""The signals that a run answers by a checkpoint, and environments in processes, which leave them to it."""

import signal
from collections.abc import Callable, Iterable
from functools import partial
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize

import gymnasium as gym
from stable_baselines3.common.vec_env import SubprocVecEnv

# By convention 128 and the signal's number; of SIGUSR1, by which Slurm and others announce that time is up, and whose
# number differs between systems, EX_TEMPFAIL of sysexits.h: run the same command again
EXIT_CODES = {"SIGTERM": 143, "SIGINT": 130, "SIGUSR1": 75}
SIGNALS = [signal.Signals[name] for name in EXIT_CODES if hasattr(signal, name)]  # Windows has not all


class UnsignalledSubprocVecEnv(SubprocVecEnv):
    """SB3's, whose processes leave signals to the one that learns.

    Ctrl-C, and Slurm's warning to what ``srun`` started, come to all processes of a run. SB3's environments would end
    by them, and leave the learner without the answer to its step, before it could write a checkpoint.
    """

    def __init__(self, env_fns: list[Callable[[], gym.Env]], start_method: str | None = None) -> None:
        super().__init__([partial(_make_unsignalled, env_fn) for env_fn in env_fns], start_method)
        # The Zoo closes no environment for evaluations. At its end Python would send SIGTERM to those processes and
        # wait for them: a priority of 0 comes before that
        Finalize(self, _kill, args=(self.processes,), exitpriority=0)

    def close(self) -> None:
        """Cf. SB3's, which first takes the answers to a step that was begun, and waits for those that are taken."""
        if self.waiting and not self.closed:
            _kill(self.processes)
            for process in self.processes:
                process.join()
            for remote in self.remotes:
                remote.close()
            self.closed = True
        super().close()


def _kill(processes: Iterable[BaseProcess]) -> None:
    for process in processes:
        process.kill()


def _make_unsignalled(env_fn: Callable[[], gym.Env]) -> gym.Env:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    return env_fn()
