"""The small files in which measurements are kept."""

import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any


def replace(path: Path, text: str) -> None:
    """Write a file that is whole at any time, in a folder that is made where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def write_record(path: Path, **content: Any) -> None:
    """Keep what a script has measured, with its command and the date."""
    about = {"command": shlex.join(["python", *sys.argv]), "date": time.strftime("%Y-%m-%d")}
    replace(path, json.dumps({**about, **content}, indent=1, allow_nan=False) + "\n")
