"""Several runs that belong together: ablations, the pipeline, and their comparison."""
