"""The fast path of an update against the plain one."""

from copy import deepcopy

import ale_py
import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common import torch_layers
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.vec_env import VecFrameStack
from torch import nn

from dqn_ext import DDQN, ddqn, learner, td_targets
from dqn_ext.errors import InvalidInput

gym.register_envs(ale_py)

PLAIN = {
    "features_extractor_class": torch_layers.NatureCNN,
    "net_arch": [],
    "optimizer_kwargs": {"fused": False},
}


def learned(policy_kwargs, **kwargs):
    """An agent that has seen Pong, and its weights before and after 100 updates."""
    env = VecFrameStack(make_atari_env("PongNoFrameskip-v4", n_envs=2, seed=0), 4)
    model = DDQN(
        "CnnPolicy",
        env,
        buffer_size=400,
        learning_starts=400,
        batch_size=16,
        target_update_interval=10**9,
        policy_kwargs=policy_kwargs,
        seed=0,
        device="cpu",
        **kwargs,
    )
    model.learn(400)
    before = nn.utils.parameters_to_vector(model.q_net.parameters()).detach()
    model.set_random_seed(1)
    model.train(100, 16)
    return before, nn.utils.parameters_to_vector(model.q_net.parameters()).detach(), model


@pytest.fixture(scope="module")
def plain():
    return learned(PLAIN)


def test_hundred_updates_are_the_plain_ones(plain):
    before, expected, _ = plain
    start, weights, _ = learned({})
    assert th.equal(start, before)
    # The distance between both ends, in parts of the way that was made. Mostly 1e-5; but a rounding may choose another
    # of two actions of equal value, or switch a unit, and the ways part there
    assert (weights - expected).norm() < 0.25 * (expected - before).norm()


# In bfloat16 Adam makes a step of full size of whatever sign rounding has left to a tiny gradient
@pytest.mark.parametrize(
    ("precision", "n_updates", "mostly", "always"), [("float32", 100, 3e-5, 0.1), ("bfloat16", 30, 0.15, 0.6)]
)
def test_each_update_is_the_plain_one(plain, precision, n_updates, mostly, always, monkeypatch):
    """From the same weights and moments, which the plain path goes on with."""
    monkeypatch.setattr(learner, "_has_bfloat16", lambda device: True)  # it is slow elsewhere, not wrong
    plain_model = plain[2]
    model = learned({}, precision=precision)[2]
    distances = []
    for update in range(n_updates):
        model.policy.load_state_dict(plain_model.policy.state_dict())
        for ours, theirs in zip(model.q_net.parameters(), plain_model.q_net.parameters(), strict=True):
            model.policy.optimizer.state[ours] = deepcopy(plain_model.policy.optimizer.state[theirs])
        before = nn.utils.parameters_to_vector(model.q_net.parameters()).detach()
        after = []
        for agent in (plain_model, model):
            agent.set_random_seed(update)
            agent.train(1, 16)
            after.append(nn.utils.parameters_to_vector(agent.q_net.parameters()).detach())
        distances.append(float((after[1] - after[0]).norm() / (after[0] - before).norm()))
    # A tie of two actions that rounding decides, see above, may be among them
    assert np.quantile(distances, 0.9) < mostly
    assert max(distances) < always
    assert all(parameter.dtype == th.float32 for parameter in model.policy.parameters())
    assert all(state["exp_avg"].dtype == th.float32 for state in model.policy.optimizer.state.values())


def test_gradient_in_bfloat16():
    _, _, model = learned({})
    images = model.replay_buffer.sample(32).observations
    gradients = []
    for dtype in (th.float32, th.bfloat16):
        model.q_net.compute_dtype = dtype
        model.policy.optimizer.zero_grad()
        (model.q_net(images) - 0.5).square().mean().backward()
        gradients.append(nn.utils.parameters_to_vector([parameter.grad for parameter in model.q_net.parameters()]))
    exact, in_bfloat16 = gradients
    assert 0 < (in_bfloat16 - exact).norm() < 0.02 * exact.norm()


def test_updates_see_the_weights_of_the_moment(monkeypatch):
    """Whoever sets weights between two calls of train is heard, in both networks and in acting."""
    monkeypatch.setattr(learner, "_has_bfloat16", lambda device: True)
    seen, are_current = [], []

    def double_q_target(rewards, dones, discounts, *next_q_values):
        seen.append(next_q_values)
        for network in networks:
            layer = network.features_extractor.linear[0]
            are_current.append(th.equal(layer._copy, layer.weight.bfloat16()))
        return td_targets.double_q_target(rewards, dones, discounts, *next_q_values)

    monkeypatch.setattr(ddqn, "double_q_target", double_q_target)
    networks = ()
    _, _, model = learned({}, precision="bfloat16")
    networks = (model.q_net, model.q_net_target)
    images = model.replay_buffer.sample(16).observations
    for _ in range(2):
        model.train(3, 16)
        for network in networks:
            network.features_extractor.linear[0].weight.data.zero_()
            network.features_extractor.linear[0].bias.data.zero_()
        biases = [network.q_net[0].bias.detach().clone() for network in networks]
        assert th.equal(model.q_net(images), biases[0].expand(16, -1))
        seen.clear()
        model.train(1, 16)
        for q_values, bias in zip(seen[0], biases, strict=True):
            assert th.equal(q_values, bias.expand(16, -1))
    assert len(are_current) == 2 * 2 * (3 + 1)
    assert all(are_current)


@pytest.mark.parametrize("device", ["cpu", "cuda"])  # by the ways that they take; on the CPU in any case
@pytest.mark.parametrize("max_grad_norm", [1e-3, 1e3])
def test_clipping_is_torchs(max_grad_norm, device):
    env = VecFrameStack(make_atari_env("PongNoFrameskip-v4"), 4)
    model = DDQN("CnnPolicy", env, max_grad_norm=max_grad_norm, device="cpu")
    images = th.randint(0, 256, (4, 4, 84, 84), dtype=th.uint8)

    model.q_net(images).square().mean().backward()
    norm = nn.utils.parameters_to_vector([parameter.grad.double() for parameter in model.q_net.parameters()]).norm()
    nn.utils.clip_grad_norm_(model.q_net.parameters(), max_grad_norm)
    expected = [parameter.grad.clone() for parameter in model.q_net.parameters()]

    agent = learner.Learner(model.policy, model.device, "float32")
    agent.device = th.device(device)
    *_, grad_norm = agent.update(lambda: (model.q_net(images).square().mean(),), (), max_grad_norm)
    assert grad_norm == pytest.approx(norm.item(), rel=1e-5)
    for parameter, gradient in zip(model.q_net.parameters(), expected, strict=True):
        th.testing.assert_close(parameter.grad, gradient)


def test_no_moment_stays_denormal():
    """Units that die leave moments that halve for ever; clearing them changes no weight."""
    weights, twins = (nn.Parameter(th.linspace(0.1, 1, 1000)) for _ in range(2))
    adam, plain = (th.optim.Adam([parameter], lr=1e-3, fused=True) for parameter in (weights, twins))
    alive = th.arange(1000) % 2 == 0
    generator = th.Generator().manual_seed(0)

    def n_denormal(optimizer):
        moments = optimizer.state[optimizer.param_groups[0]["params"][0]]["exp_avg"].abs()
        return int(((moments > 0) & (moments < 1.2e-38)).sum())

    for step in range(1200):
        gradient = th.randn(1000, generator=generator)
        weights.grad = twins.grad = gradient if step < 10 else gradient * alive
        adam.step()
        learner.clear_vanishing_moments(adam)
        plain.step()
        assert n_denormal(adam) == 0
    assert n_denormal(plain) == 500
    assert th.equal(weights, twins)


def test_each_update_clears_moments(monkeypatch):
    cleared = []
    monkeypatch.setattr(learner, "clear_vanishing_moments", cleared.append)
    model = DDQN("MlpPolicy", "CartPole-v1", learning_starts=10, device="cpu").learn(8)
    model.train(3, 4)
    assert cleared == [model.policy.optimizer] * 3


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [
        ({"avx512_bf16": True}, th.bfloat16),
        ({"amx_bf16": True}, th.bfloat16),
        ({"bf16": True}, th.bfloat16),
        ({"sve_bf16": True}, th.bfloat16),
        ({"avx2": True, "avx512_bf16": False}, th.float32),
    ],
)
def test_which_processors_have_bfloat16(monkeypatch, capabilities, dtype):
    monkeypatch.setattr(th.cpu, "get_capabilities", lambda: capabilities, raising=False)
    monkeypatch.setattr(learner, "_seconds_per_product", {th.float32: 2.0, th.bfloat16: 1.0}.get)
    assert learner.choose_dtype("auto", th.device("cpu")) == dtype


@pytest.mark.parametrize(("seconds", "dtype"), [(1.0, th.bfloat16), (3.0, th.float32)])
def test_auto_is_what_takes_less_time(monkeypatch, seconds, dtype):
    """Xeons of Sapphire Rapids in a virtual machine without AMX have bfloat16, at half the rate of float32."""
    monkeypatch.setattr(learner, "_has_bfloat16", lambda device: True)
    monkeypatch.setattr(learner, "_seconds_per_product", {th.float32: 2.0, th.bfloat16: seconds}.get)
    assert learner.choose_dtype("auto", th.device("cpu")) == dtype
    assert learner.choose_dtype("auto", th.device("cuda")) == th.bfloat16  # nothing is measured there
    assert learner.choose_dtype("bfloat16", th.device("cpu")) == th.bfloat16  # asked for is asked for


def test_seconds_per_product():
    """More work takes longer: by more than chance, as double precision is half as fast wherever there are vectors."""
    assert learner._seconds_per_product(th.float64) > 1.2 * learner._seconds_per_product(th.float32) > 0


def test_settings_that_change_between_two_updates_count():
    """SB3 lets its users exchange the policy of a model, and callbacks change a model's settings."""
    model = DDQN("MlpPolicy", "CartPole-v1", learning_starts=10, device="cpu", learning_rate=1.0).learn(20)
    model.policy = DDQN("MlpPolicy", "CartPole-v1", device="cpu").policy
    model.q_net, model.q_net_target = model.policy.q_net, model.policy.q_net_target
    model.max_grad_norm = 1e-12  # too small for Adam, whose epsilon is 1e-8
    before = nn.utils.parameters_to_vector(model.q_net.parameters()).detach().clone()
    model.train(1)
    change = (nn.utils.parameters_to_vector(model.q_net.parameters()) - before).abs().max()
    assert 0 < change < 1e-3


def test_weights_that_were_frozen_are_clipped_too():
    settings = {"learning_rate": 1.0, "max_grad_norm": 1e-3, "policy_kwargs": {"optimizer_class": th.optim.SGD}}
    model = DDQN("MlpPolicy", "CartPole-v1", learning_starts=10, device="cpu", **settings)
    first = next(model.q_net.parameters()).requires_grad_(False)
    model.learn(20)
    first.requires_grad_(True)
    before = nn.utils.parameters_to_vector(model.q_net.parameters()).detach().clone()
    model.train(1)
    change = nn.utils.parameters_to_vector(model.q_net.parameters()).detach() - before
    assert float(change.norm()) == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("way", ["foreach", "differentiable", "fused"])
def test_the_optimizer_may_be_chosen(way):
    policy_kwargs = {"optimizer_kwargs": {way: way != "fused"}}
    env = VecFrameStack(make_atari_env("PongNoFrameskip-v4"), 4)
    chosen = DDQN("CnnPolicy", env, policy_kwargs=policy_kwargs, device="cpu").policy.optimizer.defaults
    assert not chosen["fused"]
    assert bool(chosen[way]) == (way != "fused")

    class MyAdam(th.optim.Adam):
        def __init__(self, params, lr):
            super().__init__(params, lr)

    optimizer = DDQN("CnnPolicy", env, policy_kwargs={"optimizer_class": MyAdam}, device="cpu").policy.optimizer
    assert not optimizer.defaults["fused"]


def test_precision_of_the_device(monkeypatch):
    cpu = th.device("cpu")
    monkeypatch.setattr(learner, "_has_bfloat16", lambda device: False)
    assert learner.choose_dtype("auto", cpu) == learner.choose_dtype("float32", cpu) == th.float32
    with pytest.raises(InvalidInput, match="precision must be float32 or auto on this processor"):
        DDQN("MlpPolicy", "CartPole-v1", precision="bfloat16", device="cpu")
    monkeypatch.setattr(learner, "_has_bfloat16", lambda device: True)
    assert learner.choose_dtype("bfloat16", cpu) == th.bfloat16
    with pytest.raises(InvalidInput, match="precision must be one of auto, float32, bfloat16, not 'half'"):
        DDQN("MlpPolicy", "CartPole-v1", precision="half", device="cpu")


def test_compilation_of_the_device(monkeypatch):
    cpu, cuda = th.device("cpu"), th.device("cuda")
    assert not learner.choose_compilation("auto", cpu)
    with pytest.raises(InvalidInput, match="compile must be True, False or 'auto', not 'yes'"):
        DDQN("MlpPolicy", "CartPole-v1", compile="yes", device="cpu")
    with pytest.raises(
        InvalidInput, match="compile must be False or 'auto' on this processor, not True: it is for CUDA"
    ):
        DDQN("MlpPolicy", "CartPole-v1", compile=True, device="cpu")
    for has_triton in (False, True):
        monkeypatch.setattr(learner, "has_triton", lambda has_triton=has_triton: has_triton)
        assert learner.choose_compilation("auto", cuda) == has_triton
    monkeypatch.setattr(learner, "has_triton", lambda: False)
    with pytest.raises(
        InvalidInput, match="compile must be False or 'auto' here, where PyTorch finds no Triton, not True"
    ):
        learner.choose_compilation(True, cuda)


def test_compilation_that_cannot_be_is_said():
    """Where it was asked for, and batches come from the host."""
    model = DDQN("MlpPolicy", "CartPole-v1", learning_starts=10, device="cpu")
    learner = model.prepare_learning()
    learner._records = learner._must_compile = True  # as with compile=True on a GPU
    with pytest.raises(InvalidInput, match="compile must be False or 'auto' here, not True: only updates"):
        model.learn(20)


def test_an_agent_plays_where_its_precision_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(learner, "_has_bfloat16", lambda device: True)
    model = DDQN("MlpPolicy", "CartPole-v1", precision="bfloat16", learning_starts=10, device="cpu").learn(30)
    model.save(tmp_path / "agent")
    monkeypatch.setattr(learner, "_has_bfloat16", lambda device: False)
    loaded = DDQN.load(tmp_path / "agent", device="cpu")
    observation = model.get_env().reset()
    assert loaded.predict(observation, deterministic=True)[0] in (0, 1)
    assert loaded.precision == "bfloat16"
