"""Several of the Zoo's commands in one process, whose imports take longer than most of them. See ``run_several``."""

import json
import runpy
import shlex
import sys

for arguments in json.load(sys.stdin):
    _, module, *sys.argv[1:] = shlex.split(arguments)  # -m MODULE FLAGS
    code = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code
    except BaseException:
        sys.excepthook(*sys.exc_info())  # by which a process of its own would end
        code = 1
    for stream in (sys.stdout, sys.stderr):
        print(f"### {code or 0}", file=stream, flush=True)
