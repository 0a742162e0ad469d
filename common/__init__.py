"""Code that every stage shares: errors, settings, atomic files, the terminal, reports and plots."""
