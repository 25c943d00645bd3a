"""Agents from the Hub, for the Zoo's commands: what these unpickle later, this machine has written itself."""

import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import yaml
from huggingface_hub import HfApi
from huggingface_hub.errors import EntryNotFoundError
from requests.exceptions import HTTPError

from dqn_ext.errors import InvalidInput
from dqn_ext.hub import metrics, zoo_file
from dqn_ext.hub.agent_file import ALGORITHMS, DESCRIPTION, MAX_DESCRIPTION, MAX_WEIGHTS, WEIGHTS, Agent
from dqn_ext.hub.client import one_sentence, repository_info

# Names the one repository whose code may run
LET_IT_RUN_CODE = "DQN_EXT_LET_THIS_REPOSITORY_RUN_CODE"
MAX_MODEL = 4 * MAX_WEIGHTS  # the Zoo's zip also has the target network and the optimizer's two averages


def download(repo_id: str, algo: str, env_name: str, folder: Path, api: HfApi) -> None:
    """Download an agent and write the files that the Zoo's ``load_from_hub`` expects, from plain values and weights.

    Agents that this package pushed are read from their description, those of the plain Zoo from its plain files.

    :param repo_id: ``organization/name``
    :param algo: ``dqn`` or ``ddqn``
    :param env_name: the environment's name as the Zoo writes it, with ``-`` for ``/``
    :param folder: to write to
    :raises InvalidInput: where there is no such agent, or it is not what it should be
    """
    with one_sentence(f"Downloading {repo_id}"):
        repository = repository_info(api, repo_id)
    sizes = {file.rfilename: file.size for file in repository.siblings or []}

    def fetch(name: str, most: int) -> Path:
        if name not in sizes:
            raise InvalidInput(f"{repo_id} has no {name}.")
        if (sizes[name] or 0) > most:
            raise InvalidInput(f"{name} of {repo_id} must not be larger than {most >> 10} KB.")
        with one_sentence(f"Downloading {name} of {repo_id}"):
            # All of one commit, whatever is pushed meanwhile
            path = Path(api.hf_hub_download(repo_id, name, revision=repository.sha))
        if path.stat().st_size > most:  # a server need not tell sizes
            raise InvalidInput(f"{name} of {repo_id} must not be larger than {most >> 10} KB.")
        return path

    if {DESCRIPTION, WEIGHTS} <= set(sizes):
        read: Callable[[], Agent] = partial(
            Agent.read, fetch(DESCRIPTION, MAX_DESCRIPTION), fetch(WEIGHTS, MAX_WEIGHTS)
        )
    else:
        model = fetch(f"{algo}-{env_name}.zip", MAX_MODEL)
        config, args = (fetch(name, zoo_file.MAX_CONFIG) for name in ("config.yml", "args.yml"))
        read = partial(zoo_file.read, model, config, args, algo, env_name)
    try:
        agent = read()
        description = agent.description
        is_it = (description["algorithm"], description["env_id"].replace("/", "-")) == (algo, env_name)
        if is_it:
            write_run_files(agent, folder)
    except InvalidInput as error:
        raise InvalidInput(
            f"{repo_id} cannot be loaded as weights and plain values: {error} If you trust whoever pushed it as you "
            f"trust a program of theirs, {LET_IT_RUN_CODE}={repo_id} loads it as the Zoo does, which runs its code."
        ) from error
    if not is_it:
        raise InvalidInput(f"{repo_id} holds {description['algorithm']} for {description['env_id']}.")
    try:
        metrics.rewrite(fetch("train_eval_metrics.zip", metrics.MAX_METRICS), folder / "train_eval_metrics.zip")
    except InvalidInput as error:
        print(f"Loading {repo_id} without the record of its training: {error}")
        metrics.pack(folder, folder / "train_eval_metrics.zip")


def write_run_files(agent: Agent, folder: Path) -> None:
    """Write the model and its configuration under the names that the Zoo gives them on the Hub."""
    description = agent.description
    name = f"{description['algorithm']}-{description['env_id'].replace('/', '-')}"
    model, normalization = agent.build(), agent.build_normalization()
    model.save(folder / f"{name}.zip")
    args = {"algo": description["algorithm"], "env": description["env_id"], "env_kwargs": description["env_kwargs"]}
    for file, content in (
        ("config.yml", description["hyperparameters"]),
        ("args.yml", args),
        ("env_kwargs.yml", description["env_kwargs"]),
    ):
        (folder / file).write_text(yaml.safe_dump(content))
    if normalization is not None:
        normalization.save(str(folder / "vec_normalize.pkl"))


class HubFiles:
    """Stands in for ``huggingface_sb3.load_from_hub``, which the Zoo calls for one file after another.

    A call for the zip of ``dqn`` or ``ddqn`` downloads the agent; this and later calls give files of :func:`download`.
    Other algorithms, and a repository that may run code, get what the original gives.

    :param original: ``huggingface_sb3.load_from_hub``
    """

    def __init__(self, original: Callable[[str, str], str]) -> None:
        self.original = original
        self.folders: dict[str, Path] = {}  # the newest of each repository
        self._kept: list[tempfile.TemporaryDirectory[str]] = []  # until this process ends: somebody has their paths

    def __call__(self, repo_id: str, filename: str) -> str:
        """:raises InvalidInput: where the agent cannot be loaded safely"""
        try:
            return self._find(repo_id, filename)
        except EntryNotFoundError as error:
            # The Zoo goes on without a file on this error, which huggingface_hub left with its release 1.0
            raise HTTPError(str(error)) from error

    def _find(self, repo_id: str, filename: str) -> str:
        if os.environ.get(LET_IT_RUN_CODE) == repo_id:
            # As the original, without its question, which TRUST_REMOTE_CODE answers for all repositories at once
            return HfApi().hf_hub_download(repo_id, filename)
        algo, _, env_name = filename.removesuffix(".zip").partition("-")
        if filename.endswith(".zip") and algo in ALGORITHMS:
            folder = tempfile.TemporaryDirectory(prefix="dqn_ext_hub_")
            download(repo_id, algo, env_name, Path(folder.name), HfApi())
            self._kept.append(folder)
            self.folders[repo_id] = Path(folder.name)
        elif repo_id not in self.folders:
            return self.original(repo_id, filename)
        path = self.folders[repo_id] / filename
        if not path.is_file():
            raise EntryNotFoundError(f"{repo_id} has no {filename}")
        return str(path)
