"""Run Stable-Baselines3's own tests with DDQN in DQN's place.

    git clone https://github.com/DLR-RM/stable-baselines3
    python scripts/run_sb3_tests.py stable-baselines3 [pytest arguments]

The checkout should be of the installed version of SB3. Only the files that mention DQN are run.
"""

import sys
from pathlib import Path

import pytest
import stable_baselines3

from dqn_ext import DDQN


def main() -> None:
    """Swap the class where the tests import it from, then run them."""
    if len(sys.argv) < 2 or not Path(sys.argv[1], "tests").is_dir():
        sys.exit(__doc__)
    tests = Path(sys.argv[1], "tests")
    stable_baselines3.DQN = stable_baselines3.dqn.DQN = DDQN  # type: ignore[misc]
    files = sorted(str(path) for path in tests.glob("test_*.py") if "DQN" in path.read_text())
    sys.exit(pytest.main([*files, "-p", "no:cacheprovider", "-o", "addopts=", "--rootdir", sys.argv[1], *sys.argv[2:]]))


if __name__ == "__main__":
    main()
