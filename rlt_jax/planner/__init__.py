"""What a run needs of GPU and host, whether it fits, what to lower; before anything is loaded."""
