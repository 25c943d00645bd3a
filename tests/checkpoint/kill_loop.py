"""Kill a run again and again, at random moments or at each step of writing, and compare it with one left alone.

``python -m tests.checkpoint.kill_loop FOLDER --kills 100``. Each part of a run is a process forked from this one, which
has imported everything already: it is killed by SIGKILL and leaves what a killed process leaves.
"""

import argparse
import json
import os
import random
import signal
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from tests.checkpoint.runs import FREQ, TOTAL, Run, assert_same, outcome


class Tell(BaseCallback):
    """Writes each step's number to a pipe."""

    def __init__(self, pipe: int) -> None:
        super().__init__()
        self.pipe = pipe

    def _on_training_start(self) -> None:
        os.write(self.pipe, struct.pack("q", self.num_timesteps))

    def _on_step(self) -> bool:
        os.write(self.pipe, struct.pack("q", self.num_timesteps))
        return True


def fork(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(status)
    return pid


def part_of_run(env: str, folder: Path, lifetime: float | None, event: int | None = None) -> tuple[int, int, bool]:
    """Run until it is killed or comes to its end.

    :param lifetime: in seconds from the first step on
    :param event: kill it in the writing of its third checkpoint, at this one of the file system's calls
    :return: the first and the last step that it told, and whether it was killed
    """
    reading, writing = os.pipe()

    def work() -> None:
        os.close(reading)
        th.set_num_threads(1)
        run = Run(folder, env=env, others=(Tell(writing),))
        if event is not None:
            kill_at(run, event)
        th.save(outcome(run.learn(), folder), folder / "outcome.pt")

    pid = fork(work)
    os.close(writing)
    told = os.fdopen(reading, "rb")
    first = told.read(8)
    if first and lifetime is not None:
        time.sleep(lifetime)
        os.kill(pid, signal.SIGKILL)  # if it lives: nobody has waited for it yet
    rest = told.read()
    _, status = os.waitpid(pid, 0)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert killed or status == 0, f"exit status {status}"
    steps = [step for (step,) in struct.iter_unpack("q", (first + rest)[: len(first + rest) // 8 * 8])]
    return (steps[0], steps[-1], killed) if steps else (-1, -1, killed)


def kill_at(run: Run, event: int) -> None:
    """Kill this process at the n-th call to the file system of its third checkpoint, which also removes the first."""
    assert run.resume is not None
    folder = run.resume.folder
    write, counts = folder.write, {"writes": 0, "calls": 0}

    def counted_write(*args: Any) -> Path:
        counts["writes"] += 1
        return write(*args)

    def hook(name: str, args: tuple[Any, ...]) -> None:
        if counts["writes"] == 3 and (name == "open" or name.startswith(("os.", "shutil."))):
            counts["calls"] += 1
            if counts["calls"] == event:
                os.kill(os.getpid(), signal.SIGKILL)

    folder.write = counted_write  # type: ignore[method-assign]
    sys.addaudithook(hook)


def check_next_start(told: int, first: int) -> None:
    """At most one interval is lost of what a killed part had told."""
    if told >= 0 and first >= 0:
        assert told - FREQ <= first <= told, f"killed after step {told}, gone on from {first}"


def reference(env: str, folder: Path) -> dict[str, Any]:
    _, last, killed = part_of_run(env, folder, None)
    assert (last, killed) == (TOTAL, False)
    return th.load(folder / "outcome.pt", weights_only=False)


def random_kills(env: str, folder: Path, kills: int) -> dict[str, int]:
    wanted = reference(env, folder / "reference")
    done, run, told = 0, 0, -1
    begin = time.time()
    while done < kills or told >= 0:
        lifetime = random.uniform(0.0, 1.5 if env == "atari" else 0.3) if done < kills else None
        first, last, killed = part_of_run(env, folder / str(run), lifetime)
        check_next_start(told, first)
        told = max(last, told if first < 0 else -1)
        if killed:
            done += 1
        else:
            assert_same(th.load(folder / str(run) / "outcome.pt", weights_only=False), wanted)
            run, told = run + 1, -1
    print(f"{done} kills, {run} runs came to the same end, {time.time() - begin:.0f} s")
    return {"kills": done, "runs that came to the same end": run, "seconds": round(time.time() - begin)}


def kills_in_writing(env: str, folder: Path, stride: int) -> dict[str, int]:
    wanted = reference(env, folder / "reference")
    event = 1
    while True:
        run = folder / str(event)
        _, last, killed = part_of_run(env, run, None, event)
        if not killed:
            break
        again, _, killed = part_of_run(env, run, None)
        check_next_start(last, again)
        assert not killed
        assert_same(th.load(run / "outcome.pt", weights_only=False), wanted)
        event += stride
    assert event > 20, "too few calls: the kills have missed the writing"
    kills = -(-(event - 1) // stride)
    print(f"killed at {kills} of {event - 1} calls, each went on to the same end")
    return {"kills": kills, "calls of a checkpoint's writing": event - 1, "runs that came to the same end": kills}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--env", default="atari", help="or CartPole-v1")
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--in-writing", type=int, default=0, help="kill at every n-th call of a checkpoint's writing")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="a json file to which the record is added")
    options = parser.parse_args()
    random.seed(options.seed)
    records = []
    if options.kills:
        records.append(random_kills(options.env, options.folder / "random", options.kills))
    if options.in_writing:
        records.append(kills_in_writing(options.env, options.folder / "writing", options.in_writing))
    if options.output:
        words = [word for word in sys.argv[2:] if word not in ("--output", str(options.output))]
        about = {
            "command": f"python -m tests.checkpoint.kill_loop FOLDER {' '.join(words)}",
            "date": time.strftime("%Y-%m-%d"),
            "machine": f"{os.cpu_count()} cores",
        }
        records = [{**about, **record} for record in records]
        before = json.loads(options.output.read_text()) if options.output.exists() else []
        options.output.write_text(json.dumps([*before, *records], indent=1) + "\n")
