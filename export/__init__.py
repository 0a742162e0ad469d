"""A run's best checkpoint as a SavedModel for TF Serving, a .tflite for devices and a .keras file, each verified once
written."""
