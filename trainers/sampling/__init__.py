"""From text to text in graph ops: encoding, drawing and the loop around one step of the model."""
