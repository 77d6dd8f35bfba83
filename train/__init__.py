"""Training: one run of one model, from its configuration to its record."""
