"""Rewards of explanations: log-probs under teacher and student, reward functions, metrics and rankings."""
