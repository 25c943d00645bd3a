"""The notebook from top to bottom, in a Jupyter kernel of its own, on a real game and against a Hub on loopback."""

import base64
import io
import os
import re
from pathlib import Path

import imageio_ffmpeg
import nbformat
import numpy as np
import pytest
import yaml
from matplotlib.colors import to_rgb
from nbclient import NotebookClient
from PIL import Image

from dqn_ext import DDQN
from tests.hub.hub_server import HubServer

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "unit3_ddqn.ipynb"
GAME = "SpaceInvadersNoFrameskip-v4"
REPO = f"me/ddqn-{GAME}"
SETTINGS = {
    "STEPS": "1600",
    "YOUR_NAME": "me",
    "GAMES": "2",
    "FRAMES": "60",
    # one environment, so that games end within the budget
    "ARGS": "--seed 0 --eval-episodes 2 --eval-freq 800 "
    "-params n_envs:1 learning_starts:200 train_freq:4 gradient_steps:1 buffer_size:2000 "
    '"policy_kwargs:dict(features_extractor_kwargs=dict(width=0.25, features_dim=64))"',
}


class Run:
    """What the cells displayed, by their ids."""

    def __init__(self, notebook: nbformat.NotebookNode) -> None:
        self.outputs = {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}

    def text(self, cell: str) -> str:
        return "".join(output.text for output in self.outputs[cell] if output.output_type == "stream")

    def data(self, cell: str, mime_type: str) -> str:
        (content,) = [output.data[mime_type] for output in self.outputs[cell] if mime_type in output.get("data", {})]
        return content


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("notebook")


@pytest.fixture(scope="module")
def hub():
    with HubServer() as server:
        yield server


@pytest.fixture(scope="module")
def run(folder, hub) -> Run:
    """Execute the notebook in an empty folder; a cell that raises ends it with nbclient's CellExecutionError."""
    environment = {
        **os.environ,
        **{f"UNIT3_{name}": value for name, value in SETTINGS.items()},
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": "hf_test",
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "OMP_NUM_THREADS": "1",
        "PIP_NO_INDEX": "1",  # an installation would fail
        # No kernel and no profile of the user's
        **{name: str(folder / name) for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR")},
    }
    environment.pop("MPLBACKEND", None)  # the kernel sets its own
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    client.execute(env=environment)
    return Run(notebook)


def frames(video: str, folder: Path) -> np.ndarray:
    """Decode a video that is embedded in HTML: ``(n, height, width, 3)``, in a format that browsers play."""
    (content,) = re.findall(r'src="data:video/mp4;base64,([^"]+)"', video)
    path = folder / "embedded.mp4"
    path.write_bytes(base64.b64decode(content))
    decoded = imageio_ffmpeg.read_frames(str(path))
    meta = next(decoded)
    assert (meta["codec"], meta["pix_fmt"][:7], meta["size"]) == ("h264", "yuv420p", (160, 210))
    return np.array([np.frombuffer(frame, np.uint8).reshape(210, 160, 3) for frame in decoded])


def test_it_is_stored_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert cell.cell_type == "markdown" or (cell.outputs, cell.execution_count) == ([], None)


def test_it_installs_only_what_is_missing(run):
    packages = [line.split()[0] for line in run.text("install").splitlines()]
    assert packages == ["dqn-ext", "stable-baselines3", "rl-zoo3", "ale-py", "torch", "huggingface_hub"]


def test_training(run, folder):
    assert f"Saving to logs/ddqn/{GAME}_1" in run.text("train")
    logs = folder / "logs/ddqn" / f"{GAME}_1"
    assert np.load(logs / "evaluations.npz")["timesteps"].tolist() == [800, 1600]
    assert len(list(logs.glob("rl_model_*_steps.zip"))) == 4


def test_the_curve(run):
    picture = Image.open(io.BytesIO(base64.b64decode(run.data("plot", "image/png")))).convert("RGB")
    pixels = np.asarray(picture).astype(int)
    for color in ("tab:blue", "tab:orange", "grey"):  # training, evaluations, the course's bar
        distance = np.abs(pixels - np.multiply(to_rgb(color), 255)).max(axis=-1)
        assert (distance < 30).any(axis=0).sum() > 150, color  # columns: many more than in the legend


def test_the_videos(run, folder):
    for cell in ("watch", "load"):
        images = frames(run.data(cell, "text/html"), folder)
        assert len(images) == pytest.approx(int(SETTINGS["FRAMES"]), abs=2)
        assert images[0].std() > 5  # not of one color
        assert (images[0] != images[-1]).any()


def test_the_push(run, hub, folder):
    assert "Nothing has been sent" in run.text("dry-run")
    assert "Missing: nothing" in run.text("dry-run")
    assert f"Pushed: {hub.url}/{REPO}" in run.text("push")
    assert hub.commits == [REPO]
    assert hub.repos[REPO]["README.md"] == (folder / "hub" / f"ddqn-{GAME}" / "README.md").read_bytes()
    assert "hf_test" not in "".join(run.text(cell) for cell in run.outputs)


def test_the_score(run, hub):
    card = yaml.safe_load(hub.repos[REPO]["README.md"].decode().split("---")[1])
    value = card["model-index"][0]["results"][0]["metrics"][0]["value"]
    mean, std = map(float, value.split("+/-"))
    assert f"Score: {mean - std:.2f} ({mean:.2f} - {std:.2f})" in run.text("check")
    assert f"The course asks for 200 on {GAME}: {'met' if mean - std >= 200 else 'not met'}" in run.text("check")


def test_somebodys_agent(run, hub, folder):
    assert f"GET /{REPO}/resolve/HASH/agent.safetensors" in hub.requests
    downloaded, trained = (
        DDQN.load(folder / logs / "ddqn" / f"{GAME}_1" / f"{GAME}.zip", device="cpu") for logs in ("downloaded", "logs")
    )
    for name, weights in trained.q_net.state_dict().items():
        assert (weights == downloaded.q_net.state_dict()[name]).all()
