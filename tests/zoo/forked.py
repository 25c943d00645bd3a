"""Commands in forks of a process that has imported what takes longer than most commands, and what no test is about."""

import atexit
import multiprocessing
import os
import runpy
import sys
import tempfile
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

IMPORTED = ["torch.utils.tensorboard", "matplotlib.pyplot", "pandas", "scipy.stats", "sqlalchemy", "requests"]


def run_module(argv: list[str], cwd: Path, env: dict[str, str], timeout: float) -> tuple[int, str, str]:
    """``python -m MODULE FLAGS`` in a folder, with an environment.

    :return: exit code, and what it wrote to stdout and stderr
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    with mock.patch.dict(os.environ, env):  # some are read when a library is imported
        forkserver.ensure_running()
    with tempfile.TemporaryDirectory() as folder:
        process = context.Process(target=_run, args=(argv, str(cwd), env, folder))
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            process.join()
        stdout, stderr = ((Path(folder) / name).read_text() for name in ("stdout", "stderr"))
    assert process.exitcode is not None
    return process.exitcode, stdout, stderr


def _run(argv: list[str], cwd: str, env: dict[str, str], folder: str) -> None:
    for number, name in enumerate(("stdout", "stderr"), start=1):
        file = os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CREAT)
        os.dup2(file, number)
    sys.stdin, sys.stdout, sys.stderr = open(os.devnull), open(1, "w"), open(2, "w")  # noqa: SIM115
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.path[:] = [cwd, *filter(None, sys.path)]
    sys.argv, sys.orig_argv = argv, [sys.executable, "-m", *argv]
    try:
        runpy.run_module(argv[0], run_name="__main__", alter_sys=True)
    except SystemExit:
        raise
    except BaseException:
        sys.excepthook(*sys.exc_info())  # by which a process of its own would end
        sys.exit(1)
    finally:
        atexit._run_exitfuncs()  # which the end of a fork leaves out
        sys.stdout.flush()
