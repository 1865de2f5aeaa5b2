"""The device: its memory, where arrays lie on it or in pinned host memory, and what to do when it is too small."""
