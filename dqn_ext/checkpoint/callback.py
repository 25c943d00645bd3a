"""The callback that writes checkpoints of a run, and goes on from the newest one."""

import io
import os
import shutil
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, cast

import torch as th
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import BaseCallback

from dqn_ext.checkpoint import state
from dqn_ext.checkpoint.folder import Checkpoint, CheckpointFolder, Unusable, sync
from dqn_ext.checkpoint.processes import EXIT_CODES, SIGNALS
from dqn_ext.errors import Diverged, InvalidInput
from dqn_ext.whole_files import replaced_when_whole


class ResumeCallback(BaseCallback):
    """Writes the whole state of a run at intervals, and lets the run go on from the newest of these checkpoints.

    Give it to ``learn()``, first of all callbacks, with the same arguments as the run that died had::

        resume = ResumeCallback("run", freq=50_000)
        env = make_vec_env(..., monitor_dir="run", monitor_kwargs={"override_existing": not resume.resumes})
        DDQN("CnnPolicy", env).learn(1_000_000, callback=[resume, EvalCallback(...)])
        resume.folder.clear()

    Kept are the networks and their optimizer, the replay memory, counters and schedules, random generators, the state
    of the games where it can be read, the callbacks' records, and files of the run's folder. On a CPU, and with the
    games' state, the run ends with the weights of one that was never interrupted, bit for bit. Writing a checkpoint
    changes nothing in the run.

    SB3's own ``DQN`` may have it, too. Its replay memory is pickled, and as large on disk as in memory.

    On SIGTERM, SIGINT and SIGUSR1 it writes a checkpoint as soon as the step in hand is done and learned from, and
    leaves with a code of :data:`EXIT_CODES`; a second signal ends the process at once.

    :param run: the run's folder; checkpoints go to ``checkpoint/`` in it
    :param freq: how many transitions, of all environments, lie between two checkpoints
    :param settings: what decides the course of the run, by name; a checkpoint with others is not used
    :param files: which of the run's files belong to its state, as patterns
    :raises InvalidInput: where another process trains the run, its checkpoints cannot be used, or none can be written
    """

    def __init__(
        self,
        run: str | Path,
        freq: int,
        settings: Mapping[str, str] | None = None,
        files: Sequence[str] = ("*monitor.csv", "evaluations.npz", "best_model.zip", "*/vecnormalize.pkl"),
    ) -> None:
        super().__init__()
        if freq < 1:
            raise InvalidInput(f"freq must be at least 1 transition, not {freq!r}.")
        self.run, self.freq, self.settings, self.files = Path(run), freq, dict(settings or {}), files
        self.folder = CheckpointFolder(self.run / "checkpoint")
        self.folder.lock()
        try:
            self._from: Checkpoint | None = self.folder.newest(self._check_settings)
        except InvalidInput:
            self.folder.unlock()
            raise
        self._resumes = self._from is not None
        self._signal: signal.Signals | None = None
        self._handlers: dict[signal.Signals, Any] = {}
        self._last_step = -1
        if self._from is not None:
            self.settings = self._from.about.get("settings", {})
            try:
                self.folder.set_aside_after(self._from.step)
                self._restore_files(self._from.path / "run")
            except OSError as error:
                self.folder.unlock()
                raise InvalidInput(f"The files of {self.run} cannot be as they were: {error}.") from error

    @property
    def resumes(self) -> bool:
        """Whether a run goes on, or a new one begins."""
        return self._resumes

    def _check_settings(self, about: dict[str, Any]) -> None:
        if other := differences(about.get("settings", {}), self.settings):
            raise Unusable(f"is of another run ({other})")

    # ------------------------------------------------------------------ going on

    def _on_training_start(self) -> None:
        self.catch_signals()
        if self._from is None:
            self.folder.set_aside_after(self.model.num_timesteps)  # those of a run before this one
            # At the start, too: to complain now where it cannot be written
            self.save()
            return
        path, step, about = self._from
        model = cast(DQN, self.model)
        try:
            state.check_identity(model, about["identity"])
            kept = th.load(path / "state.pt", map_location="cpu", weights_only=True)
            # From the host each part finds its way: PyTorch counts Adam's steps there, and would leave them on a GPU
            model.set_parameters(str(path / "model.zip"), device="cpu")
            model.replay_buffer = None  # two would not find room
            model.load_replay_buffer(path / "replay_buffer.pkl", truncate_last_traj=False)
            reason = state.restore(model, self._others(), kept, int(self.settings.get("seed", 0)) + step)
        except Exception as error:
            reason = " ".join(str(error).split())  # torch's have many lines
            raise InvalidInput(f"The run cannot go on from {path}: {reason}") from error
        self.num_timesteps = self._last_step = step
        self._from = None  # another learn() goes on from there
        print(
            f"Going on from step {step} of {self.locals['total_timesteps']}, kept in {path}"
            + (f"; its games start anew ({reason})" if reason else ""),
            flush=True,
        )

    def _others(self) -> dict[str, BaseCallback]:
        callbacks = state.callbacks_below(self.locals["callback"])
        return {name: callback for name, callback in callbacks.items() if callback is not self}

    def _restore_files(self, kept: Path) -> None:
        """Let the run's files be as they were: what was written after the checkpoint will be written again."""
        for file in self._run_files():
            if not (kept / file.relative_to(self.run)).exists():
                file.unlink()
        for source in kept.rglob("*"):
            if source.is_file():
                with replaced_when_whole(self.run / source.relative_to(kept)) as unfinished:
                    shutil.copy(source, unfinished)

    def _run_files(self) -> list[Path]:
        files = {file for pattern in self.files for file in self.run.glob(pattern) if file.is_file()}
        return sorted(file for file in files if self.folder.path not in file.parents)

    # ------------------------------------------------------------------ writing

    def _on_rollout_start(self) -> None:
        # Here the last step has been stored and learned from; in _on_step it has not
        step = self.model.num_timesteps
        if self._signal is not None:
            self._leave(self._signal)
        if step // self.freq > self._last_step // self.freq:
            try:
                self.save()
            except InvalidInput as error:
                # The disk may have room again at the next one
                print(f"Warning: {error}", file=sys.stderr, flush=True)
                self._last_step = step

    def _on_step(self) -> bool:
        return True

    def save(self) -> None:
        """Write a checkpoint now, between two rollouts, unless there is one of this step.

        :raises InvalidInput: where it cannot be written
        :raises Diverged: where a weight is no number
        """
        if self.model.num_timesteps != self._last_step:
            about = {"settings": self.settings, "identity": state.identity(cast(DQN, self.model))}
            self.folder.write(self.model.num_timesteps, about, self._write_files)
            self._last_step = self.model.num_timesteps

    def _write_files(self, folder: Path) -> None:
        model = cast(DQN, self.model)
        if not all(bool(weights.isfinite().all()) for weights in model.policy.state_dict().values()):
            raise Diverged(f"Learning has diverged: a weight is infinite or not a number at step {self.num_timesteps}.")
        # Straight into its file: 30 MB that are put together in memory first would stay with the process
        model.save(folder / "model.zip")
        rest = io.BytesIO()  # on a full disk th.save would raise an error of its own
        th.save(state.capture(model, self._others()), rest)
        (folder / "state.pt").write_bytes(rest.getbuffer())
        model.save_replay_buffer(folder / "replay_buffer.pkl")
        for file in self._run_files():
            target = folder / "run" / file.relative_to(self.run)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)

    def finish(self) -> None:
        """Remove the checkpoints, once what the run has come to is on the disk: they were the only copies that were."""
        for file in {*self._run_files(), *self.run.glob("*.zip"), *self.run.glob("*.pkl"), self.run}:
            sync(file)
        self.folder.clear()

    # ------------------------------------------------------------------ leaving

    def catch_signals(self) -> None:
        """From now on a signal is answered by a checkpoint. Only the main thread can ask for it."""
        if self._handlers or threading.current_thread() is not threading.main_thread():
            return
        for number in SIGNALS:
            self._handlers[number] = signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not _is_in_learn(frame):
            # It ended by an error, of which SB3 tells no callback: the signal is for those who came before
            self._on_training_end()
            os.kill(os.getpid(), number)
            return
        if self._signal is not None:
            # Asked for the second time
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._signal = signal.Signals(number)

    def _leave(self, received: signal.Signals) -> None:
        try:
            self.save()
            where = f"step {self._last_step} is kept in {self.folder.at(self._last_step)}"
        except InvalidInput as error:
            where = str(error).rstrip(".")
        self._on_training_end()
        print(f"{received.name}: {where}; the same command goes on from there.", flush=True)
        raise SystemExit(EXIT_CODES[received.name])

    def _on_training_end(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers, self._signal = {}, None


def _is_in_learn(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_name != "learn":
        frame = frame.f_back
    return frame is not None


def differences(theirs: Mapping[str, str], ours: Mapping[str, str]) -> str:
    """What is not the same in both, in words. A seed that only they have was drawn, and may be any."""
    names = [name for name in sorted({*theirs, *ours}) if theirs.get(name) != ours.get(name)]
    return ", ".join(
        f"{name} is {theirs.get(name, 'absent')} there and {ours.get(name, 'absent')} here"
        for name in names
        if name != "seed" or name in ours
    )
