"""The built wheel, installed into an empty environment, as a user gets it."""

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with an environment ``env`` that holds the wheel and what it asks for, and nothing else."""
    folder = tmp_path_factory.mktemp("install")
    run(
        sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(REPOSITORY), cwd=folder
    )
    venv.create(folder / "env", with_pip=True)
    python = str(folder / "env/bin/python")
    install = [python, "-m", "pip", "install", "--quiet", "--constraint", str(REPOSITORY / "constraints.txt")]
    run(*install, "torch", cwd=folder)  # by name first, so that it may be a CPU build
    run(*install, str(next(folder.glob("*.whl"))), cwd=folder)
    return folder


def run(*command: str, cwd: Path) -> str:
    # Nothing of this repository may be found by accident
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    process = subprocess.run(command, cwd=cwd, text=True, capture_output=True, env=env, timeout=1200)
    assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-3000:]
    return process.stdout


def test_the_zoos_own_command_works(installed):
    python = str(installed / "env/bin/python")
    output = run(
        *[python, "-m", "rl_zoo3.train", "--algo", "ddqn", "--env", "CartPole-v1", "-n", "2000", "--eval-freq", "1000"],
        cwd=installed,
    )
    assert "site-packages/dqn_ext/hyperparams/ddqn.yml" in output
    assert (installed / "logs/ddqn/CartPole-v1_1/best_model.zip").is_file()
    output = run(
        *[python, "-m", "rl_zoo3.enjoy", "--algo", "ddqn", "--env", "CartPole-v1", "-f", "logs", "--no-render"],
        cwd=installed,
    )
    assert "Mean reward" in output


def test_types_are_marked_and_all_commands_import(installed):
    python = str(installed / "env/bin/python")
    code = "import dqn_ext, pathlib; print((pathlib.Path(dqn_ext.__file__).parent / 'py.typed').is_file())"
    assert run(python, "-c", code, cwd=installed) == "True\n"
    for command in ("enjoy", "record_video", "push_to_hub", "load_from_hub", "record_training"):
        assert "ddqn" in run(python, "-m", f"rl_zoo3.{command}", "--help", cwd=installed)
    run(python, "-c", "import sys; sys.argv.append('enjoy'); import rl_zoo3.cli", cwd=installed)


def test_uninstalling_leaves_nothing(installed):
    python = str(installed / "env/bin/python")
    run(python, "-m", "pip", "uninstall", "--quiet", "--yes", "dqn-ext", cwd=installed)
    assert not list((installed / "env").glob("lib/python*/site-packages/*dqn_ext*"))
    run(python, "-c", "import rl_zoo3; assert 'ddqn' not in rl_zoo3.ALGOS", cwd=installed)
