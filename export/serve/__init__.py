"""SavedModels for TF Serving, proven in a fresh process, with the files a server starts from."""
