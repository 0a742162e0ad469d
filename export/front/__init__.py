"""The HTTP front of a served model: checks every call before the server sees it. Imports no TensorFlow."""
