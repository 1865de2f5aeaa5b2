"""What a run leaves behind and shows: metric files, logs, progress, timings, curves, the closing summary."""
