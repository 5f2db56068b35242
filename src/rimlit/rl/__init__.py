"""Reinforcement learning: environments, rollouts and recurrent PPO. gymnasium is the extra ``rl``."""

from rimlit.rl.environments import Environments, Step, make_environments

__all__ = ["Environments", "Step", "make_environments"]
