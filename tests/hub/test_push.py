"""Pushing with the real client to a Hub on loopback: the whole way there and back, and each way to fail."""

import json
import shutil
import time
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import imageio_ffmpeg
import numpy as np
import pytest
import torch as th
import yaml
from huggingface_hub import HfApi, constants
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars
from stable_baselines3 import DQN

from dqn_ext.errors import InvalidInput
from dqn_ext.hub import client
from dqn_ext.hub.card import MAX_CARD, check
from dqn_ext.hub.load import LET_IT_RUN_CODE
from dqn_ext.hub.push import files_of, send, without_folders
from tests.hub.hub_server import HubServer
from tests.zoo.conftest import run_python

ENV = "CartPole-v1"
REPO = f"me/dqn-{ENV}"
AGENT = f"--algo dqn --env {ENV}"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder in which the Zoo's own dqn has learned for a moment; its model is larger than 10 MB."""
    folder = tmp_path_factory.mktemp("dqn")
    run_python(
        f"-m rl_zoo3.train {AGENT} --seed 7 -n 512 --eval-freq 256 --eval-episodes 2 -f logs "
        "-params learning_starts:100 gradient_steps:1 \"policy_kwargs:'dict(net_arch=[1024, 1024])'\"",
        cwd=folder,
    )
    return folder


@pytest.fixture(scope="module")
def prepared(trained) -> Path:
    """The folder that a dry run leaves."""
    (trained / "hub" / f"dqn-{ENV}").mkdir(parents=True)
    for name in ("vec_normalize.pkl", "dqn-Other-v1.zip", "notes.txt"):  # of an earlier push, and the user's
        (trained / "hub" / f"dqn-{ENV}" / name).write_text("old")
    process = run_python(
        f"-m rl_zoo3.push_to_hub {AGENT} -f logs -orga me -n 80 -m 'First agent' --dry-run",
        cwd=trained,
        HF_HUB_OFFLINE="1",
    )
    folder = trained / "hub" / f"dqn-{ENV}"
    for path in files_of(folder):
        assert f"{path.stat().st_size:,} bytes  {path.name}" in process.stdout
    assert "model-index:" in process.stdout
    assert "10 games leave this score to luck" in process.stdout
    assert "Missing: nothing" in process.stdout
    assert f"To send this folder: python -m dqn_ext.hub push hub/dqn-{ENV} {REPO} -m 'First agent'" in process.stdout
    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub for the client of this process, whose waits between retries are cut short."""
    retries = import_module("huggingface_hub.utils._http")
    monkeypatch.setattr(retries, "time", SimpleNamespace(sleep=lambda seconds: time.sleep(0.01)))
    disable_progress_bars()
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with HubServer() as server:
        yield server
    enable_progress_bars()


@pytest.fixture(scope="module")
def small(prepared, tmp_path_factory) -> Path:
    """The prepared folder, whose model is cut short: what is sent is of no matter to the requests."""
    folder = tmp_path_factory.mktemp("small") / "folder"
    shutil.copytree(prepared, folder)
    for name in (f"dqn-{ENV}.zip", "agent.safetensors"):
        (folder / name).write_bytes((folder / name).read_bytes()[:1000])
    return folder


def api(hub: HubServer) -> HfApi:
    return HfApi(endpoint=hub.url, token="hf_test")


def test_there_and_back(trained, prepared, tmp_path):
    with HubServer() as hub:
        env = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_test", "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
        run_python(f"-m dqn_ext.hub push {prepared} {REPO}", cwd=trained, **env)
        assert hub.commits == [REPO]
        files = {name: content for name, content in hub.repos[REPO].items() if name != ".gitattributes"}
        assert files == {path.name: path.read_bytes() for path in files_of(prepared)}
        assert "vec_normalize.pkl" not in files

        code = (
            "import rl_zoo3.utils as utils, huggingface_sb3; print(utils.get_hf_trained_models('me', True)); "
            f"print(huggingface_sb3.load_from_hub('{REPO}', 'dqn-{ENV}.zip'))"
        )
        listing, trusted = run_python(f'-c "{code}"', cwd=trained, **{LET_IT_RUN_CODE: REPO, **env}).stdout.splitlines()
        assert f"('dqn', '{ENV}')" in listing
        assert Path(trusted).read_bytes() == files[f"dqn-{ENV}.zip"]  # the file itself, for whoever says so
        report = check(REPO, HfApi(endpoint=hub.url))
        assert str(report) == str(check(str(prepared)))
        hub.repos[REPO]["README.md"] += b" " * MAX_CARD
        with pytest.raises(InvalidInput, match=r"README\.md must not be larger than 1024 KB\."):
            check(REPO, HfApi(endpoint=hub.url))

        run_python(f"-m rl_zoo3.load_from_hub {AGENT} -orga me -f downloaded", cwd=trained, **env)
        assert (trained / f"downloaded/dqn/{ENV}_1/{ENV}.zip").read_bytes() != files[f"dqn-{ENV}.zip"]
        process = run_python(f"-m rl_zoo3.enjoy {AGENT} -f downloaded --no-render -n 300", cwd=trained)
        assert "Episode Reward" in process.stdout
    observations = th.rand(50, 4)
    q_values = [
        DQN.load(trained / folder / f"dqn/{ENV}_1/{ENV}.zip", buffer_size=1, device="cpu").q_net(observations)
        for folder in ("downloaded", "logs")
    ]
    assert (q_values[0] == q_values[1]).all()


def test_what_a_push_prepares(prepared, trained):
    results = json.loads((prepared / "results.json").read_text())
    assert results["n_eval_episodes"] == len(results["episode_rewards"]) == 10
    assert results["mean_reward"] == np.mean(results["episode_rewards"])
    assert results["std_reward"] == np.std(results["episode_rewards"])
    assert (results["seed"], results["num_timesteps"], results["exploration_rate"]) == (7, 512, 0.0)
    card = (prepared / "README.md").read_text()
    metadata = yaml.safe_load(card.split("---")[1])
    assert ENV in metadata["tags"]
    assert metadata["model-index"][0]["results"][0]["metrics"][0]["value"] == (
        f"{results['mean_reward']:.2f} +/- {results['std_reward']:.2f}"
    )
    for line in (
        "10 full games",
        "512 steps (actions), seed 7",
        "pip install dqn-ext",
        f"python -m rl_zoo3.load_from_hub {AGENT} -orga me -f logs/\n",
        "training.png",
    ):
        assert line in card
    assert (prepared / "training.png").read_bytes().startswith(b"\x89PNG")
    assert (prepared / f"dqn-{ENV}.zip").stat().st_size > 10 * 2**20
    assert "log_folder" not in (prepared / "args.yml").read_text()
    assert imageio_ffmpeg.count_frames_and_secs(str(prepared / "replay.mp4")) == (80, pytest.approx(1.6, abs=0.05))
    report = check(str(prepared))
    assert report.score == pytest.approx(results["mean_reward"] - results["std_reward"], abs=0.011)


def test_a_push_without_a_video_says_so_before_it_sends(trained, hub, tmp_path):
    process = run_python(
        f"-m rl_zoo3.push_to_hub {AGENT} -f {trained}/logs -orga me --no-render --n-eval-episodes 1",
        cwd=tmp_path,
        check=False,
        HF_ENDPOINT=hub.url,
        HF_HOME=str(tmp_path / "home"),
    )
    assert process.returncode == 1
    assert "There is no token to send with" in process.stdout
    assert "Missing: replay.mp4, a video of a game" in process.stdout
    (line,) = [line for line in process.stderr.splitlines() if line.startswith("Error:")]
    assert "there is no token; log in with `hf auth login`" in line
    assert f"to try again: python -m dqn_ext.hub push hub/dqn-{ENV} {REPO}" in line
    assert len(files_of(tmp_path / "hub" / f"dqn-{ENV}")) == 10
    assert not hub.repos


def test_no_dry_run_of_other_algorithms(trained, tmp_path):
    """The Zoo would send, and play ten games."""
    for flag in ("--dry-run", "--n-eval-episodes 3"):
        process = run_python(
            f"-m rl_zoo3.push_to_hub --algo ppo --env {ENV} -f {trained}/logs -orga me {flag}", tmp_path, check=False
        )
        assert process.returncode == 1
        assert "Error: --dry-run and --n-eval-episodes are for dqn and ddqn, not for ppo." in process.stderr


@pytest.mark.parametrize("kwargs", ["dict(store='memmap', store_dir='/home/alice')", {"store_dir": "/home/alice"}])
def test_folders_stay_at_home(kwargs):
    pushed = without_folders({"replay_buffer_kwargs": kwargs, "gamma": 0.9})
    assert pushed["gamma"] == 0.9
    assert "alice" not in str(pushed)
    others = {"replay_buffer_kwargs": "dict(store='raw')", "gamma": 0.9}
    assert without_folders(others) == others


def test_a_full_disk_is_no_lost_connection():
    with (
        pytest.raises(InvalidInput, match=r"Downloading x failed: \[Errno 28\] No space left on device\."),
        client.one_sentence("Downloading x"),
    ):
        raise OSError(28, "No space left on device")


def test_a_run_that_cannot_be_pushed_as_it_was_trained(trained, tmp_path):
    shutil.copytree(trained / "logs", tmp_path / "logs")
    config = tmp_path / f"logs/dqn/{ENV}_1/{ENV}/config.yml"
    config.write_text(config.read_text() + "  - - env_kwargs\n    - sutton_barto_reward: true\n")
    push = f"-m rl_zoo3.push_to_hub {AGENT} -orga me --dry-run --no-render"
    process = run_python(f"{push} -f logs", cwd=tmp_path, check=False)
    assert "give them again: --env-kwargs sutton_barto_reward:True" in process.stderr
    assert "Traceback" not in process.stderr
    process = run_python(f"{push} -f logs --exp-id 5", cwd=tmp_path, check=False)
    assert f"Error: The logs/dqn/{ENV}_5 folder was not found" in process.stderr
    assert "Traceback" not in process.stderr


# ---------------------------------------------------------------------- faults

REQUESTS = [
    "POST /api/repos/create",
    f"GET /api/models/{REPO}",
    "POST /api/validate-yaml",
    f"POST /api/models/{REPO}/preupload/main",
    f"POST /{REPO}.git/info/lfs/objects/batch",
    "PUT /lfs/HASH",
    f"POST /api/models/{REPO}/commit/main",
]


def test_the_requests_of_a_push(small, hub):
    send(small, REPO, "message", api(hub))
    assert set(REQUESTS) == set(hub.requests)


@pytest.mark.parametrize("fault", ["500", "timeout", "cut", "lost"])
@pytest.mark.parametrize("request_line", REQUESTS)
def test_a_fault_leaves_all_or_nothing(small, hub, request_line, fault, monkeypatch):
    if fault == "timeout":
        monkeypatch.setattr(client, "TIMEOUT", 0.4)
    hub.faults[request_line] = fault
    expected = {path.name: path.read_bytes() for path in files_of(small)}
    with pytest.raises(InvalidInput, match=f"Pushing to {REPO} failed: .*The prepared folder is kept") as error:
        send(small, REPO, "message", api(hub))
    assert "\n" not in str(error.value)
    if fault == "timeout" and not request_line.startswith("GET"):  # which the client repeats, until it is cut off
        assert "timed out" in str(error.value)
    files = {name: content for name, content in hub.repos.get(REPO, {}).items() if name != ".gitattributes"}
    done = request_line.endswith("commit/main") and fault == "lost"
    assert files == (expected if done else {})
    assert expected == {path.name: path.read_bytes() for path in files_of(small)}

    hub.faults.clear()
    monkeypatch.setattr(client, "TIMEOUT", 60.0)
    send(small, REPO, "message", api(hub))
    assert {name: content for name, content in hub.repos[REPO].items() if name != ".gitattributes"} == expected


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        ("401", "the Hub does not take this token"),
        ("403", "this token has no right to do that there"),
        ("409", "the name is taken, or somebody else is pushing"),
    ],
)
def test_refusals(small, hub, status, sentence):
    hub.faults[REQUESTS[-1]] = status
    with pytest.raises(InvalidInput, match=sentence):
        send(small, REPO, "message", api(hub))


def test_no_network(small, hub):
    hub.server_close()
    hub.shutdown()
    with pytest.raises(InvalidInput, match="there is no connection to the Hub"):
        send(small, REPO, "message", api(hub))


@pytest.mark.parametrize("card", ["", "---\nmodel-index:\n- name: PPO\n---\n", "of PPO in this game"])
def test_a_name_that_is_taken(small, hub, card):
    if card.startswith("of"):
        card = (small / "README.md").read_text().replace("name: DQN", "name: PPO")
    hub.repos[REPO] = taken = {"README.md": card.encode(), "model.bin": b"another model"}
    with pytest.raises(InvalidInput, match=f"{REPO} is taken: it holds something else"):
        send(small, REPO, "message", api(hub))
    assert hub.repos[REPO] is taken


def test_a_card_that_the_client_cannot_read(small, hub):
    """A stranger's may have fields that the client takes for arguments of its own."""
    for metadata in ("self: 1", "ignore_metadata_errors: true"):
        hub.repos[REPO] = {"README.md": f"---\n{metadata}\n---\n".encode()}
        with pytest.raises(InvalidInput, match=f"Pushing to {REPO} failed: the metadata of its card cannot be read"):
            send(small, REPO, "message", api(hub))
        with pytest.raises(InvalidInput, match=f"Reading {REPO} failed: the metadata of its card cannot be read"):
            check(REPO, api(hub))


def test_the_next_push_replaces_the_last(small, hub, tmp_path):
    send(small, REPO, "message", api(hub))
    # What the plain Zoo and an agent with other settings have left, and a file of the user's
    old = ("vec_normalize.pkl", f"dqn-{ENV}/policy.pth", f"dqn-{ENV}/data", "notes.txt")
    hub.repos[REPO] |= dict.fromkeys(old, b"old")
    folder = tmp_path / "folder"
    shutil.copytree(small, folder)
    (folder / "replay.mp4").unlink()
    send(folder, REPO, "message", api(hub))
    assert set(hub.repos[REPO]) - {".gitattributes"} == {path.name for path in files_of(folder)} | {"notes.txt"}
    assert len(hub.commits) == 2


def test_an_agent_for_another_game_takes_the_name(small, hub, tmp_path):
    send(small, REPO, "message", api(hub))
    folder = tmp_path / "folder"
    shutil.copytree(small, folder)
    card = (folder / "README.md").read_text()
    (folder / "README.md").write_text(card.replace(ENV, "Acrobot-v1"))
    with pytest.raises(InvalidInput, match=f"it holds an agent for '{ENV}'"):
        send(folder, REPO, "message", api(hub))
    with pytest.raises(InvalidInput, match=r"has no README\.md"):
        send(tmp_path, REPO, "message", api(hub))
