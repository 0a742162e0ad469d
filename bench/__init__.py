"""Benchmarks and results of whole runs. LOG.md records what each change was expected to gain, and what it gained."""
