"""Checkpoints: folders of arrays with checksums, which of them are kept, and which one a run resumes from."""
