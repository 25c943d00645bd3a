"""DDQN: its update against arithmetic, and SB3's DQN as the oracle for all that should be equal."""

import io
import resource
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from stable_baselines3 import DQN, PPO, HerReplayBuffer
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.envs import FakeImageEnv, IdentityEnv, SimpleMultiObsEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.save_util import save_to_pkl
from stable_baselines3.common.vec_env import DummyVecEnv, VecExtractDictObs, VecFrameStack, VecNormalize
from stable_baselines3.dqn import policies
from torch import nn

from dqn_ext import DDQN, FrameReplayBuffer, learner
from dqn_ext.errors import InvalidInput
from dqn_ext.features import ImpalaCNN
from dqn_ext.policies import CnnPolicy
from tests.damage import damaged

SMALL = {"learning_starts": 50, "buffer_size": 500, "policy_kwargs": {"net_arch": [16]}, "device": "cpu"}


class Chain(gym.Env):
    """Five states in a row, one step each; a reward of 1, 2, 4, 8, 16. Ends by termination or by truncation."""

    observation_space = spaces.Box(0, 5, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, truncate: bool = False) -> None:
        self.truncate = truncate

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        reward = float(2**self.position)
        self.position += 1
        end = self.position == 5
        observation = np.full(1, self.position, np.float32)
        return observation, reward, end and not self.truncate, end and self.truncate, {}


def set_q_values(q_net: nn.Module, q_values: list[float], slope: float = 0.0) -> None:
    """A linear Q-network: ``Q(s, a) = q_values[a] + slope * s``."""
    (linear,) = [layer for layer in q_net.modules() if isinstance(layer, nn.Linear)]
    with th.no_grad():
        linear.weight.fill_(slope)
        linear.bias.copy_(th.tensor(q_values))


class StopsAt(BaseCallback):
    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def _on_step(self) -> bool:
        return self.num_timesteps < self.step


def collect(model: DDQN, n_steps: int) -> None:
    model.learning_starts = 10**9
    model.learn(n_steps)


@pytest.mark.parametrize("truncate", [False, True])
def test_targets_of_a_chain_by_hand(truncate):
    """Terminal states do not bootstrap, timeouts do; online selects (action 0), target values (70 + 10 s')."""
    model = DDQN("MlpPolicy", Chain(truncate), gamma=0.5, policy_kwargs={"net_arch": []}, buffer_size=100, device="cpu")
    collect(model, 5)
    set_q_values(model.q_net, [1.0, -1.0])
    set_q_values(model.q_net_target, [70.0, 99.0], slope=10.0)
    replay_data = model.replay_buffer._get_samples(np.arange(5))
    targets = model._target_q_values(replay_data).detach().numpy()[:, 0]
    # r + 0.5 * (70 + 10 s')
    last = 16 + 0.5 * 120 if truncate else 16
    np.testing.assert_allclose(targets, [1 + 40, 2 + 45, 4 + 50, 8 + 55, last])

    model.double_q = False  # DQN's target takes the decoy
    targets = model._target_q_values(replay_data).detach().numpy()[:, 0]
    last = 16 + 0.5 * 149 if truncate else 16
    np.testing.assert_allclose(targets, [1 + 54.5, 2 + 59.5, 4 + 64.5, 8 + 69.5, last])


@pytest.mark.parametrize("double_q", [False, True])
@pytest.mark.parametrize("sign", [-1, 1])
def test_targets_are_clipped_to_returns(double_q, sign):
    settings = {"gamma": 0.5, "policy_kwargs": {"net_arch": []}, "buffer_size": 100, "device": "cpu"}
    model = DDQN("MlpPolicy", Chain(), double_q=double_q, reward_bound=15, **settings)
    collect(model, 5)
    for q_net in (model.q_net, model.q_net_target):
        set_q_values(q_net, [sign * 46.0, sign * 46.0], slope=sign * 8.0)
    targets = model._target_q_values(model.replay_buffer._get_samples(np.arange(5))).detach().numpy()[:, 0]
    # r + 0.5 * sign * (46 + 8 s'), clipped to 15 / (1 - 0.5); the last one is terminal
    expected = [1 + 27, 30, 30, 30, 16] if sign > 0 else [1 - 27, 2 - 31, -30, -30, 16]
    np.testing.assert_allclose(targets, expected)


@pytest.mark.parametrize("truncate", [False, True])
def test_n_step_targets_of_two_environments_by_hand(truncate):
    env = DummyVecEnv([lambda: Chain(truncate)] * 2)
    model = DDQN("MlpPolicy", env, gamma=0.5, n_steps=3, policy_kwargs={"net_arch": []}, buffer_size=100, device="cpu")
    collect(model, 20)  # two episodes of each environment
    set_q_values(model.q_net, [1.0, -1.0])
    set_q_values(model.q_net_target, [70.0, 99.0], slope=10.0)
    replay_data = model.replay_buffer._get_samples(np.arange(5))
    targets = model._target_q_values(replay_data).detach().numpy()[:, 0]
    # state 5 is terminal, or the end of a truncated episode with value 70 + 50
    end = 120.0 if truncate else 0.0
    expected = [
        1 + 0.5 * 2 + 0.25 * 4 + 0.125 * (70 + 30),  # from 0 to 3
        2 + 0.5 * 4 + 0.25 * 8 + 0.125 * (70 + 40),  # from 1 to 4
        4 + 0.5 * 8 + 0.25 * 16 + 0.125 * end,  # from 2 to 5
        8 + 0.5 * 16 + 0.25 * end,  # two steps are left
        16 + 0.5 * end,
    ]
    np.testing.assert_allclose(targets, expected)


def test_train_calls_the_double_target():
    """One update of a linear network, gradient and all, by hand: the override is live."""
    model = DDQN(
        "MlpPolicy",
        Chain(),
        gamma=0.5,
        learning_rate=0.1,
        policy_kwargs={"net_arch": [], "optimizer_class": th.optim.SGD},
        buffer_size=100,
        device="cpu",
    )
    model.set_logger(Logger(None, []))
    model.replay_buffer.add(np.zeros((1, 1)), np.ones((1, 1)), np.array([[0]]), np.ones(1), np.zeros(1), [{}])
    set_q_values(model.q_net, [41.0, -1.0])
    set_q_values(model.q_net_target, [70.0, 99.0], slope=10.0)
    model.train(gradient_steps=1, batch_size=4)
    # y = 1 + 0.5 * 80 = 41 = Q(s, a): nothing to learn. DQN's y = 1 + 0.5 * 109 would move the bias.
    assert model.logger.name_to_value["train/td_error"] == pytest.approx(0)
    linear = model.q_net.q_net[0]
    assert linear.bias.tolist() == [41.0, -1.0]

    set_q_values(model.q_net, [38.0, -1.0])
    model.train(gradient_steps=1, batch_size=4)
    # Huber: an error of 3 has gradient -1 towards the target
    assert linear.bias.tolist() == pytest.approx([38.1, -1.0])
    logged = model.logger.name_to_value
    assert logged["train/td_error"] == pytest.approx(3)
    assert logged["train/loss"] == pytest.approx(2.5)
    assert logged["train/q_value_mean"] == pytest.approx(38)
    assert logged["train/grad_norm"] == pytest.approx(1)


@pytest.mark.parametrize(("n_steps", "normalize"), [(1, False), (3, False), (3, True)])
def test_without_double_q_it_is_dqn_to_the_bit(n_steps, normalize):
    def weights(algorithm, **kwargs):
        env = make_vec_env("CartPole-v1")
        env = VecNormalize(env) if normalize else env
        model = algorithm("MlpPolicy", env, seed=3, n_steps=n_steps, train_freq=4, **SMALL, **kwargs)
        return model.learn(600).policy.state_dict()

    dqn, ablation, ddqn = weights(DQN), weights(DDQN, double_q=False), weights(DDQN)
    assert all(th.equal(dqn[name], ablation[name]) for name in dqn)
    assert not all(th.equal(dqn[name], ddqn[name]) for name in dqn)


def test_same_seed_same_run():
    runs = [DDQN("MlpPolicy", "CartPole-v1", seed=1, **SMALL).learn(400).policy.state_dict() for _ in range(2)]
    assert all(th.equal(runs[0][name], runs[1][name]) for name in runs[0])


class NoisyExtractor(nn.Sequential):
    """BatchNorm and dropout, the two layers that another forward pass could disturb."""

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(nn.Linear(observation_space.shape[0], 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
        self.features_dim = 8


def test_selecting_leaves_batch_norm_and_dropout_alone():
    def run(double_q):
        th.manual_seed(0)
        np.random.seed(0)
        model = DDQN(
            "MlpPolicy", "CartPole-v1", double_q=double_q, seed=0, learning_rate=1e-12, train_freq=4, device="cpu",
            buffer_size=500, learning_starts=50, policy_kwargs={"features_extractor_class": NoisyExtractor},
        )  # fmt: skip
        model.learn(200)
        return model, th.rand(1).item()

    (double, double_draw), (single, single_draw) = run(True), run(False)
    # With hardly any learning both see the same batches: equal statistics, and as much noise drawn by dropout
    for name, statistic in double.q_net.named_buffers():
        th.testing.assert_close(statistic, dict(single.q_net.named_buffers())[name])
    assert double.q_net.features_extractor[1].num_batches_tracked > 0
    assert double_draw == single_draw
    assert double.q_net.training


@pytest.mark.parametrize(
    ("policy", "env"),
    [
        ("MlpPolicy", lambda: gym.make("CartPole-v1")),
        ("CnnPolicy", lambda: FakeImageEnv(40, 40, n_channels=1, discrete=True)),
        ("MultiInputPolicy", lambda: SimpleMultiObsEnv(random_start=False)),
    ],
)
@pytest.mark.parametrize("n_envs", [1, 3])
def test_policies_and_files(policy, env, n_envs, tmp_path):
    kwargs = {"buffer_size": 200, "learning_starts": 20, "policy_kwargs": {"net_arch": [8]}, "device": "cpu"}
    if policy == "CnnPolicy":
        kwargs["policy_kwargs"] = {"features_extractor_kwargs": {"features_dim": 16}}
    model = DDQN(policy, DummyVecEnv([env] * n_envs), seed=0, **kwargs).learn(60)
    observation = model.get_env().reset()
    action, _ = model.predict(observation, deterministic=True)
    assert action.shape == (n_envs,)

    model.save(tmp_path / "agent.zip")
    loaded = DDQN.load(tmp_path / "agent.zip", env=DummyVecEnv([env] * n_envs), device="cpu")
    assert np.array_equal(loaded.predict(observation, deterministic=True)[0], action)
    assert all(th.equal(a, b) for a, b in zip(loaded.policy.parameters(), model.policy.parameters(), strict=True))
    loaded.learn(24, reset_num_timesteps=False)
    assert loaded.num_timesteps == 84

    other = DDQN(policy, DummyVecEnv([env] * n_envs), **kwargs)
    other.set_parameters(tmp_path / "agent.zip", exact_match=True)
    assert np.array_equal(other.predict(observation, deterministic=True)[0], action)


def test_hyperparameters_survive_a_reload(tmp_path):
    model = DDQN("MlpPolicy", "CartPole-v1", n_steps=3, double_q=False, seed=0, **SMALL).learn(100)
    model.save(tmp_path / "agent.zip")
    loaded = DDQN.load(tmp_path / "agent.zip")
    for name in ("n_steps", "double_q", "replay_buffer_class", "replay_buffer_kwargs", "buffer_size", "gamma"):
        assert getattr(loaded, name) == getattr(model, name), name
    assert loaded.replay_buffer_class is None


@pytest.mark.parametrize("kind", [str, Path])
def test_an_agent_that_cannot_be_written_leaves_the_one_before(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = DDQN("MlpPolicy", "CartPole-v1", device="cpu")
    model.save(kind("new/agent"))
    before = (tmp_path / "new/agent.zip").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # as a full disk does
    try:
        with pytest.raises(OSError, match="File too large"):
            model.save(kind("new/agent.zip"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "new/agent.zip").read_bytes() == before
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["agent.zip"]


def test_replay_memory_is_allocated_when_needed(tmp_path):
    model = DDQN("MlpPolicy", "CartPole-v1", buffer_size=1000, device="cpu")
    assert model._replay_buffer is None
    model.save(tmp_path / "agent.zip")
    # A real reservation of this size would fail
    loaded = DDQN.load(tmp_path / "agent.zip", buffer_size=10**13)
    loaded.predict(np.zeros(4, np.float32))
    assert loaded._replay_buffer is None

    model.learn(12)
    assert model._replay_buffer.size() == 12
    model.save_replay_buffer(tmp_path / "memory.pkl")
    again = DDQN.load(tmp_path / "agent.zip", env=make_vec_env("CartPole-v1"))
    again.load_replay_buffer(tmp_path / "memory.pkl")
    assert again.replay_buffer.size() == 12


def test_a_pickled_replay_memory_takes_the_settings(tmp_path):
    """SB3 takes those that it was saved with, whatever the agent's are."""
    three_steps = DDQN("MlpPolicy", "CartPole-v1", n_steps=3, learning_starts=10, device="cpu").learn(40)
    three_steps.save_replay_buffer(tmp_path / "pickled")
    two_steps = DDQN("MlpPolicy", "CartPole-v1", n_steps=2, gamma=0.5, device="cpu")
    two_steps.load_replay_buffer(tmp_path / "pickled")
    loaded = two_steps.replay_buffer
    assert isinstance(loaded, NStepReplayBuffer)
    assert (loaded.n_steps, loaded.gamma, loaded.size()) == (2, 0.5, 40)
    assert set(loaded.sample(64).discounts.unique().tolist()) <= {0.5, 0.25}
    one_step = DDQN("MlpPolicy", "CartPole-v1", device="cpu")
    memory = one_step.replay_buffer
    with pytest.raises(InvalidInput, match=r"holds a NStepReplayBuffer of 1 environments, and .* a ReplayBuffer of 1"):
        one_step.load_replay_buffer(tmp_path / "pickled")
    assert one_step.replay_buffer is memory
    with pytest.raises(InvalidInput, match=r"of 1 environments, and these settings need a NStepReplayBuffer of 2\."):
        DDQN("MlpPolicy", make_vec_env("CartPole-v1", 2), n_steps=3, device="cpu").load_replay_buffer(
            tmp_path / "pickled"
        )


def test_a_pickled_replay_memory_that_does_not_fit(tmp_path):
    """What the agent has it keeps."""
    acrobot = DDQN("MlpPolicy", "Acrobot-v1", learning_starts=10, device="cpu").learn(20)
    acrobot.save_replay_buffer(tmp_path / "acrobot")
    save_to_pkl(tmp_path / "dict", {"observations": []})
    (tmp_path / "cut.pkl").write_bytes((tmp_path / "acrobot.pkl").read_bytes()[:100])
    model = DDQN("MlpPolicy", "CartPole-v1", device="cpu")
    memory = model.replay_buffer
    for name, sentence in [
        ("acrobot", r"acrobot.pkl holds transitions whose observation_space is Box\(.*, and this agent's is Box\("),
        ("dict", r"dict.pkl is not a replay memory that can be read: The replay buffer must inherit"),
        ("cut", r"cut.pkl is not a replay memory that can be read: "),
    ]:
        with pytest.raises(InvalidInput, match=sentence):
            model.load_replay_buffer(tmp_path / name)
        assert model.replay_buffer is memory


def test_replay_buffer_classes():
    def buffer_of(**kwargs):
        return DDQN("MlpPolicy", "CartPole-v1", **{**SMALL, **kwargs}).replay_buffer

    assert type(buffer_of()) is ReplayBuffer
    n_step_buffer = buffer_of(n_steps=3, gamma=0.9)
    assert (type(n_step_buffer), n_step_buffer.n_steps, n_step_buffer.gamma) == (NStepReplayBuffer, 3, 0.9)
    assert buffer_of(replay_buffer_class=NStepReplayBuffer, n_steps=2).n_steps == 2
    with pytest.raises(InvalidInput, match="n_steps must be 1 with ReplayBuffer"):
        buffer_of(replay_buffer_class=ReplayBuffer, n_steps=3)
    with pytest.raises(InvalidInput, match="n_steps must be 1 with DictReplayBuffer"):
        DDQN("MultiInputPolicy", SimpleMultiObsEnv(), n_steps=3, buffer_size=100)


def test_what_sb3s_buffers_refuse_is_refused_at_once():
    def build(policy="MlpPolicy", env="CartPole-v1", **kwargs):
        DDQN(policy, env, **{**SMALL, **kwargs})

    with pytest.raises(InvalidInput, match="'foo' is not a hyperparameter of the replay memory, ReplayBuffer"):
        build(replay_buffer_class=ReplayBuffer, replay_buffer_kwargs={"foo": 1})
    with pytest.raises(InvalidInput, match="optimize_memory_usage needs replay_buffer_kwargs"):
        build(optimize_memory_usage=True)
    build(optimize_memory_usage=True, replay_buffer_kwargs={"handle_timeout_termination": False})
    with pytest.raises(InvalidInput, match="optimize_memory_usage must be False with DictReplayBuffer"):
        build("MultiInputPolicy", SimpleMultiObsEnv(), optimize_memory_usage=True)
    with pytest.raises(InvalidInput, match="optimize_memory_usage must be False with NStepReplayBuffer"):
        build(n_steps=3, optimize_memory_usage=True)
    with pytest.raises(InvalidInput, match="train_freq must be in steps with several environments"):
        build(env=make_vec_env("CartPole-v1", 2), train_freq=(1, "episode"))
    with pytest.raises(InvalidInput, match="must begin with 0, not with 2"):
        build(env=IdentityEnv(space=spaces.Discrete(4, start=2)))
    stacked = VecFrameStack(VecNormalize(make_vec_env("CartPole-v1"), norm_obs=False), 4)
    with pytest.raises(InvalidInput, match="VecNormalize must be around VecFrameStack"):
        build(env=stacked)
    with pytest.raises(InvalidInput, match="'duelling' is not a hyperparameter of MlpPolicy; did you mean 'dueling'"):
        build(policy_kwargs={"duelling": True})


@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize("overlap", [False, True])
def test_learning_goes_on_after_a_callback_has_stopped_it(n_envs, overlap):
    """Of stacked frames, whose stream the step that was not stored has broken."""

    env = VecFrameStack(DummyVecEnv([lambda: FakeImageEnv(40, 40, n_channels=1, discrete=True)] * n_envs), 4)
    settings = {"buffer_size": 200, "learning_starts": 20, "train_freq": 1, "device": "cpu"}
    model = DDQN("CnnPolicy", env, overlap=overlap, **settings)
    assert model.learn(100, StopsAt(30)).num_timesteps == 30
    assert model.learn(20, reset_num_timesteps=False).num_timesteps == 50
    # Somebody else has stepped the environments in between
    evaluate_policy(model, model.get_env(), 2, warn=False)
    assert model.learn(20, reset_num_timesteps=False).num_timesteps == 70
    # Nobody has: the episode goes on
    last_obs = model._last_obs
    model._setup_learn(10, None, reset_num_timesteps=False)
    assert model._last_obs is last_obs


class Numbered(gym.Env):
    """Its states are numbers that are never seen again: 100 for each episode, and 1 for each step in it."""

    observation_space = spaces.Box(0, 1e6, (1,), np.float32)
    action_space = spaces.Discrete(2)
    state = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = self.state // 100 * 100 + 100
        return np.full(1, self.state, np.float32), {}

    def step(self, action):
        self.state += 1
        return np.full(1, self.state, np.float32), 1.0, False, False, {}


def assert_returns_break_off_after(model: DDQN, last: int) -> None:
    """Returns of three steps, of states that are numbered, around the place where others begin."""
    samples = model.replay_buffer._get_samples(np.arange(last - 2, last + 3))
    steps = (samples.next_observations - samples.observations)[:, -1]
    assert steps.flatten().tolist() == [3, 2, 1, 3, 3]
    assert samples.rewards.flatten().tolist() == pytest.approx([2.9701, 1.99, 1, 2.9701, 2.9701])
    assert samples.discounts.flatten().tolist() == pytest.approx([0.99**3, 0.99**2, 0.99, 0.99**3, 0.99**3])
    assert not samples.dones.any()  # they bootstrap


@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize("has_one_array", [False, True])
@pytest.mark.parametrize("reset_num_timesteps", [False, True])
def test_returns_of_several_steps_end_where_games_start_anew(n_envs, has_one_array, reset_num_timesteps):
    """In SB3's buffer, at a second ``learn()`` after a callback's stop, or with a count that begins again; also of
    environments whose observations stand in one and the same array.
    """
    env: Any = DummyVecEnv([Numbered] * n_envs)
    if has_one_array:
        env = VecFrameStack(env, 2, channels_order="first")
    model = DDQN("MlpPolicy", env, n_steps=3, **SMALL)
    model.learn(20, StopsAt(20) if not reset_num_timesteps else None)
    last = model.replay_buffer.pos - 1
    model.learn(20, reset_num_timesteps=reset_num_timesteps)
    assert_returns_break_off_after(model, last)


def test_a_memory_that_knows_no_timeouts_ends_in_terminal_states_for_once():
    """Until the ring comes round: SB3 would never write over a timeout there."""
    model = DDQN(
        "MlpPolicy",
        Numbered(),
        n_steps=3,
        replay_buffer_kwargs={"handle_timeout_termination": False},
        **{**SMALL, "buffer_size": 40},
    )
    model.learn(20, StopsAt(20))
    last = model.replay_buffer.pos - 1
    model.learn(18, reset_num_timesteps=False)
    samples = model.replay_buffer._get_samples(np.arange(last - 2, last + 3))
    assert (samples.next_observations - samples.observations)[:, -1].tolist() == [3, 2, 1, 3, 3]
    assert samples.dones.flatten().tolist() == [1, 1, 1, 0, 0]
    model.learn(40, reset_num_timesteps=False)  # over all of it
    assert not model.replay_buffer.timeouts.any()
    assert not model.replay_buffer.dones.any()


def test_returns_of_several_steps_end_where_a_loaded_memory_ends(tmp_path):
    model = DDQN("MlpPolicy", Numbered(), n_steps=3, **SMALL).learn(20)
    model.save_replay_buffer(tmp_path / "memory")
    model.learn(7)
    model.load_replay_buffer(tmp_path / "memory")
    model.learn(20, reset_num_timesteps=False)
    assert_returns_break_off_after(model, 19)


def test_a_rate_that_decays_does_not_pass_0():
    """Where the last episode ends after the last step."""
    model = DDQN(
        "MlpPolicy",
        TimeLimit(Numbered(), 40),
        learning_rate=lambda progress: 0.01 * progress,
        train_freq=(1, "episode"),
        **{**SMALL, "learning_starts": 0},
    )
    rates = []
    update_learning_rate = model._update_learning_rate
    model._update_learning_rate = lambda optimizer: (
        update_learning_rate(optimizer),
        rates.append(optimizer.param_groups[0]["lr"]),
    )
    assert model.learn(100).num_timesteps == 120
    assert rates == pytest.approx([0.006, 0.002, 0])


class Episodes(gym.Env):
    """Its state: the number of the episode, and of the step in it. As a goal's environment, if asked."""

    action_space = spaces.Discrete(2)
    episode = 0

    def __init__(self, has_goals: bool) -> None:
        self.has_goals, space = has_goals, spaces.Box(-1e6, 1e6, (2,), np.float32)
        names = ("observation", "achieved_goal", "desired_goal")
        self.observation_space = spaces.Dict(dict.fromkeys(names, space)) if has_goals else space

    def observation(self):
        state = np.array([self.episode, self.t], np.float32)
        if not self.has_goals:
            return state
        return {"observation": state, "achieved_goal": state, "desired_goal": 0 * state}

    def compute_reward(self, achieved_goal, desired_goal, info):
        return np.zeros(len(achieved_goal))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.episode = 0, self.episode + 1
        return self.observation(), {}

    def step(self, action):
        self.t += 1
        return self.observation(), 0.0, self.t == 20, False, {}


@pytest.mark.parametrize("reset_num_timesteps", [False, True])
def test_goals_are_of_ones_own_episode_where_games_start_anew(reset_num_timesteps):
    settings = {"buffer_size": 400, "learning_starts": 1000, "device": "cpu"}
    model = DDQN("MultiInputPolicy", Episodes(has_goals=True), replay_buffer_class=HerReplayBuffer, **settings)
    model.learn(100, StopsAt(50))
    model.learn(60, reset_num_timesteps=reset_num_timesteps)
    observations = model.replay_buffer.sample(2000).observations
    relabelled = observations["desired_goal"].any(dim=1)
    episodes, goals = observations["observation"][relabelled, 0], observations["desired_goal"][relabelled, 0]
    assert len(goals) > 1000
    assert episodes.equal(goals)


@pytest.mark.filterwarnings("ignore:The last trajectory")
@pytest.mark.parametrize("reset_num_timesteps", [False, True])
def test_transitions_end_where_games_start_anew(reset_num_timesteps):
    """With SB3's optimize_memory_usage the next observation is the next transition's."""
    settings = {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}}
    model = DDQN("MlpPolicy", Episodes(has_goals=False), buffer_size=200, device="cpu", **settings)
    model.learn(100, StopsAt(30))
    model.learn(30, reset_num_timesteps=reset_num_timesteps)
    samples = model.replay_buffer._get_samples(np.arange(model.replay_buffer.size() - 1))
    moves = samples.next_observations - samples.observations
    goes_on = samples.dones[:, 0] == 0
    assert (moves[goes_on] == th.tensor([0, 1])).all()
    assert goes_on.tolist().count(False) == 3  # 20 steps, 10 that broke off, and 20 again


@pytest.mark.parametrize("shape", [(10, 10, 4), (12, 12, 4)])
def test_stacks_of_small_images_are_kept_by_sb3s_memory(shape):
    """As MinAtar's: of 10 rows and 16 channels SB3 takes the rows for channels."""
    env = VecFrameStack(DummyVecEnv([lambda: FakeImageEnv(2, *shape, discrete=True, channel_first=False)]), 4)
    assert env.observation_space.shape == (*shape[:2], 16)
    model = DDQN("MlpPolicy", env, **SMALL).learn(100)
    assert type(model.replay_buffer) is ReplayBuffer


class InParts(gym.ObservationWrapper):
    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.observation_space = spaces.Dict({"image": env.observation_space, "other": spaces.Box(0, 1, (2,))})

    def observation(self, observation):
        return {"image": observation, "other": np.zeros(2, np.float32)}


def test_a_stack_within_observations_of_several_parts():
    images = DummyVecEnv([lambda: InParts(FakeImageEnv(40, 40, n_channels=1, discrete=True, channel_first=False))])
    env = VecExtractDictObs(VecFrameStack(images, 4), "image")
    model = DDQN("CnnPolicy", env, buffer_size=200, learning_starts=20, device="cpu").learn(50)
    assert model.learn(50, reset_num_timesteps=False).num_timesteps >= 100
    assert type(model.replay_buffer) is FrameReplayBuffer


def test_memories_smaller_than_one_transition_of_each_environment():
    env = VecFrameStack(DummyVecEnv([lambda: FakeImageEnv(40, 40, n_channels=1, discrete=True)] * 8), 4)
    model = DDQN("CnnPolicy", env, buffer_size=4, batch_size=4, learning_starts=8, train_freq=1, device="cpu").learn(32)
    assert model.replay_buffer.buffer_size == 1  # as SB3's


def test_what_load_is_given_is_checked_at_once(tmp_path):
    DDQN("MlpPolicy", "CartPole-v1", **SMALL).save(tmp_path / "agent")
    for settings, sentence in (
        ({"precision": "float16"}, "precision must be one of"),
        ({"compile": "yes"}, "compile must be"),
        ({"replay_buffer_kwargs": {"stor": 1}}, "'stor' is not a hyperparameter of the replay memory"),
    ):
        with pytest.raises(InvalidInput, match=sentence):
            DDQN.load(tmp_path / "agent", env=gym.make("CartPole-v1"), **settings)


def test_train_freq_as_yaml_has_it(tmp_path):
    DDQN("MlpPolicy", "CartPole-v1", train_freq=[1, "episode"], **SMALL).save(tmp_path / "agent")
    model = DDQN.load(tmp_path / "agent", env=gym.make("CartPole-v1"), train_freq=[2, "episode"])
    assert (model.train_freq.frequency, model.train_freq.unit.value) == (2, "episode")


def test_a_tuple_is_no_observation():
    model = DDQN("MlpPolicy", "CartPole-v1", **SMALL)
    with pytest.raises(ValueError, match="passed a tuple to the predict"):
        model.predict(gym.make("CartPole-v1").reset())


def test_each_environment_tosses_its_own_coin():
    model = DDQN("MlpPolicy", make_vec_env("CartPole-v1", n_envs=4), seed=0, **SMALL)
    model.exploration_rate = 0.5
    observation = np.zeros((1000, 4), np.float32)  # one state, so that only exploration makes actions differ
    greedy = model.predict(observation, deterministic=True)[0][0]
    actions, _ = model.predict(observation)
    # half explore, half of these by the other of two actions; the standard deviation is 14
    assert 180 < np.sum(actions != greedy) < 320
    model.exploration_rate = 0.0
    assert np.all(model.predict(observation)[0] == greedy)
    model.exploration_rate = 1.0
    assert 400 < np.sum(model.predict(observation)[0] != greedy) < 600


def test_log_tells_updates_per_transition():
    env = make_vec_env("CartPole-v1", n_envs=2)
    model = DDQN("MlpPolicy", env, train_freq=4, gradient_steps=2, **SMALL)
    model.set_logger(Logger(None, []))
    model.learn(200)
    assert model.logger.name_to_value["train/updates_per_transition"] == pytest.approx(2 / (4 * 2))
    # Learning again starts the count again; the first update then is of those since learning_starts
    model.set_logger(Logger(None, []))
    model.learn(56)
    assert model.logger.name_to_value["train/updates_per_transition"] == pytest.approx(2 / (56 - 50))


@pytest.mark.parametrize(
    ("train_freq", "gradient_steps", "printed"),
    [(4, 1, "0.125 updates per transition"), (1, -1, "1 updates per transition"), ((1, "episode"), 1, "")],
)
def test_updates_per_transition_are_said_at_the_start(train_freq, gradient_steps, printed, capsys):
    env = make_vec_env("CartPole-v1", n_envs=1 if isinstance(train_freq, tuple) else 2)
    model = DDQN("MlpPolicy", env, train_freq=train_freq, gradient_steps=gradient_steps, verbose=1, device="cpu")
    model.learn(10)
    output = capsys.readouterr().out
    assert printed in output
    assert ("updates per transition" in output) == bool(printed)


def test_impala_extractor_by_name(tmp_path):
    env = FakeImageEnv(screen_height=84, screen_width=84, n_channels=4, discrete=True, channel_first=True)
    policy_kwargs = {"features_extractor_class": "impala", "features_extractor_kwargs": {"features_dim": 32}}
    model = DDQN("CnnPolicy", env, buffer_size=50, learning_starts=10, policy_kwargs=policy_kwargs, device="cpu")
    assert isinstance(model.q_net.features_extractor, ImpalaCNN)
    model.learn(20)
    model.save(tmp_path / "agent.zip")
    assert isinstance(DDQN.load(tmp_path / "agent.zip").q_net.features_extractor, ImpalaCNN)
    with pytest.raises(InvalidInput, match=r"one of \['impala', 'nature'\], not 'alexnet'"):
        DDQN("CnnPolicy", env, buffer_size=50, policy_kwargs={"features_extractor_class": "alexnet"})


@pytest.mark.parametrize("width", [1, 2])
def test_impala_extractor_is_the_papers(width):
    def conv(c_in, c_out):
        return 9 * c_in * c_out + c_out

    expected, c_in = 0, 4
    for channels in (16 * width, 32 * width, 32 * width):
        expected += conv(c_in, channels) + 4 * conv(channels, channels)
        c_in = channels
    expected += c_in * 11 * 11 * 256 + 256  # 84 -> 42 -> 21 -> 11
    extractor = ImpalaCNN(spaces.Box(0, 255, (4, 84, 84), np.uint8), width=width)
    assert sum(parameter.numel() for parameter in extractor.parameters()) == expected
    assert extractor(th.zeros(3, 4, 84, 84)).shape == (3, 256)


def test_files_that_are_no_model(tmp_path):
    good = tmp_path / "agent.zip"
    DDQN("MlpPolicy", "CartPole-v1", **SMALL).save(good)
    content = good.read_bytes()

    bad = tmp_path / "bad.zip"
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 0xFF
    for broken in (
        b"",
        content[:100],
        content[: len(content) // 2],
        content[:-10],
        b"not a zip" * 100,
        bytes(flipped),
    ):
        bad.write_bytes(broken)
        with pytest.raises(InvalidInput, match=r"bad.zip is not a readable model: it is empty, truncated or damaged"):
            DDQN.load(bad)

    PPO("MlpPolicy", "CartPole-v1", device="cpu").save(tmp_path / "ppo.zip")
    with pytest.raises(InvalidInput, match=r"ppo\.zip holds the model of another algorithm"):
        DDQN.load(tmp_path / "ppo.zip")
    with good.open("rb") as file:
        assert isinstance(DDQN.load(file), DDQN)
    with pytest.raises(InvalidInput, match="gamma must lie"):
        DDQN.load(good, gamma=7)


def test_damaged_model_files():
    """Truncated at every kilobyte, or with a flipped bit: a sentence, or the agent that was saved."""
    model = DDQN("MlpPolicy", "CartPole-v1", **SMALL)
    file = io.BytesIO()
    model.save(file)
    contents = list(damaged(file.getvalue(), 300))
    refused = 0
    for bad in contents:
        try:
            loaded = DDQN.load(io.BytesIO(bad), device="cpu")
        except InvalidInput:
            refused += 1
            continue
        for name in ("learning_rate", "gamma", "batch_size", "buffer_size", "learning_starts", "policy_kwargs"):
            assert getattr(loaded, name) == getattr(model, name)
        for name, weights in loaded.policy.state_dict().items():
            assert th.equal(weights, model.policy.state_dict()[name])
    assert refused > 0.9 * len(contents)


def test_agents_of_dqn_load(tmp_path):
    dqn = DQN("MlpPolicy", "CartPole-v1", seed=0, **SMALL)
    dqn.save(tmp_path / "dqn.zip")
    loaded = DDQN.load(tmp_path / "dqn.zip", env=make_vec_env("CartPole-v1"))
    assert loaded.double_q
    observation = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    assert np.array_equal(
        loaded.predict(observation, deterministic=True)[0], dqn.predict(observation, deterministic=True)[0]
    )
    loaded.learn(60)


@pytest.mark.parametrize("n_steps", [1, 3])
def test_agents_of_dqn_go_on_with_our_replay_memory(n_steps, tmp_path):
    """SB3 saves the class that it has chosen as if it were the user's wish."""

    def games():
        return VecFrameStack(make_vec_env(lambda: FakeImageEnv(40, 40, n_channels=1, discrete=True), 2), 4)

    settings = {"buffer_size": 100, "learning_starts": 10, "train_freq": 1, "device": "cpu"}
    DQN("CnnPolicy", games(), n_steps=n_steps, **settings).save(tmp_path / "dqn.zip")
    at_once = DDQN.load(tmp_path / "dqn.zip", env=games(), replay_buffer_kwargs={"store": "compressed"})
    later = DDQN.load(tmp_path / "dqn.zip", n_steps=2)
    later.set_env(games())
    for model, expected in ((at_once, n_steps), (later, 2)):
        model.learn(30)
        assert isinstance(model.replay_buffer, FrameReplayBuffer)
        assert model.replay_buffer.n_steps == expected
    theirs = {"replay_buffer_class": ReplayBuffer, "replay_buffer_kwargs": {}, "n_steps": 1}
    chosen = DDQN.load(tmp_path / "dqn.zip", env=games(), **theirs)
    assert type(chosen.replay_buffer) is ReplayBuffer


def test_agents_of_dqn_get_our_policy(tmp_path):
    """With their weights and the optimizer's moments: the same agent, at this package's speed and precision."""
    env = make_vec_env(lambda: FakeImageEnv(40, 40, n_channels=4, discrete=True))
    settings = {"buffer_size": 100, "learning_starts": 10, "device": "cpu"}
    dqn = DQN("CnnPolicy", env, **settings).learn(40)
    dqn.save(tmp_path / "dqn.zip")
    model = DDQN.load(tmp_path / "dqn.zip", env=env, replay_buffer_class=ReplayBuffer)
    assert type(model.policy) is CnnPolicy
    images = th.randint(0, 256, (5, *model.observation_space.shape), dtype=th.uint8)
    with th.no_grad():
        th.testing.assert_close(model.q_net(images), dqn.q_net(images), rtol=1e-5, atol=1e-6)
        th.testing.assert_close(model.q_net_target(images), dqn.q_net_target(images), rtol=1e-5, atol=1e-6)
    optimizers = model.policy.optimizer, dqn.policy.optimizer
    assert optimizers[0].param_groups[0]["fused"]
    states = [list(optimizer.state.values()) for optimizer in optimizers]
    assert len(states[0]) == len(states[1]) > 0
    for ours, theirs in zip(*states, strict=True):
        assert ours["step"] == theirs["step"] > 0
        assert th.equal(ours["exp_avg"], theirs["exp_avg"])
        assert th.equal(ours["exp_avg_sq"], theirs["exp_avg_sq"])
    model.learn(80)
    assert states[1][0]["step"] < next(iter(model.policy.optimizer.state.values()))["step"]

    class Own(policies.CnnPolicy):
        """Somebody's."""

    DQN(Own, env, **settings).save(tmp_path / "dqn.zip")
    assert type(DDQN.load(tmp_path / "dqn.zip", custom_objects={"policy_class": Own}).policy) is Own


def test_agents_of_dqn_keep_the_steps_of_their_replay_memory(tmp_path):
    """Which SB3 lets a user give to the memory alone."""
    settings = {"replay_buffer_class": NStepReplayBuffer, "replay_buffer_kwargs": {"n_steps": 3, "gamma": 0.99}}
    DQN("MlpPolicy", "CartPole-v1", **settings, **SMALL).save(tmp_path / "dqn.zip")
    model = DDQN.load(tmp_path / "dqn.zip", env=make_vec_env("CartPole-v1"))
    assert (type(model.replay_buffer), model.replay_buffer.n_steps) == (NStepReplayBuffer, 3)
    assert DDQN.load(tmp_path / "dqn.zip", env=make_vec_env("CartPole-v1"), n_steps=2).replay_buffer.n_steps == 2


@pytest.mark.parametrize("cls", [DQN, DDQN])
def test_an_agent_saved_with_its_replay_memory(cls, tmp_path):
    cls("MlpPolicy", "CartPole-v1", **SMALL).learn(30).save(tmp_path / "agent.zip", include=["replay_buffer"])
    model = DDQN.load(tmp_path / "agent.zip", env=make_vec_env("CartPole-v1"))
    assert model.replay_buffer.size() == 32
    model.learn(60, reset_num_timesteps=False)
    assert model.replay_buffer.size() == 92
    assert model._n_updates > 0


def test_to_train_for_no_steps_changes_nothing():
    model = DDQN("MlpPolicy", "CartPole-v1", **SMALL)
    model.train(0)
    assert model._n_updates == 0


@pytest.mark.parametrize("has_frames", [False, True])
def test_a_memory_saved_with_the_agent_takes_the_settings(has_frames, tmp_path):
    def env(n_envs: int) -> Any:
        if not has_frames:
            return make_vec_env("CartPole-v1", n_envs)
        return VecFrameStack(DummyVecEnv([lambda: FakeImageEnv(40, 40, n_channels=1, discrete=True)] * n_envs), 4)

    policy = "CnnPolicy" if has_frames else "MlpPolicy"
    saved = DDQN(policy, env(1), n_steps=3, **SMALL).learn(40)
    saved.replay_buffer.device = th.device("meta")  # in place of a GPU that this machine lacks
    saved.save(tmp_path / "agent", include=["replay_buffer"])
    memory = DDQN.load(tmp_path / "agent", env=env(1), n_steps=2, gamma=0.5, device="cpu").replay_buffer
    assert (memory.n_steps, memory.gamma, memory.size(), memory.device) == (2, 0.5, 40, th.device("cpu"))
    assert set(memory.sample(64).discounts.unique().tolist()) <= {0.5, 0.25}
    with pytest.warns(UserWarning, match=r"is left out: The file .*1 environment"):
        model = DDQN.load(tmp_path / "agent", env=env(2))
    assert model.replay_buffer.size() == 0


def test_another_precision_counts_at_once(monkeypatch):
    monkeypatch.setattr(learner, "_has_bfloat16", lambda device: True)
    model = DDQN("MlpPolicy", "CartPole-v1", **SMALL).learn(60)
    model.precision = "bfloat16"
    model.learn(60)
    assert model.q_net.compute_dtype == th.bfloat16


def test_a_missing_replay_memory_is_named_as_it_was_given(tmp_path):
    model = DDQN("MlpPolicy", "CartPole-v1", device="cpu")
    for name, named in (("none.pkl", "none.pkl"), ("none", "none.pkl")):
        with pytest.raises(FileNotFoundError) as error:
            model.load_replay_buffer(tmp_path / name)
        assert error.value.filename == str(tmp_path / named)


def test_replay_memory_from_a_file_object():
    model = DDQN("MlpPolicy", "CartPole-v1", learning_starts=10, device="cpu").learn(20)
    file = io.BytesIO()
    model.save_replay_buffer(file)
    file.seek(0)
    model.load_replay_buffer(file)
    assert model.replay_buffer.size() == 20


def test_frames_are_stacked_as_planes():
    """SB3's own stack, with the same actions, is the oracle: only the order in memory is another one."""

    def games():
        return VecFrameStack(make_atari_env("ale_py:PongNoFrameskip-v4", 2, seed=0), 4)

    seen = []

    def look(locals_, _):
        seen.append((locals_["actions"], locals_["new_obs"].copy(order="K")))
        return True

    model = DDQN("CnnPolicy", games(), learning_starts=100, buffer_size=100, device="cpu")
    for _ in range(2):  # the second time they are in order already
        model.learn(24, callback=look, reset_num_timesteps=False)
    oracle = games()
    oracle.reset()
    for actions, planes in seen:
        observations, *_ = oracle.step(actions)
        np.testing.assert_array_equal(planes, observations.transpose(0, 3, 1, 2))
        assert planes.flags.c_contiguous
        assert not observations.transpose(0, 3, 1, 2).flags.c_contiguous
    assert len(seen) == 24


def test_training_mode_reaches_all_layers():
    policy = DDQN("MlpPolicy", "CartPole-v1", **SMALL).policy
    for mode in (True, True, False, False, True):
        policy.set_training_mode(mode)
        assert {module.training for module in policy.q_net.modules()} == {mode}
        assert not any(module.training for module in policy.q_net_target.modules())
