"""What the start-up hook costs a Python that does nothing: `python -c pass`, with and without it, in turn.

python scripts/bench_startup.py
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).parent.parent


def seconds_to_start(site_dir: str) -> float:
    """Wall time of an interpreter that reads one site directory and ends."""
    command = [sys.executable, "-I", "-S", "-c", f"import site; site.addsitedir({site_dir!r})"]
    start = time.perf_counter()
    subprocess.run(command, check=True)
    return time.perf_counter() - start


def main() -> None:
    """Print the medians and their difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=300)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as with_hook, tempfile.TemporaryDirectory() as without:
        for name in ("dqn_ext.pth", "dqn_ext_hook.py"):
            shutil.copy(REPOSITORY / name, with_hook)
        seconds_to_start(with_hook)  # writes the bytecode, as an installer does
        pairs = [(seconds_to_start(with_hook), seconds_to_start(without)) for _ in range(args.pairs)]
    milliseconds = 1e3 * np.array(pairs)
    hook, bare = np.median(milliseconds, axis=0)
    cost = np.median(milliseconds[:, 0] - milliseconds[:, 1])
    print(f"with the hook {hook:.2f} ms, without {bare:.2f} ms: it costs {cost:.2f} ms (median of {args.pairs} pairs)")


if __name__ == "__main__":
    main()
