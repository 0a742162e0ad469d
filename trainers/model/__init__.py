"""The network: cells, the recurrence over a window, and the character RNN over (ids, carry)."""
