"""The small files in which measurements are kept."""

import json
import platform
import shlex
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import machine

from dqn_ext.whole_files import replaced_when_whole


def replace(path: Path, text: str) -> None:
    """Write a file that is whole at any time, in a folder that is made where there is none."""
    with replaced_when_whole(path) as unfinished:
        unfinished.write_text(text)


def write_record(path: Path, device: str = "cpu", **content: Any) -> None:
    """Keep what a script has measured, with its command, the date, the machine and the versions.

    :param device: that computed, ``"cpu"`` or ``"cuda"``
    """
    about = {
        "command": shlex.join(["python", *sys.argv]),
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine.describe(device),
        "python": platform.python_version(),
        "torch": version("torch"),
    }
    replace(path, json.dumps({**about, **content}, indent=1, allow_nan=False) + "\n")
