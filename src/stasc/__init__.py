"""STaSC: Self-Taught Self-Correction (arXiv 2503.08681) and the ablation of its design choices."""

__version__ = "0.1.0"
