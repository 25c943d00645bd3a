"""Settings of every test's process, and of the processes that tests start; and the order of the tests."""

import os
import signal
from pathlib import Path

import pytest

# Tests run side by side, and threads without a core of their own spin while they wait for each other
os.environ.setdefault("OMP_NUM_THREADS", "1")
# In the background of a shell it is ignored, and so it would be by the processes that tests start and interrupt
signal.signal(signal.SIGINT, signal.default_int_handler)

# Minutes each. A module is one worker's (--dist loadscope): begun last, one would keep the other worker waiting
LONGEST = (
    "zoo/test_commands.py",
    "test_bench_learning.py",
    "zoo/test_sweeps.py",
    "zoo/test_resume.py",
    "test_cuda_graph.py",
    "checkpoint/test_resume.py",
    "zoo/test_search_space.py",
    "hub/test_push.py",
    "test_suite.py",
    "test_install.py",
    "test_notebook.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest modules first; the others as they were found."""
    place = {Path(__file__).parent / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(LONGEST)))
