"""Learning while the environments step."""

from collections.abc import Callable
from contextlib import suppress

from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn


class Meanwhile(VecEnvWrapper):
    """Does something between a step's ``step_async`` and ``step_wait``, while the environments are at work.

    :param venv: it gains where its environments run in processes or threads of their own
    :param work: is called once a step
    """

    def __init__(self, venv: VecEnv, work: Callable[[], None]) -> None:
        super().__init__(venv)
        self._work = work

    def step_wait(self) -> VecEnvStepReturn:
        """Cf. :meth:`stable_baselines3.common.vec_env.VecEnv.step_wait`."""
        try:
            self._work()
        except BaseException:
            with suppress(Exception):  # the environments may have been interrupted, too
                self.venv.step_wait()  # whoever goes on must not meet the answer to this step
            raise
        return self.venv.step_wait()

    def reset(self) -> VecEnvObs:
        """Cf. :meth:`stable_baselines3.common.vec_env.VecEnv.reset`."""
        return self.venv.reset()
