"""The static page that runs a .tflite in a browser."""
