"""Plan a run's GPU and host memory before anything is loaded: what it needs, whether it fits, what to lower."""
