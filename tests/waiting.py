"""Waiting for something that another process does."""

import subprocess
import time
from collections.abc import Callable


def wait_until(condition: Callable[[], object], process: "subprocess.Popen[str]", timeout: float = 300) -> None:
    end = time.monotonic() + timeout
    while not condition():
        if process.poll() is not None or time.monotonic() > end:
            process.kill()
            raise AssertionError(process.communicate()[0])
        time.sleep(0.05)
