"""Functions of matrices: every matrix of a tree in stacks of one shape, planned, divided over devices, placed back."""
