"""Measurements: results of whole runs, and LOG.md, what was expected of a change and what it brought."""
