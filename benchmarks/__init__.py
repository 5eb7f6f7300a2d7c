"""What anyloader costs, next to other loaders: ``python -m benchmarks``."""
