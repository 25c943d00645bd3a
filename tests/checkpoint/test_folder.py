"""The folder of checkpoints under every fault of a disk, and what a checkpoint's plain data may hold."""

import hashlib
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
from collections import deque
from pathlib import Path

import ale_py
import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.atari_wrappers import AtariWrapper
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.vec_env import VecFrameStack

from dqn_ext.checkpoint import CheckpointFolder, ResumeCallback
from dqn_ext.checkpoint.plain import NotPlain, decode, encode
from dqn_ext.checkpoint.state import env_state, set_env_state
from dqn_ext.errors import InvalidInput
from tests.checkpoint.runs import FREQ, Run, interrupt

gym.register_envs(ale_py)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a real run's two checkpoints, of steps 80 and 120."""
    run = tmp_path_factory.mktemp("real")
    interrupt(run, FREQ * 3 + 5)
    return run / "checkpoint"


def newest(folder: Path) -> int:
    checkpoint = CheckpointFolder(folder).newest()
    assert checkpoint is not None
    return checkpoint.step


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")


def test_what_has_its_name_is_on_the_disk(tmp_path, monkeypatch):
    """A machine that loses power forgets what was written and not waited for."""
    synced = []
    rename = Path.rename

    def look(path, target):
        assert {path, *path.rglob("*")} <= set(synced)
        return rename(path, target)

    monkeypatch.setattr("dqn_ext.checkpoint.folder.sync", synced.append)
    monkeypatch.setattr(Path, "rename", look)
    folder = CheckpointFolder(tmp_path / "checkpoint")
    folder.write(20, {}, lambda path: (path / "a").write_text("b"))
    assert synced[-1] == folder.path


@pytest.mark.parametrize("freq", [0, -50])
def test_no_frequency(tmp_path, freq):
    with pytest.raises(InvalidInput, match=f"freq must be at least 1 transition, not {freq}"):
        ResumeCallback(tmp_path, freq)
    assert not list(tmp_path.iterdir())


def test_a_run_is_on_the_disk_before_its_checkpoints_go(tmp_path, monkeypatch):
    done = []
    resume = ResumeCallback(tmp_path, 20, {})
    monkeypatch.setattr("dqn_ext.checkpoint.callback.sync", done.append)
    monkeypatch.setattr(resume.folder, "clear", lambda: done.append("cleared"))
    (tmp_path / "agent.zip").write_text("an agent")
    (tmp_path / "0.monitor.csv").write_text("its games")
    resume.finish()
    resume.folder.unlock()
    assert done[-1] == "cleared"
    assert {tmp_path, tmp_path / "agent.zip", tmp_path / "0.monitor.csv"} <= set(done)


# ---------------------------------------------------------------------- damage


def test_truncated_at_every_kilobyte(real, tmp_path, capsys):
    """Of each file, and at its last byte: the checkpoint before is taken, and the damaged file is named."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(real, folder)
    for path in files(folder / "120"):
        content = path.read_bytes()
        # A large one costs as many reads as it has kilobytes: a hundred of them then
        sizes = range(0, len(content), max(1024, len(content) // 100 // 1024 * 1024))
        for size in [*sizes, len(content) - 1]:
            path.write_bytes(content[:size])
            assert newest(folder) == 80
            assert path.name in capsys.readouterr().err
        path.write_bytes(content)
        assert newest(folder) == 120


def test_flipped_bits(real, tmp_path, capsys):
    folder = tmp_path / "checkpoint"
    shutil.copytree(real, folder)
    generator = random.Random(0)
    for path in files(folder / "120"):
        content = path.read_bytes()
        for _ in range(25):
            damaged = bytearray(content)
            damaged[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
            path.write_bytes(damaged)
            assert newest(folder) == 80, path
            assert f"The checkpoint {folder}/120 is not used: it is damaged: " in capsys.readouterr().err
        path.write_bytes(content)


def test_the_run_goes_on_from_the_one_before(real, tmp_path, capsys):
    shutil.copytree(real, tmp_path / "checkpoint")
    (tmp_path / "checkpoint" / "120" / "state.pt").unlink()
    run = Run(tmp_path)
    assert "it is damaged: state.pt cannot be read (No such file or directory)" in capsys.readouterr().err
    run.learn()
    assert "Going on from step 80 of 320" in capsys.readouterr().out
    left = sorted(path.name for path in (tmp_path / "checkpoint").iterdir() if path.name != ".lock")
    assert left == ["120.unusable", "240", "280"]


def test_all_damaged(real, tmp_path):
    folder = tmp_path / "checkpoint"
    shutil.copytree(real, folder)
    for step in (80, 120):
        (folder / str(step) / "manifest.json").write_bytes(b"")
    with pytest.raises(
        InvalidInput, match=rf"None of the checkpoints in {folder} can be used; remove it to start anew"
    ):
        CheckpointFolder(folder).newest()


def rewrite(path: Path, **changes: object) -> None:
    """A manifest with its checksum right."""
    manifest = {**json.loads(path.read_text().split("\n", 1)[1]), **changes}
    text = json.dumps(manifest)
    path.write_text(f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}")


def test_a_newer_version(real, tmp_path):
    """Going back behind it unasked would remove it in the end."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(real, folder)
    rewrite(folder / "120" / "manifest.json", version=2)
    with pytest.raises(InvalidInput) as error:
        Run(tmp_path)
    assert str(error.value) == (
        f"{folder}/120 was written by a newer dqn-ext (version 2 of the format, and this one reads 1); "
        f"the one before it is {folder}/80."
    )


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [({"format": "a cake"}, "is none of dqn-ext"), ({"step": 80}, "it is of step 80"), ({"files": 3}, "damaged")],
)
def test_manifests_that_lie(real, tmp_path, changes, sentence, capsys):
    folder = tmp_path / "checkpoint"
    shutil.copytree(real, folder)
    rewrite(folder / "120" / "manifest.json", **changes)
    assert newest(folder) == 80
    assert sentence in capsys.readouterr().err


def test_another_games_checkpoint(real, tmp_path, capsys):
    """Copied into this run's folder: it is named, set aside, and the one before it is taken."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(real, folder)
    rewrite(folder / "120" / "manifest.json", about={"settings": {"env": "PongNoFrameskip-v4"}, "identity": {}})
    run = Run(tmp_path)
    run.close()
    assert f"{folder}/120 is not used: it is of another run (env is PongNoFrameskip-v4 there" in capsys.readouterr().err
    assert CheckpointFolder(folder).steps() == [80]
    assert (folder / "120.unusable").is_dir()


def test_a_hostile_checkpoint_runs_no_program(real, tmp_path):
    """Checksums and all: what it holds is not unpickled."""

    class Program:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "was here"),)

    folder = tmp_path / "checkpoint"
    for name in ("state.pt", "replay_buffer.pkl"):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(real, folder)
        path = folder / "120" / name
        if name == "state.pt":
            th.save({"counters": Program()}, path)
        else:
            path.write_bytes(pickle.dumps(Program()))
        described = json.loads((folder / "120" / "manifest.json").read_text().split("\n", 1)[1])["files"]
        content = path.read_bytes()
        described[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        rewrite(folder / "120" / "manifest.json", files=described)
        run = Run(tmp_path)
        with pytest.raises(InvalidInput, match=f"The run cannot go on from {folder}/120"):
            run.learn()
        run.close()
        assert not (tmp_path / "was here").exists()


# ---------------------------------------------------------------------- disks that take no more


def test_a_folder_that_cannot_be_written(tmp_path):
    """Before anything is learned. A file stands in its place: root may write to any folder."""
    (tmp_path / "checkpoint").write_text("")
    with pytest.raises(InvalidInput, match=rf"Checkpoints cannot be written to {tmp_path}/checkpoint: File exists"):
        Run(tmp_path)


def test_a_full_disk(tmp_path):
    """The run goes on and says so, what was kept stays, and it is named. A size limit stands for the full disk."""
    code = f"""
import resource, signal
from pathlib import Path
from stable_baselines3.common.callbacks import BaseCallback
from tests.checkpoint.runs import Run, TOTAL
class Fill(BaseCallback):
    def _on_step(self):
        if self.num_timesteps in (100, 220):
            limit = 5_000 if self.num_timesteps == 100 else resource.RLIM_INFINITY
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        return True
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
run = Run(Path({str(tmp_path)!r}), env="MountainCar-v0", others=(Fill(),))
run.callbacks[1].eval_freq = 0
assert run.learn().num_timesteps == TOTAL
"""
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], text=True, capture_output=True, check=True
    )
    warnings = [line for line in process.stderr.splitlines() if line.startswith("Warning")]
    assert warnings == [
        f"Warning: The checkpoint of step {step} could not be written to {tmp_path}/checkpoint: File too large; "
        f"the last good one is {tmp_path}/checkpoint/80."
        for step in (120, 160, 200)
    ]
    folder = CheckpointFolder(tmp_path / "checkpoint")
    assert folder.steps() == [280, 240]
    assert newest(folder.path) == 280
    assert not list(folder.path.glob("*.tmp"))


def test_what_an_interrupted_process_left(real, tmp_path):
    folder = tmp_path / "checkpoint"
    shutil.copytree(real, folder)
    shutil.copytree(folder / "120", folder / "160.tmp")
    shutil.copytree(folder / "80", folder / "40.old.tmp")
    assert newest(folder) == 120
    CheckpointFolder(folder).write(160, {}, lambda path: (path / "file").write_text("content") and None)
    assert sorted(path.name for path in folder.iterdir() if path.name != ".lock") == ["120", "160"]


# ---------------------------------------------------------------------- plain data


def test_values_come_back():
    generator = np.random.default_rng(5)
    generator.random(7)
    values = [
        None,
        True,
        -3,
        2**130,
        1.5,
        "text",
        b"bytes",
        [1, [2.5, "x"]],
        (1, (2, None)),
        {"a": 1, 2: (3,), None: [4]},
        deque([1, 2], maxlen=3),
        np.float32(1.25),
        np.arange(6, dtype=np.uint32).reshape(2, 3),
        np.array(7, np.int16),
        np.array([True, False]),
    ]
    for value in values:
        again = decode(encode(value))
        assert type(again) is type(value)
        np.testing.assert_equal(again, value)
        assert getattr(again, "dtype", None) == getattr(value, "dtype", None)
        assert getattr(again, "maxlen", None) == getattr(value, "maxlen", None)
    # Turned axes stay turned, or a convolution would round differently
    turned = np.zeros((2, 5, 5, 4), np.uint8).transpose(0, 3, 1, 2)
    assert decode(encode(turned)).strides == turned.strides
    assert decode(encode(generator)).random(5).tolist() == generator.random(5).tolist()
    for value in (object(), [object()], np.array(["x"]), np.array([None])):
        with pytest.raises(NotPlain):
            encode(value)
    with pytest.raises(ValueError, match="unknown"):
        decode({"generator": "__import__", "state": {}})


@pytest.mark.parametrize("game", ["Breakout", "MsPacman", "Qbert"])
def test_games_go_on_to_the_frame(game):
    """In an emulator that was somewhere else: frames, rewards, ends, lives and the random starts of further games."""
    kwargs = {"env_kwargs": {"max_num_frames_per_episode": 600}}
    env, other = (VecFrameStack(make_atari_env(f"{game}NoFrameskip-v4", 2, seed=seed, **kwargs), 4) for seed in (1, 2))
    assert assert_in_step(env, other, n_before=130, n_after=250) > 2


@pytest.mark.parametrize("game", ["CartPole-v1", "Acrobot-v1", "MountainCar-v0"])
def test_classic_control_goes_on(game):
    env, other = make_vec_env(game, 2, seed=1), make_vec_env(game, 2, seed=2)
    assert_in_step(env, other, n_before=130, n_after=450)


def assert_in_step(env, other, n_before: int, n_after: int) -> int:
    """:return: how many episodes have ended in both"""
    n_ended = 0
    actions = np.random.default_rng(0).integers(env.action_space.n, size=(n_before + n_after, 2))
    env.reset()
    other.reset()
    for action in actions[:n_before]:
        env.step(action)
    for action in actions[:50]:
        other.step(action)
    state = env_state(env)
    assert isinstance(state, list)
    set_env_state(other, state)
    for action in actions[n_before:]:
        one, two = env.step(action), other.step(action)
        for ours, theirs in zip(one[:3], two[:3], strict=True):
            np.testing.assert_array_equal(ours, theirs)
        for ours, theirs in zip(one[3], two[3], strict=True):
            assert ours.get("lives") == theirs.get("lives")
            assert ours.get("episode", {}).get("r") == theirs.get("episode", {}).get("r")
        n_ended += one[2].sum()
    return n_ended


def test_games_whose_state_cannot_be_read():
    pytest.importorskip("Box2D")
    assert env_state(make_vec_env("LunarLander-v3", 1)) == "LunarLander keeps a b2World in world"


def test_a_wrapper_that_keeps_something_else():
    class Odd(gym.Wrapper):
        def __init__(self, env):
            super().__init__(env)
            self.thing = object()

    env = make_vec_env(lambda: Odd(AtariWrapper(gym.make("PongNoFrameskip-v4"))), 1)
    assert env_state(env) == "Odd keeps a object in thing"
