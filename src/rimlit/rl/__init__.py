"""Reinforcement learning: environments, rollouts and recurrent PPO. gymnasium is the extra ``rl``."""

import rimlit._train  # noqa: F401
from rimlit.rl.environments import Environments, Step, make_environments
from rimlit.rl.experience import Experience
from rimlit.rl.observations import SlotEncoder, VectorEncoder
from rimlit.rl.ppo import PPOTask

__all__ = ["Environments", "Experience", "PPOTask", "SlotEncoder", "Step", "VectorEncoder", "make_environments"]
