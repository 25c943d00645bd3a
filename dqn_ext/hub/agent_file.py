"""An agent without its code: the Q-network's weights (safetensors) and a description (JSON) of plain values.

Whatever stands in the two files, reading them runs nothing and reserves no more memory than the weights take: the
description is checked field by field, the network's shapes are worked out without building it in memory, and only
weights of exactly these names, shapes and type are read.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from stable_baselines3 import DQN
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize, unwrap_vec_normalize
from torch import nn

from dqn_ext import __version__
from dqn_ext.ddqn import DDQN
from dqn_ext.errors import InvalidInput
from dqn_ext.features import EXTRACTORS
from dqn_ext.hub.plain import (
    Check,
    either,
    flag,
    number,
    one_of,
    read_expression,
    read_json,
    record,
    sequence,
    short,
    text,
    whole,
)
from dqn_ext.hyperparameters import argument_names, check_values

DESCRIPTION, WEIGHTS = "agent.json", "agent.safetensors"
CHECKSUMS = "sha256"  # in the description, of both files
MAX_DESCRIPTION, MAX_WEIGHTS = 2**20, 2**29  # bytes
MAX_OBSERVATION = 2**22  # numbers

ALGORITHMS: dict[str, type[DQN]] = {"dqn": DQN, "ddqn": DDQN}
ACTIVATIONS: dict[str, type[nn.Module]] = {
    cls.__name__: cls for cls in (nn.ReLU, nn.Tanh, nn.ELU, nn.GELU, nn.SiLU, nn.LeakyReLU, nn.Sigmoid)
}
OPTIMIZERS: dict[str, type[th.optim.Optimizer]] = {
    cls.__name__: cls for cls in (th.optim.Adam, th.optim.AdamW, th.optim.RMSprop)
}
_NAMES: dict[Any, str] = {cls: name for name, cls in (ACTIVATIONS | OPTIMIZERS).items()}

# ---------------------------------------------------------------------- what a description may say

_MANY = 2**53
_bound = either(one_of(None), number())  # None: unbounded
_bounds = either(_bound, sequence(_bound, 2**20))
_space = {
    "box": record(
        {
            "type": one_of("box"),
            "shape": sequence(whole(1, 2**16), 4),
            "dtype": one_of("uint8", "float32", "float64", "int8", "int16", "int32", "int64"),
            "low": _bounds,
            "high": _bounds,
        }
    ),
    "discrete": record({"type": one_of("discrete"), "n": whole(1, 2**16), "start": whole(-_MANY, _MANY)}),
}


def _observation_space(value: Any, name: str) -> dict[str, Any]:
    kind = value.get("type") if type(value) is dict else None
    return _space["discrete" if kind == "discrete" else "box"](value, name)


_policy_kwargs = record(
    {},
    {
        "net_arch": sequence(whole(1, 2**14), 16),
        "activation_fn": one_of(*ACTIVATIONS),
        "dueling": flag,
        "features_extractor_class": one_of(*EXTRACTORS),
        "features_extractor_kwargs": record(
            {},
            {"features_dim": whole(1, 2**14), "width": number(0, 64), "centered": flag, "normalized_image": flag},
        ),
        "normalize_images": flag,
        "optimizer_class": one_of(*OPTIMIZERS),
        "optimizer_kwargs": record(
            {},
            {
                "eps": number(0, 1),
                "weight_decay": number(0, 1),
                "alpha": number(0, 1),
                "momentum": number(0, 1),
                "betas": sequence(number(0, 1), 2),
                "amsgrad": flag,
                "centered": flag,
            },
        ),
    },
)
# Wrappers are imported by name: these and no others
_WRAPPERS = {
    "stable_baselines3.common.atari_wrappers.AtariWrapper": record(
        {},
        {
            "noop_max": whole(0, 1000),
            "frame_skip": whole(1, 1000),
            "screen_size": whole(1, 256),  # and 64 of them: at most MAX_OBSERVATION
            "terminal_on_life_loss": flag,
            "clip_reward": flag,
            "action_repeat_probability": number(0, 1),
        },
    )
}
_wrapper = either(*(record({name: arguments}) for name, arguments in _WRAPPERS.items()), one_of(*_WRAPPERS))
_normalize = record(
    {},
    {
        "norm_obs": flag,
        "norm_reward": flag,
        "clip_obs": number(0),
        "clip_reward": number(0),
        "gamma": number(0, 1),
        "epsilon": number(0, 1),
    },
)
_fraction = number(0, 1)
# As in the Zoo's config.yml
HYPERPARAMETERS: dict[str, Check] = {
    "policy": one_of("MlpPolicy", "CnnPolicy"),
    "policy_kwargs": _policy_kwargs,
    "n_timesteps": number(0),
    "n_envs": whole(1, 2**16),
    "env_wrapper": either(sequence(_wrapper, 1), _wrapper),
    "vec_env_wrapper": one_of("dqn_ext.atari.native_when_training"),  # imported by name, too
    "frame_stack": whole(1, 64),
    "normalize": either(flag, _normalize),
    "learning_rate": either(text(r"lin_(\d{1,9}(\.\d{0,20})?|\.\d{1,20})([eE][+-]?\d{1,2})?"), number(0)),
    "buffer_size": whole(1, _MANY),
    "learning_starts": whole(0, _MANY),
    "batch_size": whole(1, _MANY),
    "tau": _fraction,
    "gamma": _fraction,
    "train_freq": either(whole(1, _MANY), sequence(either(one_of("step", "episode"), whole(1, _MANY)), 2)),
    "gradient_steps": whole(-1, _MANY),
    "n_steps": whole(1, 2**16),
    "target_update_interval": whole(1, _MANY),
    "exploration_fraction": _fraction,
    "exploration_initial_eps": _fraction,
    "exploration_final_eps": _fraction,
    "max_grad_norm": number(0),
    "double_q": flag,
    "reward_bound": either(one_of(None), number(0)),
    "precision": one_of("auto", "float32", "bfloat16"),
    "overlap": flag,
}
# How it was trained on one machine; playing needs none of it, and most of it names code or folders
NOT_CARRIED = {
    "callback",
    "checkpoint_freq",
    "compile",
    "monitor_kwargs",
    "normalize_kwargs",  # the Zoo's own reading of `normalize`
    "optimize_memory_usage",
    "replay_buffer_class",
    "replay_buffer_kwargs",
    "stats_window_size",
}
_statistics = record(
    {
        "mean": either(number(), sequence(number(), 2**16)),
        "var": either(number(0), sequence(number(0), 2**16)),
        "count": number(0),
    }
)
_env_kwarg = either(one_of("rgb", "ram", "grayscale", None), flag, number())
_known_env_kwargs: dict[str, Check] = {"frameskip": whole(1, 100)}  # a step of many more would have no end
_version = text(r"[\w.+!-]{1,60}")


def _env_kwargs(value: Any, name: str) -> dict[str, Any]:
    names = value if type(value) is dict else ()
    for key in names:
        text(r"[a-z]\w{0,60}")(key, f"{name}'s name")
    return record({}, {key: _known_env_kwargs.get(key, _env_kwarg) for key in names})(value, name)


check_env_id = text(r"([\w-]{1,60}/)?[\w.-]{1,100}-v\d{1,3}")

_description = record(
    {
        "format": one_of(1),
        "algorithm": one_of(*ALGORITHMS),
        "env_id": check_env_id,
        "env_kwargs": _env_kwargs,
        "observation_space": _observation_space,
        "action_space": _space["discrete"],
        "hyperparameters": record({"policy": HYPERPARAMETERS["policy"]}, HYPERPARAMETERS),
        "num_timesteps": whole(0, _MANY),
        "exploration_rate": _fraction,
        "seed": either(one_of(None), whole(0, _MANY)),
        "versions": record({}, {"dqn-ext": _version, "stable-baselines3": _version, "rl-zoo3": _version}),
    },
    {"normalization": record({"ret": _statistics}, {"obs": _statistics})},
)


def check_description(value: Any, name: str = DESCRIPTION) -> dict[str, Any]:
    """:raises InvalidInput: unless each field is known and has a value of its type and range"""
    description = _description(value, name)
    hyperparameters, space = description["hyperparameters"], description["observation_space"]
    if space["type"] == "box" and prod(space["shape"]) > MAX_OBSERVATION:
        raise InvalidInput(f"{name}.observation_space.shape must hold at most {MAX_OBSERVATION} numbers.")
    policy_kwargs = hyperparameters.get("policy_kwargs", {})
    if description["algorithm"] == "dqn":
        for setting in ("double_q", "reward_bound", "precision", "overlap"):
            if setting in hyperparameters:
                raise InvalidInput(f"{name}.hyperparameters must not set {setting}, which dqn does not know.")
        if "dueling" in policy_kwargs:
            raise InvalidInput(f"{name}.hyperparameters.policy_kwargs must not set dueling, which dqn does not know.")
    by_name = "features_extractor_class" in policy_kwargs
    if by_name and (description["algorithm"], hyperparameters["policy"]) != ("ddqn", "CnnPolicy"):
        raise InvalidInput(f"{name} must not name a features_extractor_class; that is for ddqn's CnnPolicy.")
    if bool(hyperparameters.get("normalize")) != ("normalization" in description):
        raise InvalidInput(f"{name} must have a normalization where hyperparameters.normalize is set, and only there.")
    if "normalization" in description and "frame_stack" in hyperparameters:
        raise InvalidInput(f"{name} must not have both normalize and frame_stack.")
    if "normalization" in description and space["type"] != "box":
        raise InvalidInput(f"{name}.normalization must be of a box of observations.")
    check_values({name: value for name, value in hyperparameters.items() if not isinstance(value, str)})
    return description


# ---------------------------------------------------------------------- the agent


@dataclass
class Agent:
    """A checked description, and the weights of the Q-network that it describes."""

    description: dict[str, Any]
    weights: dict[str, th.Tensor]

    @classmethod
    def of(cls, model: DQN, algo: str, env_id: str, hyperparams: Mapping[str, Any], env_kwargs: Any) -> "Agent":
        """Describe a trained model.

        :param hyperparams: as in the run's config.yml
        :raises InvalidInput: where it cannot be said in plain values, such as a policy of the user's own
        """
        description: dict[str, Any] = {
            "format": 1,
            "algorithm": algo,
            "env_id": env_id,
            "env_kwargs": dict(env_kwargs),
            "observation_space": describe_space(model.observation_space),
            "action_space": describe_space(model.action_space),
            "hyperparameters": plain_hyperparameters(hyperparams),
            "num_timesteps": int(model.num_timesteps),
            "exploration_rate": float(model.exploration_rate),
            "seed": model.seed,
            "versions": {"dqn-ext": __version__, **{name: version(name) for name in ("stable-baselines3", "rl-zoo3")}},
        }
        normalize: Any = unwrap_vec_normalize(model.env) if model.env is not None else None
        if normalize is not None:
            description["normalization"] = {"ret": _plain_statistics(normalize.ret_rms)}
            if normalize.norm_obs:
                description["normalization"]["obs"] = _plain_statistics(normalize.obs_rms)
        weights = {name: weight.cpu().contiguous() for name, weight in model.q_net.state_dict().items()}
        agent = cls(check_description(description), weights)
        agent.check_weights({name: (str(weight.dtype), weight.shape) for name, weight in weights.items()})
        return agent

    @classmethod
    def read(cls, description: Path, weights: Path) -> "Agent":
        """Read the two files.

        :raises InvalidInput: on anything that :meth:`write` would not have written
        """
        content = read_json(_read(description, MAX_DESCRIPTION), DESCRIPTION)
        checksums = content.pop(CHECKSUMS, None) if isinstance(content, dict) else None
        agent = cls(check_description(content), {})
        if weights.stat().st_size > MAX_WEIGHTS:
            raise InvalidInput(f"{WEIGHTS} must not be larger than {MAX_WEIGHTS >> 20} MB.")
        if checksums is not None and checksums != _checksums(content, weights):
            raise InvalidInput(f"{DESCRIPTION} and {WEIGHTS} are damaged: their checksums are not what was written.")
        try:
            with safe_open(weights, framework="pt") as file:
                headers = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118, it is no dict
                agent.check_weights(
                    {
                        name: ({"F32": "torch.float32"}.get(header.get_dtype(), ""), header.get_shape())
                        for name, header in headers.items()
                    }
                )
                agent.weights = {name: file.get_tensor(name) for name in headers}
        except SafetensorError as error:
            raise InvalidInput(f"{WEIGHTS} is not a readable safetensors file ({short(str(error))}).") from error
        agent.check_finite()
        return agent

    def write(self, folder: Path) -> None:
        """Write the two files."""
        save_file(self.weights, folder / WEIGHTS)
        content = {**self.description, CHECKSUMS: _checksums(self.description, folder / WEIGHTS)}
        (folder / DESCRIPTION).write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")

    def check_weights(self, found: Mapping[str, tuple[str, Any]]) -> None:
        """:raises InvalidInput: unless ``found`` has the names, types and shapes of the described network's weights"""
        expected = self._expected_shapes()
        for name in sorted(expected.keys() ^ found.keys()):
            raise InvalidInput(f"The weights {'lack' if name in expected else 'must not have'} {name[:80]!r}.")
        for name, (dtype, shape) in found.items():
            if dtype != "torch.float32" or tuple(shape) != expected[name]:
                raise InvalidInput(f"The weights {name!r} must be float32 of shape {list(expected[name])}.")

    def check_finite(self) -> None:
        """:raises InvalidInput: on weights that are not numbers"""
        for name, weight in self.weights.items():
            if not weight.isfinite().all():
                raise InvalidInput(f"The weights {name!r} must be finite numbers, and some are NaN or infinite.")

    def _expected_shapes(self) -> dict[str, tuple[int, ...]]:
        policy, policy_kwargs = self._policy()
        policy_kwargs["optimizer_class"] = th.optim.SGD  # there will be nothing to optimize
        policy_kwargs.pop("optimizer_kwargs", None)
        observation_space, action_space = self.spaces()
        # A described network may be far larger than the file: built on no device it reserves no memory
        without_memory = type("WithoutMemory", (policy,), {"device": th.device("meta")})
        try:
            with th.device("meta"):
                network = without_memory(observation_space, action_space, lambda _: 0.0, **policy_kwargs).q_net
        except Exception as error:  # SB3 and torch each have their own for a network that cannot be
            raise InvalidInput(f"The description is of a network that cannot be built ({error}).") from error
        return {name: tuple(weight.shape) for name, weight in network.state_dict().items()}

    def _policy(self) -> tuple[Any, dict[str, Any]]:
        hyperparameters = self.description["hyperparameters"]
        policy = ALGORITHMS[self.description["algorithm"]].policy_aliases[hyperparameters["policy"]]
        policy_kwargs = dict(hyperparameters.get("policy_kwargs", {}))
        for name, classes in (("activation_fn", ACTIVATIONS), ("optimizer_class", OPTIMIZERS)):
            if name in policy_kwargs:
                policy_kwargs[name] = classes[policy_kwargs[name]]
        return policy, policy_kwargs

    def spaces(self) -> tuple[spaces.Space, spaces.Discrete]:
        """:return: the observation and the action space"""
        observation, action = self.description["observation_space"], self.description["action_space"]
        action_space = spaces.Discrete(action["n"], start=action["start"])
        if observation["type"] == "discrete":
            return spaces.Discrete(observation["n"], start=observation["start"]), action_space
        shape, dtype = tuple(observation["shape"]), np.dtype(observation["dtype"])
        bounds: list[Any] = []
        for name, unbounded in (("low", -np.inf), ("high", np.inf)):
            values = np.array(observation[name], dtype=np.float64)  # None becomes NaN
            if values.size not in (1, prod(shape)):
                raise InvalidInput(f"The observation space's {name} must be one number or {prod(shape)} of them.")
            values = np.where(np.isnan(values), unbounded, values)
            if dtype.kind != "f" and not (np.iinfo(dtype).min <= values).all() & (values <= np.iinfo(dtype).max).all():
                raise InvalidInput(f"The observation space's {name} must lie in the range of {dtype}.")
            bounds.append(np.broadcast_to(values.reshape(-1), prod(shape)).reshape(shape).astype(dtype))
        if not (bounds[0] <= bounds[1]).all():
            raise InvalidInput("The observation space's low must not exceed its high.")
        return spaces.Box(bounds[0], bounds[1], dtype=dtype.type), action_space

    def build(self) -> DQN:
        """The agent as a model, on the CPU; its optimizer is new, its target network equals its Q-network.

        :raises InvalidInput: where the settings do not go together
        """
        hyperparameters = self.description["hyperparameters"]
        algorithm = ALGORITHMS[self.description["algorithm"]]
        arguments = {name: value for name, value in hyperparameters.items() if name in argument_names(algorithm)}
        policy, policy_kwargs = self._policy()
        arguments.update(policy=policy, policy_kwargs=policy_kwargs)
        learning_rate = arguments.get("learning_rate")
        if isinstance(learning_rate, str):
            arguments["learning_rate"] = LinearSchedule(float(learning_rate.removeprefix("lin_")), 0.0, 1.0)
        if isinstance(arguments.get("train_freq"), list):
            arguments["train_freq"] = tuple(arguments["train_freq"])
        # No memory is reserved for a replay memory that playing does not need
        buffer_size = arguments.pop("buffer_size", 1_000_000)
        no_env: Any = None
        try:
            model = algorithm(env=no_env, buffer_size=1, device="cpu", _init_setup_model=False, **arguments)
            model.observation_space, model.action_space = self.spaces()
            model.n_envs = 1
            model._setup_model()
        except Exception as error:  # such as an optimizer's, of a setting that it does not take
            raise InvalidInput(f"The description is of an agent that cannot be built ({error}).") from error
        model.q_net.load_state_dict(self.weights)
        model.q_net_target.load_state_dict(self.weights)
        model.buffer_size = buffer_size
        model.num_timesteps = self.description["num_timesteps"]
        model.exploration_rate = self.description["exploration_rate"]
        model.seed = self.description["seed"]
        if "frame_stack" in hyperparameters and isinstance(model, DDQN):
            model._n_stack = hyperparameters["frame_stack"]
        return model

    def build_normalization(self) -> VecNormalize | None:
        """The running averages of observations and returns, if the agent was trained with them."""
        statistics = self.description.get("normalization")
        if statistics is None:
            return None
        settings = self.description["hyperparameters"]["normalize"]
        observation_space, action_space = self.spaces()
        env = DummyVecEnv([lambda: _Spaces(observation_space, action_space)])
        normalize: Any = VecNormalize(env, **(settings if isinstance(settings, dict) else {}))
        if normalize.norm_obs != ("obs" in statistics):
            raise InvalidInput("normalization must have obs where observations are normalized, and only there.")
        for of, plain in statistics.items():
            moments: Any = getattr(normalize, f"{of}_rms")
            for name in ("mean", "var"):
                values, old = np.array(plain[name], dtype=np.float64), getattr(moments, name)
                if values.size != old.size:
                    raise InvalidInput(f"normalization must have {old.size} numbers, not {values.size}.")
                setattr(moments, name, values.reshape(old.shape))
            moments.count = plain["count"]
        return normalize


class _Spaces(gym.Env):
    """An environment that has spaces and nothing else."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Discrete) -> None:
        self.observation_space, self.action_space = observation_space, action_space


# ---------------------------------------------------------------------- from objects to plain values


def plain_hyperparameters(hyperparams: Mapping[str, Any]) -> dict[str, Any]:
    """What a config.yml of the Zoo's says, in plain values: its strings of Python literals are read, not evaluated.

    :raises InvalidInput: on a setting that has no plain value
    """
    plain = {name: value for name, value in hyperparams.items() if name not in NOT_CARRIED and value is not None}
    for name in ("policy_kwargs", "normalize"):
        if isinstance(plain.get(name), str):
            plain[name] = read_expression(plain[name], name)
    return record({"policy": HYPERPARAMETERS["policy"]}, HYPERPARAMETERS)(_without_objects(plain), "config.yml")


def _without_objects(value: Any) -> Any:
    """The command line's values, which it has evaluated, as a description has them: lists, and names of classes."""
    if isinstance(value, Mapping):
        return {name: _without_objects(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_objects(one) for one in value]
    return _NAMES.get(value, value) if isinstance(value, type) else value


def describe_space(space: spaces.Space) -> dict[str, Any]:
    """:raises InvalidInput: on any but boxes and discrete spaces"""
    if isinstance(space, spaces.Discrete):
        return {"type": "discrete", "n": int(space.n), "start": int(space.start)}
    if not isinstance(space, spaces.Box):
        raise InvalidInput(f"A space of the type {type(space).__name__} cannot be described.")

    def bounds(values: np.ndarray) -> Any:
        if (values == values.flat[0]).all():
            values = values.reshape(-1)[:1]  # a list of a large image's would take minutes
        flat = [value if np.isfinite(value) else None for value in values.reshape(-1).tolist()]
        return flat[0] if len(set(flat)) == 1 else flat

    return {
        "type": "box",
        "shape": list(space.shape),
        "dtype": str(space.dtype),
        "low": bounds(space.low),
        "high": bounds(space.high),
    }


def _plain_statistics(moments: Any) -> dict[str, Any]:
    return {"mean": moments.mean.tolist(), "var": moments.var.tolist(), "count": float(moments.count)}


def _checksums(description: Mapping[str, Any], weights: Path) -> dict[str, str]:
    """Against damage, not against malice: whoever changes the files can change these, too."""
    plain = json.dumps(description, sort_keys=True).encode()
    return {
        DESCRIPTION: hashlib.sha256(plain).hexdigest(),
        WEIGHTS: hashlib.sha256(weights.read_bytes()).hexdigest(),
    }


def _read(path: Path, most: int) -> bytes:
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise InvalidInput(f"{path.name} must not be larger than {most >> 10} KB.")
    return content
