"""Double DQN for Stable-Baselines3 and the RL Zoo."""
