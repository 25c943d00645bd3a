"""Updates that are recorded once and done again. On a CPU a trace stands for the CUDA graph: as in one, every number of
the host's is built in, memory that it reads must stay where it is, and no operation may ask for a number.
"""

import logging

import ale_py
import gymnasium as gym
import pytest
import torch as th
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize, VecTransposeImage
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from dqn_ext import DDQN, cuda_graph, learner
from dqn_ext.errors import InvalidInput

gym.register_envs(ale_py)

SETTINGS = {
    "buffer_size": 100,  # the ring wraps
    "learning_starts": 20,
    "batch_size": 8,
    "train_freq": 1,
    "gradient_steps": 2,
    "target_update_interval": 30,
    "learning_rate": lambda remaining: round(1000 * remaining) / 2**20,  # exact in float32, which a recording has
    "max_grad_norm": 0.02,
    "seed": 0,
}


class Trace:
    """In place of :class:`dqn_ext.cuda_graph.CudaGraph`."""

    made = 0

    def __init__(self, function, inputs):
        self.inputs = inputs
        # Unlike a recording, tracing computes: that is undone
        kept = [(tensor, tensor.detach().clone()) for tensor in (function.__self__._total, *self.memory())]
        self.graph = make_fx(lambda vector: function(vector))(inputs)
        for tensor, value in kept:
            tensor.data.copy_(value)
        Trace.made += 1

    def memory(self):
        memory, optimizer = self.model.replay_buffer, self.model.policy.optimizer
        yield from self.model.policy.parameters()
        yield from (tensor for state in optimizer.state.values() for tensor in state.values())
        if memory.priority_exponent > 0:
            yield from (memory._priorities._weights, memory._max_priority)

    def replay(self):
        with th.no_grad():
            self.graph(self.inputs)


class Again:
    """In place of it where PyTorch's compiler has traced the parts: calls the function."""

    made = 0

    def __init__(self, function, inputs):
        self.function, self.inputs = function, inputs
        Again.made += 1

    def replay(self):
        self.function(self.inputs)


def make(device="cpu", n_steps=3, **replay_buffer_kwargs):
    env = VecFrameStack(make_atari_env("PongNoFrameskip-v4", n_envs=2, seed=0), 4)
    kwargs = {"store": "device", **replay_buffer_kwargs}
    # A CPU takes long for the whole network, and where there is no bfloat16 longer
    extractor = {} if device == "cuda" else {"width": 0.25, "features_dim": 64}
    policy_kwargs = {"features_extractor_kwargs": extractor}
    return DDQN(
        "CnnPolicy",
        env,
        n_steps=n_steps,
        replay_buffer_kwargs=kwargs,
        policy_kwargs=policy_kwargs,
        device=device,
        **SETTINGS,
    )


def learn(model, steps=140):
    """Settings change on the way, the replay memory moves, and a layer is frozen."""

    def callback(scope, _):
        store = model.replay_buffer._frames
        if model.num_timesteps == 60:
            model.gamma = 0.9
        if model.num_timesteps == 90:
            place, frame = store.place, model.replay_buffer._host(store._finals)[0]
            for cell in range(100):
                store.write_final(cell, frame)
            assert store.place is not place
            for cell in range(100):
                store.drop_final(cell)
        if model.num_timesteps == 106:
            next(model.q_net.parameters()).requires_grad_(False)
        if model.num_timesteps == 120:
            model.policy.optimizer.param_groups[0]["eps"] = 1e-3
        return True

    model.set_random_seed(0)
    return model.learn(steps, callback=callback)


def weights(model):
    return nn.utils.parameters_to_vector(model.policy.parameters()).detach().cpu()


@pytest.fixture
def traced(monkeypatch):
    monkeypatch.setattr(cuda_graph, "CudaGraph", Trace)
    monkeypatch.setattr(Trace, "made", 0)

    def traced(model):
        monkeypatch.setattr(Trace, "model", model, raising=False)
        model.prepare_learning()._records = True
        return as_on_a_gpu(model)

    return traced


def as_on_a_gpu(model):
    """The learner takes the ways that do not wait for the device."""
    model.prepare_learning().device = th.device("cuda")
    return model


@pytest.fixture
def compiled(monkeypatch):
    """As on a GPU, by PyTorch's compiler but for its last stage, which writes the kernels."""
    monkeypatch.setattr(cuda_graph, "CudaGraph", Again)
    monkeypatch.setattr(Again, "made", 0)
    monkeypatch.setattr(learner, "COMPILER", {**learner.COMPILER, "backend": "aot_eager"})

    def compiled(model, compiles="auto"):
        model.prepare_learning()._records = model.prepare_learning()._compiles = True
        model.prepare_learning()._must_compile = compiles is True
        return as_on_a_gpu(model)

    return compiled


def assert_equal(recorded, eager, tolerance):
    """Weights to a part of the way made; and priorities, where there are any."""
    way = weights(eager) - weights(make(eager.device.type))
    assert (weights(recorded) - weights(eager)).norm() <= tolerance * way.norm()
    if eager.replay_buffer.priority_exponent > 0 and tolerance < 0.1:
        ours, theirs = recorded.replay_buffer, eager.replay_buffer
        indices = range(100)
        th.testing.assert_close(ours._priorities.get(indices), theirs._priorities.get(indices), rtol=1e-2, atol=1e-4)
        th.testing.assert_close(ours._max_priority, theirs._max_priority, rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("n_steps", "priority_exponent", "precision"), [(3, 0.5, "float32"), (1, 0.0, "float32"), (1, 0.0, "bfloat16")]
)
def test_recorded_updates_are_the_same(traced, n_steps, priority_exponent, precision, monkeypatch):
    monkeypatch.setattr(learner, "_has_bfloat16", lambda device: True)
    eager, recorded = (make(n_steps=n_steps, priority_exponent=priority_exponent) for _ in range(2))
    eager.precision = recorded.precision = precision
    learn(as_on_a_gpu(eager))
    learn(traced(recorded))
    assert Trace.made == 5, "anew for another gamma, after the memory has moved, for fewer weights, for another epsilon"
    assert_equal(recorded, eager, 0)
    assert recorded._n_updates == eager._n_updates == 120
    assert recorded.policy.optimizer.param_groups[0]["lr"] == eager.policy.optimizer.param_groups[0]["lr"]


def test_each_setting_is_recorded_anew(traced):
    model = make(n_steps=1)
    model.learning_starts = 100
    traced(model).learn(30)
    others = {"gamma": 0.9, "double_q": False, "reward_bound": 1, "max_grad_norm": 1e-3}
    for name, value in others.items():
        model.train(cuda_graph.N_WARM_UP + 1, 8)
        made = Trace.made
        setattr(model, name, value)
        model.train(cuda_graph.N_WARM_UP + 1, 8)
        assert Trace.made == made + 1, name


def test_what_cannot_be_recorded_is_done_all_the_same(traced, monkeypatch, caplog):
    def no_graph(*args):
        raise RuntimeError("operation not permitted when stream is capturing")

    eager, other = make(priority_exponent=0.5), make(priority_exponent=0.5)
    learn(as_on_a_gpu(eager))
    traced(other)
    monkeypatch.setattr(cuda_graph, "CudaGraph", no_graph)
    with caplog.at_level(logging.WARNING):
        learn(other)
    assert [record.message for record in caplog.records] == [
        "updates are not recorded as a CUDA graph: operation not permitted when stream is capturing"
    ]
    assert th.equal(weights(other), weights(eager))


def test_compiled_updates_are_the_same(compiled, monkeypatch):
    recordings = []

    def counted(*args):
        recordings.append(cuda_graph.Recording(*args))
        return recordings[-1]

    monkeypatch.setattr(learner, "Recording", counted)
    eager, model = make(), make()
    learn(as_on_a_gpu(eager))
    learn(compiled(model))
    assert Again.made == len(recordings) == 5, "none is compiled for nothing"
    assert model.prepare_learning()._compiles, "still"
    # The compiler sums in another order
    assert_equal(model, eager, 5e-3)


def train_a_little(model):
    """Sooner or later a rounding draws another transition by its priority, and the ways part."""
    model.learning_starts = 140
    learn(model)
    model.set_random_seed(1)
    with th._dynamo.config.patch(error_on_recompile=True):
        model.train(cuda_graph.N_WARM_UP + 4, 8)


def test_compiled_updates_with_priorities(compiled, monkeypatch):
    monkeypatch.setattr(learner, "_has_bfloat16", lambda device: True)
    for precision, tolerance in (("float32", 1e-3), ("bfloat16", 0.2)):
        eager, model = make(priority_exponent=0.5), make(priority_exponent=0.5)
        eager.precision = model.precision = precision
        train_a_little(as_on_a_gpu(eager))
        train_a_little(compiled(model))
        assert model.prepare_learning()._compiles, "still"
        assert_equal(model, eager, tolerance)


def test_any_number_of_agents_is_compiled(compiled):
    with th._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True):
        for _ in range(2):
            model = compiled(make())
            learn(model, 40)
            assert model.prepare_learning()._compiles, "still"


def test_a_compiler_that_fails(compiled, monkeypatch, caplog):
    def backend(graph, inputs):
        raise RuntimeError("no C compiler")

    monkeypatch.setattr(learner, "COMPILER", {"backend": backend})
    eager, model = make(), make()
    learn(as_on_a_gpu(eager), 40)
    with caplog.at_level(logging.WARNING):
        learn(compiled(model), 40)
    (record,) = caplog.records
    assert record.message.startswith("updates are not compiled: ")
    assert "no C compiler" in record.message
    assert th.equal(weights(model), weights(eager))

    with pytest.raises(
        InvalidInput, match=r"compile must be False or 'auto' here: updates cannot be compiled .*no C comp"
    ):
        learn(compiled(make(), compiles=True), 40)


@pytest.mark.parametrize("optimizer", [{"optimizer_kwargs": {"fused": False}}, {"optimizer_class": th.optim.RMSprop}])
def test_optimizers_that_count_on_the_host_are_not_recorded(traced, optimizer):
    env = VecFrameStack(make_atari_env("PongNoFrameskip-v4"), 4)
    kwargs = {"replay_buffer_kwargs": {"store": "device"}, "policy_kwargs": optimizer, "device": "cpu"}
    model = DDQN("CnnPolicy", env, **kwargs, **SETTINGS)
    traced(model).learn(40)
    assert (Trace.made, model._n_updates) == (0, 40)


def test_rewards_that_the_host_normalizes_are_not_recorded(traced):
    images = VecTransposeImage(VecFrameStack(make_atari_env("PongNoFrameskip-v4"), 4))
    env = VecNormalize(images, norm_obs=False)
    model = DDQN("CnnPolicy", env, replay_buffer_kwargs={"store": "device"}, device="cpu", **SETTINGS)
    traced(model).learn(40)
    assert (Trace.made, model._n_updates) == (0, 40)


@pytest.fixture
def graphs(monkeypatch):
    """Each replay's graph."""
    graphs = []

    class Counted(cuda_graph.CudaGraph):
        def replay(self):
            graphs.append(self)
            super().replay()

    monkeypatch.setattr(cuda_graph, "CudaGraph", Counted)
    return graphs


def on_a_gpu(precision, compiles, **kwargs):
    """One agent that records, and one that does not."""
    eager, recorded = make("cuda", **kwargs), make("cuda", **kwargs)
    eager.precision = recorded.precision = precision
    recorded.compile = compiles
    eager.prepare_learning()._records = False
    return eager, recorded


@pytest.mark.skipif(not th.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("compiles", [False, True])
@pytest.mark.parametrize("precision", ["float32", "auto"])
def test_on_a_gpu(precision, compiles, graphs, monkeypatch):
    monkeypatch.setattr(th.backends.cudnn, "allow_tf32", False)
    eager, recorded = on_a_gpu(precision, compiles)
    learn(eager)
    learn(recorded)
    assert len(set(graphs)) == 5
    assert len(graphs) > 90
    assert th.cuda.current_stream() == th.cuda.default_stream()
    # Sums are made in another order, by other algorithms of cuDNN's. In bfloat16 Adam makes a step of full size of
    # whatever sign rounding has left to a tiny gradient; test_prioritized_on_a_gpu is stricter
    assert_equal(recorded, eager, 5e-2 if precision == "float32" else 0.6)


@pytest.mark.skipif(not th.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("compiles", [False, True])
def test_prioritized_on_a_gpu(compiles, graphs):
    eager, recorded = on_a_gpu("float32", compiles, priority_exponent=0.5)
    train_a_little(eager)
    train_a_little(recorded)
    assert len(graphs) == 4
    assert_equal(recorded, eager, 2e-2)
