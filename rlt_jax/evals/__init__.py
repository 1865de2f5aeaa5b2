"""Grading of a model's answers, and their accuracy with confidence intervals."""
