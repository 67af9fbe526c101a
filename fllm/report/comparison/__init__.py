"""Comparisons of runs, or of sweeps: what differs in their settings, then in their results."""
