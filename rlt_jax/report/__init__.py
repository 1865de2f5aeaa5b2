"""What a run writes and shows: metrics, log, progress, curves, files."""
