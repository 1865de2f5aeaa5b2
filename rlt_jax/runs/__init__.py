"""What the commands share: the run around the steps, what is loaded, processes."""
