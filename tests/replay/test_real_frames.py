"""On a real game: refusals, sizes, and learning that is the same as with SB3's buffer, bit for bit."""

import gc
import sys
import warnings
from types import SimpleNamespace

import ale_py
import gymnasium as gym
import numpy as np
import psutil
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import QRDQN
from stable_baselines3 import DQN
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecTransposeImage

from dqn_ext import DDQN, FrameReplayBuffer
from dqn_ext.errors import InvalidInput
from dqn_ext.replay.buffer import choose_store
from dqn_ext.replay.frame_stores import CompressedStore
from tests.replay.streams import transitions

gym.register_envs(ale_py)


def pong(n_envs: int = 1, seed: int = 0) -> VecEnv:
    return VecTransposeImage(VecFrameStack(make_atari_env("PongNoFrameskip-v4", n_envs=n_envs, seed=seed), 4))


def add_pong(n: int, **kwargs) -> FrameReplayBuffer:
    """A replay memory of ``n`` transitions of random play, that is full."""
    env = pong()
    buffer = FrameReplayBuffer(n, env.observation_space, env.action_space, "cpu", **kwargs)
    obs = env.reset()
    for _ in range(n):
        action = np.array([env.action_space.sample()])
        next_obs, reward, done, infos = env.step(action)
        final_obs = infos[0]["terminal_observation"][None] if done[0] else next_obs
        buffer.add(obs, final_obs, action, reward, done, infos)
        obs = next_obs
    return buffer


def learn(model_class, buffer_class, n_envs, **kwargs):
    """The weights and the exploration after some learning."""
    model = model_class(
        "CnnPolicy",
        pong(n_envs),
        replay_buffer_class=buffer_class,
        buffer_size=60 * n_envs,
        learning_starts=40 * n_envs,
        train_freq=8,
        gradient_steps=2,
        batch_size=8,
        seed=0,
        device="cpu",
        **kwargs,
    )
    model.learn(100 * n_envs)
    return model


@pytest.mark.parametrize(
    ("model_class", "n_envs", "n_steps", "store"),
    [(DDQN, 2, 3, "raw"), (DDQN, 1, 1, "compressed"), (DQN, 2, 1, "raw"), (QRDQN, 1, 1, "raw")],
)
def test_learning_is_the_same(model_class, n_envs, n_steps, store):
    """Stock DQN and QR-DQN included; the ring wraps."""
    n_steps_kwargs = {"n_steps": n_steps} if n_steps > 1 else {}
    theirs = learn(model_class, NStepReplayBuffer if n_steps > 1 else ReplayBuffer, n_envs, **n_steps_kwargs)
    buffer_kwargs = {"store": store, **({"n_stack": 4} if model_class is DQN else {})}
    ours = learn(model_class, FrameReplayBuffer, n_envs, replay_buffer_kwargs=buffer_kwargs, **n_steps_kwargs)
    assert isinstance(ours.replay_buffer, FrameReplayBuffer)
    assert type(theirs.replay_buffer) is not FrameReplayBuffer
    assert ours._n_updates == theirs._n_updates > 10
    for (name, weight), other in zip(
        ours.policy.state_dict().items(), theirs.policy.state_dict().values(), strict=True
    ):
        assert th.equal(weight, other), name


def test_default_of_ddqn():
    model = DDQN(
        "CnnPolicy", pong(), buffer_size=50, n_steps=3, gamma=0.97, replay_buffer_kwargs={"store": "compressed"}
    )
    buffer = model.replay_buffer
    assert isinstance(buffer, FrameReplayBuffer)
    assert (buffer.n_stack, buffer.n_steps, buffer.gamma, buffer.store) == (4, 3, 0.97, "compressed")
    # Not a stack, not images
    unstacked = VecTransposeImage(make_atari_env("PongNoFrameskip-v4"))
    assert type(DDQN("CnnPolicy", unstacked, buffer_size=50).replay_buffer) is ReplayBuffer
    assert type(DDQN("MlpPolicy", "CartPole-v1", buffer_size=50).replay_buffer) is ReplayBuffer


@pytest.mark.parametrize("n_steps", [1, 3])
def test_ddqn_learns_with_priorities(n_steps):
    model = learn(DDQN, None, 2, n_steps=n_steps, replay_buffer_kwargs={"priority_exponent": 0.6})
    buffer = model.replay_buffer
    priorities = buffer._priorities.get(np.arange(120))
    assert len(np.unique(priorities)) > 30, "TD errors have become priorities"
    assert 0.9 < buffer.importance_exponent <= 1.0, "annealed"


def test_weights_scale_the_gradient(monkeypatch):
    """An update with importance weights w is the gradient of mean(w * huber)."""
    model = learn(DDQN, None, 1, replay_buffer_kwargs={"priority_exponent": 0.6})
    sample = model.replay_buffer.sample(8)
    sample = sample._replace(weights=th.linspace(0.1, 1, 8)[:, None])
    monkeypatch.setattr(model.replay_buffer, "sample", lambda *args, **kwargs: sample)
    q_values = model.q_net(sample.observations).gather(1, sample.actions)
    with th.no_grad():
        best = model.q_net(sample.next_observations).argmax(1, keepdim=True)
        next_q_values = model.q_net_target(sample.next_observations).gather(1, best)
        error = q_values - (sample.rewards + (1 - sample.dones) * 0.99 * next_q_values)
    # Huber's derivative is the error, clipped; the last bias adds to the Q-value of its action alone
    wanted = (sample.weights * error.clamp(-1, 1) * th.nn.functional.one_hot(sample.actions[:, 0], 6)).mean(0)

    model.train(1, 8)
    bias = model.q_net.q_net[0].bias  # whose gradient is too small to be clipped
    np.testing.assert_allclose(bias.grad, wanted.detach(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        model.replay_buffer._priorities.get(sample.indices),
        (error.abs().detach().numpy()[:, 0] + 1e-6) ** 0.6,
        rtol=1e-4,
    )


def test_save_and_load_of_a_model(tmp_path):
    model = learn(DDQN, None, 1)
    model.save_replay_buffer(tmp_path / "buffer")
    assert [path.name for path in tmp_path.iterdir()] == ["buffer.pkl"]
    model.save(tmp_path / "model")
    loaded = DDQN.load(tmp_path / "model", env=pong())
    loaded.load_replay_buffer(tmp_path / "buffer")
    assert loaded.replay_buffer.size() == model.replay_buffer.size() == 60
    loaded.learn(20, reset_num_timesteps=False)

    vectors = DDQN("MlpPolicy", "CartPole-v1", buffer_size=50)
    with pytest.raises(InvalidInput, match="holds stacked images, and the replay memory of these settings is a Replay"):
        vectors.load_replay_buffer(tmp_path / "buffer")
    (tmp_path / "buffer.pkl").write_bytes((tmp_path / "buffer.pkl").read_bytes()[:-2000] + bytes(2000))
    with pytest.raises(InvalidInput, match="no replay memory of dqn-ext, or it is damaged"):
        loaded.load_replay_buffer(tmp_path / "buffer")
    assert loaded.replay_buffer.size() == 60, "the old one is still there"


def test_stock_dqn_saves_and_loads(tmp_path):
    model = learn(DQN, FrameReplayBuffer, 1)
    model.save_replay_buffer(tmp_path / "buffer")
    size = model.replay_buffer.size()
    model.load_replay_buffer(tmp_path / "buffer")
    assert model.replay_buffer.size() == size
    model.learn(20, reset_num_timesteps=False)


# ---------------------------------------------------------------------- memory


def test_memory_of_a_batch_is_used_again_but_not_under_its_holder():
    buffer = add_pong(100)
    first = buffer.sample(8)
    kept = first.observations.clone()
    address = first.observations.data_ptr()
    second = buffer.sample(8)
    assert second.observations.data_ptr() != address
    assert th.equal(first.observations, kept), "who holds a batch keeps it"
    del first, second
    gc.collect()
    assert buffer.sample(8).observations.data_ptr() == address
    assert len(buffer._batches) == 2
    # A part of it, and what autograd holds, keeps it too
    part = buffer.sample(8).next_observations[3, 2]
    assert buffer.sample(8).next_observations[3, 2].data_ptr() != part.data_ptr()


def test_sizes():
    """Bytes a transition, of what the process holds; SB3 takes 56 KB."""
    raw, compressed = add_pong(1500), add_pong(1500, store="compressed")
    raw_bytes = raw._frames._frames.nbytes + sum(map(len, raw._frames._final_frames.values()))
    metadata = sum(
        a.nbytes for a in (raw.actions, raw.rewards, raw.dones, raw.timeouts, raw._n_history, raw._has_final)
    )
    assert (raw_bytes + metadata) / 1500 < 7300
    blocks = sum(map(sys.getsizeof, compressed._frames._blocks))
    assert (blocks + metadata) / 1500 < 400


# ---------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("kwargs", "sentence"),
    [
        ({"store": "zip"}, "store must be one of auto, raw, compressed, memmap, device, not 'zip'"),
        ({"n_stack": 3}, "n_stack must be a whole number, .* divides the observation's 4 channels, not 3"),
        ({"n_stack": 2.0}, "n_stack must be a whole number, .* divides the observation's 4 channels, not 2.0"),
        ({"n_steps": 0}, "n_steps must be a whole number of at least 1, not 0"),
        ({"n_steps": 1.5}, "n_steps must be a whole number of at least 1, not 1.5"),
        ({"n_steps": True}, "n_steps must be a whole number of at least 1, not True"),
        ({"gamma": 1.01}, r"gamma must lie in \[0, 1\], not be 1.01"),
        ({"gamma": "high"}, r"gamma must lie in \[0, 1\], not be 'high'"),
        ({"n_steps": 5, "buffer_size": 9}, r"buffer_size must be at least n_envs \* n_steps \(10\), not 9"),
        ({"priority_exponent": 1.5}, r"priority_exponent must lie in \[0, 1\], not be 1.5"),
        ({"importance_exponent": "a"}, r"importance_exponent must lie in \[0, 1\], not be 'a'"),
        ({"observation_space": spaces.Box(0, 1, (4,), np.float32)}, "keeps images of type uint8"),
        ({"observation_space": spaces.Box(0, 255, (4, 84, 84), np.float32)}, "keeps images of type uint8"),
    ],
)
def test_settings(kwargs, sentence):
    settings = {"buffer_size": 100, "observation_space": spaces.Box(0, 255, (4, 84, 84), np.uint8), "n_envs": 2}
    with pytest.raises(InvalidInput, match=sentence):
        FrameReplayBuffer(action_space=spaces.Discrete(3), **{**settings, **kwargs})


def test_settings_of_a_model():
    with pytest.raises(
        InvalidInput, match=r"'stor' is not a hyperparameter of the replay memory, FrameReplay.*'store'"
    ):
        DDQN("CnnPolicy", pong(), buffer_size=50, replay_buffer_kwargs={"stor": "raw"})
    with pytest.raises(InvalidInput, match="'store' is not a hyperparameter of the replay memory, ReplayBuffer"):
        DDQN("MlpPolicy", "CartPole-v1", buffer_size=50, replay_buffer_kwargs={"store": "raw"})
    with pytest.raises(InvalidInput, match="store must be one of"):
        DDQN("CnnPolicy", pong(), buffer_size=50, replay_buffer_kwargs={"store": "row"})


def test_more_than_the_machine_has(monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=100_000_000))
    space = spaces.Box(0, 255, (4, 84, 84), np.uint8)
    with pytest.warns(UserWarning, match=r"A full replay memory will take 0\.14 GB, and this machine has 0\.10 GB"):
        FrameReplayBuffer(20_000, space, spaces.Discrete(3), "cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FrameReplayBuffer(20_000, space, spaces.Discrete(3), "cpu", store="compressed")


def transition(obs: np.ndarray, next_obs: np.ndarray):
    return obs, next_obs, np.zeros(1, int), np.zeros(1), np.zeros(1, bool), [{}]


@pytest.mark.parametrize("n_channels", [3, 4])
@pytest.mark.parametrize("innermost", [False, True])
def test_an_observation_that_is_no_stack(n_channels, innermost):
    """A game in colour, whose channels are no frames, as it is or as ``VecTransposeImage`` turns it."""
    rng = np.random.default_rng(0)
    space = spaces.Box(0, 255, (n_channels, 20, 20), np.uint8)
    buffer = FrameReplayBuffer(10, space, spaces.Discrete(3), "cpu")
    if innermost:
        images = rng.integers(0, 256, (3, 1, 20, 20, n_channels)).astype(np.uint8).transpose(0, 1, 4, 2, 3)
    else:
        images = rng.integers(0, 256, (3, 1, n_channels, 20, 20)).astype(np.uint8)
    with pytest.raises(InvalidInput, match="have not moved on by one"):
        buffer.add(*transition(images[0], images[1]))
    assert buffer.size() == 0


def test_a_stream_that_stops_being_a_stack():
    buffer = add_pong(30)
    rng = np.random.default_rng(0)
    stacks = rng.integers(0, 256, (1, 5, 84, 84)).astype(np.uint8)
    before = transitions(buffer, np.arange(30), 0)
    # Neither the last observation again, nor a reset
    with pytest.raises(InvalidInput, match="does neither go on from the last one nor begin so"):
        buffer.add(*transition(stacks[:, :4], stacks[:, 1:]))
    after = transitions(buffer, np.arange(30), 0)
    for name in ("observations", "next_observations", "actions", "rewards", "dones"):
        assert th.equal(getattr(before, name), getattr(after, name)), "nothing was kept"


def test_frame_by_frame_padding_is_refused():
    """gymnasium's FrameStackObservation repeats the first frame after a reset."""
    rng = np.random.default_rng(0)
    space = spaces.Box(0, 255, (4, 20, 20), np.uint8)
    buffer = FrameReplayBuffer(50, space, spaces.Discrete(3), "cpu")
    frames = rng.integers(1, 256, (3, 20, 20)).astype(np.uint8)
    first = np.stack([frames[0]] * 4)[None]
    second = np.stack([frames[0]] * 3 + [frames[1]])[None]
    obs, next_obs, action, reward, _, infos = transition(first, second)
    buffer.add(obs, next_obs, action, reward, np.ones(1, bool), infos)
    sample = transitions(buffer, [0], 0)
    assert np.array_equal(sample.observations, first), "any stack may come first"
    with pytest.raises(InvalidInput, match="stacks that begin black after a reset"):
        buffer.add(obs, next_obs, action, reward, np.ones(1, bool), infos)


def test_the_store_of_the_device(monkeypatch):
    sizes = (8, 125_004, 84 * 84)
    assert choose_store("raw", th.device("cuda"), sizes) == "raw"
    assert choose_store("auto", th.device("cpu"), sizes) == "compressed"
    for free, store in ((16e9, "device"), (8e9, "compressed")):
        monkeypatch.setattr(th.cuda, "mem_get_info", lambda device, free=free: (free, 16e9))
        assert choose_store("auto", th.device("cuda"), sizes) == store
    # What PyTorch has kept of tensors that are gone: the memory before a checkpoint was loaded
    monkeypatch.setattr(th.cuda, "memory_reserved", lambda device: 9e9)
    monkeypatch.setattr(th.cuda, "memory_allocated", lambda device: 1e9)
    assert choose_store("auto", th.device("cuda"), sizes) == "device"
    model = DDQN("CnnPolicy", pong(), buffer_size=50, replay_buffer_kwargs={"store": "auto"}, device="cpu")
    assert type(model.replay_buffer._frames) is CompressedStore
