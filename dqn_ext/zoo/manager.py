"""The Zoo's experiment manager, for ddqn."""

from collections import OrderedDict
from contextlib import nullcontext
from pathlib import Path
from pprint import pprint
from typing import Any

import gymnasium as gym
import optuna
from gymnasium import spaces
from rl_zoo3 import exp_manager
from stable_baselines3.common.utils import get_device
from stable_baselines3.common.vec_env import VecEnv

from dqn_ext import atari
from dqn_ext.ddqn import DDQN, check_model_file
from dqn_ext.errors import InvalidInput
from dqn_ext.hyperparameters import argument_names, check_names, check_values
from dqn_ext.learner import choose_dtype
from dqn_ext.zoo import HYPERPARAMS_DIR
from dqn_ext.zoo.search_space import refine_policy_kwargs

# What an entry of a YAML file may hold beside DDQN's own arguments (rl_zoo3.exp_manager)
ZOO_KEYS = {
    "n_timesteps",
    "n_envs",
    "normalize",
    "frame_stack",
    "env_wrapper",
    "vec_env_wrapper",
    "env_kwargs",
    "monitor_kwargs",
    "callback",
}


class ExperimentManager(exp_manager.ExperimentManager):
    """Finds the packaged hyperparameters, and refuses what cannot work before anything is written."""

    trial_id: int | None

    def __init__(self, args: Any, algo: str, *rest: Any, config: str | None = None, **kwargs: Any) -> None:
        super().__init__(args, algo, *rest, config=config, **kwargs)
        if algo == "ddqn" and config is None:
            self.config = str(HYPERPARAMS_DIR / "ddqn.yml")

    def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The entry of the YAML file, refined by an Optuna trial and by the command line.

        The Zoo loses trial 0 to a truth test, and all ``policy_kwargs`` of the entry to the trial's.
        """
        trial_id, self.trial_id = self.trial_id, None
        hyperparams, saved_hyperparams = super().read_hyperparameters()
        if self.storage and self.study_name and trial_id is not None:
            print(f"Loading trial {trial_id} of the Optuna study {self.study_name!r}:")
            tried = self.load_trial(self.storage, self.study_name, trial_id)
            if self.algo == "ddqn":
                entry = hyperparams.get("policy_kwargs") or {}
                if isinstance(entry, str):
                    entry = eval(entry, vars(exp_manager))  # as the Zoo does
                tried["policy_kwargs"] = refine_policy_kwargs(entry, tried["policy_kwargs"])
            hyperparams.update(tried)
            hyperparams.update(self.custom_hyperparams or {})
            saved_hyperparams = OrderedDict(sorted(hyperparams.items()))
            pprint(saved_hyperparams)
        self.trial_id = trial_id
        return hyperparams, saved_hyperparams

    def load_trial(self, storage: str, study_name: str, trial_id: int | None = None, convert: bool = True) -> Any:
        """Cf. the Zoo's.

        :raises InvalidInput: where the study has no such trial
        """
        try:
            return super().load_trial(storage, study_name, trial_id, convert)
        except (IndexError, KeyError) as error:
            raise InvalidInput(f"The storage {storage!r} has no trial {trial_id} of a study {study_name!r}.") from error

    def _preprocess_hyperparams(self, hyperparams: dict[str, Any]) -> Any:
        if self.algo != "ddqn":
            return super()._preprocess_hyperparams(hyperparams)
        check_names(hyperparams, ZOO_KEYS | argument_names(DDQN))
        processed = super()._preprocess_hyperparams(hyperparams)
        hyperparams, env_wrapper, *_ = processed
        check_values({**hyperparams, "n_envs": self.n_envs})
        choose_dtype(hyperparams.get("precision", "float32"), get_device(self.device))
        self._check_action_space(env_wrapper)
        if self.continue_training:
            check_model_file(Path(self.trained_agent))
        return processed

    def _check_action_space(self, env_wrapper: Any) -> None:
        env = gym.make(self.env_name.gym_id, **self.env_kwargs)
        if env_wrapper is not None:
            env = env_wrapper(env)
        action_space = env.action_space
        env.close()
        if not isinstance(action_space, spaces.Discrete):
            raise InvalidInput(
                f"ddqn needs a discrete action space, and {self.env_name.gym_id} has {action_space}; "
                "for continuous actions the Zoo has sac, td3 and tqc."
            )

    def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = False) -> VecEnv:
        """Cf. the Zoo's. Says which environments are for training (:func:`dqn_ext.atari.native_when_training`)."""
        with nullcontext() if eval_env else atari.training():
            return super().create_envs(n_envs, eval_env, no_log)

    def objective(self, trial: optuna.Trial) -> float:
        """Cf. the Zoo's. The search space refines the entry, which it finds in ``trial.entry``."""
        trial.entry = self._hyperparams
        return super().objective(trial)
