"""Pushing a run of ``dqn`` or ``ddqn`` to the Hub: prepare a folder, say what it lacks, send it in one commit.

:func:`package_to_hub` stands in for the function of that name in ``rl_zoo3.push_to_hub`` (see
:mod:`dqn_ext.zoo.repairs`), whose command reads two more arguments, ``--n-eval-episodes`` and ``--dry-run``.
"""

import argparse
import datetime
import functools
import re
import shlex
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from PIL import Image
from stable_baselines3 import DQN
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from dqn_ext import __version__
from dqn_ext.errors import InvalidInput
from dqn_ext.hub import metrics
from dqn_ext.hub.agent_file import ALGORITHMS, DESCRIPTION, WEIGHTS, Agent
from dqn_ext.hub.card import (
    CARD,
    CURVE,
    RESULTS,
    VIDEO,
    check,
    draw_curve,
    env_kwargs_flag,
    write_card,
    write_results,
)
from dqn_ext.hub.client import one_sentence, repository_info
from dqn_ext.hub.plain import read_expression, short
from dqn_ext.panels import film, frames_per_second, write_video

CONFIG = ("config.yml", "args.yml", "env_kwargs.yml", "vec_normalize.pkl", "train_eval_metrics.zip")
FILES = {DESCRIPTION, WEIGHTS, CARD, CURVE, RESULTS, VIDEO, *CONFIG}
# Beside them the model, and what the plain Zoo pushed of it a second time, unzipped
_MODEL = re.compile(r"d?dqn-[\w.-]+\.zip")
_UNZIPPED = re.compile(r"d?dqn-[\w.-]+/(data|[\w.]+\.pth|_stable_baselines3_version|system_info\.txt)")
# What args.yml says of the training; the rest are folders, accounts and storages of the pusher's
_ARGS = ("algo", "env", "env_kwargs", "n_timesteps", "seed", "hyperparams", "eval_freq", "eval_episodes", "vec_env")
_REPLAY = "replay_buffer_kwargs"


def parse_args(parser: argparse.ArgumentParser, package: Callable[..., Any]) -> tuple[argparse.Namespace, Any]:
    """Parse the arguments of ``push_to_hub``, and choose the function that packages.

    :param parser: the Zoo's
    :param package: the Zoo's ``package_to_hub``, for other algorithms
    """
    parser.add_argument("--n-eval-episodes", type=int, help="Games that the score is of (dqn, ddqn); 10 by default")
    parser.add_argument("--dry-run", action="store_true", help="Prepare and show everything, send nothing (dqn, ddqn)")
    args = parser.parse_args()
    if args.algo not in ALGORITHMS:
        if args.dry_run or args.n_eval_episodes is not None:  # which the Zoo would not heed
            raise InvalidInput(f"--dry-run and --n-eval-episodes are for dqn and ddqn, not for {args.algo}.")
        return args, package
    n_games = 10 if args.n_eval_episodes is None else args.n_eval_episodes
    if n_games < 1:
        raise InvalidInput(f"--n-eval-episodes must be at least 1, not {n_games}.")
    args.n_envs = 1  # as the Zoo has it for dqn
    if not args.dry_run and huggingface_hub.get_token() is None:
        print("There is no token to send with: log in with `hf auth login`. The folder is prepared in any case.")
    return args, functools.partial(package_to_hub, n_games=n_games, eval_seed=args.seed, dry_run=args.dry_run)


def package_to_hub(
    model: DQN,
    model_name: str,
    algo_name: str,
    algo_class_name: str,
    log_path: Path,
    hyperparams: dict[str, Any],
    env_kwargs: dict[str, Any],
    env_name: Any,
    eval_env: VecEnv,
    repo_id: str,
    commit_message: str,
    is_deterministic: bool = True,
    n_eval_episodes: int = 10,
    token: str | None = None,
    local_repo_path: str = "hub",
    video_length: int = 1000,
    generate_video: bool = False,
    *,
    n_games: int,
    eval_seed: int,
    dry_run: bool,
) -> None:
    """Cf. ``rl_zoo3.push_to_hub.package_to_hub``.

    :param n_games: full games that the score is of, instead of ``n_eval_episodes``, which the Zoo fixes
    :param eval_seed: of the evaluation
    :param dry_run: whether to send nothing
    :raises InvalidInput: where sending fails; the prepared folder is kept
    """
    hyperparams = without_folders(hyperparams)
    trained_with = hyperparams.pop("env_kwargs", None) or {}
    if any(env_kwargs.get(name) != value for name, value in trained_with.items()):
        raise InvalidInput(
            f"The score would be of another environment: push_to_hub does not read the env_kwargs of config.yml; "
            f"give them again: {env_kwargs_flag(trained_with)}"
        )
    env_kwargs = {name: value for name, value in env_kwargs.items() if name != "render_mode"}
    folder = Path(local_repo_path, repo_id.split("/")[1])
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():  # of an earlier push
        if path.name in FILES or _MODEL.fullmatch(path.name):
            path.unlink()

    print(f"Playing {n_games} games for the score")
    run, args = log_path / env_name, training_args(log_path / env_name / "args.yml")
    model.seed = args.get("seed")  # of the training; the Zoo has set the evaluation's
    model.buffer_size = 1  # whoever loads the zip with SB3 alone would reserve the training's
    model.tensorboard_log = None
    model.replay_buffer_kwargs = without_folders({_REPLAY: model.replay_buffer_kwargs})[_REPLAY]
    model.save(folder / f"{model_name}.zip")
    normalize: Any = unwrap_vec_normalize(eval_env)
    if normalize is not None:
        normalize.save(str(folder / "vec_normalize.pkl"))
    _copy_config(run, folder, args, env_kwargs)
    metrics.pack(log_path, folder / "train_eval_metrics.zip")
    try:
        Agent.of(model, algo_name, env_name.gym_id, hyperparams, env_kwargs).write(folder)
    except InvalidInput as error:
        print(f"This agent cannot be described in plain values: {error}")

    rewards: Any = evaluate_policy(model, eval_env, n_games, is_deterministic, return_episode_rewards=True)[0]
    results = {
        "mean_reward": float(np.mean(rewards)),
        "std_reward": float(np.std(rewards)),
        "is_deterministic": is_deterministic,
        "n_eval_episodes": len(rewards),
        "eval_datetime": datetime.datetime.now().isoformat(timespec="seconds"),
        "eval_seed": eval_seed,
        "episode_rewards": [float(reward) for reward in rewards],
        "algo": algo_name,
        "env_id": env_name.gym_id,
        "env_kwargs": env_kwargs,
        "exploration_rate": 0.0 if is_deterministic else float(model.exploration_rate),
        "num_timesteps": int(model.num_timesteps),
        "seed": args.get("seed"),
    }
    write_results(folder, results)
    if generate_video and video_length > 0:
        try:
            fps = frames_per_second(eval_env)
            frames = film(model, eval_env, video_length, is_deterministic)
            write_video(folder / VIDEO, map(Image.fromarray, frames), fps)
            if (seconds := video_length / fps) <= 1:
                print(f"The video lasts {seconds:.1f} s; -n {4 * video_length} makes a longer one")
        except Exception as error:  # of the environment, or of ffmpeg: the rest is worth a push
            print(f"There is no video: {error}")
    try:
        draw_curve(log_path, _frame_skip(hyperparams), folder / CURVE)
    except Exception as error:  # of a damaged evaluations.npz
        print(f"There is no training curve: {error}")
    packages = ("stable-baselines3", "rl-zoo3", "gymnasium", "torch")
    versions = {"dqn-ext": __version__, **{name: version(name) for name in packages}}
    write_card(folder, repo_id, results, _config_of(folder), versions)

    show(folder, with_card=dry_run)
    if dry_run:
        print(f"Nothing has been sent. To send this folder: {_command(folder, repo_id, commit_message)}")
    else:
        send(folder, repo_id, commit_message)


def without_folders(hyperparams: Mapping[str, Any]) -> dict[str, Any]:
    """All but the folder of a memory-mapped replay memory, which is the pusher's."""
    kwargs = hyperparams.get(_REPLAY)
    with suppress(InvalidInput):
        kwargs = read_expression(kwargs, _REPLAY) if isinstance(kwargs, str) else kwargs
    if not isinstance(kwargs, Mapping) or "store_dir" not in kwargs:
        return dict(hyperparams)
    others = {name: value for name, value in kwargs.items() if name != "store_dir"}
    return {**hyperparams, _REPLAY: others}


def training_args(path: Path) -> dict[str, Any]:
    """What a run's args.yml says of its training; nothing where that is missing."""
    if not path.is_file():  # the Zoo does without
        return {}
    with path.open() as file:
        args = yaml.load(file, Loader=yaml.UnsafeLoader)  # of the user's own run
    kept = {name: args[name] for name in _ARGS if name in args}
    if isinstance(kept.get("hyperparams"), Mapping):
        kept["hyperparams"] = without_folders(kept["hyperparams"])
    return kept


def _copy_config(run: Path, folder: Path, args: dict[str, Any], env_kwargs: Mapping[str, Any]) -> None:
    shutil.copy(run / "config.yml", folder / "config.yml")
    if without_folders(hyperparams := _config_of(folder)) != dict(hyperparams):
        (folder / "config.yml").write_text(yaml.dump(without_folders(hyperparams)))
    (folder / "args.yml").write_text(yaml.dump(args))
    (folder / "env_kwargs.yml").write_text(yaml.dump(dict(env_kwargs)))


def _config_of(folder: Path) -> Any:
    with (folder / "config.yml").open() as file:
        return yaml.load(file, Loader=yaml.UnsafeLoader)  # of the user's own run


def _frame_skip(hyperparams: Mapping[str, Any]) -> int:
    wrappers = hyperparams.get("env_wrapper") or []
    for wrapper in wrappers if isinstance(wrappers, list) else [wrappers]:
        name, arguments = next(iter(wrapper.items())) if isinstance(wrapper, dict) else (wrapper, {})
        if str(name).endswith("AtariWrapper"):
            return int((arguments or {}).get("frame_skip", 4))
    return 1


def show(folder: Path, with_card: bool) -> None:
    """Print what would be sent, what the leaderboard makes of it, and what it lacks."""
    if with_card:
        print((folder / CARD).read_text(encoding="utf-8"))
    print(f"To be sent, from {folder}:")
    for path in files_of(folder):
        print(f"{path.stat().st_size:>12,} bytes  {path.name}")
    print(check(str(folder)))


def files_of(folder: Path) -> list[Path]:
    """The files of a prepared folder that are sent; what else lies there is not."""
    return sorted(path for path in folder.iterdir() if path.name in FILES or _MODEL.fullmatch(path.name))


def send(folder: Path, repo_id: str, commit_message: str, api: HfApi | None = None) -> None:
    """Send a prepared folder in one commit, which also removes what an earlier push has left there.

    :param repo_id: ``organization/name``; made where there is none
    :raises InvalidInput: where that fails, or the name belongs to another model; the folder is kept
    """
    api = api or HfApi()
    if not (folder / CARD).is_file():
        raise InvalidInput(f"{folder} has no {CARD}: it is not a folder that push_to_hub has prepared.")
    after = f"The prepared folder is kept; to try again: {_command(folder, repo_id, commit_message)}"
    with one_sentence(f"Pushing to {repo_id}", after):
        if not api.token and huggingface_hub.get_token() is None:
            raise huggingface_hub.errors.LocalTokenNotFoundError
        url = api.create_repo(repo_id, exist_ok=True)
        repository = repository_info(api, url.repo_id)
        remote = [file.rfilename for file in repository.siblings or [] if file.rfilename != ".gitattributes"]
        agent, other = check(str(folder)).env_id, _trained_on(repository)
        if remote and other != agent:
            raise InvalidInput(
                f"{repo_id} is taken: it holds {f'an agent for {short(other)}' if other else 'something else'}. Choose "
                f"another name with -name. The prepared folder {folder} is kept."
            )
        paths = files_of(folder)
        stale = {name for name in remote if name in FILES or _MODEL.fullmatch(name) or _UNZIPPED.fullmatch(name)}
        stale -= {path.name for path in paths}
        # Not upload_folder: it may make several commits, and leave some of them where it breaks off
        api.create_commit(
            url.repo_id,
            [
                *(CommitOperationAdd(path.name, str(path)) for path in paths),
                *(CommitOperationDelete(name) for name in sorted(stale)),
            ],
            commit_message=commit_message,
        )
    print(f"Pushed: {url}")


def _trained_on(repository: Any) -> str:
    """The environment that the card of a ``dqn`` or ``ddqn`` names, as the leaderboard would find it."""
    card = repository.card_data
    if card is None or not card.eval_results or str(card.model_name).lower() not in ALGORITHMS:
        return ""
    return card.eval_results[0].dataset_name


def _command(folder: Path, repo_id: str, commit_message: str) -> str:
    return shlex.join(["python", "-m", "dqn_ext.hub", "push", str(folder), repo_id, "-m", commit_message])
