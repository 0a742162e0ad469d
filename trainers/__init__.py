"""A data set to a model: config, LSTM, carry as data, the distributed step, checkpoints, sampling, evaluation."""
