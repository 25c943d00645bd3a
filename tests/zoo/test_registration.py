"""What ``register()`` changes in the Zoo, and what it holds on to."""

import re
import subprocess
import sys

import pytest
import rl_zoo3.exp_manager
import rl_zoo3.hyperparams_opt
import rl_zoo3.utils

from dqn_ext import DDQN
from dqn_ext.zoo import register, zoo_attribute
from dqn_ext.zoo.manager import ExperimentManager
from dqn_ext.zoo.search_space import sample_ddqn_params


def test_the_dicts_are_changed_in_place():
    # other modules hold them by reference
    for holder in (rl_zoo3, rl_zoo3.utils, rl_zoo3.exp_manager):
        assert holder.ALGOS["ddqn"] is DDQN
    for holder in (rl_zoo3.hyperparams_opt, rl_zoo3.exp_manager):
        assert holder.HYPERPARAMS_SAMPLER["ddqn"] is sample_ddqn_params
    assert rl_zoo3.exp_manager.ExperimentManager is ExperimentManager


@pytest.mark.parametrize("module", ["", ".ddqn", ".zoo", ".zoo.manager", ".zoo.search_space", ".zoo.repairs"])
def test_any_module_can_be_imported_first(module):
    code = f"import dqn_ext{module}, rl_zoo3; assert 'ddqn' in rl_zoo3.ALGOS"
    process = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True)
    assert (process.returncode, process.stderr) == (0, "")


def test_an_environment_without_variables():
    """Not even a PATH, to which a folder with ffmpeg is added."""
    code = "import rl_zoo3; print('ddqn' in rl_zoo3.ALGOS)"
    process = subprocess.run([sys.executable, "-c", code], env={}, text=True, capture_output=True)
    assert (process.stdout, process.stderr) == ("True\n", "")


def test_registering_again_changes_nothing():
    before = list(sys.meta_path), sys.excepthook, dict(rl_zoo3.ALGOS), rl_zoo3.utils.HfApi
    register()
    assert before == (list(sys.meta_path), sys.excepthook, dict(rl_zoo3.ALGOS), rl_zoo3.utils.HfApi)


def test_a_zoo_that_has_moved_is_named(monkeypatch):
    with pytest.raises(
        RuntimeError, match=rf"rl_zoo3 {re.escape(rl_zoo3.__version__)} has no rl_zoo3.utils.ALGORITHMS"
    ):
        zoo_attribute("rl_zoo3.utils", "ALGORITHMS")
    monkeypatch.delattr(rl_zoo3.utils, "ALGOS")
    with pytest.raises(RuntimeError, match="which dqn-ext needs"):
        register()
