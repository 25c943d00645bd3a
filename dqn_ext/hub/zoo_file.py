"""Agents of dqn and ddqn as the plain Zoo pushes them, read without unpickling anything.

The network is built from config.yml, the spaces are those of the user's own environment, and of the model's zip only
the weights and two numbers are read.
"""

import io
import pickletools
import re
import zipfile
from contextlib import nullcontext
from math import prod
from pathlib import Path
from typing import Any

import torch as th
from stable_baselines3 import DQN
from stable_baselines3.common.atari_wrappers import AtariWrapper
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecFrameStack

from dqn_ext.errors import InvalidInput
from dqn_ext.hub.agent_file import (
    MAX_OBSERVATION,
    MAX_WEIGHTS,
    Agent,
    check_description,
    check_env_id,
    describe_space,
    plain_hyperparameters,
)
from dqn_ext.hub.plain import number, read_json, read_yaml, short, whole

MAX_CONFIG, MAX_DATA = 2**18, 2**23  # bytes of YAML, and of the zip's JSON
# Bytes of a zip's list of members: Python reads all of it, and makes eight times as much of it
MAX_DIRECTORY = 2**20
MAX_PICKLE = 2**16  # bytes that say what a policy's tensors are
MAX_TUPLES = 4000  # in them, of which each tensor has some five: the hash of one in another in another ... has no end


def read(model: Path, config: Path, args: Path, algo: str, env_name: str) -> Agent:
    """Read what the Zoo has pushed.

    :param model: the zip
    :param config: config.yml
    :param args: args.yml
    :param env_name: the environment that the user asked for, with ``-`` for ``/``
    :raises InvalidInput: where plain values do not describe the agent, or the weights are not those of its network
    """
    hyperparams = read_yaml(config.read_bytes(), "config.yml")
    arguments = read_yaml(args.read_bytes(), "args.yml")
    if not isinstance(hyperparams, dict) or not isinstance(arguments, dict):
        raise InvalidInput("config.yml and args.yml must be mappings.")
    env_kwargs = arguments.get("env_kwargs") or hyperparams.pop("env_kwargs", None) or {}
    hyperparams.pop("env_kwargs", None)
    env_id = check_env_id(arguments.get("env"), "args.yml's env")
    if env_id.replace("/", "-") != env_name:
        raise InvalidInput(f"It was trained on {env_id}.")
    hyperparameters = plain_hyperparameters(hyperparams)
    if hyperparameters.get("normalize"):
        raise InvalidInput("The running averages of its observations are pickled.")

    with open_zip(model, "the model") as archive:
        _check_stored(archive, "the model")
        data = read_json(read_member(archive, "data", MAX_DATA), "the model's data")
        weights = _read_weights(read_member(archive, "policy.pth", 2 * MAX_WEIGHTS))
    if not isinstance(data, dict):
        raise InvalidInput("The model's data must be a mapping.")
    # Checked with spaces that are replaced below: the environment must not be made from anything unchecked
    description = check_description(
        {
            "format": 1,
            "algorithm": algo,
            "env_id": env_id,
            "env_kwargs": env_kwargs,
            "observation_space": {"type": "discrete", "n": 1, "start": 0},
            "action_space": {"type": "discrete", "n": 1, "start": 0},
            "hyperparameters": hyperparameters,
            "num_timesteps": whole(0, 2**53)(data.get("num_timesteps"), "num_timesteps"),
            "exploration_rate": number(0, 1)(data.get("exploration_rate"), "exploration_rate"),
            "seed": None,
            "versions": {},
        },
        "config.yml",
    )
    observation_space, action_space = _spaces_of_environment(description)
    description["observation_space"] = describe_space(observation_space)
    description["action_space"] = describe_space(action_space)
    agent = Agent(check_description(description), {})
    agent.check_weights({name: (str(weight.dtype), weight.shape) for name, weight in weights.items()})
    # Of a few bytes views may have any shape, and the network that is described here, too
    if 4 * sum(weight.numel() for weight in weights.values()) > model.stat().st_size:
        raise InvalidInput("The weights must not be larger than the file that holds them.")
    agent.weights = {name: weight.contiguous() for name, weight in weights.items()}
    agent.check_finite()
    return agent


def _spaces_of_environment(description: dict[str, Any]) -> tuple[Any, Any]:
    env_id, hyperparameters = description["env_id"], description["hyperparameters"]
    wrappers = hyperparameters.get("env_wrapper", [])
    settings: dict[str, Any] = {"env_kwargs": description["env_kwargs"]}
    for wrapper in wrappers if isinstance(wrappers, list) else [wrappers]:
        # The one that a description may name
        settings["wrapper_class"] = AtariWrapper
        settings["wrapper_kwargs"] = next(iter(wrapper.values())) if isinstance(wrapper, dict) else {}
    try:
        env = make_vec_env(env_id, **settings)
        n_stack = hyperparameters.get("frame_stack", 1)
        if prod(env.observation_space.shape or ()) * n_stack > MAX_OBSERVATION:
            env.close()
            raise ValueError(f"its observations hold more than {MAX_OBSERVATION} numbers")
        if "frame_stack" in hyperparameters:
            env = VecFrameStack(env, n_stack)
        env = DQN._wrap_env(env, verbose=0)
    except Exception as error:  # gymnasium's, of a version that is gone, and each environment's own
        raise InvalidInput(f"Its environment {env_id} cannot be made here ({error}).") from error
    env.close()
    return env.observation_space, env.action_space


def _read_weights(content: bytes) -> dict[str, th.Tensor]:
    rewritten = io.BytesIO()
    with open_zip(io.BytesIO(content), "policy.pth") as archive, zipfile.ZipFile(rewritten, "w") as plain:
        _check_stored(archive, "policy.pth")
        # Written anew, since PyTorch may find other members in a zip than Python does
        room = len(content)
        for name in dict.fromkeys(archive.namelist()):
            if not re.fullmatch(r"[\w.-]{1,60}/[\w./-]{1,60}", name, re.ASCII):
                raise InvalidInput(f"policy.pth must not have a member {short(name)}.")
            member = read_member(archive, name, room)
            room -= len(member)
            if name.lower().endswith("data.pkl"):  # PyTorch finds it in any case
                _check_pickle(member)
            plain.writestr(name, member)
    try:
        rewritten.seek(0)
        weights = th.load(rewritten, map_location="cpu", weights_only=True)
        found = {name.removeprefix("q_net."): weight for name, weight in weights.items() if name.startswith("q_net.")}
        if any(weight.device.type != "cpu" or weight.layout != th.strided for weight in found.values()):
            raise ValueError("weights that are not there")
        return found
    except Exception as error:  # pickle, zipfile and torch each have their own
        raise InvalidInput(f"policy.pth holds more than weights, or is damaged ({short(str(error))}).") from error


def _check_stored(archive: zipfile.ZipFile, name: str) -> None:
    """SB3 and PyTorch compress nothing; what is deflated may be a thousand times its size."""
    if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
        raise InvalidInput(f"{name} must not be compressed.")


# What tensors are made of. ``weights_only`` allows more, a bytearray of any size for example
_OF_TENSORS = ("collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter")


def _check_pickle(content: bytes) -> None:
    """Look through it, without doing what it says.

    Only names may stand in it at several places, and short ones: of a tuple of twice the same tuple, and so on, the
    hash and the text take twice as long with each. And only such as SB3's: a file of the zip goes by many names, which
    differ in their case, or behind a zero, and would be read once for each.
    """
    if len(content) > MAX_PICKLE:
        raise InvalidInput(f"The pickle in policy.pth must not be larger than {MAX_PICKLE >> 10} KB.")
    names, may_come_again, before, n_tuples = [], set(), "", 0
    try:
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.name.endswith("GLOBAL"):
                names.append(str(argument))
            elif opcode.name.endswith(("UNICODE", "STRING")):
                if not re.fullmatch(r"[a-z0-9_.:]{0,200}", str(argument)):
                    raise ValueError("a name in it is not one of weights")
            elif "TUPLE" in opcode.name:
                n_tuples += 1
                if n_tuples > MAX_TUPLES:
                    raise ValueError(f"it has more than {MAX_TUPLES} tuples")
            elif opcode.name.endswith("PUT") and before.endswith(("GLOBAL", "UNICODE")):
                may_come_again.add(argument)
            elif opcode.name.endswith("PUT"):
                may_come_again.discard(argument)
            elif opcode.name.endswith("GET") and argument not in may_come_again:
                raise ValueError("something in it stands at several places")
            before = opcode.name
    except Exception as error:  # ValueError, UnicodeDecodeError, ...
        raise InvalidInput(f"policy.pth holds more than weights, or is damaged ({short(str(error))}).") from error
    for name in names:
        if name not in _OF_TENSORS and not re.fullmatch(r"torch \w+Storage", name):
            raise InvalidInput(f"policy.pth holds more than weights: {name[:80]!r}.")


def open_zip(file: Path | io.BytesIO, name: str) -> zipfile.ZipFile:
    """:raises InvalidInput: on what is no zip, or has too many members"""
    try:
        with file.open("rb") if isinstance(file, Path) else nullcontext(file) as opened:
            end: Any = zipfile._EndRecData(opened)  # type: ignore[attr-defined]  # as ZipFile does, which then reads
        if end is not None and end[5] > MAX_DIRECTORY:
            raise ValueError("it has too many members")
        return zipfile.ZipFile(file)
    except Exception as error:  # BadZipFile, ValueError, NotImplementedError, ...
        raise InvalidInput(f"{name} is not a zip file ({error}).") from error


def read_member(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    """Read one member of a zip, into memory.

    :param most: no more bytes than these are unpacked
    :raises InvalidInput: where it is not there, larger, or damaged
    """
    try:
        with archive.open(name) as member:
            content = member.read(most + 1)
    except Exception as error:  # KeyError, BadZipFile, zlib.error, NotImplementedError, RuntimeError (encrypted)
        raise InvalidInput(f"The zip's {name} cannot be read ({error}).") from error
    if len(content) > most:
        raise InvalidInput(f"The zip's {name} must not be larger than {most >> 20} MB.")
    return content
