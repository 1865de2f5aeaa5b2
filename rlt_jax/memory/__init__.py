"""Where a run's memory is and goes."""
