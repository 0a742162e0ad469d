"""Units that follow a feature of the text: labels, the search, activations and the page."""
