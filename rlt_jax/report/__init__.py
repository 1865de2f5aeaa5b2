"""What a run writes and shows: metrics, logs, progress, curves, files."""
