"""Side by side with SB3's AtariWrapper: the same actions give the same frames, rewards, episodes and monitor files.

No-op starts are off, since SB3 and ale-py draw them differently.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from stable_baselines3.common.atari_wrappers import WarpFrame
from stable_baselines3.common.monitor import load_results
from stable_baselines3.common.vec_env import VecEnv

from dqn_ext.atari import AtariVecEnv
from tests.atari.games import grey_first, make

# Which of them have FIRE at an episode's start, lives, colours that differ from one frame to the next
GAMES = [
    "Alien",
    "Asterix",
    "BeamRider",
    "Breakout",
    "Freeway",
    "MsPacman",
    "Pong",
    "Qbert",
    "Riverraid",
    "Seaquest",
    "SpaceInvaders",
]
SETTINGS = [
    {},
    {"wrapper_kwargs": {"frame_skip": 1, "screen_size": 64}},
    {"wrapper_kwargs": {"frame_skip": 3, "terminal_on_life_loss": False, "clip_reward": False}},
    {"env_kwargs": {"full_action_space": True}},
    {"env_kwargs": {"max_num_frames_per_episode": 102}},
]


def grey_levels(frame: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(frame.astype(float) - other).mean())


def play_side_by_side(envs: list[VecEnv], n_steps: int, seed: int = 0):
    """Random actions, the same in all ``envs``; yields what each returned, a reset first."""
    rng = np.random.default_rng(seed)
    n_envs = envs[0].num_envs
    nothing = (np.zeros(n_envs), np.zeros(n_envs, dtype=bool), [{} for _ in range(n_envs)])
    yield [(env.reset(), *nothing) for env in envs]
    for _ in range(n_steps):
        actions = rng.integers(0, envs[0].action_space.n, n_envs)
        yield [env.step(actions) for env in envs]


def assert_same_but_frames(ours: Any, theirs: Any) -> None:
    np.testing.assert_array_equal(ours[1], theirs[1])
    np.testing.assert_array_equal(ours[2], theirs[2])
    assert (ours[0].dtype, ours[0].shape) == (theirs[0].dtype, theirs[0].shape)
    assert (ours[1].dtype, ours[2].dtype) == (theirs[1].dtype, theirs[2].dtype)
    for info, their_info in zip(ours[3], theirs[3], strict=True):
        assert info.keys() == their_info.keys()
        for name in info.keys() - {"terminal_observation", "episode"}:
            assert info[name] == their_info[name], name
        if "episode" in info:
            assert info["episode"].keys() == their_info["episode"].keys()
            assert [info["episode"][name] for name in "rl"] == [their_info["episode"][name] for name in "rl"]


@pytest.mark.parametrize(
    ("game", "settings"), [*((game, {}) for game in GAMES), *(("Breakout", settings) for settings in SETTINGS[1:])]
)
def test_frames(game, settings):
    """One difference alone, and what it amounts to: the maximum is taken of greys, not of colours."""
    theirs, twin = make(game, **settings), make(game, grey_first, **settings)
    ours = AtariVecEnv(make(game, **settings))
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    distances = []
    for our_step, their_step, twin_step in play_side_by_side([ours, theirs, twin], 300):
        assert_same_but_frames(our_step, their_step)
        np.testing.assert_array_equal(our_step[0], twin_step[0])
        distances.append(grey_levels(our_step[0], their_step[0]))
        if our_step[2][0]:
            info, twin_info = our_step[3][0], twin_step[3][0]
            final, twin_final = info["terminal_observation"], twin_info["terminal_observation"]
            if "episode" in info:
                # ale-py does not look at the frame in which a game ends: one frame older
                assert grey_levels(final, twin_final) < 2
            else:
                np.testing.assert_array_equal(final, twin_final)
    # 0.07 in the worst of these games. Single frames, where two colours alternate, may be farther apart
    assert np.mean(distances) < 0.1
    assert max(distances) < 3


def test_lives_and_games():
    """Breakout: lives and games end, and FIRE starts both."""
    ours, theirs = AtariVecEnv(make("Breakout", n_envs=2)), make("Breakout", n_envs=2)
    lost_lives = games = 0
    lives = np.array([5, 5])
    for our_step, their_step in play_side_by_side([ours, theirs], 300):
        assert_same_but_frames(our_step, their_step)
        np.testing.assert_array_equal(our_step[0], their_step[0])
        for i in range(2):
            info = our_step[3][i]
            if our_step[2][i]:
                if "episode" not in info:
                    final, their_final = info["terminal_observation"], their_step[3][i]["terminal_observation"]
                    np.testing.assert_array_equal(final, their_final)
                assert not info["TimeLimit.truncated"]
                games += "episode" in info
                lost_lives += "episode" not in info
                assert info["lives"] == lives[i] - 1
            lives[i] = ours.games[i].lives
    assert lost_lives >= 12
    assert games >= 2


@pytest.mark.parametrize("cap", [100, 102])
def test_cap_on_frames(cap):
    """A game that reaches its cap is truncated, not terminated."""
    kwargs = {"env_kwargs": {"max_num_frames_per_episode": cap}}
    ours, theirs = AtariVecEnv(make("SpaceInvaders", **kwargs)), make("SpaceInvaders", **kwargs)
    truncated = []
    for step, (our_step, their_step) in enumerate(play_side_by_side([ours, theirs], 60)):
        assert_same_but_frames(our_step, their_step)
        if our_step[2][0]:
            info = our_step[3][0]
            truncated.append(step)
            assert info["TimeLimit.truncated"]
            assert info["episode"]["l"] == cap
            assert ours.reset_infos[0]["episode_frame_number"] == 8, "of the next game"
    # 8 frames pass at the start, for FIRE
    assert truncated[:2] == [(cap - 8 + 3) // 4, 2 * ((cap - 8 + 3) // 4)]


def test_fire_that_ends_the_game():
    """The new game's first frame is observed, SB3 shows the old game's last."""
    kwargs = {"env_kwargs": {"max_num_frames_per_episode": 8}}
    ours = AtariVecEnv(make("Breakout", **kwargs))
    frame = ours.reset()
    assert ours.reset_infos[0]["episode_frame_number"] == 0
    screen = make("Breakout", lambda env, noop_max: WarpFrame(env)).reset()
    np.testing.assert_array_equal(frame, screen)


def test_monitor_files(tmp_path: Path):
    """Theirs and ours, of the same games: all but the time."""
    folders = {"ours": tmp_path / "ours", "theirs": tmp_path / "theirs"}
    envs = {name: make("Breakout", n_envs=2, monitor_dir=str(folder)) for name, folder in folders.items()}
    envs["ours"] = AtariVecEnv(envs["ours"])
    for _ in play_side_by_side(list(envs.values()), 450):
        pass
    for env in envs.values():
        env.close()
    for name in ("0.monitor.csv", "1.monitor.csv"):
        ours, theirs = folders["ours"] / name, folders["theirs"] / name
        assert '"env_id": "BreakoutNoFrameskip-v4"' in ours.read_text().splitlines()[0]
        our_rows, their_rows = pd.read_csv(ours, skiprows=1), pd.read_csv(theirs, skiprows=1)
        assert len(our_rows) >= 2
        assert our_rows["r"].max() > 0
        assert our_rows["t"].is_monotonic_increasing
        pd.testing.assert_frame_equal(our_rows.drop(columns="t"), their_rows.drop(columns="t"))
        assert ours.read_text().splitlines()[1] == "r,l,t"
    assert len(load_results(str(folders["ours"]))) == len(load_results(str(folders["theirs"])))
