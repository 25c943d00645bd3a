"""Each of the Zoo's commands as a subprocess, on a real game, without a line of ours before it."""

import io
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from stable_baselines3 import PPO

from dqn_ext import DDQN
from dqn_ext.zoo.__main__ import COMMANDS
from tests.hub.hub_server import HubServer
from tests.zoo.conftest import GAME, run_python, run_several

AGENT = f"--algo ddqn --env {GAME} -f logs"


def test_train(trained):
    run = trained / "logs/ddqn" / f"{GAME}_1"
    for name in (f"{GAME}.zip", "best_model.zip", "evaluations.npz", "0.monitor.csv", "1.monitor.csv"):
        assert (run / name).is_file(), name
    assert (run / "rl_model_400_steps.zip").is_file()
    assert np.load(run / "evaluations.npz")["timesteps"].tolist() == [300, 600]
    config = yaml.load((run / GAME / "config.yml").read_text(), Loader=yaml.UnsafeLoader)
    assert config["n_envs"] == 2
    with zipfile.ZipFile(run / f"{GAME}.zip") as agent:
        assert json.loads(agent.read("data"))["policy_class"]["__module__"] == "dqn_ext.policies"


def test_continue_training(trained):
    few = "-params learning_starts:50 buffer_size:1000 n_envs:2"
    train = f"-m rl_zoo3.train --algo ddqn --env {GAME} --eval-freq -1 -f continued"
    first = f"logs/ddqn/{GAME}_1/{GAME}.zip"
    process = run_python(f"{train} -n 200 --save-replay-buffer -i {first} {few}", cwd=trained)
    assert "Loading pretrained agent" in process.stdout
    run = f"continued/ddqn/{GAME}_1"
    assert (trained / run / "replay_buffer.pkl").is_file()
    process = run_python(f"{train} -n 100 -i {run}/{GAME}.zip {few}", cwd=trained)
    assert "Loading replay buffer" in process.stdout


def test_enjoy(trained):
    agents = {
        "": GAME,
        "--load-best": "best_model",
        "--load-checkpoint 400": "rl_model_400_steps",
        "--load-last-checkpoint": "rl_model_400_steps",
    }
    commands = [f"-m rl_zoo3.enjoy {AGENT} --no-render -n 30 {which}" for which in agents]
    for process, agent in zip(run_several(commands, cwd=trained), agents.values(), strict=True):
        assert f"Loading logs/ddqn/{GAME}_1/{agent}.zip" in process.stdout


def test_record_video(trained):
    run_python(f"-m rl_zoo3.record_video {AGENT} -n 60 -o videos", cwd=trained)
    assert_plays(next((trained / "videos").glob("final-model-ddqn-*.mp4")), seconds=1)

    # In the environment that its entry had, which here nobody can make
    shutil.copytree(trained / "logs", trained / "unknown")
    with (trained / "unknown/ddqn" / f"{GAME}_1" / GAME / "config.yml").open("a") as config:
        config.write("  - - env_kwargs\n    - unknown: 1\n")
    record = f"-m rl_zoo3.record_video --algo ddqn --env {GAME} -f unknown -n 60 -o videos"
    assert "unexpected keyword argument 'unknown'" in run_python(record, cwd=trained, check=False).stderr


def test_record_training(trained):
    run_python(f"-m rl_zoo3.record_training {AGENT} -n 60 -g", cwd=trained)
    videos = trained / "logs/ddqn" / f"{GAME}_1" / "videos"
    # the final agent, the best and one checkpoint
    assert_plays(videos / "training.mp4", seconds=3)
    assert (videos / "training.gif").stat().st_size > 1000


def assert_plays(video: Path, seconds: float) -> None:
    """Decode it: as long as it should be, upright, and not black."""
    import imageio_ffmpeg

    frames = imageio_ffmpeg.read_frames(str(video))
    meta = next(frames)
    assert meta["size"] == (160, 210)
    assert meta["duration"] >= seconds
    images = [np.frombuffer(frame, np.uint8).reshape(210, 160, 3) for frame in frames]
    assert len(images) >= 0.9 * seconds * meta["fps"]
    # Pong's field is brown
    red, green, blue = images[0][100, 80].astype(int)
    assert red > green > blue


def test_benchmark(trained):
    process = run_python(
        "-m rl_zoo3.benchmark --log-dir logs -n 3000 --no-hub --test-mode --num-threads 1", cwd=trained
    )
    table = (trained / "logs/benchmark/benchmark.md").read_text()
    assert "ddqn" in table, process.stdout + process.stderr


TRAIN_AND_PLOT = """
import sys
from matplotlib import pyplot as plt
from rl_zoo3.plots.plot_train import plot_train
from rl_zoo3.train import train

sys.argv = "train.py --algo ddqn --env CartPole-v1 -n 500 --eval-freq -1 -params n_envs:2".split()
train()
for axis in ("steps", "episodes", "time"):
    plt.close("all")
    sys.argv = f"plot_train.py -a ddqn -e CartPole-v1 -f logs -x {axis} -w 3".split()
    plot_train()
    print(axis, [len(line.get_xdata()) for line in plt.gca().lines])
"""


def test_plot_train(tmp_path):
    """A curve, whatever its axis."""
    (tmp_path / "train_and_plot.py").write_text(TRAIN_AND_PLOT)
    process = run_python("train_and_plot.py", cwd=tmp_path)
    monitors = (tmp_path / "logs/ddqn/CartPole-v1_1").glob("*.monitor.csv")
    n_episodes = sum(len(path.read_text().splitlines()) - 2 for path in monitors)
    assert n_episodes > 10
    assert process.stdout.splitlines()[-3:] == [f"{axis} [{n_episodes - 2}]" for axis in ("steps", "episodes", "time")]


def test_all_plots_and_plot_from_file(trained):
    process = run_python(f"-m rl_zoo3.plots.all_plots -a ddqn -f logs -o results --no-display -e {GAME}", cwd=trained)
    assert GAME in process.stdout
    assert "DDQN" in process.stdout
    process = run_python("-m rl_zoo3.plots.plot_from_file -i results -b", cwd=trained)
    assert "Skipping" not in process.stdout


def test_cli(trained):
    process = run_python(f"-m rl_zoo3.cli enjoy {AGENT} --no-render -n 5", cwd=trained)
    assert "Loading logs/ddqn" in process.stdout


def test_push_to_hub_and_load_from_hub(trained):
    """Cf. tests/hub/test_push.py; here on Atari, with a game's own score and colours."""
    with HubServer() as hub:
        env = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_test", "HF_HOME": str(trained / "hf"), "HF_HUB_DISABLE_XET": "1"}
        push = f"-m rl_zoo3.push_to_hub {AGENT} -orga me -n 60 --load-best --n-envs 2 --n-eval-episodes 2"
        process = run_python(push, cwd=trained, **env)
        assert "Missing: nothing" in process.stdout
        files = hub.repos[f"me/ddqn-{GAME}"]
        card = yaml.safe_load(files["README.md"].decode().split("---")[1])  # a reader's loader: no python objects
        assert card["model-index"][0]["name"] == "DDQN"
        results = json.loads(files["results.json"])
        assert all(-21 <= score <= 21 and score == int(score) for score in results["episode_rewards"])  # whole games
        assert abs(results["mean_reward"]) > 15  # not one life, not one point
        assert card["model-index"][0]["results"][0]["metrics"][0]["value"] == (
            f"{results['mean_reward']:.2f} +/- {results['std_reward']:.2f}"
        )
        (trained / "replay.mp4").write_bytes(files["replay.mp4"])
        assert_plays(trained / "replay.mp4", seconds=1.9)
        with zipfile.ZipFile(io.BytesIO(files[f"ddqn-{GAME}.zip"])) as agent:
            assert json.loads(agent.read("data"))["buffer_size"] == 1

        load = f"-m rl_zoo3.load_from_hub --algo ddqn --env {GAME} -orga me -f hub_logs"
        process = run_python(load, cwd=trained, **env)
        assert "No normalization file" in process.stdout
        run_python(f"-m rl_zoo3.enjoy --algo ddqn --env {GAME} --no-render -n 10 -f hub_logs", cwd=trained)
        original = DDQN.load(trained / "logs/ddqn" / f"{GAME}_1" / "best_model.zip", device="cpu")
        loaded = DDQN.load(trained / "hub_logs/ddqn" / f"{GAME}_1" / f"{GAME}.zip", device="cpu")
        for name, weights in original.q_net.state_dict().items():
            assert (weights == loaded.q_net.state_dict()[name]).all()
        assert loaded.exploration_rate == original.exploration_rate
        assert loaded.buffer_size == 1000

        listing = "import rl_zoo3.utils as u; print(u.get_hf_trained_models('me', check_filename=True))"
        assert f"('ddqn', '{GAME}')" in run_python(f'-c "{listing}"', cwd=trained, **env).stdout


def test_a_missing_agent_is_said_so(trained):
    with HubServer() as hub:
        process = run_python(
            f"-m rl_zoo3.load_from_hub --algo ddqn --env {GAME} -orga nobody -f nothing",
            cwd=trained,
            check=False,
            HF_ENDPOINT=hub.url,
            HF_HOME=str(trained / "hf"),
        )
        assert process.returncode != 0
        assert "Repository Not Found" in process.stderr
        assert "Traceback" not in process.stderr
        assert not (trained / "nothing").exists()


def test_without_the_hook(trained):
    off = {"DQN_EXT_NO_HOOK": "1"}
    process = run_python(f"-m rl_zoo3.enjoy {AGENT} --no-render -n 5", cwd=trained, check=False, **off)
    assert "invalid choice: 'ddqn'" in process.stderr
    run_python(f"-m dqn_ext.zoo enjoy {AGENT} --no-render -n 5", cwd=trained, **off)
    run_python(f"-m dqn_ext.zoo record_training {AGENT} -n 20", cwd=trained, **off)
    process = run_python("-m dqn_ext.zoo dance", cwd=trained, check=False)
    assert process.returncode != 0
    assert "one of: train, enjoy" in process.stderr


def test_every_command_knows_ddqn(tmp_path):
    names = [name for name in COMMANDS if name != "cli"]  # see test_cli
    processes = run_several([f"-m rl_zoo3.{name} --help" for name in names], cwd=tmp_path)
    for name, process in zip(names, processes, strict=True):
        assert "usage" in process.stdout.lower(), name
        if "plots" not in name and name != "benchmark":  # which ask for no algorithm
            assert "ddqn" in process.stdout, name


def test_the_zoos_own_algorithms_still_work(tmp_path):
    run_python("-m rl_zoo3.train --algo dqn --env CartPole-v1 -n 300 --eval-freq -1", cwd=tmp_path)
    run_python("-m rl_zoo3.enjoy --algo dqn --env CartPole-v1 -f logs --no-render -n 20", cwd=tmp_path)
    process = run_python("-m rl_zoo3.train --algo ppo --env Pendulum-v1 -n 300 --eval-freq -1", cwd=tmp_path)
    assert "Saving to logs/ppo" in process.stdout


def test_what_stands_in_the_folder_for_other_commands(tmp_path):
    """A rate and steps that YAML takes for words as numbers, nothing of what is None, and of a class its name."""
    (tmp_path / "pack.yml").write_text(
        "CartPole-v1: {policy: MlpPolicy, n_timesteps: 1e2, learning_rate: 1e-4, learning_starts: 50, batch_size: 8}"
    )
    none = "-params vec_env_wrapper:None frame_stack:None env_kwargs:None normalize:None replay_buffer_class:None"
    run_python(f"-m rl_zoo3.train --algo ddqn --env CartPole-v1 -conf pack.yml --eval-freq -1 {none}", cwd=tmp_path)
    run = tmp_path / "logs/ddqn/CartPole-v1_1"
    saved = dict(yaml.load((run / "CartPole-v1/config.yml").read_text(), Loader=yaml.UnsafeLoader))
    assert saved["learning_rate"] == DDQN.load(run / "CartPole-v1.zip").lr_schedule(0.5) == 1e-4
    assert saved["n_timesteps"] == 100
    assert None not in saved.values()
    (tmp_path / "pack.py").write_text(
        "from stable_baselines3.common.buffers import ReplayBuffer\n"
        "hyperparams = {'CartPole-v1': {'policy': 'MlpPolicy', 'n_timesteps': 100, 'learning_starts': 50, "
        "'replay_buffer_class': ReplayBuffer}}"
    )
    run_python(
        "-m rl_zoo3.train --algo ddqn --env CartPole-v1 -conf pack.py --eval-freq -1 --log-interval 0", cwd=tmp_path
    )
    run_python("-m rl_zoo3.enjoy --algo ddqn --env CartPole-v1 -f logs --no-render -n 20", cwd=tmp_path)


@pytest.mark.parametrize(("algo", "settings"), [("ddqn", "learning_starts:50"), ("ppo", "n_steps:20 batch_size:20")])
def test_an_entry_of_ones_own(algo, settings, tmp_path):
    """Its ``env_kwargs`` hold for evaluations, too; and its steps may come from the command line."""
    (tmp_path / "pack.yml").write_text("CartPole-v1: {policy: MlpPolicy, env_kwargs: {sutton_barto_reward: true}}")
    train = f"-m rl_zoo3.train --algo {algo} --env CartPole-v1 -conf pack.yml -n 60 --eval-freq 50 --seed 0"
    run_python(f"{train} -params {settings}", cwd=tmp_path)
    evaluations = np.load(tmp_path / f"logs/{algo}/CartPole-v1_1/evaluations.npz")
    assert (evaluations["results"] == -1).all()  # of each game, whatever its length
    config = tmp_path / f"logs/{algo}/CartPole-v1_1/CartPole-v1/config.yml"
    assert dict(yaml.load(config.read_text(), Loader=yaml.UnsafeLoader))["n_timesteps"] == 60  # benchmark reads it


BAD_INPUT = [
    ("--env SpaceInvaderNoFrameskip-v4", "you maybe meant SpaceInvadersNoFrameskip-v4?"),
    ("--env Pendulum-v1", "ddqn needs a discrete action space, and Pendulum-v1 has Box"),
    ("-params learning_rat:1e-4", "'learning_rat' is not a hyperparameter of ddqn; did you mean 'learning_rate'?"),
    ("-params frame_stak:4", "did you mean 'frame_stack'?"),
    ("-params batch_size:0", "batch_size must be a whole number of at least 1, not 0."),
    ("-params train_freq:0", "train_freq must be a whole number of at least 1"),
    ("-params target_update_interval:0", "target_update_interval must be a whole number of at least 1, not 0."),
    ("-params \"precision:'half'\"", "precision must be one of auto, float32, bfloat16, not 'half'."),
    ("-params buffer_size:0", "buffer_size must be a whole number of at least 1, not 0."),
    ("-params n_steps:0", "n_steps must be a whole number of at least 1, not 0."),
    ("-params gamma:1.1", "gamma must lie in [0, 1], not be 1.1."),
    ("-params tau:-0.1", "tau must lie in [0, 1], not be -0.1."),
    ("-params batch_size:64 buffer_size:63", "buffer_size must be at least batch_size (64), not 63."),
    ("--env CartPole-v1 -params seed:3", "seed is no hyperparameter here, the command has a flag for it: --seed."),
    (
        "--env CartPole-v1 -params policy_kwargs:dict(duelling=True)",
        "'duelling' is not a hyperparameter of MlpPolicy; did you mean 'dueling'?",
    ),
    (
        "--env CartPole-v1 -params n_envs:2 \"train_freq:(1,'episode')\"",
        "train_freq must be in steps with several environments (n_envs), not (1, 'episode').",
    ),
    ("-i empty.zip", "empty.zip is not a readable model: it is empty, truncated or damaged"),
    ("-i ppo.zip", "ppo.zip holds the model of another algorithm"),
    ("-i missing.zip", "The trained_agent must be a valid path to a .zip file"),
    ("-conf missing.yml", "-conf missing.yml is not a file."),
    ("--env Acrobot-v1 -conf pack.yml", "Hyperparameters not found for ddqn-Acrobot-v1"),
    ("--env CartPole-v1 -conf pack.yml", "The entry of CartPole-v1 must have n_timesteps."),
    ("-params \"policy:'Foo'\"", "policy must be one of MlpPolicy, CnnPolicy, MultiInputPolicy, not 'Foo'."),
    ("--env CartPole-v1 -params policy_kwargs:dict(dueling=3)", "dueling must be True or False, not 3."),
    (
        "--env CartPole-v1 -params policy_kwargs:dict(net_arch=[0.5])",
        "policy_kwargs {'net_arch': [0.5]} make no MlpPolicy",
    ),
    (
        "--env PongNoFrameskip-v4 -params policy_kwargs:dict(features_extractor_kwargs=dict(width=0.3))",
        "width must make 32, 64, 64 channels whole numbers, not be 0.3.",
    ),
    ("-params frame_stack:0", "frame_stack must be a whole number of at least 1, not 0."),
    ("-params learning_rate:0", "learning_rate must be a plain number above 0, or a schedule, not 0."),
    ("-params learning_rate:None", "learning_rate must be a plain number above 0, or a schedule, not None."),
    ("--env PongNoFrameskip-v4 -params normalize:True", "normalize and frame_stack do not go together"),
    ("--env CartPole-v1 -params policy:None", "The entry of CartPole-v1 must have policy."),
    ("--env CartPole-v1 -optimize --n-evaluations 0", "--n-evaluations must be at least 1, not 0."),
    ("--env MountainCar-v0 -conf pack.yml", "pack.yml has no entry for MountainCar-v0, that can be read: TypeError("),
    ("--env PongNoFrameskip-v4 -conf pack.yml", "pack.yml has no entry for PongNoFrameskip-v4, nor one called atari."),
    ("--env FrozenLake-v1 -conf pack.yml", "n_timesteps must be a number of steps above 0, not '-1e3'."),
    (
        "--env CartPole-v1 -params learning_rate:lin_1e-4",
        "-params learning_rate:lin_1e-4 cannot be read: it must be NAME:VALUE with a value of Python's, words in "
        "quotes within quotes, \"policy:'CnnPolicy'\" (name 'lin_1e' is not defined).",
    ),
    ("--env CartPole-v1 --env-kwargs stiky", "--env-kwargs stiky cannot be read: it must be NAME:VALUE"),
    ("--env PongNoFrameskip-v4 --env-kwargs stiky:0.25", "PongNoFrameskip-v4 takes no env_kwargs {'stiky': 0.25}: "),
    ("--env CartPole-v1 --device gpu", "--device must be auto or one of PyTorch's, cuda say, not 'gpu'."),
    ("--env CartPole-v1 -params n_timesteps:0", "n_timesteps must be a number of steps above 0, not 0."),
    (
        "--env CartPole-v1 -params \"env_wrapper:'typo.W'\"",
        "The entry of CartPole-v1 cannot be read: ModuleNotFoundError(",
    ),
    (
        "--env PongNoFrameskip-v4 -params "
        "\"env_wrapper:[{'stable_baselines3.common.atari_wrappers.AtariWrapper':{'skip':4}}]\"",
        "env_wrapper does not go around PongNoFrameskip-v4: TypeError(",
    ),
    ("--env CartPole-v1 -optimize -i good.zip", "-i and -optimize do not go together"),
    ("--env CartPole-v1 --eval-episodes 0", "--eval-episodes must be at least 1, not 0."),
    ("--env CartPole-v1 --n-eval-envs 0", "--n-eval-envs must be at least 1, not 0."),
    ("--env CartPole-v1 --eval-env-kwargs foo:1", "CartPole-v1 takes no env_kwargs {'foo': 1}: "),
    ("--env CartPole-v1 -conf latin.yml", "-conf latin.yml cannot be read: 'utf-8' codec"),
    ("-conf missing.py", "-conf missing.py is neither a file nor a module"),
    ("-conf missing", "-conf missing is neither a file nor a module"),
]


def test_bad_input_gets_one_sentence(tmp_path):
    """One sentence, an exit code that is not 0, and no half-written folder."""
    (tmp_path / "empty.zip").touch()
    PPO("MlpPolicy", "CartPole-v1", device="cpu").save(tmp_path / "ppo.zip")
    DDQN("MlpPolicy", "CartPole-v1", device="cpu").save(tmp_path / "good.zip")
    (tmp_path / "latin.yml").write_bytes(b"\xe9")
    (tmp_path / "pack.yml").write_text(
        "CartPole-v1: {policy: MlpPolicy}\nFrozenLake-v1: {policy: MlpPolicy, n_timesteps: -1e3}\nMountainCar-v0:"
    )
    commands = [f"-m rl_zoo3.train --algo ddqn {arguments}" for arguments, _ in BAD_INPUT]
    first = run_python(commands[0], cwd=tmp_path, check=False)
    others = run_several(commands[1:], cwd=tmp_path, check=False)
    for (_, sentence), process in zip(BAD_INPUT, [first, *others], strict=True):
        assert process.returncode == 1, process.args
        assert "Traceback" not in process.stderr, process.stderr
        (line,) = [line for line in process.stderr.splitlines() if line.startswith("Error:")]
        assert sentence in line, process.args
    assert not (tmp_path / "logs").exists()


def test_a_truncated_model_to_watch(trained):
    run = trained / "broken/ddqn" / f"{GAME}_1"
    run.mkdir(parents=True)
    content = (trained / "logs/ddqn" / f"{GAME}_1" / f"{GAME}.zip").read_bytes()
    (run / f"{GAME}.zip").write_bytes(content[: len(content) // 2])
    process = run_python(f"-m rl_zoo3.enjoy --algo ddqn --env {GAME} --no-render -f broken", cwd=trained, check=False)
    assert process.returncode == 1
    assert "is not a readable model" in process.stderr
    assert "Traceback" not in process.stderr
