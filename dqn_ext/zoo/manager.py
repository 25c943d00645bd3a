"""The Zoo's experiment manager, for ddqn, and for dqn what concerns its checkpoints."""

import argparse
import os
import platform
import re
import sys
from collections import OrderedDict
from contextlib import nullcontext, suppress
from pathlib import Path
from pprint import pprint
from typing import Any

import gymnasium as gym
import optuna
import torch as th
import yaml
from gymnasium import spaces
from optuna.trial import TrialState
from rl_zoo3 import exp_manager
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import get_device
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecFrameStack

from dqn_ext import atari
from dqn_ext.checkpoint import CheckpointFolder, InUse, ResumeCallback, Unusable, differences
from dqn_ext.checkpoint.plain import set_attributes
from dqn_ext.checkpoint.processes import UnsignalledSubprocVecEnv
from dqn_ext.ddqn import DDQN, check_model_file
from dqn_ext.errors import Diverged, InvalidInput
from dqn_ext.hyperparameters import argument_names, check_names, check_values
from dqn_ext.tensorboard import TensorboardCallback
from dqn_ext.zoo import HYPERPARAMS_DIR
from dqn_ext.zoo.search_space import refine
from dqn_ext.zoo.sweeps import open_storage, run_trials, without_password

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
    "checkpoint_freq",
}
# Arguments of DDQN that the Zoo gives it, and the flags that it has them from
FLAGS = {"seed": "--seed", "device": "--device", "verbose": "--verbose", "tensorboard_log": "-tb"}
# Of the command line, what decides the course of a run beside its hyperparameters
SETTINGS = (
    "n_timesteps",
    "eval_freq",
    "n_eval_episodes",
    "n_eval_envs",
    "trained_agent",
    "env_kwargs",
    "eval_env_kwargs",
    "vec_env_class",
)


class ExperimentManager(exp_manager.ExperimentManager):
    """Finds the packaged hyperparameters, and refuses what cannot work before anything is written."""

    trial_id: int | None
    storage: str | None
    study_name: str | None
    max_total_trials: int | None
    seed: int
    log_interval: int
    save_path: str
    monitor_kwargs: dict[str, Any]
    vec_env_class: type[VecEnv]
    eval_env_kwargs: dict[str, Any] | None
    _saved_hyperparams: dict[str, Any]
    _resume: ResumeCallback | None = None

    def __init__(self, args: Any, algo: str, *rest: Any, config: str | None = None, **kwargs: Any) -> None:
        if config is not None and config.endswith((".yml", ".yaml")) and not Path(config).is_file():
            raise InvalidInput(f"-conf {config} is not a file.")
        super().__init__(args, algo, *rest, config=config, **kwargs)
        if self.log_interval == 0:
            self.log_interval = -2  # no log; SB3 would divide by it
        if algo == "ddqn" and config is None:
            self.config = str(HYPERPARAMS_DIR / "ddqn.yml")

    def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The entry of the YAML file, refined by an Optuna trial and by the command line.

        The Zoo loses trial 0 to a truth test, and all ``policy_kwargs`` of the entry to the trial's.
        """
        trial_id, self.trial_id = self.trial_id, None
        try:
            hyperparams, saved_hyperparams = super().read_hyperparameters()
        except (FileNotFoundError, ModuleNotFoundError) as error:
            raise InvalidInput(f"-conf {self.config} is neither a file nor a module: {error}") from error
        except (SyntaxError, UnicodeDecodeError) as error:
            raise InvalidInput(f"-conf {self.config} cannot be read: {error}") from error
        except (KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
            why = "nor one called atari" if error.args == ("atari",) else f"that can be read: {error!r}"
            raise InvalidInput(f"{self.config} has no entry for {self.env_name.gym_id}, {why}.") from error
        for kept in (hyperparams, saved_hyperparams):
            if self.n_timesteps > 0:
                kept.setdefault("n_timesteps", self.n_timesteps)  # which the Zoo's benchmark asks for
            # The Zoo's other commands take it for a setting
            for name in {"policy", "replay_buffer_class", *ZOO_KEYS} & kept.keys():
                if kept[name] is None:
                    del kept[name]
        if self.algo == "ddqn":
            if isinstance(rate := hyperparams.get("learning_rate"), str):
                hyperparams["learning_rate"] = saved_hyperparams["learning_rate"] = read_rate(rate)
            if (steps := hyperparams.get("n_timesteps")) is not None:
                hyperparams["n_timesteps"] = saved_hyperparams["n_timesteps"] = read_steps(steps)
        if trial_id is not None:
            if not (self.storage and self.study_name):
                raise InvalidInput("--trial-id needs --storage and --study-name, which say where the trial is.")
            print(f"Loading trial {trial_id} of the Optuna study {self.study_name!r}:")
            tried = self.load_trial(self.storage, self.study_name, trial_id)
            if self.algo == "ddqn":
                for name in ("policy_kwargs", "replay_buffer_kwargs"):
                    if isinstance(hyperparams.get(name), str):
                        hyperparams[name] = eval(hyperparams[name], vars(exp_manager))  # as the Zoo does
                tried = refine(hyperparams, tried)
            hyperparams.update({name: tried[name] for name in tried.keys() - (self.custom_hyperparams or {}).keys()})
            saved_hyperparams = OrderedDict(sorted(hyperparams.items()))
            pprint(saved_hyperparams)
        self.trial_id = trial_id
        if isinstance(buffer_class := saved_hyperparams.get("replay_buffer_class"), type):
            # enjoy looks for a word in it
            saved_hyperparams["replay_buffer_class"] = f"{buffer_class.__module__}.{buffer_class.__qualname__}"
        self._saved_hyperparams = saved_hyperparams
        return hyperparams, saved_hyperparams

    def load_trial(self, storage: str, study_name: str, trial_id: int | None = None, convert: bool = True) -> Any:
        """Cf. the Zoo's.

        :raises InvalidInput: where the study has no such trial, or that one was over before it had hyperparameters
        """
        if storage.endswith(".log") and not Path(storage).exists():
            raise InvalidInput(f"There is no journal {storage!r}.")
        try:
            study = optuna.load_study(storage=open_storage(storage), study_name=study_name)
            trial = study.best_trial if trial_id is None else dict(enumerate(study.trials))[trial_id]
        except KeyError as error:
            raise InvalidInput(
                f"The storage {without_password(storage)!r} has no trial {trial_id} of a study {study_name!r}."
            ) from error
        if not trial.params:
            raise InvalidInput(f"Trial {trial_id} of the study {study_name!r} was over before it had hyperparameters.")
        for name, ours in (("algo", self.algo), ("env", self.env_name.gym_id)):
            if (theirs := study.user_attrs.get(name, ours)) != ours:
                print(f"Warning: the study {study_name!r} has {name} {theirs!r}, and this run {ours!r}.")
        fixed = self._fixed()
        if (searched_with := trial.user_attrs.get("fixed", fixed)) != fixed:
            print(f"Warning: the trial had -params {searched_with}; this run has {fixed}, and so is another.")
        return HYPERPARAMS_CONVERTER[self.algo](trial.params) if convert else trial.params

    def _fixed(self) -> str:
        """What ``-params`` gave, and a search leaves alone."""
        return _in_words(dict(sorted((self.custom_hyperparams or {}).items())))

    def _preprocess_hyperparams(self, hyperparams: dict[str, Any]) -> Any:
        if self.algo not in ("dqn", "ddqn"):
            return self._as_the_zoo(hyperparams)
        if self.algo == "ddqn":
            for name, flag in FLAGS.items():
                if name in hyperparams:
                    raise InvalidInput(f"{name} is no hyperparameter here, the command has a flag for it: {flag}.")
            check_names(hyperparams, ZOO_KEYS | argument_names(DDQN))
            needed = {"policy"} if self.n_timesteps > 0 else {"policy", "n_timesteps"}
            if missing := needed - hyperparams.keys():
                raise InvalidInput(f"The entry of {self.env_name.gym_id} must have {' and '.join(sorted(missing))}.")
            if not isinstance(rate := hyperparams.get("learning_rate", 1), str):  # the Zoo makes a schedule of it
                check_values({"learning_rate": rate})
        checkpoint_freq = hyperparams.pop("checkpoint_freq", 0)
        settings = {name: _in_words(value) for name, value in hyperparams.items()}
        processed = self._as_the_zoo(hyperparams)
        check_values({"checkpoint_freq": checkpoint_freq})
        if self.algo == "ddqn":
            hyperparams, env_wrapper, _, vec_env_wrapper = processed
            check_values({**hyperparams, "n_envs": self.n_envs})
            if self.frame_stack is not None:
                check_values({"frame_stack": self.frame_stack})
                if self.normalize:
                    raise InvalidInput("normalize and frame_stack do not go together: the Zoo normalizes frames first.")
            if isinstance(policy := hyperparams["policy"], str) and policy not in DDQN.policy_aliases:
                raise InvalidInput(f"policy must be one of {', '.join(DDQN.policy_aliases)}, not {policy!r}.")
            self._try_out(hyperparams, env_wrapper, vec_env_wrapper)
            if self.continue_training:
                check_model_file(Path(self.trained_agent))
        if checkpoint_freq and not self.optimize_hyperparameters:
            settings |= {name: _in_words(getattr(self, name)) for name in SETTINGS}
            settings |= {"algo": self.algo, "env": self.env_name.gym_id}
            self._open_checkpoints(checkpoint_freq, settings)
        return processed

    def _as_the_zoo(self, hyperparams: dict[str, Any]) -> Any:
        """What the Zoo does, which forgets an entry's ``env_kwargs`` when it makes environments to evaluate in."""
        try:
            processed = super()._preprocess_hyperparams(hyperparams)
        except InvalidInput:
            raise
        except Exception as error:  # of what it imports and evaluates
            if self.algo != "ddqn":
                raise
            raise InvalidInput(f"The entry of {self.env_name.gym_id} cannot be read: {error!r}") from error
        self._check_flags()
        if self._eval_env_kwargs_args is None:
            self.eval_env_kwargs = self.env_kwargs
        return processed

    def _check_flags(self) -> None:
        """Of the command line, what the Zoo stumbles over late, or passes over.

        :raises InvalidInput: on a value that is not allowed
        """
        least_1 = {"--eval-episodes": self.n_eval_episodes, "--n-eval-envs": self.n_eval_envs}
        if self.optimize_hyperparameters:
            least_1["--n-evaluations"] = self.n_evaluations
        for flag, value in least_1.items():
            if value < 1:
                raise InvalidInput(f"{flag} must be at least 1, not {value}.")
        if self.optimize_hyperparameters and self.continue_training:
            raise InvalidInput("-i and -optimize do not go together: a search begins each trial with a new agent.")

    # ------------------------------------------------------------------ checkpoints

    def _open_checkpoints(self, freq: int, settings: dict[str, str]) -> None:
        """Go on with a run of these settings that has not come to its end, or begin a new one."""
        if _seed_is_given():
            settings["seed"] = repr(self.seed)
        self._resume = self._unfinished_run(freq, settings) or self._new_run(freq, settings)
        if self._resume.resumes:
            self.save_path = str(self._resume.run)
            self.params_path = f"{self.save_path}/{self.env_name}"
            self.monitor_kwargs = {**self.monitor_kwargs, "override_existing": False}
            self.seed = self.args.seed = int(self._resume.settings["seed"])
        else:
            self._resume.settings["seed"] = repr(self.seed)

    def _new_run(self, freq: int, settings: dict[str, str]) -> ResumeCallback:
        """In the folder that the Zoo has chosen, or, where another process has chosen the same, in the next one."""
        while True:
            try:
                return ResumeCallback(self.save_path, freq, settings)
            except InUse:
                path = Path(self.save_path)
                number_and_uuid = re.fullmatch(r"(\d+)(.*)", path.name[len(self.env_name) + 1 :])
                if number_and_uuid is None:
                    raise
                number, uuid = number_and_uuid.groups()
                self.save_path = str(path.with_name(f"{self.env_name}_{int(number) + 1}{uuid}"))
                self.params_path = f"{self.save_path}/{self.env_name}"

    def _unfinished_run(self, freq: int, settings: dict[str, str]) -> ResumeCallback | None:
        """The newest run of these settings that has checkpoints; why another is not gone on with is said."""
        runs = {}
        for folder in Path(self.log_path).glob(f"{self.env_name}_[0-9]*/checkpoint"):
            if number := re.match(r"\d+", folder.parent.name[len(self.env_name) + 1 :]):
                runs[folder.parent] = int(number[0])
        told = False
        for run in sorted(runs, key=lambda run: runs[run], reverse=True):
            mismatches = self._mismatches(CheckpointFolder(run / "checkpoint"), settings)
            if "" in mismatches:
                try:
                    callback = ResumeCallback(run, freq, settings)
                except InvalidInput as error:
                    print(f"{error} This is a run of its own.", file=sys.stderr)
                    continue
                if callback.resumes:
                    return callback
                callback.folder.unlock()  # another process has come to its end meanwhile
            elif mismatches and not told:
                # At once: who has asked for that one may end this, before it has begun
                print(f"{run} has not come to its end, but it is another run than this: {mismatches[0]}", flush=True)
                told = True
        return None

    @staticmethod
    def _mismatches(folder: CheckpointFolder, settings: dict[str, str]) -> list[str]:
        """Of each checkpoint; empty where there is none, or where only a closer look can tell."""
        mismatches = []
        for step in folder.steps():
            try:
                mismatches.append(differences(folder.about(step).get("settings", {}), settings))
            except Unusable:
                mismatches.append("")
        return mismatches

    def create_callbacks(self) -> None:
        """Cf. the Zoo's. Checkpoints come first: the others then find the state they go on from."""
        super().create_callbacks()
        if self.algo == "ddqn" and self.tensorboard_log is not None and not self.optimize_hyperparameters:
            tenth = max(self.n_timesteps // 10, 1)
            self.callbacks.append(TensorboardCallback(self._create_film_env, self._saved_hyperparams, tenth))
        if self._resume is not None:
            self.callbacks.insert(0, self._resume)

    def learn(self, model: BaseAlgorithm) -> None:
        """Cf. the Zoo's.

        :raises Diverged: where the loss is infinite or not a number; the last good state is named
        """
        if self._resume is None:
            super().learn(model)
            return
        # Before the Zoo would take a KeyboardInterrupt for the wish to end the run
        self._resume.catch_signals()
        try:
            super().learn(model)
        except Diverged as error:
            if not (steps := self._resume.folder.steps()):  # at the start
                raise
            good = self._resume.folder.at(steps[0])
            if (normalization := model.get_vec_normalize_env()) is not None:
                # Those of that state; where the Zoo looks for them when it goes on from an agent
                kept = th.load(good / "state.pt", map_location="cpu", weights_only=True)
                set_attributes(normalization, kept["normalization"])
                averages = good / str(self.env_name) / "vecnormalize.pkl"
                averages.parent.mkdir(exist_ok=True)
                normalization.save(str(averages))
            raise Diverged(
                f"{error} The last good state is {good}; -i {good}/model.zip goes on from its agent, "
                f"with other hyperparameters."
            ) from error
        except SystemExit:
            # A signal's: as the Zoo does on Ctrl-C, for enjoy and the like
            try:
                super().save_trained_model(model)
            except (OSError, InvalidInput) as error:
                print(f"Warning: the agent as it is could not be written: {error}", file=sys.stderr)
            raise
        finally:
            # The Zoo does so for the first callback only
            for callback in self.callbacks:
                if isinstance(callback, ResumeCallback) or hasattr(callback, "pbar"):  # a progress bar that was begun
                    callback.on_training_end()

    def save_trained_model(self, model: BaseAlgorithm) -> None:
        """Cf. the Zoo's. A run that has come to its end needs its checkpoints no more."""
        try:
            super().save_trained_model(model)
        except OSError as error:
            raise InvalidInput(f"The agent could not be written to {self.save_path}: {error}") from error
        if self._resume is not None:
            self._resume.finish()

    def _try_out(self, hyperparams: dict[str, Any], env_wrapper: Any, vec_env_wrapper: Any) -> None:
        """Make environment and agent once: what is wrong with them is said before anything is written.

        :raises InvalidInput: where they cannot be made
        """

        def make_env(env_kwargs: dict[str, Any]) -> gym.Env:
            try:
                env = gym.make(self.env_name.gym_id, **env_kwargs)
            except Exception as error:  # each game has its own
                if not env_kwargs:
                    raise
                raise InvalidInput(f"{self.env_name.gym_id} takes no env_kwargs {env_kwargs}: {error}") from error
            try:
                return env if env_wrapper is None else env_wrapper(env)
            except Exception as error:  # each wrapper has its own
                raise InvalidInput(f"env_wrapper does not go around {self.env_name.gym_id}: {error!r}") from error

        try:
            get_device(self.device)
        except RuntimeError as error:
            raise InvalidInput(f"--device must be auto or one of PyTorch's, cuda say, not {self.device!r}.") from error
        if self.eval_env_kwargs != self.env_kwargs:
            make_env(self.eval_env_kwargs or {}).close()
        env: VecEnv = DummyVecEnv([lambda: make_env(self.env_kwargs)])
        try:
            if not isinstance(env.action_space, spaces.Discrete):
                raise InvalidInput(
                    f"ddqn needs a discrete action space, and {self.env_name.gym_id} has {env.action_space}; "
                    "for continuous actions the Zoo has sac, td3 and tqc."
                )
            if vec_env_wrapper is not None:
                env = vec_env_wrapper(env)
            if self.frame_stack is not None:
                env = VecFrameStack(env, self.frame_stack)
            with th.random.fork_rng(devices=[]):  # SB3 makes networks on the CPU
                DDQN(env=env, device=self.device, **hyperparams)
        finally:
            env.close()

    def _create_film_env(self) -> VecEnv:
        kwargs = self.eval_env_kwargs
        self.eval_env_kwargs = {**(kwargs or {}), "render_mode": "rgb_array"}
        try:
            return self.create_envs(1, eval_env=True)
        finally:
            self.eval_env_kwargs = kwargs

    def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = False) -> VecEnv:
        """Cf. the Zoo's. Says which environments are for training (:func:`dqn_ext.atari.native_when_training`)."""
        vec_env_class = self.vec_env_class
        if vec_env_class is SubprocVecEnv:
            self.vec_env_class = UnsignalledSubprocVecEnv
        try:
            with nullcontext() if eval_env else atari.training():
                return super().create_envs(n_envs, eval_env, no_log)
        finally:
            self.vec_env_class = vec_env_class  # a run goes by its name

    def hyperparameters_optimization(self) -> None:
        """Cf. the Zoo's. In a study that is stored, and so may be shared, a killed worker's trial is run again."""
        if self.storage is not None:
            if self.storage.endswith(".log"):
                self.storage = str(Path(self.storage).absolute())  # the Zoo's lock is a link to it
            how: dict[str, Any] = {
                "sampler": self._create_sampler(self.sampler),
                "pruner": self._create_pruner(self.pruner),
                "storage": open_storage(self.storage),
                "study_name": self.study_name,
            }
            try:
                study = optuna.create_study(direction="maximize", **how)
            except optuna.exceptions.DuplicatedStudyError:
                study = optuna.load_study(**how)
                study.sampler.reseed_rng()  # with one seed, each worker's first trials would be the same
            if self.study_name is None:
                print(f"--study-name {study.study_name} goes on with this study.")
            self.study_name = study.study_name
            self._describe(study)
            with suppress(KeyboardInterrupt):
                run_trials(study, self.objective, self.n_trials, self.max_total_trials, self.n_jobs)
            if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
                print(f"No trial of the study {study.study_name!r} is complete yet.")
                return
            self.max_total_trials = 0  # the Zoo only reports
        super().hyperparameters_optimization()

    def _describe(self, study: optuna.Study) -> None:
        """Write into a study what it is about, as the Zoo does in the end.

        :raises InvalidInput: where it is about something else: such trials cannot be compared
        """
        about = {"algo": self.algo, "env": self.env_name.gym_id, "n_timesteps": self.n_timesteps}
        for name, value in about.items():
            if (theirs := study.user_attrs.get(name, value)) != value:
                raise InvalidInput(
                    f"The study {study.study_name!r} has {name} {theirs!r}, not {value!r}; "
                    f"another --study-name begins another study."
                )
        if "command" not in study.user_attrs:
            hyperparams = {name: str(value) for name, value in sorted(self._hyperparams.items())}
            for name, value in {**hyperparams, **about, "command": " ".join(sys.orig_argv)}.items():
                study.set_user_attr(name, value)

    def objective(self, trial: optuna.Trial) -> float:
        """Cf. the Zoo's. The search space refines the entry, which it finds in ``trial.entry``."""
        trial.entry = {**self._hyperparams, "frame_stack": self.frame_stack}  # the Zoo has taken it out
        trial.fixed = frozenset(self.custom_hyperparams or {})
        trial.set_user_attr("fixed", self._fixed())
        if self.storage is not None:
            trial.set_user_attr("worker", f"{platform.node()}:{os.getpid()}")
        keep_from_pruning_at_the_end(trial, self.n_evaluations)
        try:
            return super().objective(trial)
        except InvalidInput as error:  # a combination that the entry's other settings do not allow
            print(f"Trial {trial.number} is passed over: {error}")
            raise optuna.TrialPruned from error
        except KeyboardInterrupt:
            # As a killed worker's, it is run again by whoever goes on with the study
            if self.storage is not None and trial.params:
                trial.study.enqueue_trial(trial.params)
            raise


def keep_from_pruning_at_the_end(trial: optuna.Trial, n_evaluations: int) -> None:
    """Whatever the pruner says: nothing is left to be saved then, and importances know of complete trials only."""
    report, should_prune, last_step = trial.report, trial.should_prune, 0

    def noted(value: float, step: int) -> None:
        nonlocal last_step
        report(value, step)
        last_step = step

    trial.report = noted
    trial.should_prune = lambda: last_step < n_evaluations and should_prune()


def read_rate(text: str) -> float | str:
    """A learning rate that YAML takes for a word, as it does ``1e-4``, or that decays to 0, ``lin_1e-4``.

    :raises InvalidInput: on anything else, which the Zoo would stumble over or take for decaying
    """
    schedule, _, number = text.rpartition("_")
    with suppress(ValueError):
        if schedule in ("", "lin") and 0 < (value := float(number)) < 1e9:
            return text if schedule else value
    raise InvalidInput(
        f"learning_rate must be a number above 0, or one that decays to 0 as lin_1e-4 does, not {text!r}."
    )


def read_steps(value: Any) -> int:
    """A number of steps, which YAML may take for a word, as it does ``1e6``.

    :raises InvalidInput: on anything else
    """
    with suppress(ValueError, TypeError, OverflowError):
        if (steps := int(float(value))) > 0:
            return steps
    raise InvalidInput(f"n_timesteps must be a number of steps above 0, not {value!r}.")


def _in_words(value: Any) -> str:
    """The same in another process: without the addresses that functions are written with."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _seed_is_given() -> bool:
    """The Zoo draws a seed where none is given, and keeps no note of it."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--seed", type=int, default=-1)
    return parser.parse_known_args(sys.argv[1:])[0].seed >= 0
