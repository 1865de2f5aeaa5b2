"""From explanations to rewards: log-probs of teacher and student, the reward, and what is reported of it."""
