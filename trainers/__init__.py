"""A data set to a model: config, model, carry as data, the distributed step, checkpoints, sampling, evaluation."""
