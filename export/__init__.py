"""A run's best checkpoint as a SavedModel for TF Serving and as a .tflite for devices, each proven once written."""
