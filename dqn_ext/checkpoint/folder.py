"""The folder of a run's checkpoints: each is whole or not there, and none is believed unchecked."""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

from filelock import FileLock, Timeout

from dqn_ext.errors import InvalidInput

FORMAT, VERSION = "dqn-ext checkpoint", 1
KEPT = 2


class Checkpoint(NamedTuple):
    """A checkpoint that is whole."""

    path: Path
    step: int
    about: dict[str, Any]  # what its writer said of it


class Unusable(Exception):
    """Why a checkpoint cannot be used, as the end of a sentence."""


class InUse(InvalidInput):
    """Another process, or another callback of this one, trains the run."""


_locked: "WeakValueDictionary[Path, CheckpointFolder]" = WeakValueDictionary()  # by this process


class CheckpointFolder:
    """Checkpoints of one run, ``path/STEP/``, of which the newest two are kept.

    Each is written under another name, with a manifest of its files' sizes and checksums, and then renamed: whenever
    the process dies, or the machine, what stands there is whole.

    :param path: the folder; it need not exist
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = FileLock(self.path / ".lock", thread_local=False)

    def lock(self) -> None:
        """Keep others out, until :meth:`unlock` or the process's end.

        :raises InUse: where another one is in already
        :raises InvalidInput: where the folder cannot be made
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
            _locked[self.path.resolve()] = self
        except Timeout:
            ours = _locked.get(self.path.resolve())
            other = "process" if ours is None else "callback of this process; its folder.unlock() lets go"
            raise InUse(f"{self.path.parent} is being trained by another {other}.") from None
        except OSError as error:
            raise InvalidInput(f"Checkpoints cannot be written to {self.path}: {error.strerror}.") from error

    def unlock(self) -> None:
        """Let others in."""
        self._lock.release()
        _locked.pop(self.path.resolve(), None)

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, whole or damaged, newest first."""
        try:
            names = [entry.name for entry in self.path.iterdir()]
        except OSError:
            return []
        return sorted((int(name) for name in names if name.isascii() and name.isdecimal()), reverse=True)

    def at(self, step: int) -> Path:
        """Where the checkpoint of a step is."""
        return self.path / str(step)

    # ------------------------------------------------------------------ reading

    def about(self, step: int) -> dict[str, Any]:
        """What a checkpoint's writer said of it; its other files are not looked at.

        :raises Unusable: on a manifest that is damaged, foreign or of another version
        """
        return self._manifest(step)["about"]

    def newest(self, accept: Callable[[dict[str, Any]], None] = lambda about: None) -> Checkpoint | None:
        """The newest checkpoint that is whole and that ``accept`` takes; those passed over are named.

        :param accept: raises :class:`Unusable` on what was said of a checkpoint
        :return: ``None`` where there is none at all
        :raises InvalidInput: where there are some, and none can be used, or one is of a newer version
        """
        steps = self.steps()
        for index, step in enumerate(steps):
            try:
                self._check(step)
                about = self.about(step)
                accept(about)
            except _Newer as reason:
                others = ", ".join(str(self.at(other)) for other in steps[index + 1 :])
                raise InvalidInput(
                    f"{self.at(step)} {reason}"
                    + (f"; the one before it is {others}." if others else ", and there is no other.")
                ) from None
            except Unusable as reason:
                print(f"The checkpoint {self.at(step)} is not used: it {reason}.", file=sys.stderr)
            else:
                return Checkpoint(self.at(step), step, about)
        if steps:
            raise InvalidInput(f"None of the checkpoints in {self.path} can be used; remove it to start anew.")
        return None

    def _manifest(self, step: int) -> dict[str, Any]:
        path = self.at(step) / "manifest.json"
        try:
            checksum, text = path.read_text("utf-8").split("\n", 1)
            if checksum != hashlib.sha256(text.encode()).hexdigest():
                raise Unusable("is damaged: manifest.json is not what was written")
            manifest = json.loads(text)
            if manifest["format"] != FORMAT:
                raise Unusable("is none of dqn-ext")
            if manifest["version"] > VERSION:
                raise _Newer(
                    f"was written by a newer dqn-ext (version {manifest['version']} of the format, "
                    f"and this one reads {VERSION})"
                )
            if manifest["step"] != step:
                raise Unusable(f"is damaged: it is of step {manifest['step']}")
            if not isinstance(manifest["about"], dict) or not isinstance(manifest["files"], dict):
                raise TypeError("what it says is no list of files")
            return manifest
        except Unusable:
            raise
        except Exception as error:  # no file, no text, no JSON, no such entry
            raise Unusable(f"is damaged: its manifest.json cannot be read ({error})") from error

    def _check(self, step: int) -> None:
        for name, wanted in self._manifest(step)["files"].items():
            path = self.at(step) / name
            try:
                found = describe(path)
            except OSError as error:
                raise Unusable(f"is damaged: {name} cannot be read ({error.strerror})") from error
            if found != wanted:
                raise Unusable(f"is damaged: {name} is not what was written")

    # ------------------------------------------------------------------ writing

    def write(self, step: int, about: Mapping[str, Any], write_files: Callable[[Path], None]) -> Path:
        """Add a checkpoint, and remove those that are older than the one before it.

        :param about: what JSON can hold
        :param write_files: writes the files of the checkpoint into a folder
        :return: where it is
        :raises InvalidInput: where the disk is full or the folder cannot be written; what was there is as it was
        """
        path, temporary = self.at(step), self.path / f"{step}.tmp"
        try:
            self.tidy()
            temporary.mkdir(parents=True)
            write_files(temporary)
            files = sorted(file for file in temporary.rglob("*") if file.is_file())
            manifest = {
                "format": FORMAT,
                "version": VERSION,
                "step": step,
                "about": about,
                "files": {file.relative_to(temporary).as_posix(): describe(file) for file in files},
            }
            text = json.dumps(manifest, indent=1)
            (temporary / "manifest.json").write_text(
                f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}", "utf-8", newline=""
            )
            # On the disk before it gets its name, or a machine that loses power keeps the name alone
            for entry in [*temporary.rglob("*"), temporary]:
                sync(entry)
            if path.exists():
                self._remove(path)
            temporary.rename(path)
            sync(self.path)
            for old in self.steps()[KEPT:]:
                self._remove(self.at(old))
        except (OSError, InvalidInput) as error:
            kept = [str(self.at(other)) for other in self.steps()[:1]]
            reason = error.strerror if isinstance(error, OSError) else error
            raise InvalidInput(
                f"The checkpoint of step {step} could not be written to {self.path}: {str(reason).rstrip('.')}"
                + (f"; the last good one is {kept[0]}." if kept else ".")
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return path

    def set_aside_after(self, step: int) -> None:
        """Rename the checkpoints of later steps, which are not to be used, to ``STEP.unusable``."""
        for other in self.steps():
            if other > step:
                aside = self.path / f"{other}.unusable"
                shutil.rmtree(aside, ignore_errors=True)
                self.at(other).rename(aside)

    def tidy(self) -> None:
        """Remove what an interrupted process was just writing or removing."""
        for entry in self.path.glob("*.tmp"):
            shutil.rmtree(entry)

    def clear(self) -> None:
        """Remove all checkpoints and the folder."""
        for step in self.steps():
            self._remove(self.at(step))
        self.unlock()
        shutil.rmtree(self.path, ignore_errors=True)

    def _remove(self, path: Path) -> None:
        # Renamed first: half a checkpoint must not look like one
        removed = path.with_name(f"{path.name}.old.tmp")
        shutil.rmtree(removed, ignore_errors=True)
        path.rename(removed)
        shutil.rmtree(removed)


class _Newer(Unusable):
    pass


def describe(path: Path) -> dict[str, Any]:
    """Size and checksum of a file."""
    checksum, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            checksum.update(block)
            size += len(block)
    return {"bytes": size, "sha256": checksum.hexdigest()}


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of its files, is on the disk."""
    if path.is_dir() and os.name == "nt":  # has no such thing
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
