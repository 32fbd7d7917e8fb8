"""The decoder as a few Triton kernels around the frozen matmuls, with a backward pass of its own.

For bfloat16 on a GPU; `build.fused_decoder` says which models it can take. Everything else runs module by module.
"""
