"""Is memory flat over hours? A training of the Zoo's, with evaluations, saved agents and checkpoints, and its memory.

    python scripts/soak.py --hours 2 --output results/soak.json
    # Any training, with the Zoo's own flags
    python scripts/soak.py --hours 1 -- --algo ddqn --env PongNoFrameskip-v4 -n 100000000

Resident memory is read every half minute. The figure is the median of the last ten minutes over the median of the ten
minutes that follow the tenth, by when the replay memory must be full. The training is then told to stop, as a scheduler
would, and must leave a checkpoint.
"""

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
from records import write_record

from dqn_ext.checkpoint import CheckpointFolder

DEFAULT = (
    "--algo ddqn --env SpaceInvadersNoFrameskip-v4 -n 1000000000 --eval-freq 10000 --eval-episodes 3 "
    "--save-freq 50000 --verbose 0 -params buffer_size:10000 learning_starts:2000 checkpoint_freq:5000"
)
INTERVAL = 30  # seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--output", type=Path, help="a json file for the record")
    parser.add_argument("flags", nargs="*", help="of rl_zoo3.train, after --", default=DEFAULT.split())
    args = parser.parse_args()
    if args.hours < 0.5:
        parser.error("--hours must be at least 0.5: ten minutes at the end are set against ten after the tenth")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the training must not outlive this

    with tempfile.TemporaryDirectory() as folder:
        command = ["-m", "rl_zoo3.train", *args.flags, "-f", folder]
        training = subprocess.Popen([sys.executable, *command])
        megabytes: list[float] = []
        steps: list[int] = []
        try:
            while len(megabytes) * INTERVAL < 3600 * args.hours:  # a machine's sleep does not count
                time.sleep(INTERVAL)
                minutes = len(megabytes) * INTERVAL / 60
                if training.poll() is not None:
                    raise SystemExit(f"The training ended after {minutes:.1f} minutes, with {training.returncode}.")
                megabytes.append(round(resident(psutil.Process(training.pid)) / 1e6, 1))
                steps.append(newest_checkpoint(Path(folder)))
                print(f"{minutes:6.1f} min   checkpoint {steps[-1]:>9}   {megabytes[-1]:8.1f} MB", flush=True)
            training.terminate()
            code = training.wait()
        finally:
            training.kill()
        last = newest_checkpoint(Path(folder))

    minute = 60 // INTERVAL
    after_ten, at_end = np.median(megabytes[10 * minute : 20 * minute]), np.median(megabytes[-10 * minute :])
    print(f"after 10 minutes {after_ten:.1f} MB, at the end {at_end:.1f} MB: {100 * (at_end / after_ten - 1):+.2f}%")
    print(f"told to stop: exit code {code}, checkpoint at step {last}")
    if args.output:
        write_record(
            args.output,
            training="python -m rl_zoo3.train " + " ".join(args.flags),
            seconds_between=INTERVAL,
            megabytes_after_10_minutes=float(after_ten),
            megabytes_at_the_end=float(at_end),
            ratio=round(float(at_end / after_ten), 4),
            exit_code=code,
            steps=last,
            checkpoints=steps,
            megabytes=megabytes,
        )


def resident(process: psutil.Process) -> int:
    """Bytes of a process and all below it."""
    n_bytes = 0
    for one in [process, *process.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):  # it has ended since
            n_bytes += one.memory_info().rss
    return n_bytes


def newest_checkpoint(folder: Path) -> int:
    """The step of the run's newest checkpoint, 0 if there is none."""
    return max((step for path in folder.glob("*/*/checkpoint") for step in CheckpointFolder(path).steps()), default=0)


if __name__ == "__main__":
    main()
