"""Repairs of faults of rl_zoo3 2.9.2 and what it stands on, each with its reason.

A fault that is gone costs nothing here: each repair looks first whether it is still needed, and
``tests/zoo/test_repairs.py`` fails with "can go" when it is not.

(The missing ``requests``, which ``rl_zoo3.load_from_hub`` imports, is simply one of our dependencies.)
"""

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any

from dqn_ext.errors import InvalidInput
from dqn_ext.zoo import zoo_attribute


def apply() -> None:
    """Apply all repairs, once."""
    for repair in (
        restore_generate_metadata,
        translate_missing_hub_file,
        read_model_cards,
        run_child_commands,
        provide_ffmpeg,
        print_one_sentence,
    ):
        repair()


def restore_generate_metadata() -> None:
    """``rl_zoo3.push_to_hub`` imports ``generate_metadata``, of which sb3-team-hf-integration 3.2 left a private twin.

    The twin returns an object that YAML writes as ``!!python/object``, which no reader of model cards accepts.
    """
    # `import huggingface_sb3.push_to_hub` would give the function of that name
    module: Any = import_module("huggingface_sb3.push_to_hub")
    if hasattr(module, "generate_metadata"):
        return

    def generate_metadata(*args: Any, **kwargs: Any) -> dict[str, Any]:
        return module._generate_metadata(*args, **kwargs).to_dict()

    module.generate_metadata = generate_metadata


def translate_missing_hub_file() -> None:
    """``rl_zoo3.load_from_hub`` expects a ``requests`` error for a file that a repository does not have.

    huggingface_hub 1.0 left ``requests``: every agent without ``vec_normalize.pkl``, all of Atari, ended there.
    """
    import huggingface_sb3
    from huggingface_hub.errors import EntryNotFoundError
    from requests.exceptions import HTTPError

    if issubclass(EntryNotFoundError, HTTPError):
        return
    original = huggingface_sb3.load_from_hub

    def load_from_hub(repo_id: str, filename: str) -> str:
        try:
            return original(repo_id, filename)
        except EntryNotFoundError as error:
            raise HTTPError(str(error)) from error

    huggingface_sb3.load_from_hub = load_from_hub


def read_model_cards() -> None:
    """``get_hf_trained_models`` subscripts a card as the dict it was before huggingface_hub 0.2x; it finds no model."""
    utils: Any = import_module("rl_zoo3.utils")

    class HfApi(zoo_attribute("rl_zoo3.utils", "HfApi")):  # type: ignore[misc]
        def list_models(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
            for model in super().list_models(*args, **kwargs):
                if hasattr(model.card_data, "to_dict"):
                    model.card_data = model.card_data.to_dict()
                yield model

    utils.HfApi = HfApi


def run_child_commands() -> None:
    """``benchmark`` runs ``python enjoy.py``, a file of the Zoo's repository; ``record_training`` any ``python``.

    Both mean the Zoo of this interpreter.
    """
    original = subprocess.call

    def call(command: Any, *args: Any, **kwargs: Any) -> int:
        if isinstance(command, list):
            zoo = [sys.executable, "-m", "dqn_ext.zoo"]
            if command[:2] == ["python", "enjoy.py"] and not Path("enjoy.py").exists():
                command = [*zoo, "enjoy", *command[2:]]
            elif command[:3] == ["python", "-m", "rl_zoo3.record_video"]:
                command = [*zoo, "record_video", *command[3:]]
        return original(command, *args, **kwargs)

    subprocess.call = call


def provide_ffmpeg() -> None:
    """``record_training`` and ``push_to_hub`` run an ``ffmpeg``, and go on without a video where there is none.

    imageio-ffmpeg brings one, under another name.
    """
    if shutil.which("ffmpeg") is not None:
        return
    import imageio_ffmpeg

    folder = tempfile.mkdtemp(prefix="dqn_ext_ffmpeg_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    binary = Path(imageio_ffmpeg.get_ffmpeg_exe())
    link = Path(folder, "ffmpeg" + binary.suffix if sys.platform == "win32" else "ffmpeg")
    try:
        link.symlink_to(binary)
    except OSError:  # Windows asks for a privilege
        shutil.copy(binary, link)
    os.environ["PATH"] += os.pathsep + folder


def print_one_sentence() -> None:
    """A wrong setting needs a sentence, not a traceback. The Zoo's own check of the game's name is such a sentence."""
    previous: Callable[..., Any] = sys.excepthook

    def excepthook(
        kind: type[BaseException], error: BaseException, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, InvalidInput) or "not found in gym registry" in str(error):
            print(f"Error: {error}", file=sys.stderr)
        else:
            previous(kind, error, traceback)

    sys.excepthook = excepthook
