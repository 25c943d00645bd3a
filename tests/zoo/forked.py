"""Commands in forks of a process that has imported what takes longer than most commands, and what no test is about."""

import atexit
import multiprocessing
import os
import sys
import tempfile
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

from tests.zoo import one_after_another

IMPORTED = ["torch.utils.tensorboard", "matplotlib.pyplot", "pandas", "scipy.stats", "sqlalchemy", "requests"]


def run_module(words: list[str], cwd: Path, env: dict[str, str], timeout: float) -> tuple[int, str, str]:
    """``python -m MODULE FLAGS`` in a folder, with an environment.

    :param words: the module and its flags

    :return: exit code, and what it wrote to stdout and stderr
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    with mock.patch.dict(os.environ, env):  # some are read when a library is imported
        forkserver.ensure_running()
    with tempfile.TemporaryDirectory() as folder:
        process = context.Process(target=_run, args=(words, str(cwd), env, folder))
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            process.join()
        stdout, stderr = ((Path(folder) / name).read_text() for name in ("stdout", "stderr"))
    assert process.exitcode is not None
    return process.exitcode, stdout, stderr


def _run(words: list[str], cwd: str, env: dict[str, str], folder: str) -> None:
    for number, name in enumerate(("stdout", "stderr"), start=1):
        file = os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CREAT)
        os.dup2(file, number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.path[:] = [cwd, *filter(None, sys.path)]
    sys.orig_argv = [sys.executable, "-m", *words]
    code = one_after_another.run_module(*words)
    atexit._run_exitfuncs()  # which the end of a fork leaves out
    sys.exit(code)
