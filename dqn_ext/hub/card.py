"""The model card: what the leaderboard reads in it, and what a reader needs.

The leaderboard of the Hugging Face course lists models by the environment's tag, and splits the text of the first
metric at ``+/-``. An agent's score there is its mean minus its standard deviation.
"""

import json
import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from huggingface_hub import HfApi
from huggingface_hub.repocard import metadata_eval_result
from matplotlib.figure import Figure

from dqn_ext.errors import InvalidInput
from dqn_ext.hub import metrics
from dqn_ext.hub.agent_file import DESCRIPTION, WEIGHTS
from dqn_ext.hub.client import one_sentence, repository_info
from dqn_ext.hub.plain import number, read_json, read_yaml, whole

CARD, RESULTS, VIDEO, CURVE = "README.md", "results.json", "replay.mp4", "training.png"
MAX_CARD = 2**20  # bytes
BARS = {"SpaceInvadersNoFrameskip-v4": 200.0}  # Unit 3 of the course
FEW_EPISODES = 30

# ---------------------------------------------------------------------- writing


def write_card(folder: Path, repo_id: str, results: dict[str, Any], hyperparams: Any, versions: dict[str, str]) -> None:
    """Write README.md.

    :param results: as in results.json
    :param hyperparams: as in config.yml
    :param versions: of the packages that made the agent
    """
    algo, env_id, organization = results["algo"], results["env_id"], repo_id.split("/")[0]
    n_episodes, epsilon = results["n_eval_episodes"], results["exploration_rate"]
    score = f"{results['mean_reward']:.2f} +/- {results['std_reward']:.2f}"
    metadata = {
        "library_name": "stable-baselines3",
        "tags": [env_id, "deep-reinforcement-learning", "reinforcement-learning", "stable-baselines3", algo, "dqn-ext"],
        **metadata_eval_result(
            model_pretty_name=algo.upper(),
            task_pretty_name="reinforcement-learning",
            task_id="reinforcement-learning",
            metrics_pretty_name="mean_reward",
            metrics_id="mean_reward",
            metrics_value=score,
            dataset_pretty_name=env_id,
            dataset_id=env_id,
        ),
    }
    env_kwargs = env_kwargs_flag(results["env_kwargs"])
    changed = f"\n| Environment | {env_kwargs} |" if env_kwargs else ""
    agent = f"--algo {algo} --env {env_id}"
    name = env_id.replace("/", "-")
    load = f"python -m rl_zoo3.load_from_hub {agent} -orga {organization} -f logs/"
    if repo_id.split("/")[1] != f"{algo}-{name}":
        load += f" -name {repo_id.split('/')[1]}"
    described = (folder / DESCRIPTION).is_file()
    (folder / CARD).write_text(
        f"""---
{yaml.safe_dump(metadata, sort_keys=False).strip()}
---

# **{algo.upper()}** playing **{env_id}**

Trained with [dqn-ext](https://pypi.org/project/dqn-ext/), a plugin for
[Stable-Baselines3](https://github.com/DLR-RM/stable-baselines3) and the
[RL Zoo](https://github.com/DLR-RM/rl-baselines3-zoo).

| | |
|---|---|
| Score | {score}, mean and standard deviation of {n_episodes} full games |
| Scores | {", ".join(f"{reward:g}" for reward in results["episode_rewards"])} |
| What counts | the game's own score: not clipped, and no life lost ends a game |{changed}
| Actions | {f"epsilon-greedy, epsilon {epsilon:g}" if epsilon else "greedy"} |
| Training | {results["num_timesteps"]} steps (actions), seed {results["seed"]} |
| Evaluated | {results["eval_datetime"]}, seed {results["eval_seed"]} |
| Versions | {", ".join(f"{package} {version}" for package, version in versions.items())} |

![Training curve]({CURVE})

## Load it

```bash
pip install dqn-ext
{load}
python -m rl_zoo3.enjoy {agent} -f logs/
```

{_SAFE.format(whom=_WHOM[algo]) if described else _UNSAFE}

## Go on training it

```bash
python -m rl_zoo3.train {agent} -f logs/ -i logs/{algo}/{name}_1/{name}.zip {env_kwargs and env_kwargs + " "}-params \\
  exploration_initial_eps:{hyperparams.get("exploration_final_eps", 0.05):g} learning_starts:1000
```

This continues the Q-network. The optimizer, the target network and the replay memory start anew.

## Hyperparameters

```yaml
{_dump(hyperparams)}
```
""",
        encoding="utf-8",
    )


def env_kwargs_flag(env_kwargs: Mapping[str, Any]) -> str:
    """As the Zoo's commands take them; empty where there are none."""
    words = [f"{name}:{value!r}" for name, value in env_kwargs.items()]
    return shlex.join(["--env-kwargs", *words]) if words else ""


_SAFE = (
    "dqn-ext reads the weights (`agent.safetensors`) and the description (`agent.json`) and nothing that could run "
    "code.\nThe zip is for {whom}, which unpickles parts of it."
)
_WHOM = {
    "dqn": "those who load agents with Stable-Baselines3 alone",
    "ddqn": "those who load agents with `dqn_ext.DDQN.load`",
}
_UNSAFE = "This agent has parts that only code describes: loading it runs code from this repository."


def _dump(hyperparams: Any) -> str:
    try:
        return yaml.safe_dump(dict(hyperparams)).strip()
    except yaml.YAMLError:  # a value of another type
        return yaml.safe_dump({name: str(value) for name, value in hyperparams.items()}).strip()


def draw_curve(run: Path, frame_skip: int, picture: Path) -> None:
    """Draw the scores of a run's training episodes and of its evaluations, over steps.

    :param frame_skip: frames that Monitor counts in a step
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel="steps", ylabel="score")
    episodes = metrics.episodes(run)
    if len(episodes):
        scores, steps = episodes[:, 0], episodes[:, 1].cumsum() / frame_skip
        window = max(len(scores) // 50, 1)
        means = np.convolve(scores, np.ones(window) / window, mode="valid")
        label = "training" if window == 1 else f"training, mean of {window} episodes"
        axes.plot(steps[window - 1 :], means, color="tab:blue", label=label)
    if (run / "evaluations.npz").is_file():
        with np.load(run / "evaluations.npz") as evaluations:
            scores = evaluations["results"]
            axes.errorbar(
                evaluations["timesteps"],
                scores.mean(axis=1),
                scores.std(axis=1),
                color="tab:orange",
                marker="o",
                capsize=3,
                label="evaluations",
            )
    if axes.has_data():
        axes.legend()
        figure.savefig(picture, dpi=120)


# ---------------------------------------------------------------------- reading


def parse_value(value: Any) -> tuple[float, float]:
    """The mean and standard deviation that the leaderboard finds in a metric's value.

    :raises InvalidInput: where it finds none
    """
    parts = [""]
    try:
        # Of a nested value even the text may have no end
        written = value if isinstance(value, str) else f"{value}" if isinstance(value, (int, float)) else ""
        parts = written.split("+/-")
        mean, std = float(parts[0]), float(parts[1]) if len(parts) > 1 else 0.0
    except ValueError:
        mean = std = math.nan
    if not (math.isfinite(mean) and math.isfinite(std)):
        raise InvalidInput(f"the score must read like '512.00 +/- 80.00', not {parts[0][:60]!r}.")
    return mean, std


@dataclass
class Report:
    """What the leaderboard makes of a model, and what else there is to say."""

    env_id: str = ""
    mean: float = math.nan
    std: float = math.nan
    n_episodes: int = 0  # unknown
    missing: list[str] = field(default_factory=list)

    @property
    def score(self) -> float:
        """What the leaderboard sorts by; NaN where it finds no score."""
        return self.mean - self.std

    @property
    def uncertainty(self) -> float:
        """Twice the standard error of the score, as if episodes were normally distributed."""
        n = self.n_episodes
        return 2 * self.std * math.sqrt(1 / n + 1 / (2 * (n - 1))) if n > 1 else math.inf

    @property
    def is_luck(self) -> bool:
        """Whether the next evaluation may well say otherwise."""
        bar = BARS.get(self.env_id)
        near = bar is not None and abs(self.score - bar) < self.uncertainty
        return self.std > 0 and (self.n_episodes < FEW_EPISODES or near)

    def __str__(self) -> str:
        lines = []
        if not math.isnan(self.score):
            lines.append(f"Score: {self.score:.2f} ({self.mean:.2f} - {self.std:.2f}), as the leaderboard computes it")
            bar = BARS.get(self.env_id)
            if bar is not None:
                verdict = "met" if self.score >= bar else "not met"
                lines.append(f"The course asks for {bar:g} on {self.env_id}: {verdict}")
            if self.is_luck:
                games = f"{self.n_episodes} games leave" if self.n_episodes else "An unknown number of games leaves"
                size = f", about {self.uncertainty:.0f} either way" if math.isfinite(self.uncertainty) else ""
                lines.append(
                    f"{games} this score to luck{size}. Play more: add --n-eval-episodes 100 to push_to_hub's arguments"
                )
        lines += [f"Missing: {what}" for what in self.missing or ["nothing"]]
        return "\n".join(lines)


def check(folder_or_repo: str, api: HfApi | None = None) -> Report:
    """Read a card as the leaderboard does.

    :param folder_or_repo: a folder that :mod:`dqn_ext.hub.push` has prepared, or a repository's id
    :param api: the client, for a repository
    :raises InvalidInput: where there is neither
    """
    folder = Path(folder_or_repo)
    if folder.is_dir():
        names = {path.name for path in folder.iterdir() if path.is_file()}
        return _check(names, folder)
    if folder_or_repo.count("/") != 1:
        raise InvalidInput(f"{folder_or_repo} is neither a folder nor a repository's id, such as me/ddqn-Pong.")
    api = api or HfApi()
    with one_sentence(f"Reading {folder_or_repo}"):
        repository = repository_info(api, folder_or_repo)
        sizes = {file.rfilename: file.size or 0 for file in repository.siblings or []}
        for name in {CARD, RESULTS} & set(sizes):
            if sizes[name] > MAX_CARD:
                raise InvalidInput(f"{name} must not be larger than {MAX_CARD >> 10} KB.")
            folder = Path(api.hf_hub_download(folder_or_repo, name, revision=repository.sha)).parent
    return _check(set(sizes), folder)


def _check(names: set[str], folder: Path) -> Report:
    report = Report()
    missing = report.missing
    metadata = read_metadata(folder / CARD) if CARD in names else None
    if metadata is None:
        missing.append(f"metadata in {CARD}; the leaderboard reads nothing else")
        metadata = {}
    tags = metadata.get("tags")
    tags = tags if isinstance(tags, list) else []
    try:
        result = metadata["model-index"][0]["results"][0]
        name = result["dataset"]["name"]
        report.env_id = name if isinstance(name, str) else ""
        report.mean, report.std = parse_value(result["metrics"][0]["value"])
    except InvalidInput as error:
        missing.append(f"a score that the leaderboard can read: {error}")
    except (KeyError, IndexError, TypeError):
        missing.append("a score: model-index[0].results[0].metrics[0].value in the card's metadata")
    if not report.env_id or report.env_id not in tags:
        missing.append("the environment's id among the card's tags, by which the leaderboard finds models")
    for tag in ("deep-reinforcement-learning", "reinforcement-learning"):
        if tag not in tags:
            missing.append(f"the tag {tag}")
    if metadata.get("library_name") != "stable-baselines3":
        missing.append("library_name: stable-baselines3")
    _check_results(report, names, folder)
    for name, what in (
        (VIDEO, "a video of a game"),
        (DESCRIPTION, "the description, without which nobody can load the agent safely"),
        (WEIGHTS, "the weights, without which nobody can load the agent safely"),
        (CURVE, "the training curve"),
        ("config.yml", "the hyperparameters"),
        ("args.yml", "the training's arguments"),
        ("train_eval_metrics.zip", "the training's record"),
    ):
        if name not in names:
            missing.append(f"{name}, {what}")
    if not any(name.endswith(".zip") and "-" in name for name in names):
        missing.append("the model's zip, which the Zoo loads")
    return report


def _check_results(report: Report, names: set[str], folder: Path) -> None:
    if RESULTS not in names:
        report.missing.append(f"{RESULTS}, which says how many games the score is of")
        return
    try:
        results = read_json((folder / RESULTS).read_bytes(), RESULTS)
        results = results if isinstance(results, dict) else {}
        report.n_episodes = whole(1, 10**9)(results.get("n_eval_episodes"), "n_eval_episodes")
        mean, std = (number()(results.get(name), name) for name in ("mean_reward", "std_reward"))
    except InvalidInput as error:
        report.missing.append(f"a readable {RESULTS}: {error}")
        return
    if max(abs(mean - report.mean), abs(std - report.std)) > 0.0051:
        report.missing.append(f"agreement: {RESULTS} says {mean:.2f} +/- {std:.2f}, and the card another score")


# As huggingface_hub finds it, whose own expression took a minute for some thousand empty lines before release 2
_METADATA = re.compile(r"\s*---(?:\r\n|\r|\n)(.*?)(?:\r\n|\r|\n)---[ \t]*(?:\r\n|\n|$)", re.DOTALL)


def read_metadata(card: Path) -> dict[str, Any] | None:
    """The card's metadata as the leaderboard loads it; ``None`` where there is none, or it cannot be read."""
    try:
        block = _METADATA.match(card.read_bytes().decode())
        metadata = read_yaml(block[1].encode(), CARD) if block else None  # without aliases, which have no end
    except (InvalidInput, ValueError):
        return None
    return metadata if isinstance(metadata, dict) else None


def write_results(folder: Path, results: dict[str, Any]) -> None:
    """Write results.json."""
    (folder / RESULTS).write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
