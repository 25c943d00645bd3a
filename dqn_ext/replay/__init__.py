"""Replay memory for stacked images."""

from dqn_ext.replay.buffer import Draw, FrameReplayBuffer, PrioritizedReplayBufferSamples, check_settings

__all__ = ["Draw", "FrameReplayBuffer", "PrioritizedReplayBufferSamples", "check_settings"]
