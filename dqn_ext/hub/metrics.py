"""The record of a training: Monitor's episodes and the evaluations, which the Zoo pushes as train_eval_metrics.zip.

Those of a download are read as numbers and written anew.
"""

import csv
import io
import json
import re
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import IO

import numpy as np

from dqn_ext.errors import InvalidInput
from dqn_ext.hub.plain import short
from dqn_ext.hub.zoo_file import open_zip, read_member

MAX_METRICS, MAX_MONITORS = 2**26, 256  # bytes of all episodes, or of the evaluations; number of files of episodes
EVALUATIONS = ("timesteps", "results", "ep_lengths", "successes")


def pack(run: Path, archive: Path) -> None:
    """Zip a run's evaluations and episodes."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted([*run.glob("*monitor.csv"), *run.glob("evaluations.npz")]):
            file.write(path, arcname=path.name)


def rewrite(downloaded: Path, archive: Path) -> None:
    """Zip what is known of a download: numbers, under the names that the Zoo gives them. All else is left out.

    :raises InvalidInput: on a file that is not what its name says
    """
    try:
        with (
            open_zip(downloaded, "train_eval_metrics.zip") as source,
            zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as target,
        ):
            names = [name for name in source.namelist() if re.fullmatch(r"(\d{1,4}\.)?monitor\.csv", name, re.ASCII)]
            room = MAX_METRICS
            for name in list(dict.fromkeys(names))[:MAX_MONITORS]:  # a name may be there more than once
                content = read_member(source, name, room)
                room -= len(content)
                with target.open(name, "w") as member:
                    _rewrite_monitor(content, member)
            if "evaluations.npz" in source.namelist():
                target.writestr("evaluations.npz", _rewritten_evaluations(source))
    except InvalidInput:
        raise
    except Exception as error:  # zipfile, csv and numpy each have many
        raise InvalidInput(f"train_eval_metrics.zip is not a training's record ({short(str(error))}).") from error


def _rewrite_monitor(content: bytes, member: IO[bytes]) -> None:
    """Row by row: all of them would take twenty times the memory of their bytes."""
    source = io.TextIOWrapper(io.BytesIO(content), "ascii")
    next(source, "")  # a comment with the environment's id
    rows = csv.reader(source)
    if next(rows, [])[:3] != ["r", "l", "t"]:
        raise ValueError("a monitor.csv must have the columns r, l, t")
    with io.TextIOWrapper(member, "ascii", newline="\n") as target:
        target.write(f"#{json.dumps({'t_start': 0.0, 'env_id': None})}\nr,l,t\n")
        for row in rows:
            if len(row) >= 3:
                target.write(f"{float(row[0])!r},{int(row[1])},{float(row[2])!r}\n")


def _rewritten_evaluations(source: zipfile.ZipFile) -> bytes:
    content = io.BytesIO(read_member(source, "evaluations.npz", MAX_METRICS))
    with open_zip(content, "evaluations.npz") as members:
        arrays = {}
        for name in EVALUATIONS:
            if f"{name}.npy" in members.namelist():
                content = io.BytesIO(read_member(members, f"{name}.npy", MAX_METRICS))
                # The size that a header declares is reserved before it is read
                version = np.lib.format.read_magic(content)
                if version != (1, 0):
                    raise ValueError("an array of evaluations.npz is of another format")
                shape, _, dtype = np.lib.format.read_array_header_1_0(content)
                if dtype.kind not in "fiub" or len(shape) > 2 or np.prod(shape, dtype=float) > MAX_METRICS / 8:
                    raise ValueError("evaluations.npz must hold numbers")
                content.seek(0)
                arrays[name] = np.load(content, allow_pickle=False)
    written = io.BytesIO()
    np.savez(written, **arrays)
    return written.getvalue()


def episodes(run: Path) -> np.ndarray:
    """A run's training episodes in the order in which they ended; a row that was cut when a machine died is none.

    :return: (episodes, 2): the score, and the length as Monitor counts it, in emulator frames on Atari
    """
    rows: list[tuple[float, float, float]] = []
    for monitor in run.glob("*monitor.csv"):
        with monitor.open() as file:
            next(file, None)  # a comment with the environment's id
            for row in csv.DictReader(file):
                with suppress(TypeError, ValueError):
                    rows.append((float(row["t"]), float(row["r"]), float(row["l"])))
    return np.array(sorted(rows)).reshape(-1, 3)[:, 1:]
