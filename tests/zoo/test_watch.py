"""Films of agents: python -m dqn_ext.watch, and what TensorBoard shows of a run."""

import io
from pathlib import Path

import gymnasium as gym
import imageio_ffmpeg
import numpy as np
import pytest
import torch as th
from huggingface_sb3 import EnvironmentName
from PIL import Image
from stable_baselines3.common.atari_wrappers import ClipRewardEnv
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dqn_ext import DDQN, watch
from dqn_ext.errors import InvalidInput
from dqn_ext.panels import CHOSEN, HEADER, Moment, Panel
from dqn_ext.tensorboard import TensorboardCallback
from tests.zoo.conftest import run_python

GAME = "PongNoFrameskip-v4"


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    """A run of some steps, with checkpoints on its way and a TensorBoard log."""
    folder = tmp_path_factory.mktemp("watch")
    run_python(
        f"-m rl_zoo3.train --algo ddqn --env {GAME} -n 100 --eval-freq 100 --eval-episodes 1 --save-freq 10 "
        "-f logs -tb tb --eval-env-kwargs max_num_frames_per_episode:400 "
        "-params learning_starts:40 buffer_size:200 n_envs:2 gradient_steps:1",
        cwd=folder,
    )
    return folder


def test_games_for_the_score_open_no_windows(logs):
    env = watch.make_env(logs / "ddqn" / f"{GAME}_1", EnvironmentName(GAME), seed=0, n_envs=2, mode=1)
    assert env.get_attr("render_mode") == [None, None]
    assert [game.unwrapped._game_mode for game in env.unwrapped.envs] == [1, 1]
    env.close()


def decode(path: Path) -> tuple[dict, np.ndarray]:
    reader = imageio_ffmpeg.read_frames(str(path))
    about = next(reader)
    width, height = about["size"]
    return about, np.stack([np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader])


def test_side_by_side(logs):
    process = run_python(f"-m dqn_ext.watch --env {GAME} -f logs -n 30", cwd=logs)
    assert "Showing rl_model_10_steps.zip (10 steps, 10%)" in process.stdout
    assert "Showing rl_model_50_steps.zip (50 steps, 50%)" in process.stdout
    assert f"Showing {GAME}.zip (100 steps, 100%)" in process.stdout
    about, frames = decode(logs / f"logs/ddqn/{GAME}_1/videos/watch-ddqn-{GAME}.mp4")
    assert (about["codec"], about["fps"], len(frames)) == ("h264", 15, 30)
    assert about["pix_fmt"].startswith("yuv420p")
    # Pong's brown field in each of the three panels
    brown = (np.abs(frames[-1].astype(int) - [144, 72, 17]).max(axis=2) < 12).mean(axis=0) > 0.5
    assert np.diff(brown.astype(int)).clip(0).sum() == 3
    assert (frames[0] != frames[-1]).any()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--env BreakoutNoFrameskip-v4 -f logs", "There is no run of ddqn on BreakoutNoFrameskip-v4 in 'logs'"),
        (f"--env {GAME} -f logs -n 0", "-n must be a whole number of at least 1, not 0"),
    ],
)
def test_bad_input(logs, arguments, sentence):
    process = run_python(f"-m dqn_ext.watch {arguments}", cwd=logs, check=False)
    assert process.returncode == 1
    assert process.stderr.strip().splitlines()[-1].startswith(f"Error: {sentence}")


class Sevens(gym.Env):
    """Three steps of 7 points."""

    observation_space, action_space = gym.spaces.Box(0, 1, (1,)), gym.spaces.Discrete(2)
    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012, gymnasium's
    render_mode = "rgb_array"

    def reset(self, **kwargs):
        self.n_steps = 0
        return np.ones(1, np.float32), {}

    def step(self, action):
        self.n_steps += 1
        return np.ones(1, np.float32), 7.0, self.n_steps == 3, False, {}

    def render(self):
        return np.zeros((10, 10, 3), np.uint8)


def test_what_is_shown():
    """Scores are the raw ones of the whole game, Q-values the network's, and the action its largest."""
    env = DummyVecEnv([lambda: ClipRewardEnv(Monitor(Sevens()))])
    model = DDQN("MlpPolicy", env, policy_kwargs={"net_arch": []}, device="cpu")
    with th.no_grad():
        for network, bias in ((model.q_net, [1.0, 2.0]), (model.q_net_target, [0.0, 0.0])):
            network.q_net[0].weight.zero_()
            network.q_net[0].bias.copy_(th.tensor(bias))
    moments = list(watch.play(model, model.get_env()))
    assert [moment.score for moment in moments] == [0, 7, 14, 21]
    assert [moment.over for moment in moments] == [False, False, False, True]
    assert {(*moment.q_values, moment.action) for moment in moments} == {(1.0, 2.0, 1)}


def test_what_a_game_tells():
    env = VecFrameStack(make_atari_env("BreakoutNoFrameskip-v4"), 4)
    assert watch.frames_per_second(env) == 15
    assert watch.action_names(env.venv.envs[0]) == ["NOOP", "FIRE", "RIGHT", "LEFT"]
    fewer = gym.wrappers.TransformAction(env.venv.envs[0], lambda action: action + 2, gym.spaces.Discrete(2))
    assert watch.action_names(fewer) == ["0", "1"]


def test_an_environment_that_draws_nothing():
    model = DDQN("MlpPolicy", DummyVecEnv([lambda: Monitor(gym.make("CartPole-v1"))]), device="cpu")
    with pytest.raises(InvalidInput, match=r"^the environment draws no frames\.$"):
        next(watch.play(model, model.get_env()))


def test_the_nearest_checkpoints():
    checkpoints = {steps: Path(str(steps)) for steps in (25_000, 50_000, 260_000, 400_000)}
    assert watch.choose(checkpoints) == [50_000, 260_000, 400_000]
    assert watch.choose({7: Path("a")}) == [7]


def test_a_panel():
    frame = np.full((210, 160, 3), (10, 200, 30), np.uint8)
    panel = Panel("1,000 steps", "10% of the run", ["NOOP", "FIRE"], frame.shape)
    picture = np.array(panel.draw(Moment(frame, 15.0, np.array([0.5, 1.5]), action=1)))
    assert (picture[HEADER:, : panel.frame_size[0]] == (10, 200, 30)).all()
    chosen = (picture == tuple(bytes.fromhex(CHOSEN[1:]))).all(axis=2)
    first, second = (HEADER + 28 + panel.row_height * row for row in range(2))
    assert not chosen[first : first + panel.row_height - 2].any()
    assert chosen[second : second + panel.row_height].sum(axis=1).max() > 100


def test_a_panel_of_many_actions():
    names = [str(action) for action in range(100)]
    panel = Panel("", "", names, (210, 160, 3))
    q_values = np.arange(100.0)
    picture = np.array(panel.draw(Moment(np.zeros((210, 160, 3), np.uint8), 0.0, q_values, action=99)))
    chosen = (picture == tuple(bytes.fromhex(CHOSEN[1:]))).all(axis=2)
    last = HEADER + 28 + 99 * panel.row_height
    assert chosen[last : last + panel.row_height].sum(axis=1).max() > 100
    assert not chosen[:last].any()


def test_tensorboard(logs):
    events = EventAccumulator(str(next(logs.glob("tb/*/*"))), size_guidance={"images": 0}).Reload()
    assert {"train/loss", "train/q_value_mean", "train/td_error", "train/grad_norm"} <= set(events.Tags()["scalars"])
    films = events.Images("film/greedy")
    assert [film.step for film in films] == list(range(10, 101, 10))
    film = Image.open(io.BytesIO(films[-1].encoded_image_string))
    assert film.size == (160, 210)
    assert film.n_frames > 30
    # The game's own speed; a GIF has hundredths of a second
    assert film.info["duration"] == pytest.approx(1000 / 15, abs=10)
    hyperparams = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert b"learning_starts" in hyperparams
    assert b"CnnPolicy" in hyperparams


def test_films_change_nothing(tmp_path):
    """A run with films ends with the weights of one without."""
    weights = []
    for filmed in (False, True):
        env = VecFrameStack(make_atari_env(GAME, 2, seed=0), 4)

        def make_env():
            return VecFrameStack(make_atari_env(GAME, 1, seed=5, env_kwargs={"render_mode": "rgb_array"}), 4)

        model = DDQN("CnnPolicy", env, learning_starts=20, buffer_size=200, batch_size=8, seed=3, device="cpu")
        model.set_logger(configure(str(tmp_path / str(filmed)), ["tensorboard"]))
        callback = TensorboardCallback(make_env, {"seed": 3}, film_freq=30, n_steps=20)
        model.learn(100, callback=callback if filmed else None)
        weights.append(th.nn.utils.parameters_to_vector(model.q_net.parameters()))
    assert th.equal(*weights)
    events = EventAccumulator(str(tmp_path / "True"), size_guidance={"images": 0}).Reload()
    assert [film.step for film in events.Images("film/greedy")] == [30, 60, 90, 104]


def test_an_environment_that_cannot_be_filmed(tmp_path, capsys):
    """It is said once, and the run goes on."""
    model = DDQN("MlpPolicy", "CartPole-v1", learning_starts=20, device="cpu")
    model.set_logger(configure(str(tmp_path), ["tensorboard"]))
    callback = TensorboardCallback(lambda: make_vec_env("CartPole-v1", env_kwargs={"films": True}), {}, film_freq=30)
    model.learn(100, callback=callback)
    assert capsys.readouterr().err.count("Warning: TensorBoard gets no films: ") == 1
