"""The start-up hook: cheap, harmless, and with an off switch."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture
def site_dir(tmp_path):
    """A site directory that holds the hook alone, as an interpreter would read it."""
    for name in ("dqn_ext.pth", "dqn_ext_hook.py"):
        shutil.copy(REPOSITORY / name, tmp_path)
    return tmp_path


def start(site_dir: Path, code: str = "pass", **env: str) -> "subprocess.CompletedProcess[str]":
    code = f"import site; site.addsitedir({str(site_dir)!r})\n{code}"
    command = [sys.executable, "-I", "-S", "-c", code]
    return subprocess.run(command, text=True, capture_output=True, env={**os.environ, **env}, timeout=60)


def test_imports_nothing_new(site_dir):
    code = "import sys; print(sorted(sys.modules))"
    with_hook = set(eval(start(site_dir, code).stdout))
    without = set(eval(start(site_dir, code, DQN_EXT_NO_HOOK="1").stdout))
    (site_dir / "dqn_ext.pth").unlink()
    bare = set(eval(start(site_dir, code).stdout))
    assert with_hook == without == bare | {"dqn_ext_hook"}


def test_off_switch(site_dir):
    code = "import sys; print(type(sys.meta_path[0]).__name__)"
    assert start(site_dir, code).stdout == "_ZooFinder\n"
    assert start(site_dir, code, DQN_EXT_NO_HOOK="0").stdout == "_ZooFinder\n"
    assert start(site_dir, code, DQN_EXT_NO_HOOK="1").stdout != "_ZooFinder\n"


@pytest.mark.parametrize("damage", [None, b"", b"def (", b"\x00\xff\xfe", b"raise SystemError", b"1/0"])
def test_never_breaks_an_interpreter(site_dir, damage):
    hook = site_dir / "dqn_ext_hook.py"
    if damage is None:
        hook.unlink()
    else:
        hook.write_bytes(damage)
    process = start(site_dir, "print('fine')")
    assert (process.returncode, process.stdout, process.stderr) == (0, "fine\n", "")


def test_a_broken_package_leaves_the_zoo_alone(site_dir):
    """The hook is there and rl_zoo3 too, but dqn_ext itself does not import."""
    (site_dir / "rl_zoo3").mkdir()
    (site_dir / "rl_zoo3/__init__.py").write_text("loaded = True")
    (site_dir / "dqn_ext").mkdir()
    (site_dir / "dqn_ext/__init__.py").write_text("1/0")
    process = start(site_dir, "import rl_zoo3, rl_zoo3; print(rl_zoo3.loaded)")
    assert (process.returncode, process.stdout) == (0, "True\n")
    assert process.stderr == "dqn-ext could not register ddqn with rl_zoo3: division by zero\n"


def test_looking_for_the_zoo_does_not_use_the_hook_up(site_dir):
    for package in ("rl_zoo3", "dqn_ext", "dqn_ext/zoo"):
        (site_dir / package).mkdir()
        (site_dir / package / "__init__.py").touch()
    (site_dir / "dqn_ext/zoo/__init__.py").write_text("def register(): print('registered')")
    code = "from importlib.util import find_spec; print(find_spec('rl_zoo3').name); import rl_zoo3; import rl_zoo3"
    assert start(site_dir, code).stdout == "rl_zoo3\nregistered\n"


def test_a_missing_zoo_is_pythons_own_error(site_dir):
    process = start(site_dir, "import rl_zoo3")
    assert "ModuleNotFoundError: No module named 'rl_zoo3'" in process.stderr
