"""Reinforcement-Learned Teachers in JAX/Flax: a teacher learns by GRPO to write explanations a student learns from."""

__version__ = "0.1.0"
