"""What a model's answers are worth: graded one by one, and summed up with intervals."""
