"""Functions of matrices: every matrix of a tree in stacks of one shape, planned, divided over devices, placed back."""

from optlab.transforms.matrices._map import on_matrices, stacks_of
from optlab.transforms.matrices._plan import Group, Plan, Work, Works

__all__ = ["Group", "Plan", "Work", "Works", "on_matrices", "stacks_of"]
