"""How fast, how exact and how large: prunelimit side by side with others. One command: ``python -m benchmarks``."""
