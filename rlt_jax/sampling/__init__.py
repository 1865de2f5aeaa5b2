"""Drawing completions: the Sampler protocol (base), its math (draw) and the native JAX sampler (native).

Imports nothing, so that a generation process under another Python can import a part of it without JAX.
"""
