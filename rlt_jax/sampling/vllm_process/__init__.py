"""The engine's process: programs that run under any Python that has vLLM, and import nothing of the package."""
