"""Benchmarks and results of whole runs. LOG.md records the expected and the measured gain of each change."""
