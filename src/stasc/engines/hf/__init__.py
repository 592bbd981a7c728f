"""The engine that samples with a transformers model in this process, on the CPU and on CUDA alike."""
