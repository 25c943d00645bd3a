"""Checkpoints of a whole run, from which it goes on as if nothing had happened."""

from dqn_ext.checkpoint.callback import ResumeCallback, differences
from dqn_ext.checkpoint.folder import Checkpoint, CheckpointFolder, InUse, Unusable

__all__ = ["Checkpoint", "CheckpointFolder", "InUse", "ResumeCallback", "Unusable", "differences"]
