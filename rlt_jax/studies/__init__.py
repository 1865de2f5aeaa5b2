"""Studies of several runs: ablations, the pipeline, and their comparison."""
