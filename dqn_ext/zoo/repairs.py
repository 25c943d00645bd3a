"""Repairs of faults of rl_zoo3 2.9.2 and what it stands on, each with its reason.

A repair that finds its fault gone does nothing, and ``tests/zoo/test_repairs.py`` then says that it can go.

(The missing ``requests``, which ``rl_zoo3.load_from_hub`` imports, is simply one of our dependencies.)
"""

import argparse
import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, TracebackType
from typing import Any

from dqn_ext.errors import Diverged, InvalidInput
from dqn_ext.zoo import zoo_attribute


def apply() -> None:
    """Apply all repairs, once."""
    for repair in (
        restore_generate_metadata,
        load_agents_as_plain_values,
        read_model_cards,
        edit_commands,
        provide_ffmpeg,
        name_unreadable_settings,
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


def load_agents_as_plain_values() -> None:
    """``rl_zoo3.load_from_hub`` writes files of a stranger's that the other commands unpickle, import and ``eval``.

    For ``dqn`` and ``ddqn`` it gets files that were written here (:mod:`dqn_ext.hub.load`).
    """
    import huggingface_sb3

    from dqn_ext.hub.load import HubFiles

    huggingface_sb3.load_from_hub = HubFiles(huggingface_sb3.load_from_hub)


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


# Faults inside a command's code, which only another text mends: what stands there, and what should.
EDITS = {
    # The mean over episodes becomes one over runs where there is one run: plot_from_file then stops.
    "rl_zoo3.plots.all_plots": (
        "np.array(last_eval).squeeze().mean(axis=-1)",
        "np.array(last_eval).reshape(len(last_eval), -1).mean(axis=-1)",
    ),
    # enjoy.py stands in the Zoo's repository, not in its package
    "rl_zoo3.benchmark": (
        '["python", "enjoy.py", *arguments]',
        '[__import__("sys").executable, "-m", "dqn_ext.zoo", "enjoy", *arguments]',
    ),
    # Any other `python` may have no Zoo
    "rl_zoo3.record_training": (
        '["python", "-m", "rl_zoo3.record_video"',
        '[__import__("sys").executable, "-m", "dqn_ext.zoo", "record_video"',
    ),
    # Forgets the env_kwargs of an entry, which enjoy.py takes
    "rl_zoo3.record_video": (
        "    env_kwargs = {}\n",
        "    env_kwargs = dict(hyperparams.pop('env_kwargs', None) or {})\n",
    ),
    # No ddqn among its off-policy algorithms; sends an agent's weights twice, an earlier push's files again, and a card
    # that tells nobody how to load it
    "rl_zoo3.push_to_hub": (
        "    args = parser.parse_args()",
        "    from dqn_ext.hub import push\n\n    args, package_to_hub = push.parse_args(parser, package_to_hub)",
    ),
}


class _EditedSource(SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        return compile(
            (self.get_source(fullname) or "").replace(*EDITS[fullname]), self.path, "exec", dont_inherit=True
        )


class _EditedModules:
    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name in EDITS else None
        if spec is not None and spec.origin is not None:
            spec.loader = _EditedSource(name, spec.origin)
        return spec


def edit_commands() -> None:
    """Let the modules of :data:`EDITS` be loaded from their mended text."""
    sys.meta_path.insert(0, _EditedModules)


def provide_ffmpeg() -> None:
    """``record_training`` and ``push_to_hub`` run an ``ffmpeg``, and go on without a video where there is none.

    imageio-ffmpeg brings one, under another name.
    """
    if shutil.which("ffmpeg") is not None:
        return
    import imageio_ffmpeg

    try:
        binary = Path(imageio_ffmpeg.get_ffmpeg_exe())
        folder = tempfile.mkdtemp(prefix="dqn_ext_ffmpeg_")
    except (OSError, RuntimeError):  # it has none for this machine, or there is no room: there will be no videos
        return
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    link = Path(folder, "ffmpeg" + binary.suffix if sys.platform == "win32" else "ffmpeg")
    try:
        link.symlink_to(binary)
    except OSError:  # Windows asks for a privilege
        shutil.copy(binary, link)
    os.environ["PATH"] = os.environ.get("PATH", os.defpath) + os.pathsep + folder


def name_unreadable_settings() -> None:
    """Of ``-params`` and its like the Zoo evaluates the values; a word without quotes is a name that is not defined."""
    store_dict = zoo_attribute("rl_zoo3.utils", "StoreDict")
    evaluate = store_dict.__call__

    def __call__(
        self: Any, parser: Any, namespace: Any, values: Sequence[str], option_string: str | None = None
    ) -> None:
        settings = {}
        for value in values:
            one = argparse.Namespace()
            try:
                evaluate(self, parser, one, [value], option_string)
            except Exception as error:
                raise InvalidInput(
                    f"{option_string} {value} cannot be read: it must be NAME:VALUE with a value of Python's, "
                    f"words in quotes within quotes, \"policy:'CnnPolicy'\" ({error})."
                ) from error
            settings.update(getattr(one, self.dest))
        setattr(namespace, self.dest, settings)

    store_dict.__call__ = __call__


# The Zoo's own, which name the game, the agent or the folder, one of Optuna's and one of SB3's
SENTENCES = (
    "not found in gym registry",
    "No model found for",
    "No checkpoint found for",
    "folder was not found",
    "already exists, use --force",
    "The trained_agent must be a valid path",
    "Hyperparameters not found for",
    "No trials are completed yet",
    "spaces do not match",
)


def print_one_sentence() -> None:
    """A wrong setting needs a sentence, not a traceback."""
    previous: Callable[..., Any] = sys.excepthook

    def excepthook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if isinstance(error, (InvalidInput, Diverged)) or any(sentence in str(error) for sentence in SENTENCES):
            print(f"Error: {error}", file=sys.stderr)
        else:
            previous(kind, error, traceback)

    sys.excepthook = excepthook
