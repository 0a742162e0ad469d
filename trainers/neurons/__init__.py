"""What single units follow: labels, the search, activations and the page."""
