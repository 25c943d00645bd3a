"""Pictures of a playing agent: the game's frame, the score, and the Q-value of each action beside it."""

import contextlib
import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import imageio_ffmpeg
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from stable_baselines3.common.atari_wrappers import MaxAndSkipEnv
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from dqn_ext.errors import InvalidInput
from dqn_ext.whole_files import replaced_when_whole

BACKGROUND, TEXT, MUTED, BAR, CHOSEN = "#14161a", "#e8eaed", "#8a919c", "#46566e", "#eda53b"

MARGIN = 20
HEADER = 60  # pixels over the frame: steps and score
FRAME_BOX = (480, 420)  # what a frame is scaled to fit into; Atari's 160 x 210 doubles
BAR_LENGTH = 120


def render(env: VecEnv) -> np.ndarray:
    """What an environment looks like, (H, W, 3) bytes.

    :raises InvalidInput: where it draws nothing
    """
    frame = env.render()
    if frame is None:
        raise InvalidInput("the environment draws no frames.")
    return frame


def film(model: BaseAlgorithm, env: VecEnv, n_steps: int, deterministic: bool) -> Iterator[np.ndarray]:
    """What an agent's environment looks like before each of so many steps, as :func:`render` has it."""
    observations: Any = env.reset()
    for _ in range(n_steps):
        yield render(env)
        actions, _ = model.predict(observations, deterministic=deterministic)
        observations = env.step(actions)[0]


@dataclass(frozen=True)
class Moment:
    """What an agent sees, thinks and does at one step.

    :param frame: as rendered, (H, W, 3) bytes
    :param score: raw, of the game so far
    :param q_values: (A,)
    :param action: the one taken
    :param over: whether the game is
    """

    frame: np.ndarray
    score: float
    q_values: np.ndarray
    action: int
    over: bool = False


class Panel:
    """Draws the moments of one game, each into an image of :attr:`size`.

    The bars' axis spans the Q-values seen so far: actions differ by little compared with what a state is worth.

    :param title: which agent it is
    :param subtitle: more about it, in small letters
    :param action_names: in the order of ``Moment.q_values``
    :param frame_shape: of ``Moment.frame``
    """

    def __init__(self, title: str, subtitle: str, action_names: Sequence[str], frame_shape: tuple[int, ...]) -> None:
        self.title, self.subtitle, self.action_names = title, subtitle, action_names
        height, width = frame_shape[:2]
        scale = min(FRAME_BOX[0] / width, FRAME_BOX[1] / height)
        self.frame_size = (round(width * scale), round(height * scale))
        # Pixels stay pixels
        self.resampling = Image.Resampling.NEAREST if scale == int(scale) else Image.Resampling.LANCZOS
        self.row_height = max(14, min(34, (FRAME_BOX[1] - 50) // len(action_names)))
        self.font = _font(min(14, self.row_height - 6))
        self.names_width = max(int(self.font.getlength(name)) for name in action_names)
        self.size = (
            self.frame_size[0] + MARGIN + self.names_width + 24 + BAR_LENGTH + 56,
            HEADER + max(FRAME_BOX[1], 50 + self.row_height * len(action_names)),
        )
        self.low, self.high = np.inf, -np.inf

    def draw(self, moment: Moment) -> Image.Image:
        """:return: an RGB image of :attr:`size`"""
        image = Image.new("RGB", self.size, BACKGROUND)
        draw = ImageDraw.Draw(image)
        draw.text((0, 0), self.title, TEXT, _font(22))
        draw.text((0, 32), self.subtitle, MUTED, _font(14))
        draw.text((self.frame_size[0], 0), f"{moment.score:,.0f}", TEXT, _font(22), anchor="ra")
        draw.text((self.frame_size[0], 32), "game over" if moment.over else "score", MUTED, _font(14), anchor="ra")
        image.paste(Image.fromarray(moment.frame).resize(self.frame_size, self.resampling), (0, HEADER))
        self._draw_q_values(draw, moment)
        return image

    def _draw_q_values(self, draw: ImageDraw.ImageDraw, moment: Moment) -> None:
        self.low, self.high = min(self.low, moment.q_values.min()), max(self.high, moment.q_values.max())
        names_left = self.frame_size[0] + MARGIN + 14
        left = names_left + self.names_width + 10
        draw.text((names_left, HEADER), "Q-values", MUTED, _font(14))
        top = HEADER + 28
        for action, (name, q_value) in enumerate(zip(self.action_names, moment.q_values, strict=True)):
            chosen = action == moment.action
            middle = top + self.row_height // 2
            length = BAR_LENGTH * (q_value - self.low) / max(self.high - self.low, 1e-9)
            if chosen:
                x = names_left - 12
                draw.polygon([(x, middle - 5), (x, middle + 5), (x + 7, middle)], CHOSEN)
            draw.text((names_left, middle), name, CHOSEN if chosen else TEXT, self.font, anchor="lm")
            half = self.row_height // 2 - 3
            draw.rectangle((left, middle - half, left + length, middle + half), CHOSEN if chosen else BAR)
            text = f"{q_value:.2f}"
            draw.text((left + BAR_LENGTH + 8, middle), text, CHOSEN if chosen else MUTED, self.font, anchor="lm")
            top += self.row_height
        draw.line((left, HEADER + 28, left, top), MUTED)
        draw.line((left, top, left + BAR_LENGTH, top), MUTED)
        draw.text((left, top + 4), f"{self.low:.2f}", MUTED, _font(12), anchor="ma")
        draw.text((left + BAR_LENGTH, top + 4), f"{self.high:.2f}", MUTED, _font(12), anchor="ma")


def side_by_side(headline: str, images: Sequence[Image.Image]) -> Image.Image:
    """:return: the images in a row under a headline; width and height are even, as video wants them"""
    width = sum(image.width for image in images) + MARGIN * (len(images) + 1)
    height = 32 + max(image.height for image in images) + 2 * MARGIN
    picture = Image.new("RGB", (width + width % 2, height + height % 2), BACKGROUND)
    ImageDraw.Draw(picture).text((MARGIN, 14), headline, MUTED, _font(14))
    left = MARGIN
    for image in images:
        picture.paste(image, (left, 32 + MARGIN))
        left += image.width + MARGIN
    return picture


def frames_per_second(env: VecEnv) -> float:
    """Real time: an Atari emulator shows 60 frames a second, of which one step of the agent takes four."""
    if env.env_is_wrapped(MaxAndSkipEnv)[0]:
        return 60 / env.get_attr("_skip")[0]
    return env.get_attr("metadata")[0].get("render_fps") or 30


def write_video(path: Path, pictures: Iterable[Image.Image], fps: float) -> None:
    """Encode as H.264, in the form that browsers play. A file that stands there is replaced when all is done.

    :param pictures: at least one; of one size
    :raises InvalidInput: where ``path`` cannot be written
    """
    try:
        with replaced_when_whole(path) as unfinished:
            unfinished.touch()
            n_pictures = _encode(unfinished, pictures, fps)
            # ffmpeg's exit code is lost on the way; on a full disk the file ends early
            if imageio_ffmpeg.count_frames_and_secs(str(unfinished))[0] != n_pictures:
                raise OSError("the file is not complete")
    except (OSError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InvalidInput(f"The video {path} could not be written ({reason}).") from error


def _encode(path: Path, pictures: Iterable[Image.Image], fps: float) -> int:
    """:return: the number of pictures"""
    pictures = iter(pictures)
    first = next(pictures)
    encoder = imageio_ffmpeg.write_frames(
        str(path),
        first.size,
        fps=fps,
        codec="libx264",
        pix_fmt_out="yuv420p",
        macro_block_size=2,
        quality=None,
        # faststart: a browser plays before it has the whole file
        output_params=["-crf", "20", "-preset", "veryfast", "-movflags", "+faststart"],
    )
    with contextlib.closing(encoder):
        encoder.send(None)
        n_pictures = 0
        for picture in itertools.chain([first], pictures):
            encoder.send(picture.tobytes())
            n_pictures += 1
    return n_pictures


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return cast(ImageFont.FreeTypeFont, ImageFont.load_default(size))
