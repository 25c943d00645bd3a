"""Double DQN (van Hasselt, Guez, Silver 2016, https://arxiv.org/abs/1509.06461) on top of SB3's DQN."""

import io
import json
import math
import pathlib
import warnings
import zipfile
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any, ClassVar, TypeVar, cast

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3 import DQN, HerReplayBuffer
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from stable_baselines3.common.save_util import load_from_zip_file, open_path
from stable_baselines3.common.type_aliases import (
    GymEnv,
    MaybeCallback,
    ReplayBufferSamples,
    RolloutReturn,
    TrainFreq,
    TrainFrequencyUnit,
)
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecTransposeImage, unwrap_vec_wrapper
from stable_baselines3.dqn import policies
from torch.nn import functional as F

from dqn_ext.cuda_graph import HostCopy
from dqn_ext.errors import Diverged, InvalidInput
from dqn_ext.hyperparameters import check_arguments, check_values
from dqn_ext.learner import Learner, Losses, choose_compilation, choose_dtype
from dqn_ext.overlap import Meanwhile
from dqn_ext.policies import CnnPolicy, MlpPolicy, MultiInputPolicy, QNetwork
from dqn_ext.replay import Draw, FrameReplayBuffer, PrioritizedReplayBufferSamples, files
from dqn_ext.replay.seams import break_off
from dqn_ext.td_targets import clip_to_returns, double_q_target, q_learning_target
from dqn_ext.whole_files import replaced_when_whole

SelfDDQN = TypeVar("SelfDDQN", bound="DDQN")


class DDQN(DQN):
    """Deep Q-learning with Double-DQN targets.

    Takes every argument of :class:`stable_baselines3.DQN`, with its defaults, and those below. Differs from it in:

    - the target, :func:`dqn_ext.td_targets.double_q_target`;
    - exploration: each environment tosses its own epsilon coin, SB3 tosses one for all;
    - the replay memory, which is allocated when it is first needed: loading an agent to play reserves none. On stacked
      images (``VecFrameStack``) it is a :class:`dqn_ext.FrameReplayBuffer`, whose settings ``replay_buffer_kwargs``
      may give;
    - the log, which adds ``train/q_value_mean`` (of the actions taken), ``train/td_error`` (mean absolute),
      ``train/grad_norm`` (before clipping) and ``train/updates_per_transition``;
    - a learning rate that decays to 0, which stays there where training stops a little late;
    - its policies, which take ``dueling``, and its ``CnnPolicy``, whose features extractor may be given by name.

    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"``, ``"MultiInputPolicy"`` or a class
    :param env: the environment to learn from
    :param double_q: ``False`` gives DQN's target on the same code, for ablations
    :param reward_bound: what no reward's absolute value exceeds; targets are clipped to the returns that such rewards
        can have, see :func:`dqn_ext.td_targets.clip_to_returns`
    :param precision: of ``CnnPolicy``'s convolutions while learning, ``"float32"``, ``"bfloat16"``, or ``"auto"``:
        bfloat16 where the hardware gains from it; weights and Q-values are float32 in any case
    :param overlap: learn while the environments step, but with a ``HerReplayBuffer``, which asks them for rewards.
        Actions are then chosen with the weights before the last call of :meth:`train`; everything else stays as it is,
        the number and the batches' transitions of updates included
    :param compile: have PyTorch compile the updates, which takes it some 20 seconds. ``True`` asks for a CUDA device;
        ``"auto"``: where there is one, and the replay memory's ``store`` is ``"device"``
    :raises InvalidInput: on a hyperparameter out of range, before anything is built
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }

    def __init__(
        self,
        policy: str | type[policies.DQNPolicy],
        env: GymEnv | str,
        *args: Any,
        double_q: bool = True,
        reward_bound: float | None = None,
        precision: str = "float32",
        overlap: bool = False,
        compile: bool | str = False,
        _init_setup_model: bool = True,
        **kwargs: Any,
    ) -> None:
        kwargs["_init_setup_model"] = False
        super().__init__(policy, env, *args, **kwargs)
        self.double_q, self.reward_bound = double_q, reward_bound
        self.precision, self.overlap, self.compile = precision, overlap, compile
        self._num_timesteps_at_last_train = 0
        self._n_stack: int | None = None  # frames in an observation, if it is a stack; saved with the agent
        if _init_setup_model:
            check_values({**vars(self), "stats_window_size": self._stats_window_size})
            owner = policy if isinstance(policy, str) else policy.__name__
            check_arguments(self.policy_kwargs, self.policy_class, owner)
            if (first := getattr(self.action_space, "start", 0)) != 0:
                raise InvalidInput(f"The actions of {self.action_space} must begin with 0, not with {first}.")
            # To complain now rather than when learning starts
            self._choose_replay_buffer()
            choose_dtype(precision, self.device)
            choose_compilation(compile, self.device)
            if callable(self.learning_rate):
                self.learning_rate(1.0)  # an error of its own is no policy's
            try:
                self._setup_model()
            except InvalidInput:
                raise
            except Exception as error:  # each argument has its own
                if not self.policy_kwargs:
                    raise
                raise InvalidInput(f"policy_kwargs {self.policy_kwargs} make no {owner}: {error}") from error

    # ------------------------------------------------------------------ learning

    _learner: Learner | None = None  # not before learning starts: an agent that only plays needs none

    @property
    def is_learning(self) -> bool:
        """Whether there has been an update: from then on the networks compute in ``precision``."""
        return self._learner is not None

    def prepare_learning(self) -> Learner:
        """Set the networks to ``precision``, as the first update does."""
        if self._learner is None or self._learner.made_of != (self.policy, self.precision, self.compile):
            self._learner = Learner(self.policy, self.device, self.precision, self.compile)
        return self._learner

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        """Sample the replay memory and follow the gradient of the Huber loss, ``gradient_steps`` times.

        With ``overlap`` that happens during the environments' next step, if there is one.

        :raises Diverged: where the loss or its gradient is infinite or not a number
        """
        if gradient_steps < 1:
            return
        if self._learns_meanwhile and self.num_timesteps < self._total_timesteps:
            self._train_if_due()  # what a callback has asked for since the last step
            self._due = gradient_steps, batch_size
        else:
            self._train(gradient_steps, batch_size)

    def _train(self, gradient_steps: int, batch_size: int) -> None:
        # Switch to train mode (this affects batch norm / dropout)
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)

        if isinstance(self.replay_buffer, FrameReplayBuffer):
            self.replay_buffer.anneal(1 - self._current_progress_remaining)
        learner, memory = self.prepare_learning(), cast(Any, self.replay_buffer)
        losses: Losses = self._losses_of_sample
        inputs: list[tuple] = [(batch_size,)] * gradient_steps
        if (settings := self._settings_on_device()) is not None:
            losses, inputs = self._losses_of_draw, [memory.draw(batch_size) for _ in range(gradient_steps)]
        means = learner.repeat(losses, inputs, float(self.max_grad_norm), settings)

        self._n_updates += gradient_steps
        self._report()
        # Transitions collected before learning starts belong to no update
        n_transitions = self.num_timesteps - max(self._num_timesteps_at_last_train, self.learning_starts)
        self._num_timesteps_at_last_train = self.num_timesteps
        copy = HostCopy(means)
        self._unreported = copy, self.num_timesteps, self._n_updates, gradient_steps, n_transitions
        if not self._learns_meanwhile or copy.is_there():
            self._report()

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        # Training may stop a little late, or an episode: a rate that decays to 0 must not pass it
        super()._update_current_progress_remaining(min(num_timesteps, total_timesteps), total_timesteps)

    def _settings_on_device(self) -> tuple[Any, ...] | None:
        """What an update depends on beside the device's memory; ``None`` where it also needs the host's."""
        memory = self.replay_buffer
        if type(memory) is not FrameReplayBuffer or memory.place is None or self._vec_normalize_env is not None:
            return None
        return memory.place, self.gamma, self.double_q, self.reward_bound

    def _losses_of_sample(self, batch_size: int) -> tuple[th.Tensor, ...]:
        return self._losses(self.replay_buffer.sample(batch_size, env=self._vec_normalize_env))

    def _losses_of_draw(self, *draw: Any) -> tuple[th.Tensor, ...]:
        return self._losses(cast(FrameReplayBuffer, self.replay_buffer).look_up(Draw(*draw)))

    def _losses(
        self, replay_data: ReplayBufferSamples | PrioritizedReplayBufferSamples
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """:return: the loss whose gradient is followed; and the means of Q-values and |TD errors|"""
        with th.no_grad():
            target_q_values = self._target_q_values(replay_data)  # (B, 1)
        q_values = self.q_net(replay_data.observations)  # (B, A)
        current_q_values = th.gather(q_values, dim=1, index=replay_data.actions.long())  # (B, 1)
        losses = F.smooth_l1_loss(current_q_values, target_q_values, reduction="none")
        if isinstance(replay_data, PrioritizedReplayBufferSamples):
            losses = replay_data.weights * losses
        loss = losses.mean()
        td_errors = (target_q_values - current_q_values.detach()).abs()
        if isinstance(replay_data, PrioritizedReplayBufferSamples):
            # Before the backward pass, which a GPU then does while the next batch is put together
            cast(Any, self.replay_buffer).update_priorities(replay_data.indices, td_errors.squeeze(1))
        return loss, current_q_values.detach().mean(), td_errors.mean()

    def _target_q_values(self, replay_data: ReplayBufferSamples | PrioritizedReplayBufferSamples) -> th.Tensor:
        """:return: ``y`` of each transition, (B, 1)"""
        # For n-step replay, the discount is gamma ** n of each transition's own n
        discounts = replay_data.discounts if replay_data.discounts is not None else self.gamma
        next_observations = replay_data.next_observations
        if type(self.q_net) is QNetwork:  # one of the user's may do something to them first
            next_observations = self.q_net.prepare(next_observations)
        next_q_values_target = self.q_net_target(next_observations)
        rewards, dones = replay_data.rewards, replay_data.dones
        if self.double_q:
            # Selecting must not move BatchNorm's statistics, nor select through dropout
            self.q_net.set_training_mode(False)
            next_q_values_online = self.q_net(next_observations)
            self.q_net.set_training_mode(True)
            targets = double_q_target(rewards, dones, discounts, next_q_values_online, next_q_values_target)
        else:
            targets = q_learning_target(rewards, dones, discounts, next_q_values_target)
        return targets if self.reward_bound is None else clip_to_returns(targets, self.reward_bound, self.gamma)

    def _report(self) -> None:
        """Log the last updates; with ``overlap`` on a GPU one call of train later, so that nobody waits for them.

        :raises Diverged: where the loss or its gradient is infinite or not a number
        """
        if self._unreported is None:
            return
        means, step, n_updates, gradient_steps, n_transitions = self._unreported
        self._unreported = None
        loss, q_value, td_error, grad_norm = means.tolist()
        # No later update mends it
        for name, value in (("loss", loss), ("gradient's norm", grad_norm)):
            if not math.isfinite(value):
                raise Diverged(
                    f"Learning has diverged: the {name} is {value} at step {step}; "
                    f"a lower learning_rate, or clipped rewards, may keep it finite."
                )
        self.logger.record("train/n_updates", n_updates, exclude="tensorboard")
        self.logger.record("train/loss", loss)
        self.logger.record("train/q_value_mean", q_value)
        self.logger.record("train/td_error", td_error)
        self.logger.record("train/grad_norm", grad_norm)
        if n_transitions > 0:
            self.logger.record("train/updates_per_transition", gradient_steps / n_transitions)

    def learn(
        self: SelfDDQN,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str = "DDQN",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfDDQN:
        """Cf. :meth:`stable_baselines3.DQN.learn`."""
        # HER asks the environments for rewards, which those in processes cannot answer during a step
        self._learns_meanwhile = self.overlap and not isinstance(self.replay_buffer, HerReplayBuffer)
        try:
            super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)
            self._report()
            return self
        finally:
            self._learns_meanwhile, self._due, self._meanwhile, self._unreported = False, None, None, None

    # Only while learn() runs
    _learns_meanwhile = False
    _due: tuple[int, int] | None = None  # gradient steps and batch size of the update that is due
    _meanwhile: Meanwhile | None = None
    _unreported: tuple[HostCopy, int, int, int, int] | None = None  # what is known of the last updates

    def collect_rollouts(self, env: VecEnv, *args: Any, **kwargs: Any) -> RolloutReturn:
        """Cf. :meth:`stable_baselines3.DQN.collect_rollouts`."""
        if self._learns_meanwhile:
            if self._meanwhile is None or self._meanwhile.venv is not env:
                self._meanwhile = Meanwhile(env, self._train_if_due)
            env = self._meanwhile
        rollout = None
        try:
            rollout = super().collect_rollouts(env, *args, **kwargs)
            return rollout
        finally:
            if rollout is None or not rollout.continue_training:
                self._last_obs = None  # the step in hand was not stored: another learn() begins with new episodes

    def _train_if_due(self) -> None:
        if self._due is not None:
            due, self._due = self._due, None
            self._train(*due)
            self.policy.set_training_mode(False)  # as it is while SB3 collects

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        optimize_memory_usage = self.optimize_memory_usage
        if isinstance(self.replay_buffer, FrameReplayBuffer):
            # It knows where a trajectory broke off; SB3 would mark a terminal state there
            self.optimize_memory_usage = False
            if not self._goes_on_where_it_was():
                self._last_obs = None
        self._stack_planes()
        starts = self._last_episode_starts
        try:
            total_timesteps, callback = super()._setup_learn(*args, **kwargs)
        finally:
            self.optimize_memory_usage = optimize_memory_usage
        # Only a reset makes it anew; of observations some environments have a single array
        if self._last_episode_starts is not starts:
            break_off(self.replay_buffer)
        # 0 where the count of timesteps starts again
        self._num_timesteps_at_last_train = min(self._num_timesteps_at_last_train, self.num_timesteps)
        if self.verbose >= 1 and (updates := self._updates_per_transition()) is not None:
            print(f"{updates:g} updates per transition, each of a batch of {self.batch_size}")
        return total_timesteps, callback

    def _stack_planes(self) -> None:
        """Have SB3 stack frames as planes in memory, as networks take them: it then moves them on in whole rows, tens
        of times faster than byte by byte. Its arrays keep their shape and contents.
        """
        stack: Any = unwrap_vec_wrapper(cast(VecEnv, self.env), VecFrameStack)
        if stack is not None and isinstance(stack.observation_space, spaces.Box):
            frames = stack.stacked_obs
            if frames.stack_dimension == -1:
                planes = np.ascontiguousarray(np.moveaxis(frames.stacked_obs, -1, 1))
                frames.stacked_obs = np.moveaxis(planes, 1, -1)

    def _goes_on_where_it_was(self) -> bool:
        """Whether nobody has stepped the environments since: a stream of stacked frames must be whole."""
        stack = unwrap_vec_wrapper(cast(VecEnv, self.env), VecFrameStack)
        last: Any = self._last_obs if self._vec_normalize_env is None else self._last_original_obs
        if last is None or not isinstance(stack, VecFrameStack):
            return True
        now: Any = getattr(stack.stacked_obs, "stacked_obs", None)
        if now is None:  # one of several parts of the environments' observations
            return False
        return np.array_equal(last, now if now.shape == last.shape else VecTransposeImage.transpose_image(now))

    def _updates_per_transition(self) -> float | None:
        """``None`` where it depends on the length of episodes."""
        if self.gradient_steps < 0:
            return 1.0
        train_freq = cast(TrainFreq, self.train_freq)
        if train_freq.unit == TrainFrequencyUnit.EPISODE:
            return None
        return self.gradient_steps / (train_freq.frequency * self.n_envs)

    # ------------------------------------------------------------------ acting

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Epsilon-greedy actions, with one coin for each environment; greedy ones if ``deterministic``.

        :param observation: one observation, or a batch of them
        :param state: passed through, DDQN has no recurrent state
        :param episode_start: unused
        :param deterministic: whether to take the greedy action always
        :return: the action, or the batch of them, and ``state``
        """
        if deterministic or isinstance(observation, tuple):  # SB3 says what is wrong with a tuple
            return self.policy.predict(observation, state, episode_start, deterministic)
        vectorized = self.policy.is_vectorized_observation(observation)
        arrays = next(iter(observation.values())) if isinstance(observation, dict) else observation
        explore = np.random.rand(len(arrays) if vectorized else 1) < self.exploration_rate
        if explore.all():
            actions = np.array([self.action_space.sample() for _ in explore])
        else:
            actions, state = self.policy.predict(observation, state, episode_start, deterministic)
            actions = np.atleast_1d(actions)
            for index in np.flatnonzero(explore):
                actions[index] = self.action_space.sample()
        return (actions if vectorized else actions.squeeze(axis=0)), state

    # ------------------------------------------------------------------ replay memory

    _replay_buffer: ReplayBuffer | None

    @property
    def replay_buffer(self) -> ReplayBuffer:
        """The replay memory; allocated when it is first asked for."""
        if self._replay_buffer is None:
            self._replay_buffer = self._create_replay_buffer()
        return self._replay_buffer

    @replay_buffer.setter
    def replay_buffer(self, replay_buffer: ReplayBuffer | None) -> None:
        self._replay_buffer = replay_buffer

    def _convert_train_freq(self) -> None:
        if isinstance(self.train_freq, list):
            self.train_freq = tuple(self.train_freq)  # YAML knows no tuples
        super()._convert_train_freq()

    def _setup_model(self) -> None:
        # SB3 allocates the replay memory here, and writes its choice of class over the user's arguments. It leaves
        # both alone where a buffer stands already.
        buffer, buffer_class, n_steps = self._replay_buffer, self.replay_buffer_class, self.n_steps
        self._replay_buffer = _NOT_YET if buffer is None else buffer
        self.replay_buffer_class, self.n_steps = ReplayBuffer, 1
        try:
            super()._setup_model()
        finally:
            self._replay_buffer, self.replay_buffer_class, self.n_steps = buffer, buffer_class, n_steps

    def _choose_replay_buffer(self) -> tuple[type[ReplayBuffer], dict[str, Any]]:
        """The class of the replay memory and its own arguments."""
        if self.env is not None:
            self._n_stack = self._count_frames(self.env)
        normalizer = self._vec_normalize_env
        if normalizer is not None and normalizer.observation_space.shape != self.observation_space.shape:
            raise InvalidInput(
                "VecNormalize must be around VecFrameStack and VecTransposeImage, not within; "
                "the Zoo's normalize and frame_stack do not go together."
            )
        buffer_class, buffer_kwargs = self.replay_buffer_class, dict(self.replay_buffer_kwargs or {})
        if buffer_class is None:
            if isinstance(self.observation_space, spaces.Dict):
                buffer_class = DictReplayBuffer
            elif self._n_stack is not None and is_image_space(self.observation_space):
                buffer_class = FrameReplayBuffer
            elif self.n_steps > 1:
                buffer_class = NStepReplayBuffer
            else:
                buffer_class = ReplayBuffer
        given = ("buffer_size", "device", "n_envs", "optimize_memory_usage")
        check_arguments(buffer_kwargs, buffer_class, f"the replay memory, {buffer_class.__name__}", given)
        if self.optimize_memory_usage and not issubclass(buffer_class, FrameReplayBuffer):
            if issubclass(buffer_class, (DictReplayBuffer, NStepReplayBuffer)):
                raise InvalidInput(f"optimize_memory_usage must be False with {buffer_class.__name__}.")
            if buffer_kwargs.get("handle_timeout_termination", True):
                raise InvalidInput(
                    f"optimize_memory_usage needs replay_buffer_kwargs {{'handle_timeout_termination': False}} with "
                    f"{buffer_class.__name__}, which does not do both."
                )
        if issubclass(buffer_class, (NStepReplayBuffer, FrameReplayBuffer)):
            buffer_kwargs = {"n_steps": self.n_steps, "gamma": self.gamma, **buffer_kwargs}
            check_values({name: buffer_kwargs[name] for name in ("n_steps", "gamma")})
        if issubclass(buffer_class, FrameReplayBuffer):
            buffer_kwargs = {"n_stack": self._n_stack, **buffer_kwargs}
        if self.n_steps > 1 and "n_steps" not in buffer_kwargs:
            raise InvalidInput(
                f"n_steps must be 1 with {buffer_class.__name__}, which knows single steps only, not {self.n_steps}."
            )
        return buffer_class, buffer_kwargs

    def _count_frames(self, env: VecEnv) -> int | None:
        """Frames in an observation; ``None`` if it is no stack, or not along the axis that SB3 takes for the channels'.

        Of images with less rows than the stack has channels these are two.
        """
        stack = unwrap_vec_wrapper(env, VecFrameStack)
        if not isinstance(stack, VecFrameStack):
            return None
        stacks_first = getattr(stack.stacked_obs, "channels_first", None)  # observations of several parts have none
        space = self.observation_space
        if stacks_first is not None and isinstance(space, spaces.Box) and is_image_space(space):
            stacks_first = stacks_first or unwrap_vec_wrapper(env, VecTransposeImage) is not None
            if stacks_first != is_image_space_channels_first(space):
                return None
        return stack.stacked_obs.n_stack

    def _create_replay_buffer(self) -> ReplayBuffer:
        buffer_class, buffer_kwargs = self._choose_replay_buffer()
        if issubclass(buffer_class, HerReplayBuffer):
            # Not an argument of the user's: environments are not saved
            buffer_kwargs["env"] = self.env
        try:
            return buffer_class(
                self.buffer_size,
                self.observation_space,
                self.action_space,
                device=self.device,
                n_envs=self.n_envs,
                optimize_memory_usage=self.optimize_memory_usage,
                **buffer_kwargs,
            )
        except InvalidInput:
            raise
        except (MemoryError, TypeError, ValueError, th.OutOfMemoryError) as error:
            raise InvalidInput(f"A replay memory of buffer_size {self.buffer_size} cannot be made: {error}") from error

    # ------------------------------------------------------------------ files

    @classmethod
    def load(cls: type[SelfDDQN], path: str | pathlib.Path | io.BufferedIOBase, *args: Any, **kwargs: Any) -> SelfDDQN:
        """Cf. :meth:`stable_baselines3.DQN.load`. Agents trained with SB3's DQN load too, and get these policies.

        :raises InvalidInput: on a file that is not the model of a DQN, or a hyperparameter out of range
        """
        check_values(kwargs)
        is_sb3s = "double_q" not in check_model_file(path)
        model = super().load(path, *args, **kwargs)
        if is_sb3s and model.policy_class in _INSTEAD_OF_SB3S:
            model._replace_policy(_INSTEAD_OF_SB3S[model.policy_class])
        # To complain now; what an agent was saved with, another machine may lack, and need not learn with
        if "precision" in kwargs:
            choose_dtype(model.precision, model.device)
        if "compile" in kwargs:
            choose_compilation(model.compile, model.device)
        if is_sb3s and "replay_buffer_class" not in kwargs and model.replay_buffer_class in _SB3S_CHOICES:
            # Nobody's wish: SB3 saves the class that it has chosen itself, and the arguments that it gave it. Where
            # somebody has given them, n_steps is among them, and the model's is 1
            model.replay_buffer_class = None
            if "replay_buffer_kwargs" not in kwargs:
                model.replay_buffer_kwargs.pop("gamma", None)
                n_steps = model.replay_buffer_kwargs.pop("n_steps", model.n_steps)
                model.n_steps = kwargs.get("n_steps", n_steps)
        if "replay_buffer_kwargs" in kwargs:
            model._choose_replay_buffer()
        if "replay_buffer" in vars(model):  # of SB3's DQN, saved with it
            model.replay_buffer = vars(model).pop("replay_buffer")
            model.replay_buffer_class = model.replay_buffer_class or type(model.replay_buffer)
        try:
            model._fit_replay_buffer("The file")
        except InvalidInput as error:  # to play it needs none
            warnings.warn(f"The replay memory that was saved with the agent is left out: {error}", stacklevel=2)
            model._replay_buffer = None
        return model

    def _replace_policy(self, policy_class: type[BasePolicy]) -> None:
        """Have the same networks and optimizer in a policy of this class."""
        parameters = self.get_parameters()
        self.policy_class = policy_class
        self._setup_model()
        groups = self.policy.optimizer.param_groups
        for saved, group in zip(parameters["policy.optimizer"]["param_groups"], groups, strict=True):
            saved["fused"] = group.get("fused")  # how, not what it computes
        self.set_parameters(parameters)  # type: ignore[arg-type]  # what it takes by its own docstring

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """Cf. :meth:`stable_baselines3.DQN.save`. A file that stands there is replaced when the new one is whole."""
        # By its attribute's name
        include = ["_replay_buffer" if name == "replay_buffer" else name for name in include or ()]
        if not isinstance(path, (str, pathlib.Path)):
            super().save(path, exclude, include)
            return
        path = pathlib.Path(path)
        with replaced_when_whole(path if path.suffix else pathlib.Path(f"{path}.zip")) as unfinished:
            super().save(unfinished, exclude, include)

    def save_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase) -> None:
        """Cf. :meth:`stable_baselines3.DQN.save_replay_buffer`. A ``FrameReplayBuffer`` gets a file of its own format.

        :raises InvalidInput: where it cannot be written; a file that stands there is left as it was
        """
        if not isinstance(self.replay_buffer, FrameReplayBuffer):
            super().save_replay_buffer(path)
            return
        if isinstance(path, (str, pathlib.Path)) and not pathlib.Path(path).suffix:
            path = f"{path}.pkl"  # SB3's ending
        self.replay_buffer.save(path)

    def load_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase, truncate_last_traj: bool = True) -> None:
        """Cf. :meth:`stable_baselines3.DQN.load_replay_buffer`. The file of a ``FrameReplayBuffer`` is not unpickled.

        :raises InvalidInput: on a file of that format that is damaged or does not fit
        """
        if isinstance(path, (str, pathlib.Path)) and not (pathlib.Path(path).exists() or pathlib.Path(path).suffix):
            path = f"{path}.pkl"
        if not files.is_replay_file(path):
            if issubclass(self._choose_replay_buffer()[0], FrameReplayBuffer):
                raise InvalidInput(f"{path} is not a replay memory of stacked images; it has not been unpickled.")
            before = self._replay_buffer
            try:
                super().load_replay_buffer(path, truncate_last_traj)
                self._fit_replay_buffer(path)
            except BaseException as error:
                self._replay_buffer = before
                if isinstance(error, Exception) and not isinstance(error, (InvalidInput, OSError, MemoryError)):
                    raise InvalidInput(f"{path} is not a replay memory that can be read: {error}") from error
                raise
            if truncate_last_traj:
                break_off(self.replay_buffer)
            return
        replay_buffer = self._create_replay_buffer()
        if not isinstance(replay_buffer, FrameReplayBuffer):
            raise InvalidInput(
                f"{path} holds stacked images, and the replay memory of these settings is a "
                f"{type(replay_buffer).__name__}, which cannot take them."
            )
        replay_buffer.load(path)
        self.replay_buffer = replay_buffer

    def _fit_replay_buffer(self, path: Any) -> None:
        """Have a replay memory that was unpickled, if there is one, take the settings of this agent.

        :raises InvalidInput: where it is not one of these settings
        """
        loaded = self._replay_buffer
        if loaded is None:
            return
        buffer_class, buffer_kwargs = self._choose_replay_buffer()
        if type(loaded) is not buffer_class or loaded.n_envs != self.n_envs:
            raise InvalidInput(
                f"{path} holds a {type(loaded).__name__} of {loaded.n_envs} environments, and these settings need "
                f"a {buffer_class.__name__} of {self.n_envs}."
            )
        for name in ("observation_space", "action_space"):
            if getattr(loaded, name) != getattr(self, name):
                raise InvalidInput(
                    f"{path} holds transitions whose {name} is {getattr(loaded, name)}, "
                    f"and this agent's is {getattr(self, name)}."
                )
        if isinstance(loaded, FrameReplayBuffer):
            content = io.BytesIO()
            loaded.save(content)
            content.seek(0)
            self.load_replay_buffer(content)
            return
        loaded.device = self.device
        if isinstance(loaded, NStepReplayBuffer):
            loaded.n_steps, loaded.gamma = buffer_kwargs["n_steps"], buffer_kwargs["gamma"]
        elif isinstance(loaded, HerReplayBuffer) and loaded.env is None and self.env is not None:
            loaded.set_env(self.env)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_replay_buffer", "_learner", *_OF_LEARN]


_OF_LEARN = ("_learns_meanwhile", "_due", "_meanwhile", "_unreported")
_SB3S_CHOICES = (ReplayBuffer, DictReplayBuffer, NStepReplayBuffer)  # where no replay_buffer_class is given
_INSTEAD_OF_SB3S: dict[Any, type[BasePolicy]] = {
    policies.MlpPolicy: MlpPolicy,
    policies.CnnPolicy: CnnPolicy,
    policies.MultiInputPolicy: MultiInputPolicy,
}
_NOT_YET: Any = object()  # stands for a replay memory that is not needed yet


def check_model_file(path: str | pathlib.Path | io.BufferedIOBase) -> set[str]:
    """Read all of it, and unpickle nothing, to see that it is undamaged and that the weights are a Q-network's.

    :return: the names of what it holds beside weights
    :raises InvalidInput: on a file that is empty, truncated, damaged or of another algorithm
    """
    name = path if isinstance(path, (str, pathlib.Path)) else "the model file"
    try:
        opened = nullcontext(path) if isinstance(path, io.IOBase) else open_path(path, "r", suffix="zip")
        with opened as file, zipfile.ZipFile(file) as archive:
            if (damaged := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"{damaged} is not what was written")
            names = set(json.loads(archive.read("data")))
        _, params, _ = load_from_zip_file(path, load_data=False, device="cpu")
    except FileNotFoundError:
        raise
    except Exception as error:  # zipfile, zlib, torch and pickle each have their own
        raise InvalidInput(f"{name} is not a readable model: it is empty, truncated or damaged ({error}).") from error
    finally:
        if isinstance(path, io.IOBase):
            path.seek(0)
    weights: Any = params.get("policy", {})
    if not all(any(key.startswith(net) for key in weights) for net in ("q_net.", "q_net_target.")):
        raise InvalidInput(f"{name} holds the model of another algorithm; ddqn loads agents of DDQN and DQN.")
    return names
