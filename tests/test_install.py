"""The built wheel, installed into an empty environment, as a user gets it."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent


def install_all(folder: Path) -> None:
    """The wheel and what it asks for, and nothing else."""
    venv.create(folder / "env", with_pip=True)
    pip = [str(folder / "env/bin/python"), "-m", "pip"]
    install = [*pip, "install", "--quiet", "--constraint", str(REPOSITORY / "constraints.txt")]
    run(*install, "torch", cwd=folder)  # by name first, so that it may be a CPU build
    run(*install, str(next(folder.glob("*.whl"))), cwd=folder)


def install_wheel(folder: Path) -> None:
    """The wheel alone, beside the packages of the environment that runs this."""
    venv.create(folder / "env")
    python = str(folder / "env/bin/python")
    ours = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    # Their .pth files, of which one is ours, are not read there
    (Path(ours) / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", str(next(folder.glob("*.whl"))), cwd=folder)


@pytest.fixture(scope="module", params=[install_wheel, pytest.param(install_all, marks=pytest.mark.slow)])
def installed(request, tmp_path_factory):
    """A folder with an environment ``env``."""
    folder = tmp_path_factory.mktemp("install")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(REPOSITORY)]
    run(*build, cwd=folder)
    request.param(folder)
    return folder


def run(*command: str, cwd: Path, stdin: str | None = None) -> str:
    # Nothing of this repository may be found by accident
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    process = subprocess.run(command, cwd=cwd, input=stdin, text=True, capture_output=True, env=env, timeout=1200)
    assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-3000:]
    return process.stdout


def test_the_zoos_own_command_works(installed):
    python = str(installed / "env/bin/python")
    output = run(
        *[python, "-m", "rl_zoo3.train", "--algo", "ddqn", "--env", "CartPole-v1", "-n", "2000", "--eval-freq", "1000"],
        cwd=installed,
    )
    assert f"{installed}/env/lib" in output
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
    names = ["enjoy", "record_video", "push_to_hub", "load_from_hub", "record_training"]
    several = str(REPOSITORY / "tests/zoo/one_after_another.py")
    helps = run(python, several, cwd=installed, stdin=json.dumps([f"-m rl_zoo3.{name} --help" for name in names]))
    *helps, rest = helps.split("### 0\n")
    assert rest == ""
    for name, said in zip(names, helps, strict=True):
        assert "ddqn" in said, name
    run(python, "-c", "import sys; sys.argv.append('enjoy'); import rl_zoo3.cli", cwd=installed)


def test_uninstalling_leaves_nothing(installed):
    python = str(installed / "env/bin/python")
    run(python, "-m", "pip", "uninstall", "--quiet", "--yes", "dqn-ext", cwd=installed)
    assert not list((installed / "env").glob("lib/python*/site-packages/*dqn_ext*"))
    run(python, "-c", "import rl_zoo3; assert 'ddqn' not in rl_zoo3.ALGOS", cwd=installed)
