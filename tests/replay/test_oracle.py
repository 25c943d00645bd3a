"""The same stream into ours and into SB3's buffer: for the same indices every field agrees, always."""

import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from dqn_ext import FrameReplayBuffer
from tests.replay.invariants import check_invariants
from tests.replay.streams import RandomStream, assert_equal_samples, oracle

STORES = ["raw", "compressed", "memmap", "device"]


def ours(stream: RandomStream, buffer_size: int, n_steps: int = 1, **kwargs) -> FrameReplayBuffer:
    arguments = (buffer_size, stream.observation_space, stream.action_space, "cpu", stream.n_envs)
    return FrameReplayBuffer(*arguments, n_steps=n_steps, gamma=0.9, n_stack=stream.n_stack, **kwargs)


def all_indices(buffer: FrameReplayBuffer) -> tuple[np.ndarray, np.ndarray]:
    """Each position and environment that holds a transition."""
    return tuple(index.reshape(-1) for index in np.indices((buffer.size(), buffer.n_envs)))


def assert_equal_everywhere(buffer: FrameReplayBuffer, expected, monkeypatch) -> None:
    positions, envs = all_indices(buffer)
    with monkeypatch.context() as patch:
        # both draw the environments in the same way, and here all of them are wanted
        patch.setattr(np.random, "randint", lambda *args, **kwargs: envs)
        assert_equal_samples(buffer._get_samples(positions), expected._get_samples(positions))


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("n_steps", [1, 3, 5])
@pytest.mark.parametrize("n_envs", [1, 4, 8])
def test_random_operations(store, n_steps, n_envs, monkeypatch):
    """300 adds and samples in each of 36 settings, 10,800 in all; the ring wraps 8 times."""
    seed = n_steps * 100 + n_envs
    stream = RandomStream(seed, n_envs, interleaved=seed % 2 == 0)
    buffer, expected = ours(stream, 37 * n_envs, n_steps, store=store), oracle(stream, 37 * n_envs, n_steps)
    for operation in range(300):
        transition = stream.step()
        buffer.add(*transition)
        expected.add(*transition)
        check_invariants(buffer)
        batch_size = int(stream.rng.integers(1, 20))
        np.random.seed(operation)
        samples = buffer.sample(batch_size)
        np.random.seed(operation)
        assert_equal_samples(samples, expected.sample(batch_size))
        if operation % 50 == 0:
            assert_equal_everywhere(buffer, expected, monkeypatch)


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("n_stack", [1, 2, 4, 7, 9])
@pytest.mark.parametrize("n_channels", [1, 3])
@pytest.mark.parametrize("layout", ["interleaved", "planar", "channels last"])
def test_any_stack(store, n_stack, n_channels, layout, monkeypatch):
    channels_first = layout != "channels last"
    # SB3 tells channels from rows by their number, which must be the smallest
    stream = RandomStream(
        1, 2, (30, 32), n_stack, n_channels, interleaved=layout != "planar", channels_first=channels_first
    )
    buffer, expected = ours(stream, 40, 3, store=store), oracle(stream, 40, 3)
    for transition in stream.steps(50):
        buffer.add(*transition)
        expected.add(*transition)
    check_invariants(buffer)
    assert_equal_everywhere(buffer, expected, monkeypatch)


@pytest.mark.parametrize("end_probability", [0.0, 1.0])
@pytest.mark.parametrize("buffer_size", [3, 4, 5, 16, 17, 33])
@pytest.mark.parametrize("store", STORES)
def test_any_capacity(buffer_size, end_probability, store, monkeypatch):
    """Smaller than a stack, around the size of a compressed block; no episode ends, or each step ends one."""
    stream = RandomStream(buffer_size, 1, end_probability=end_probability)
    buffer, expected = ours(stream, buffer_size, 3, store=store), oracle(stream, buffer_size, 3)
    for transition in stream.steps(70):
        buffer.add(*transition)
        expected.add(*transition)
        check_invariants(buffer)
        assert_equal_everywhere(buffer, expected, monkeypatch)


def test_timeouts_may_be_taken_for_terminals(monkeypatch):
    stream = RandomStream(3, 2, end_probability=0.4)
    buffer = ours(stream, 60, handle_timeout_termination=False)
    expected = oracle(stream, 60, handle_timeout_termination=False)
    for transition in stream.steps(30):
        buffer.add(*transition)
        expected.add(*transition)
    assert_equal_everywhere(buffer, expected, monkeypatch)
    assert buffer.dones.sum() > buffer.timeouts.sum() == 0


@pytest.mark.parametrize("n_steps", [1, 3])
def test_vec_normalize(n_steps):
    stream = RandomStream(4, 2)
    buffer, expected = ours(stream, 60, n_steps), oracle(stream, 60, n_steps)
    for transition in stream.steps(40):
        buffer.add(*transition)
        expected.add(*transition)

    import gymnasium as gym

    class Images(gym.Env):
        observation_space, action_space = stream.observation_space, stream.action_space

    env = VecNormalize(DummyVecEnv([Images]), norm_obs=False, clip_reward=1.5)
    env.ret_rms.var = np.array(0.3)
    np.random.seed(0)
    samples = buffer.sample(30, env)
    np.random.seed(0)
    wanted = expected.sample(30, env)
    np.testing.assert_array_equal(samples.observations, wanted.observations)
    np.testing.assert_array_equal(samples.next_observations, wanted.next_observations)
    np.testing.assert_allclose(samples.rewards, wanted.rewards, rtol=1e-5, atol=1e-6)
