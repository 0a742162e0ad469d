"""SavedModels for TF Serving, verified in a fresh process, with the files that start a server."""
