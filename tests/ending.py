"""How a script ends that is called in the tests' own process: to start another takes seconds of imports."""

import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dqn_ext.errors import InvalidInput


def error_of(main: Callable[[], None], arguments: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """:return: what it says on stderr, as it ends with an exit code that is not 0"""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["script.py", *shlex.split(arguments)])
        with pytest.raises((SystemExit, InvalidInput)) as end:
            main()
    said = capsys.readouterr().err
    if isinstance(end.value, InvalidInput):
        return f"{said}Error: {end.value}\n"  # dqn_ext.zoo.repairs.print_one_sentence, where nobody catches it
    assert end.value.code not in (None, 0)
    return f"{said}{end.value.code}\n" if isinstance(end.value.code, str) else said
