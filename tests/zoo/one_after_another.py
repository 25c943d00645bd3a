"""Several of the Zoo's commands in one process, whose imports take longer than most of them. See ``run_several``."""

import json
import runpy
import shlex
import sys


def run_module(module: str, *flags: str) -> int:
    """What ``python -m MODULE FLAGS`` does.

    :return: its exit code
    """
    sys.argv = [module, *flags]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if not isinstance(end.code, str):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        sys.excepthook(*sys.exc_info())  # by which a process of its own would end
        return 1
    return 0


if __name__ == "__main__":
    for arguments in json.load(sys.stdin):
        code = run_module(*shlex.split(arguments)[1:])  # -m MODULE FLAGS
        for stream in (sys.stdout, sys.stderr):
            print(f"### {code}", file=stream, flush=True)
