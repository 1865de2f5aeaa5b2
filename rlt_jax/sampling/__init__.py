"""Sampling completions: the `Sampler` protocol (base), the native JAX sampler (native, next_token), vLLM (all others).

`vllm_process` runs under any Python that has vLLM, and imports nothing from this package.
"""
