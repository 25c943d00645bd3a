"""Learning between step_async and step_wait: when, how often, and from what."""

import ale_py
import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv, FakeImageEnv
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack

from dqn_ext import DDQN, cuda_graph, ddqn
from dqn_ext.errors import Diverged, InvalidInput

gym.register_envs(ale_py)


class Diary:
    """What happens, in order."""

    def __init__(self, model: DDQN) -> None:
        self.events: list[str] = []
        for owner, name in (
            (model, "_sample_action"),
            (model.env, "step_async"),
            (model.replay_buffer, "sample"),
            (model.env, "step_wait"),
            (model.replay_buffer, "add"),
        ):
            self._keep(owner, name)

    def _keep(self, owner, name):
        function = getattr(owner, name)

        def kept(*args, **kwargs):
            self.events.append(name)
            return function(*args, **kwargs)

        setattr(owner, name, kept)


def cartpole(n_envs=2, overlap=True, **kwargs):
    kwargs = {"learning_starts": 10, "train_freq": 1, "gradient_steps": 2, "device": "cpu", "seed": 3, **kwargs}
    return DDQN("MlpPolicy", make_vec_env("CartPole-v1", n_envs, seed=0), overlap=overlap, buffer_size=1000, **kwargs)


def weights(model):
    return th.nn.utils.parameters_to_vector(model.policy.parameters()).detach().clone()


def test_the_update_stands_between_sending_and_receiving():
    model = cartpole()
    diary = Diary(model)
    model.learn(40)
    step = ["_sample_action", "step_async", "step_wait", "add"]
    learning = ["_sample_action", "step_async", "sample", "sample", "step_wait", "add"]
    # Learning starts after more than 10 transitions, 6 steps; the last update waits for no further step
    assert diary.events == step * 6 + learning * 14 + ["sample", "sample"]

    model = cartpole(overlap=False)
    diary = Diary(model)
    model.learn(40)
    assert diary.events == step * 5 + [*step, "sample", "sample"] * 15


@pytest.mark.parametrize(
    "schedule",
    [
        {"train_freq": 1, "gradient_steps": 2},
        {"train_freq": 4, "gradient_steps": 1},
        {"train_freq": 3, "gradient_steps": -1},
        {"train_freq": (1, "episode"), "gradient_steps": 3, "n_envs": 1},
    ],
)
def test_as_many_updates_at_the_same_steps(schedule):
    class Updates(BaseCallback):
        def _on_training_start(self):
            self.seen = []

        def _on_step(self):
            self.seen.append((self.num_timesteps, self.model._n_updates, self.model.exploration_rate))
            return True

    seen = []
    for overlap in (False, True):
        # Actions at random, so that episodes are the same
        model = cartpole(overlap=overlap, exploration_initial_eps=1.0, exploration_final_eps=1.0, **schedule)
        callback = Updates()
        model.learn(200, callback)
        seen.append([*callback.seen, (model.num_timesteps, model._n_updates, model.exploration_rate)])
    if schedule["train_freq"] != (1, "episode"):  # there the random streams of batches and actions mix
        assert seen[0] == seen[1]
    for _, n_updates, _ in (seen[0][-1], seen[1][-1]):
        assert n_updates > 0
        assert schedule["gradient_steps"] < 0 or n_updates % schedule["gradient_steps"] == 0


def test_against_a_loop_by_hand():
    """The same weights as a loop that acts, learns from what was stored before, and stores."""
    model = cartpole()
    model.learn(60)
    twin = cartpole(overlap=False)
    total, _ = twin._setup_learn(60)
    twin.policy.set_training_mode(False)
    due = False
    while twin.num_timesteps < total:
        actions, buffer_actions = twin._sample_action(twin.learning_starts, None, 2)
        twin.env.step_async(actions)
        if due:
            twin.train(2, twin.batch_size)
        new_obs, rewards, dones, infos = twin.env.step_wait()
        twin.num_timesteps += 2
        twin._store_transition(twin.replay_buffer, buffer_actions, new_obs, rewards, dones, infos)
        twin._update_current_progress_remaining(twin.num_timesteps, total)
        twin._on_step()
        due = twin.num_timesteps > twin.learning_starts
    twin.train(2, twin.batch_size)
    assert model._n_updates == twin._n_updates
    assert th.equal(weights(model), weights(twin))


@pytest.mark.parametrize("vec_env_cls", [DummyVecEnv, SubprocVecEnv])
def test_the_same_seed_gives_the_same_run(vec_env_cls):
    results = []
    for _ in range(2):
        env = VecFrameStack(make_atari_env("ale_py:PongNoFrameskip-v4", 2, seed=0, vec_env_cls=vec_env_cls), 4)
        model = DDQN("CnnPolicy", env, overlap=True, buffer_size=400, learning_starts=50, seed=1, device="cpu")
        results.append((weights(model.learn(120)), model.replay_buffer.actions[:60].copy()))
        env.close()
    assert th.equal(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])


def test_nothing_is_left_over(tmp_path):
    """After an interruption, in a saved agent, and outside of learn()."""

    class Interrupts(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_start(self):
            if self.num_timesteps > 30:
                self.model.save(tmp_path / "agent")
                raise KeyboardInterrupt

    model = cartpole()
    with pytest.raises(KeyboardInterrupt):
        model.learn(100, Interrupts())
    loaded = DDQN.load(tmp_path / "agent", env=model.env, device="cpu")
    assert loaded.overlap
    for agent in (model, loaded):
        assert (agent._due, agent._meanwhile, agent._learns_meanwhile) == (None, None, False)
    before = weights(model)
    model.train(1, 32)
    assert not th.equal(before, weights(model))
    loaded.learn(40, reset_num_timesteps=False)


def test_callbacks_may_learn_too():
    """What is due is done before something else is."""

    class Learns(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_end(self):
            if self.num_timesteps > 10:
                self.model.train(5, 8)

    updates = []
    for overlap in (False, True):
        model = cartpole(overlap=overlap, train_freq=4, gradient_steps=1)
        updates.append(model.learn(80, Learns())._n_updates)
    assert updates[0] == updates[1] > 50


def test_callbacks_see_networks_that_act():
    class Modes(BaseCallback):
        def _on_training_start(self):
            self.seen = set()

        def _on_step(self):
            self.seen.add(self.model.q_net.training)
            return True

    callback = Modes()
    cartpole().learn(40, callback)
    assert callback.seen == {False}


@pytest.mark.parametrize("vec_env_cls", [DummyVecEnv, SubprocVecEnv])
def test_an_update_that_fails_leaves_no_step_behind(vec_env_cls):
    """As Ctrl-C in it does: the environments can be used, and learning goes on."""
    env = VecFrameStack(DummyVecEnv([lambda: FakeImageEnv(40, 40, n_channels=1, discrete=True)] * 2), 4)
    if vec_env_cls is SubprocVecEnv:
        env = make_vec_env("CartPole-v1", 2, seed=0, vec_env_cls=SubprocVecEnv)
    policy = "CnnPolicy" if vec_env_cls is DummyVecEnv else "MlpPolicy"
    model = DDQN(policy, env, overlap=True, learning_starts=10, buffer_size=200, device="cpu")
    sample = model.replay_buffer.sample

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    model.replay_buffer.sample = interrupted
    with pytest.raises(KeyboardInterrupt):
        model.learn(100)
    model.replay_buffer.sample = sample
    model.learn(30, reset_num_timesteps=False)
    assert env.reset().shape[0] == 2
    env.close()


def test_hindsight_asks_the_environments():
    env = make_vec_env(lambda: BitFlippingEnv(4), 2, vec_env_cls=SubprocVecEnv)
    settings = {"learning_starts": 20, "buffer_size": 200, "device": "cpu", "replay_buffer_class": HerReplayBuffer}
    model = DDQN("MultiInputPolicy", env, overlap=True, train_freq=1, **settings).learn(60)
    assert model._n_updates > 10
    env.close()


def test_bad_input():
    with pytest.raises(InvalidInput, match="overlap must be True or False, not 'yes'"):
        cartpole(overlap="yes")


@pytest.fixture
def slow_copies(monkeypatch):
    """As from a GPU, which has yet to finish the updates."""

    class SlowCopy(cuda_graph.HostCopy):
        def is_there(self):
            return False

    monkeypatch.setattr(ddqn, "HostCopy", SlowCopy)


def test_nobody_waits_for_the_log(slow_copies):
    """It has each call of train when the next one comes, and the last one at the end."""
    logged = []

    class Log(BaseCallback):
        def _on_step(self):
            logged.append((self.model._n_updates, self.logger.name_to_value.get("train/n_updates", 0)))
            return True

    model = cartpole()
    model.learn(40, callback=Log(), log_interval=10**6)
    assert [late for _, late in logged[7:]] == [done - 2 for done, _ in logged[7:]]
    assert model.logger.name_to_value["train/n_updates"] == model._n_updates == 30
    assert model.logger.name_to_value["train/updates_per_transition"] == 1

    model.train(2)  # nobody may come and ask after this one
    assert model.logger.name_to_value["train/n_updates"] == 32


def test_divergence_is_seen_at_the_end_at_the_latest(slow_copies):
    model = cartpole(learning_starts=37)

    class Spoil(BaseCallback):
        def _on_step(self):
            if self.num_timesteps == 40:
                for weights in self.model.q_net.parameters():
                    weights.data.fill_(float("nan"))
            return True

    with pytest.raises(Diverged, match="Learning has diverged: the loss is nan at step 40"):
        model.learn(40, callback=Spoil())
