"""The Optuna search space of ``ddqn``, for vector and for image observations."""

from typing import Any

import optuna
from rl_zoo3.utils import SimpleLinearSchedule
from stable_baselines3.dqn.policies import CnnPolicy

NET_ARCHS: dict[str, list[int]] = {
    "linear": [],
    "tiny": [64],
    "small": [64, 64],
    "medium": [256, 256],
    "big": [400, 300],
}


def sample_ddqn_params(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """Sample what one trial tries.

    The experiment manager leaves what the trial refines, the packaged or the user's entry, in ``trial.entry``, and the
    names of what the command line has fixed, which is not searched, in ``trial.fixed``.

    :param n_actions: unused, part of the Zoo's interface
    :param additional_args: unused, part of the Zoo's interface
    :return: keyword arguments of :class:`dqn_ext.DDQN`; its ``policy_kwargs`` and ``replay_buffer_kwargs`` hold the
        entry's too
    """
    entry: dict[str, Any] = getattr(trial, "entry", {})
    fixed: frozenset[str] = getattr(trial, "fixed", frozenset())
    policy = entry.get("policy", "MlpPolicy")
    has_images = policy == "CnnPolicy" or (isinstance(policy, type) and issubclass(policy, CnnPolicy))

    if "learning_rate" not in fixed:
        trial.suggest_float("learning_rate", 1e-5, 2e-3, log=True)
    if "gamma" not in fixed:
        trial.suggest_float("one_minus_gamma", 1e-4, 0.03, log=True)
    if "batch_size" not in fixed:
        trial.suggest_int("batch_size_pow", 4, 7 if has_images else 9)
    has_default_memory = entry.get("replay_buffer_class") is None
    # SB3's buffer of dict observations knows single steps only, and so do others
    if "n_steps" not in fixed and policy != "MultiInputPolicy" and has_default_memory:
        trial.suggest_int("n_steps", 1, 10)
    keeps_frames = has_images and entry.get("frame_stack") and has_default_memory
    if "replay_buffer_kwargs" not in fixed and keeps_frames:
        trial.suggest_float("priority_exponent", 0, 0.7)  # 0: uniform replay; 0.7: Schaul et al. 2016, table 3
    if "target_update_interval" not in fixed:
        # Images have an update every 2 to 8 transitions: renewed sooner, the target network would be hardly another one
        trial.suggest_int("target_update_interval", 200 if has_images else 1, 20_000, log=True)
    if "exploration_fraction" not in fixed:
        # Games are evaluated with the epsilon of that moment, and pruned after a third of the evaluations
        trial.suggest_float("exploration_fraction", 0, 0.25 if has_images else 0.5)
    if "exploration_final_eps" not in fixed and not has_images:
        trial.suggest_float("exploration_final_eps", 0, 0.2)
    # train_freq counts steps of all environments at once. The number of these belongs to the trial: with another
    # one the same train_freq and gradient_steps would be another ratio of updates to transitions.
    trial.suggest_int("n_envs", n_envs, n_envs)
    if fixed.isdisjoint({"train_freq", "gradient_steps"}):
        least = 1 if has_images else 0  # an update per transition would take hours a trial
        train_freq_pow = trial.suggest_int("train_freq_pow", least if n_envs == 1 else 0, 4 if has_images else 8)
        n_transitions = n_envs * 2**train_freq_pow  # between two calls of train, each of an update at least
        trial.suggest_int("transitions_per_update_pow", least, min(3, n_transitions.bit_length() - 1))
    if "policy_kwargs" not in fixed:
        if has_images:
            trial.suggest_categorical("net_arch", ["linear", "tiny"])
            trial.suggest_categorical("features_dim", [256, 512])
            # Not where the entry has settings of its extractor: another one's would be others
            if {"features_extractor_class", "features_extractor_kwargs"}.isdisjoint(entry.get("policy_kwargs") or {}):
                trial.suggest_categorical("features_extractor_class", ["nature", "impala"])
        else:
            trial.suggest_categorical("net_arch", ["small", "medium", "big"])

    sampled = convert_ddqn_params(trial.params)
    del sampled["n_envs"]
    for name in {"gamma", "batch_size", "train_freq", "gradient_steps"} & sampled.keys():
        trial.set_user_attr(name, sampled[name])
    return refine(entry, sampled)


def convert_ddqn_params(params: dict[str, Any]) -> dict[str, Any]:
    """Hyperparameters, as in a YAML entry, from what Optuna keeps of a trial."""
    hyperparams = dict(params)
    if "one_minus_gamma" in hyperparams:
        hyperparams["gamma"] = 1 - hyperparams.pop("one_minus_gamma")
    if "batch_size_pow" in hyperparams:
        hyperparams["batch_size"] = 2 ** hyperparams.pop("batch_size_pow")
    if "train_freq_pow" in hyperparams:
        train_freq = 2 ** hyperparams.pop("train_freq_pow")
        transitions_per_update = 2 ** hyperparams.pop("transitions_per_update_pow")
        hyperparams["train_freq"] = train_freq
        hyperparams["gradient_steps"] = max(train_freq * hyperparams["n_envs"] // transitions_per_update, 1)
    if "priority_exponent" in hyperparams:
        hyperparams["replay_buffer_kwargs"] = {"priority_exponent": hyperparams.pop("priority_exponent")}

    policy_kwargs: dict[str, Any] = {}
    if "net_arch" in hyperparams:
        policy_kwargs["net_arch"] = NET_ARCHS[hyperparams.pop("net_arch")]
    if "features_dim" in hyperparams:
        policy_kwargs["features_extractor_kwargs"] = {"features_dim": hyperparams.pop("features_dim")}
    if "features_extractor_class" in hyperparams:
        policy_kwargs["features_extractor_class"] = hyperparams.pop("features_extractor_class")
    return {**hyperparams, "policy_kwargs": policy_kwargs} if policy_kwargs else hyperparams


def refine(entry: dict[str, Any], sampled: dict[str, Any]) -> dict[str, Any]:
    """What was sampled, as the entry has it.

    All else in the same dicts, its extractor, optimizer or store, stays; and a learning rate that decays does so.
    """
    refined = dict(sampled)
    for name, value in sampled.items():
        others = entry.get(name)
        if isinstance(value, dict) and isinstance(others, dict):
            refined[name] = {**others, **refine(others, value)}
        elif name == "learning_rate" and isinstance(others, SimpleLinearSchedule):
            refined[name] = SimpleLinearSchedule(value)
        elif name == "learning_rate" and isinstance(others, str):  # lin_..., as in the YAML
            refined[name] = f"lin_{value}"
    return refined
