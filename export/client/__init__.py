"""A client of TF Serving over gRPC that does not import TensorFlow."""
