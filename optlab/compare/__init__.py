"""Fair comparisons."""
