"""Dueling networks: their arithmetic, the paper's architecture, and that they go together with everything else."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv, SimpleMultiObsEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack
from torch import nn
from torch.nn import functional as F

from dqn_ext import DDQN
from dqn_ext.errors import InvalidInput
from dqn_ext.policies import CnnPolicy, DuelingHead, QNetwork

IMAGES, ACTIONS = spaces.Box(0, 255, (4, 84, 84), np.uint8), spaces.Discrete(6)


def test_head_by_hand():
    """Wang et al. 2016, eq. 9, for one state with features (1, 2), then for one with (0, -1)."""
    head = DuelingHead(2, 3, [], nn.ReLU, in_halves=False)
    with th.no_grad():
        head.value[0].weight.copy_(th.tensor([[2.0, 1.0]]))
        head.value[0].bias.fill_(0.5)  # V = 4.5, then -0.5
        head.advantages[0].weight.copy_(th.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 0.0]]))
        head.advantages[0].bias.copy_(th.tensor([0.0, 1.0, 0.0]))  # A = 1, 3, 3 and 0, 0, 0
    q_values = head(th.tensor([[1.0, 2.0], [0.0, -1.0]]))
    # The mean of 1, 3, 3 is 7 / 3
    expected = [[4.5 + 1 - 7 / 3, 4.5 + 3 - 7 / 3, 4.5 + 3 - 7 / 3], [-0.5, -0.5, -0.5]]
    th.testing.assert_close(q_values, th.tensor(expected))

    # One action's Q-value moves its own advantage by 1 - 1/3, the others by -1/3, and the value by 1
    q_values[0, 0].backward()
    th.testing.assert_close(head.advantages[0].bias.grad, th.tensor([2 / 3, -1 / 3, -1 / 3]))
    th.testing.assert_close(head.value[0].bias.grad, th.ones(1))


def test_cnn_policy_is_the_papers_network():
    """Convolutions, then two streams, each with a hidden layer of 512 units of its own (section 4.2)."""
    net = CnnPolicy(IMAGES, ACTIONS, lambda _: 1e-4, dueling=True).q_net
    cnn, hidden, head = net.features_extractor.cnn, net.features_extractor.linear[0], net.q_net[0]
    images = th.randint(0, 256, (5, 4, 84, 84), dtype=th.uint8)
    torso = cnn(images.float() / 255)
    of_value = F.relu(F.linear(torso, hidden.weight[:512], hidden.bias[:512]))
    of_advantages = F.relu(F.linear(torso, hidden.weight[512:], hidden.bias[512:]))
    value, advantages = head.value[0](of_value), head.advantages[0](of_advantages)
    assert value.shape == (5, 1)
    expected = value + advantages - advantages.mean(dim=1, keepdim=True)
    th.testing.assert_close(net(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "stream_dim"),
    [
        ({"features_extractor_class": "impala"}, 256),
        ({"features_extractor_kwargs": {"features_dim": 64}}, 32),
        ({"net_arch": [16]}, 512),  # the streams' hidden layers are given
    ],
)
def test_streams_of_other_sizes(settings, stream_dim):
    net = CnnPolicy(IMAGES, ACTIONS, lambda _: 1e-4, dueling=True, **settings).q_net
    head = net.q_net[0]
    assert head.value[0].in_features == head.advantages[0].in_features == stream_dim
    assert net(th.zeros(2, 4, 84, 84, dtype=th.uint8)).shape == (2, 6)


def test_extractors_by_name_are_followed_by_the_last_layer_alone():
    for name, features_dim in (("nature", 512), ("impala", 256)):
        (layer,) = CnnPolicy(IMAGES, ACTIONS, lambda _: 1e-4, features_extractor_class=name).q_net.q_net
        assert (layer.in_features, layer.out_features) == (features_dim, 6)


@pytest.mark.parametrize("policy", ["MlpPolicy", "CnnPolicy", "MultiInputPolicy"])
def test_saved_and_loaded(policy, tmp_path):
    env = make_vec_env("CartPole-v1")
    if policy == "MultiInputPolicy":
        env = DummyVecEnv([lambda: SimpleMultiObsEnv(random_start=False)])
    if policy == "CnnPolicy":
        env = VecFrameStack(DummyVecEnv([lambda: FakeImageEnv(40, 40, n_channels=1, discrete=True)]), 4)
    kwargs = {"features_extractor_kwargs": {"features_dim": 16}} if policy == "CnnPolicy" else {"net_arch": [8]}
    model = DDQN(policy, env, policy_kwargs={**kwargs, "dueling": True}, buffer_size=200, seed=1, device="cpu")
    model.learn(120)
    model.save(tmp_path / "agent.zip")
    obs = env.reset()
    loaded = DDQN.load(tmp_path / "agent.zip", env=env, device="cpu")
    assert isinstance(loaded.q_net.q_net[0], DuelingHead)
    expected = model.q_net(model.policy.obs_to_tensor(obs)[0])
    assert th.equal(loaded.q_net(loaded.policy.obs_to_tensor(obs)[0]), expected)
    loaded.learn(50, reset_num_timesteps=False)
    # The policy alone, too
    model.policy.save(tmp_path / "policy.pth")
    policy_alone = type(model.policy).load(tmp_path / "policy.pth", device="cpu")
    assert policy_alone.dueling
    # And the network
    model.q_net.save(tmp_path / "q_net.pth")
    network_alone = type(model.q_net).load(tmp_path / "q_net.pth", device="cpu")
    assert isinstance(network_alone.q_net[0], DuelingHead)


@pytest.mark.parametrize("double_q", [False, True])
@pytest.mark.parametrize("dueling", [False, True])
@pytest.mark.parametrize("priority_exponent", [0.0, 0.5])
@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize(
    ("extractor", "extractor_kwargs"),
    [("nature", {}), ("nature", {"centered": True, "width": 0.5}), ("impala", {"centered": True, "width": 0.5})],
)
def test_blocks_together(double_q, dueling, priority_exponent, n_steps, extractor, extractor_kwargs):
    """Every combination learns, and each setting has reached its place."""
    env = VecFrameStack(DummyVecEnv([lambda: FakeImageEnv(40, 40, n_channels=1, discrete=True)] * 2), 4)
    model = DDQN(
        "CnnPolicy",
        env,
        double_q=double_q,
        n_steps=n_steps,
        reward_bound=1,
        buffer_size=200,
        learning_starts=20,
        batch_size=8,
        replay_buffer_kwargs={"priority_exponent": priority_exponent, "store": "compressed"},
        policy_kwargs={
            "dueling": dueling,
            "features_extractor_class": extractor,
            "features_extractor_kwargs": {"features_dim": 16, **extractor_kwargs},
        },
        seed=0,
        device="cpu",
    )
    before = nn.utils.parameters_to_vector(model.q_net.parameters()).detach()
    model.learn(60)
    assert not th.equal(before, nn.utils.parameters_to_vector(model.q_net.parameters()))
    assert isinstance(model.q_net.q_net[0], DuelingHead) == dueling
    assert (model.replay_buffer.n_steps, model.replay_buffer.priority_exponent) == (n_steps, priority_exponent)
    # Every part of the network learns
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.q_net.q_net.parameters())


class MirroredQNetwork(QNetwork):
    """A user's own, which sees images the other way round."""

    def forward(self, obs):
        return super().forward(obs.flip(-1))


class MirroredPolicy(CnnPolicy):
    def make_q_net(self):
        return MirroredQNetwork(**self._update_features_extractor(self.net_args)).to(self.device)


def test_a_network_of_the_users_sees_images_as_they_are():
    env = VecFrameStack(DummyVecEnv([lambda: FakeImageEnv(screen_height=40, screen_width=40, n_channels=1)]), 4)
    model = DDQN(MirroredPolicy, env, buffer_size=100, learning_starts=20, device="cpu")
    calls = []
    model.q_net.features_extractor.register_forward_hook(lambda *_: calls.append(1))
    model.learn(40)
    assert model._n_updates > 0
    images = th.as_tensor(env.reset()).permute(0, 3, 1, 2)
    assert th.equal(model.q_net(images), QNetwork.forward(model.q_net, images.flip(-1)))
    # Hooks are called, in learning: on s', s
    calls.clear()
    model.train(3)
    assert len(calls) == 6


def test_bad_settings():
    with pytest.raises(InvalidInput, match="dueling must be True or False, not 'yes'"):
        DDQN("MlpPolicy", "CartPole-v1", policy_kwargs={"dueling": "yes"})
    with pytest.raises(
        InvalidInput, match="features_dim must be even with dueling, each stream has half of it, not 33"
    ):
        CnnPolicy(IMAGES, ACTIONS, lambda _: 1e-4, dueling=True, features_extractor_kwargs={"features_dim": 33})
    with pytest.raises(InvalidInput, match="'depth' is not a hyperparameter of NatureCNN"):
        CnnPolicy(IMAGES, ACTIONS, lambda _: 1e-4, features_extractor_kwargs={"depth": 2})
