"""A process of its own for each thing that a script measures, which is asked for it line by line."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from typing import Any

_ANSWER = "answer: "


def answer(value: Any) -> None:
    """Called by the process: when it is ready, and for each line that it has read."""
    print(_ANSWER + json.dumps(value), flush=True)


class WorkerEnded(Exception):
    """The process of ``worker`` has ended, or could not begin; with the last line of its errors."""

    def __init__(self, worker: "Worker", last_line: str) -> None:
        super().__init__(last_line)
        self.worker = worker


class Worker:
    """The script once more, in another process.

    :param arguments: that make it call :func:`answer`
    :param environment: variables beside this process's
    :raises WorkerEnded: if it is never ready
    """

    def __init__(self, *arguments: str, **environment: str) -> None:
        # A pipe that nobody reads would stop it in the end
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  for as long as the process
        self._process = subprocess.Popen(
            [sys.executable, sys.argv[0], *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, **environment},
        )
        self.first_answer = self._read_answer()

    def ask(self, *words: object) -> Any:
        """:return: what it answers to a line of ``words``

        :raises WorkerEnded: if it does not
        """
        with contextlib.suppress(BrokenPipeError):  # its last words tell more
            print(*words, file=self._process.stdin, flush=True)
        return self._read_answer()

    def _read_answer(self) -> Any:
        for line in self._process.stdout or ():
            if line.startswith(_ANSWER):  # a library may print, too
                return json.loads(line.removeprefix(_ANSWER))
        code = self._process.wait()
        self._errors.seek(0)
        raise WorkerEnded(self, self._errors.read().strip().rpartition("\n")[2] or f"exit code {code}")

    def close(self) -> None:
        """Let it read the end of its lines, and wait for it."""
        self._process.communicate()
