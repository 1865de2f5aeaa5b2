"""Drawing completions: the Sampler protocol (base), the native JAX sampler (native, draw), vLLM (vllm and the rest).

Imports nothing of its own; `vllm_process` runs under any Python that has vLLM and imports none of this package.
"""
