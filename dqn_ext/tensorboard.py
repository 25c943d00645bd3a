"""What a TensorBoard log shows of a run beside its curves: its hyperparameters, and films of its agent."""

import io
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import HParam, TensorBoardOutputFormat
from stable_baselines3.common.vec_env import VecEnv, sync_envs_normalization

from dqn_ext.panels import film, frames_per_second

METRICS = ("eval/mean_reward", "rollout/ep_rew_mean")


class TensorboardCallback(BaseCallback):
    """Adds hyperparameters and films to the TensorBoard log of a run. Changes nothing in the run.

    Where there can be no films, the environment not being one to be rendered, that is said.

    :param make_env: gives an environment to film, with ``rgb_array`` rendering, for this callback alone
    :param hyperparams: by name; what is no number or text is shown as text
    :param film_freq: transitions, of all environments, between two films
    :param n_steps: greedy steps in a film
    """

    def __init__(
        self, make_env: Callable[[], VecEnv], hyperparams: Mapping[str, Any], film_freq: int, n_steps: int = 200
    ) -> None:
        super().__init__()
        self.film_freq, self.n_steps = film_freq, n_steps
        self._make_env, self._hyperparams = make_env, hyperparams
        self._env: VecEnv | None = None
        self._last_film = 0  # in transitions
        self._films = True

    def _on_training_start(self) -> None:
        hyperparams = {
            name: value if isinstance(value, (bool, int, float, str)) else str(value)
            for name, value in self._hyperparams.items()
        }
        # Of the metrics TensorBoard takes the curves' last values
        hparams = HParam(hyperparams, dict.fromkeys(METRICS, 0.0))
        for output in self._outputs():
            output.write({"hparams": hparams}, {"hparams": ()}, self.num_timesteps)

    def _on_step(self) -> bool:
        if self.num_timesteps // self.film_freq > self._last_film // self.film_freq:
            self._film()
        return True

    def _on_training_end(self) -> None:
        if self._last_film < self.num_timesteps:
            self._film()
        if self._env is not None:
            self._env.close()
            self._env = None

    def _film(self) -> None:
        self._last_film = self.num_timesteps
        if not (outputs := self._outputs()) or not self._films:
            return
        try:
            frames, fps = self._play()
        except Exception as error:  # each environment has its own
            self._films = False
            print(f"Warning: TensorBoard gets no films: {error}", file=sys.stderr)
            return
        for output in outputs:
            add_film(output, frames, self.num_timesteps, fps)

    def _outputs(self) -> list[TensorBoardOutputFormat]:
        return [output for output in self.logger.output_formats if isinstance(output, TensorBoardOutputFormat)]

    def _play(self) -> tuple[list[np.ndarray], float]:
        """:return: frames, and how many of them are a second of the game"""
        if self._env is None:
            self._env = self._make_env()
        if self.model.get_vec_normalize_env() is not None:
            sync_envs_normalization(self.training_env, self._env)
        return list(film(self.model, self._env, self.n_steps, deterministic=True)), frames_per_second(self._env)


def add_film(output: TensorBoardOutputFormat, frames: list[np.ndarray], step: int, fps: float) -> None:
    """Write a film, as an animated picture.

    ``SummaryWriter.add_video`` does so with a module that moviepy no longer has since its version 2.

    :param frames: (H, W, 3) bytes each
    """
    from tensorboard.compat.proto.summary_pb2 import Summary

    # The quickest of Pillow's methods, and as good for pictures of few colours
    images = [Image.fromarray(frame).quantize(64, method=Image.Quantize.FASTOCTREE) for frame in frames]
    content = io.BytesIO()
    images[0].save(
        content, "GIF", save_all=True, append_images=images[1:], duration=round(1000 / fps), loop=0, optimize=False
    )
    height, width, channels = frames[0].shape
    image = Summary.Image(height=height, width=width, colorspace=channels, encoded_image_string=content.getvalue())
    file_writer = output.writer.file_writer
    assert file_writer is not None
    file_writer.add_summary(Summary(value=[Summary.Value(tag="film/greedy", image=image)]), step)
    output.writer.flush()
