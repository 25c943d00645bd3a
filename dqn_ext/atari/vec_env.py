"""Games on ale-py's native environments, with the rules of SB3's AtariWrapper, as one VecEnv of SB3's."""

import time
from collections.abc import Generator, Sequence
from typing import Any, cast

import gymnasium as gym
import numpy as np
from ale_py.vector_env import AtariVectorEnv
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor, ResultsWriter
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from dqn_ext.atari.settings import AtariSettings, read_settings, wrappers_of
from dqn_ext.errors import InvalidInput

NOOP, FIRE = 0, 1
FIRE_RESET_ACTIONS = (FIRE, 2)  # SB3's FireResetEnv

# frame and info
FirstFrame = tuple[np.ndarray, dict[str, Any]]
# frame (H, W, 1), reward, terminated, truncated, info
GameStep = tuple[np.ndarray, float, bool, bool, dict[str, Any]]


class Game:
    """Two emulators that take turns, each in a thread of its own: what SB3's Monitor and AtariWrapper do, around native
    frame skip, maximum, grey, resize and no-op starts.

    Each game is a vector environment of size one: a lost life and FIRE ask for steps of one game alone, and ale-py
    steps a vector as a whole. While it runs, a second one starts the next game.
    """

    render_mode: str | None = None

    def __init__(self, settings: AtariSettings, env: gym.Env) -> None:
        """
        :param settings: of the game and its preprocessing
        :param env: SB3's environment, in whose place this one stands; its Monitor's file is written on
        """
        self.settings = settings
        self.spec, self.action_space, self.observation_space = env.spec, env.action_space, env.observation_space
        self.action_meanings: list[str] = env.unwrapped.get_action_meanings()  # type: ignore[attr-defined]
        (monitor,) = (wrapper for wrapper in wrappers_of(env) if isinstance(wrapper, Monitor))
        self.t_start = monitor.t_start  # Monitor's name
        # The file stays open and changes hands: nothing is lost, nothing is written twice
        self._results_writer: ResultsWriter | None = monitor.results_writer
        monitor.results_writer = None
        self._emulator, self._next_emulator = self._make_emulator(), self._make_emulator()
        self._next_is_starting = False
        self._first_of_next: FirstFrame = (np.empty(0, np.uint8), {})
        self.lives, self.score, self.game_over = 0, 0.0, True
        self._is_stepping = False
        self._n_frames_before = self._n_frames = 0  # of all games before this one, and of this one

    def _make_emulator(self) -> AtariVectorEnv:
        settings = self.settings
        return AtariVectorEnv(
            settings.game,
            num_envs=1,
            num_threads=1,
            stack_num=1,  # VecFrameStack stacks
            img_height=settings.height,
            img_width=settings.width,
            frameskip=settings.frame_skip,
            maxpool=settings.frame_skip > 1,
            noop_max=settings.noop_max,
            use_fire_reset=False,  # it presses for one frame, SB3 through the frame skip
            reward_clipping=False,
            repeat_action_probability=settings.repeat_action_probability,
            full_action_space=settings.full_action_space,
            max_num_frames_per_episode=settings.max_frames,
        )

    def get_action_meanings(self) -> list[str]:
        """Cf. ale-py's."""
        return self.action_meanings

    def set_wrapper_attr(self, name: str, value: Any) -> None:
        """Cf. gymnasium's."""
        setattr(self, name, value)

    def send(self, action: int) -> None:
        """Let the emulator start on a step. Returns at once."""
        self._finish_step()
        if self.game_over:  # by the step that nobody has waited for
            self.start_game()
        self._emulator.send(np.array([action]))
        self._is_stepping = True

    def receive(self) -> GameStep:
        """Wait for the end of the step sent. The reward is raw; ``terminated`` is true of lost lives, too."""
        # First of all: to wait for a step again that Ctrl-C has interrupted here would be to wait forever
        self._is_stepping = False
        frames, rewards, terminations, truncations, batch_info = self._emulator.recv()
        reward, terminated, truncated = float(rewards[0]), bool(terminations[0]), bool(truncations[0])
        info = self._info(batch_info)
        self.score += reward
        self.game_over = terminated or truncated
        if self.game_over:
            info["episode"] = self._log_game(info)
        # Some games show 0 lives for a while before they are over
        if self.settings.episodic_life and 0 < info["lives"] < self.lives:
            terminated = True
        self.lives = info["lives"]
        return self._frame(frames), reward, terminated, truncated, info

    def _finish_step(self) -> None:
        if self._is_stepping:
            self.receive()

    def start_game(self, seed: int | None = None) -> FirstFrame:
        """Start a new game, even if the last one is not over."""
        self._finish_step()
        parts = self._press_fire(self._begin(*self._new_games(seed)))
        while True:
            try:
                next(parts)
            except StopIteration as end:
                return end.value

    def start_episode(self) -> Generator[None, None, FirstFrame]:
        """AtariWrapper's reset: a new game where the last one is over, the next life otherwise.

        In parts, between which the emulator is at work and the caller may turn to another game.

        :return: the first frame, (H, W, 1), and the info
        """
        first = yield from self._next_life_or_game()
        return (yield from self._press_fire(first))

    def _press_fire(self, first: FirstFrame) -> Generator[None, None, FirstFrame]:
        if self.settings.fire_reset:
            for action in FIRE_RESET_ACTIONS:
                self.send(action)
                yield
                frame, _, terminated, truncated, info = self.receive()
                first = frame, info
                if terminated or truncated:
                    # SB3 shows the frame before this one
                    first = yield from self._next_life_or_game()
        return first

    def _next_life_or_game(self) -> Generator[None, None, FirstFrame]:
        if not self.game_over:
            # A no-op leads out of the lost life, or ends the game after all
            self.send(NOOP)
            yield
            frame, _, _, _, info = self.receive()
        return self._begin(*self._next_game()) if self.game_over else (frame, info)

    def _begin(self, frames: np.ndarray, batch_info: dict[str, np.ndarray]) -> FirstFrame:
        self._n_frames_before += self._n_frames
        frame, info = self._frame(frames), self._info(batch_info)
        self.lives, self.score, self.game_over = info["lives"], 0.0, False
        return frame, info

    def _new_games(self, seed: int | None) -> FirstFrame:
        """Start a game on both emulators."""
        self._wait_for_next()
        # ale-py takes C++'s int
        seeds = (None, None) if seed is None else (seed % 2**31, (seed + 2**30) % 2**31)
        first = self._emulator.reset(seed=seeds[0])
        self._first_of_next = self._next_emulator.reset(seed=seeds[1])
        return first

    def _next_game(self) -> FirstFrame:
        """A game that the other emulator has started meanwhile, for which it needs as long as for a dozen steps."""
        self._wait_for_next()
        self._emulator, self._next_emulator = self._next_emulator, self._emulator
        self._next_emulator.send(np.array([NOOP]))  # after the last step of a game another one starts
        self._next_is_starting = True
        return self._first_of_next

    def _wait_for_next(self) -> None:
        if self._next_is_starting:
            self._next_is_starting = False  # first of all, as in `receive`
            frames, _, _, _, batch_info = self._next_emulator.recv()
            self._first_of_next = frames, batch_info

    def _frame(self, frames: np.ndarray) -> np.ndarray:
        return frames.reshape(self.settings.height, self.settings.width, 1)

    def _info(self, batch_info: dict[str, np.ndarray]) -> dict[str, Any]:
        """AtariEnv's."""
        self._n_frames = int(batch_info["episode_frame_number"][0])
        return {
            "lives": int(batch_info["lives"][0]),
            "episode_frame_number": self._n_frames,
            "frame_number": self._n_frames_before + self._n_frames,
        }

    def _log_game(self, info: dict[str, Any]) -> dict[str, Any]:
        """Monitor's: of whole games, scores are raw, lengths are emulator frames, no-op starts included."""
        episode = {
            "r": round(self.score, 6),
            "l": info["episode_frame_number"],
            "t": round(time.time() - self.t_start, 6),
        }
        if self._results_writer is not None:
            self._results_writer.write_row(episode)
        return episode

    def close(self) -> None:
        """Close the Monitor's file. The emulator's thread ends with the object."""
        if self._results_writer is not None:
            self._results_writer.close()


class AtariVecEnv(VecEnv):
    """Native environments in the place of SB3's ``DummyVecEnv`` of Atari games.

    Same games, same preprocessing, same observations (uint8, (84, 84, 1)), same ``monitor.csv`` files, and each
    emulator runs in C++ in a thread of its own: ``step_async`` starts them and returns at once, ``step_wait`` waits
    for them. The same seed and actions give the same stream, however the threads run. Differences from SB3's:

    - the maximum of two frames is taken of their greys, SB3's is of their colours: frames differ in few pixels, by
      less than a grey level on average;
    - the very frame in which a game ends is not looked at: the game's ``terminal_observation`` shows those before it,
      which matters only where the cap ends a game;
    - games start with 0 to ``noop_max - 1`` no-ops, SB3's with 1 to ``noop_max``. What a game rewards during those (a
      few, like Skiing, do) is not in its score, and the cap on a game's frames does not count them, while ``l`` does;
    - where FIRE at an episode's start ends that episode, SB3's first observation is one of the old episode, here it is
      one of the new;
    - ``reset()`` starts new games; SB3's goes on with those that are not over.

    They cannot be rendered.

    :param venv: SB3's environments, which are closed; the monitor files change hands
    :raises InvalidInput: on anything in ``venv`` that native environments would do otherwise; it is left as it is
    """

    def __init__(self, venv: VecEnv) -> None:
        if not isinstance(venv, DummyVecEnv):
            raise InvalidInput(f"native environments take the place of a DummyVecEnv, not a {type(venv).__name__}.")
        self.settings = read_settings(venv.envs[0])
        if any(read_settings(env) != self.settings for env in venv.envs[1:]):
            raise InvalidInput("native environments play one game with one set of settings, and these differ.")
        self._replaced_wrappers = [type(wrapper) for wrapper in wrappers_of(venv.envs[0])]
        self.games = [Game(self.settings, env) for env in venv.envs]
        super().__init__(venv.num_envs, venv.observation_space, venv.action_space)
        self._seeds = venv._seeds  # of the first reset
        venv.close()

    def reset(self) -> np.ndarray:
        """Start new games. Seeds are used once; ale-py's games have no options.

        :return: (n_envs, height, width, 1), uint8
        """
        frames = []
        for i, (game, seed) in enumerate(zip(self.games, self._seeds, strict=True)):
            frame, self.reset_infos[i] = game.start_game(seed)
            frames.append(frame)
        self._reset_seeds()
        self._reset_options()
        return np.stack(frames)

    def step_async(self, actions: np.ndarray) -> None:
        """Let all emulators start on a step.

        :param actions: (n_envs,), whole numbers
        :raises InvalidInput: on an action that the game does not have
        """
        actions = np.asarray(actions)
        n_actions = cast(spaces.Discrete, self.action_space).n
        is_whole = actions.shape == (self.num_envs,) and np.issubdtype(actions.dtype, np.integer)
        if not is_whole or actions.min() < 0 or actions.max() >= n_actions:
            # An emulator would wait for another one forever
            raise InvalidInput(f"actions must be {self.num_envs} of {self.action_space}, not {actions}.")
        for game, action in zip(self.games, actions.tolist(), strict=True):
            game.send(action)

    def step_wait(self) -> VecEnvStepReturn:
        """:return: observations (n_envs, height, width, 1), rewards, dones, infos; cf. SB3's ``DummyVecEnv``"""
        frames: list[np.ndarray] = []
        rewards = np.empty(self.num_envs, dtype=np.float32)
        dones = np.empty(self.num_envs, dtype=bool)
        infos: list[dict[str, Any]] = []
        starting: dict[int, Generator[None, None, FirstFrame]] = {}
        for i, game in enumerate(self.games):
            frame, reward, terminated, truncated, info = game.receive()
            rewards[i] = reward
            dones[i] = terminated or truncated
            info["TimeLimit.truncated"] = truncated and not terminated
            frames.append(frame)
            infos.append(info)
            if dones[i]:
                info["terminal_observation"] = frame
                starting[i] = game.start_episode()
                self._go_on(starting, i, frames)
        while starting:  # part by part, so that they start at the same time
            for i in list(starting):
                self._go_on(starting, i, frames)
        return np.stack(frames), np.sign(rewards) if self.settings.clip_reward else rewards, dones, infos

    def _go_on(self, starting: dict[int, Generator[None, None, FirstFrame]], i: int, frames: list[np.ndarray]) -> None:
        try:
            next(starting[i])
        except StopIteration as end:
            frames[i], self.reset_infos[i] = end.value
            del starting[i]

    def close(self) -> None:
        """End the emulators and close the monitor files."""
        for game in self.games:
            game.close()
        self.games = []

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Attributes of the :class:`Game` objects: ``spec``, ``lives``, ``score``, ..."""
        return [getattr(game, attr_name) for game in self._get_target_games(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of the :class:`Game` objects."""
        for game in self._get_target_games(indices):
            setattr(game, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of the :class:`Game` objects, ``get_action_meanings`` for example."""
        return [getattr(game, method_name)(*method_args, **method_kwargs) for game in self._get_target_games(indices)]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """Whether the games do what the wrapper did in the environments they replace, Monitor for example."""
        is_wrapped = any(issubclass(replaced, wrapper_class) for replaced in self._replaced_wrappers)
        return [is_wrapped for _ in self._get_indices(indices)]

    def _get_target_games(self, indices: VecEnvIndices) -> Sequence[Game]:
        return [self.games[i] for i in self._get_indices(indices)]
