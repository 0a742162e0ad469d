"""How good a model is: evaluation, n-gram baselines, samples, reports and plots."""
