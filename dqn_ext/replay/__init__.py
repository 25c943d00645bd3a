"""Replay memory for stacked images."""

from dqn_ext.replay.buffer import FrameReplayBuffer, PrioritizedReplayBufferSamples, check_settings

__all__ = ["FrameReplayBuffer", "PrioritizedReplayBufferSamples", "check_settings"]
