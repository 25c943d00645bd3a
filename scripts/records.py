"""The small files in which measurements are kept."""

import json
import os
import platform
import shlex
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import machine


def replace(path: Path, text: str) -> None:
    """Write a file that is whole at any time, in a folder that is made where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


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
