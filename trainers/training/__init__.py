"""The training loop: devices, steps, optimizer, scoring, callbacks and signals."""
