"""Everything that knows rl_zoo3: registration, the search space, the experiment manager, repairs.

``register()`` runs by itself when rl_zoo3 is imported (see ``dqn_ext_hook.py``). Where Python reads no ``.pth`` files
(``-S``, ``pip install --target``, zipapps), ``python -m dqn_ext.zoo train ...`` does the same.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

HYPERPARAMS_DIR = Path(__file__).parent.parent / "hyperparams"
if not HYPERPARAMS_DIR.is_dir():  # an editable install: the folder stands at the top of the repository
    HYPERPARAMS_DIR = HYPERPARAMS_DIR.parent.parent / "hyperparams"


def register() -> None:
    """Make ``ddqn`` an algorithm of the Zoo, in all its commands. Calling it again does nothing.

    :raises RuntimeError: where rl_zoo3 no longer has what this holds on to
    """
    from dqn_ext.ddqn import DDQN

    algos = zoo_attribute("rl_zoo3.utils", "ALGOS")
    if algos.get("ddqn") is DDQN:
        return

    from dqn_ext.zoo import repairs, search_space
    from dqn_ext.zoo.manager import ExperimentManager

    # The Zoo's modules share these dicts by reference: change them, never rebind them
    zoo_attribute("rl_zoo3.hyperparams_opt", "HYPERPARAMS_SAMPLER")["ddqn"] = search_space.sample_ddqn_params
    zoo_attribute("rl_zoo3.hyperparams_opt", "HYPERPARAMS_CONVERTER")["ddqn"] = search_space.convert_ddqn_params
    # The commands import the manager by name, after this
    import_module("rl_zoo3.exp_manager").ExperimentManager = ExperimentManager  # type: ignore[attr-defined]
    repairs.apply()
    algos["ddqn"] = DDQN  # when all else stands


def zoo_attribute(module: str, name: str) -> Any:
    """What a module of the Zoo's holds under ``name``, or a clear error where a new version has moved it."""
    try:
        return getattr(import_module(module), name)
    except AttributeError:
        raise RuntimeError(
            f"rl_zoo3 {rl_zoo3.__version__} has no {module}.{name}, which dqn-ext needs; "
            f"install the version of rl_zoo3 that dqn-ext asks for."
        ) from None


# Whatever of this package is imported first, the Zoo is loaded, and registered with, before it: at the end, since that
# calls register()
import rl_zoo3  # noqa: E402
