"""Measure the speed, memory and quality figures of benchmarks/README.md."""
