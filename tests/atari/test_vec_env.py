"""SB3's contract of a VecEnv, what starts at random, and what is refused."""

import os
import time

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.atari_wrappers import AtariWrapper, EpisodicLifeEnv, StickyActionEnv
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecTransposeImage

from dqn_ext import FrameReplayBuffer
from dqn_ext.atari import AtariSettings, AtariVecEnv, native_when_training, training
from dqn_ext.errors import InvalidInput
from tests.atari.games import make

DEFAULTS = AtariSettings(
    game="ms_pacman",
    noop_max=0,
    frame_skip=4,
    height=84,
    width=84,
    episodic_life=True,
    fire_reset=False,
    clip_reward=True,
    repeat_action_probability=0.0,
    full_action_space=False,
    max_frames=108_000,
)


def test_settings_are_read():
    assert AtariVecEnv(make("MsPacman")).settings == DEFAULTS
    kwargs = {
        "noop_max": 7,
        "frame_skip": 2,
        "screen_size": 42,
        "terminal_on_life_loss": False,
        "clip_reward": False,
        "action_repeat_probability": 0.1,
    }
    env_kwargs = {"full_action_space": True, "max_num_frames_per_episode": 1000}
    native = AtariVecEnv(make("Breakout", wrapper_kwargs=kwargs, env_kwargs=env_kwargs))
    assert native.settings == AtariSettings("breakout", 7, 2, 42, 42, False, True, False, 0.1, True, 1000)
    assert native.action_space.n == 18
    assert native.reset().shape == (1, 42, 42, 1)


def play(seed: int, n_steps: int = 80, delay: float = 0.0) -> list[np.ndarray]:
    """Everything that three sticky games with no-op starts return."""
    wrapper_kwargs = {"noop_max": 30, "action_repeat_probability": 0.25}
    native = AtariVecEnv(make("Breakout", n_envs=3, seed=seed, wrapper_kwargs=wrapper_kwargs))
    rng = np.random.default_rng(0)
    stream = [native.reset()]
    for _ in range(n_steps):
        native.step_async(rng.integers(0, 4, 3))
        time.sleep(delay)
        frames, rewards, dones, infos = native.step_wait()
        stream += [frames, rewards, dones, np.array([info["episode_frame_number"] for info in infos])]
        stream += [info["terminal_observation"] for info in infos if "terminal_observation" in info]
    native.close()
    return stream


def test_same_seed_same_stream():
    """However the threads run: of the second run the learner is slow, of the third all share one core."""
    first = play(seed=1)
    second = play(seed=1, delay=0.001)
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    if cores:
        os.sched_setaffinity(0, {min(cores)})
    try:
        third = play(seed=1)
    finally:
        if cores:
            os.sched_setaffinity(0, cores)
    for other in (second, third):
        assert len(other) == len(first) > 320
        for array, twin in zip(first, other, strict=True):
            np.testing.assert_array_equal(array, twin)
    assert any(not np.array_equal(*pair) for pair in zip(first, play(seed=2), strict=False))


def test_seeds_are_used_once():
    native = AtariVecEnv(make("MsPacman", n_envs=3, seed=5, wrapper_kwargs={"noop_max": 30}))
    assert native._seeds == [5, 6, 7], "those that make_vec_env has set"
    starts = []
    for seed in (5, None, None, 5, 2**32 - 2):
        if seed is not None:
            native.seed(seed)
        native.reset()
        starts.append([info["episode_frame_number"] for info in native.reset_infos])
    assert starts[0] == starts[3]
    assert len({tuple(start) for start in starts}) == 4


def test_no_op_starts():
    native = AtariVecEnv(make("MsPacman", n_envs=3, wrapper_kwargs={"noop_max": 30}))
    starts = set()
    for _ in range(12):
        native.reset()
        starts |= {info["episode_frame_number"] for info in native.reset_infos}
    assert len(starts) > 10
    assert starts <= set(range(30))


def test_emulators_run_between_sending_and_receiving():
    native = AtariVecEnv(make("Breakout", n_envs=4))
    native.reset()
    since, mine_since = time.process_time(), time.thread_time()
    native.step_async(np.zeros(4, dtype=int))
    time.sleep(0.2)
    theirs = (time.process_time() - since) - (time.thread_time() - mine_since)
    # 16 frames take a millisecond and more
    assert theirs > 0.0003
    assert native.step_wait()[0].shape == (4, 84, 84, 1)


def test_reset_starts_new_games():
    """Also between sending and receiving."""
    native = AtariVecEnv(make("Breakout", n_envs=2))
    start = native.reset()
    for _ in range(40):
        native.step(np.array([2, 3]))
    native.step_async(np.array([2, 3]))
    np.testing.assert_array_equal(native.reset(), start)
    assert [info["episode_frame_number"] for info in native.reset_infos] == [8, 8]
    assert native.step(np.array([0, 0]))[3][0]["episode_frame_number"] == 12


def test_after_an_interruption():
    """Ctrl-C leaves some games with a step that nobody waits for."""
    native = AtariVecEnv(make("Breakout", n_envs=2))
    start = native.reset()
    native.step_async(np.array([2, 3]))
    native.games[0].receive()
    infos = native.step(np.array([0, 0]))[3]
    assert [info["episode_frame_number"] for info in infos] == [16, 16]
    native.step_async(np.array([2, 3]))
    native.games[0].receive()
    np.testing.assert_array_equal(native.reset(), start)
    native.step_async(np.array([2, 3]))
    native.games[0].receive()
    native.close()


def test_an_interrupted_step_that_ends_the_game():
    """Whoever steps on is in the next game, whose score is its own."""
    native = AtariVecEnv(make("Pong", env_kwargs={"max_num_frames_per_episode": 600}))
    native.reset()
    (game,) = native.games
    while not game.game_over:
        native.step_async(np.array([0]))
        game.receive()
    assert game.score < 0
    info = native.step(np.array([0]))[3][0]
    assert game.score == 0
    assert info["episode_frame_number"] < 20
    assert info["frame_number"] > 600


def test_contract(tmp_path):
    native = AtariVecEnv(make("Breakout", n_envs=3, monitor_dir=str(tmp_path)))
    native.reset()
    assert native.env_is_wrapped(Monitor) == [True] * 3
    assert native.env_is_wrapped(EpisodicLifeEnv, indices=[0, 2]) == [True] * 2
    assert native.env_is_wrapped(StickyActionEnv, indices=1) == [False]
    assert native.get_attr("lives") == [5, 5, 5]
    assert native.get_attr("spec", indices=0)[0].id == "BreakoutNoFrameskip-v4"
    assert native.env_method("get_action_meanings", indices=[1]) == [["NOOP", "FIRE", "RIGHT", "LEFT"]]
    native.set_attr("note", 7, indices=[1])
    assert native.get_attr("note", indices=1) == [7]
    assert not native.has_attr("note")
    assert native.has_attr("render_mode")
    assert native.render_mode is None
    writers = [game._results_writer for game in native.games]
    native.step_async(np.zeros(3, dtype=int))
    native.close()
    native.close()
    assert all(writer.file_handler.closed for writer in writers)


@pytest.mark.parametrize("actions", [[0], [0, 4], [-1, 0], [0.5, 0.0], [[0], [0]]])
def test_actions_that_the_game_does_not_have(actions):
    native = AtariVecEnv(make("Breakout", n_envs=2))
    native.reset()
    with pytest.raises(InvalidInput, match="actions must be 2 of Discrete"):
        native.step(np.array(actions))
    native.step(np.array([0, 3]))


UNRENDERED = {"env_kwargs": {"render_mode": None}}


class Another(gym.Wrapper):
    pass


@pytest.mark.parametrize(
    ("make_venv", "sentence"),
    [
        (lambda: make_vec_env("CartPole-v1", **UNRENDERED), "games of ale-py"),
        (lambda: make_vec_env("ALE/Breakout-v5", wrapper_class=AtariWrapper, **UNRENDERED), "frame skip of its own"),
        (lambda: make("Breakout", env_kwargs={"mode": 4}), "env_kwargs mode"),
        (lambda: make("Breakout", lambda env, noop_max: Another(AtariWrapper(env))), "no Another"),
        (lambda: make("Breakout", lambda env, noop_max: AtariWrapper(EpisodicLifeEnv(env))), "once each, in its order"),
        (lambda: make("Breakout", lambda env, noop_max: EpisodicLifeEnv(env)), "env_wrapper must name it"),
        (lambda: make("Breakout", monitor_kwargs={"info_keywords": ("lives",)}), "info_keywords"),
        (lambda: make_vec_env("CartPole-v1", vec_env_cls=SubprocVecEnv, **UNRENDERED), "SubprocVecEnv"),
        (lambda: make("Breakout", env_kwargs={"render_mode": "rgb_array"}), "rendered"),
        (
            lambda: make(
                "Breakout",
                wrapper_kwargs={"action_repeat_probability": 0.1},
                env_kwargs={"repeat_action_probability": 0.1},
            ),
            "repeat actions by one rule",
        ),
    ],
)
def test_what_native_environments_cannot_do(make_venv, sentence, capsys):
    """Training goes on with the Zoo's environments, and says why."""
    venv = make_venv()
    with training():
        assert native_when_training(venv) is venv
    assert sentence in (said := capsys.readouterr().out)
    assert said.count("\n") == 1
    venv.reset()
    venv.step(np.array([venv.action_space.sample() for _ in range(venv.num_envs)]))
    venv.close()


def test_different_games_are_not_taken_for_one(capsys):
    games = [lambda game=game: make(game, env_kwargs={"full_action_space": True}).envs[0] for game in ("Pong", "Qbert")]
    venv = DummyVecEnv(games)
    with training():
        assert native_when_training(venv) is venv
    assert "one game with one set of settings, and these differ" in capsys.readouterr().out
    venv.close()


def test_only_when_training():
    venv = make("Breakout")
    assert native_when_training(venv) is venv
    with training():
        assert isinstance(native_when_training(venv), AtariVecEnv)
    assert native_when_training(other := make("Breakout")) is other


def test_replay_memory_keeps_the_stream():
    """Lost lives, games and caps, through VecFrameStack: what SB3's buffer keeps."""
    env_kwargs = {"max_num_frames_per_episode": 600}
    native = VecTransposeImage(VecFrameStack(AtariVecEnv(make("Breakout", env_kwargs=env_kwargs)), 4))
    ours, theirs = (
        buffer_class(400, native.observation_space, native.action_space, "cpu", **kwargs)
        for buffer_class, kwargs in ((FrameReplayBuffer, {"n_stack": 4}), (ReplayBuffer, {}))
    )
    rng = np.random.default_rng(0)
    obs, n_dones, n_truncated = native.reset(), 0, 0
    for _ in range(400):
        action = rng.integers(0, 4, 1)
        next_obs, reward, done, infos = native.step(action)
        final_obs = infos[0]["terminal_observation"][None] if done[0] else next_obs
        for buffer in (ours, theirs):
            buffer.add(obs, final_obs, action, reward, done, infos)
        obs, n_dones = next_obs, n_dones + done[0]
        n_truncated += infos[0]["TimeLimit.truncated"]
    assert n_dones > 8
    assert n_truncated >= 1
    samples, their_samples = (buffer._get_samples(np.arange(400)) for buffer in (ours, theirs))
    for name in ("observations", "actions", "next_observations", "dones", "rewards"):
        np.testing.assert_array_equal(getattr(samples, name), getattr(their_samples, name))
