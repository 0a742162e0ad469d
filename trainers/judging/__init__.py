"""The quality of a model: evaluation, n-gram baselines, samples, reports and plots."""
