"""What every stage shares and none owns: errors, settings, whole files, the terminal."""
