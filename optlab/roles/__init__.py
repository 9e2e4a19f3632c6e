"""The role of each parameter in the model, and its matrix axes.

A `Layout` holds both for every parameter. `read_program` infers it from the program that uses the parameters;
`read_names` is the fallback where names and shapes are all that is at hand. `by_role` moves each parameter by the rule
of its role, `freeze` moves all but some, and every block asks by `layout_of`.
"""

from optlab.roles._axes import MatrixAxes
from optlab.roles._by_role import ByRoleState, Labels, by_role, check_roles
from optlab.roles._freeze import freeze
from optlab.roles._layout import ROLES, Layout, LayoutError, Reading, layout_around
from optlab.roles._lookup import LayoutLike, layout_of
from optlab.roles._names import matrix_axes, read_names, roles
from optlab.roles._program import read_program

__all__ = [
    "ROLES",
    "ByRoleState",
    "Labels",
    "Layout",
    "LayoutError",
    "LayoutLike",
    "MatrixAxes",
    "Reading",
    "by_role",
    "check_roles",
    "freeze",
    "layout_around",
    "layout_of",
    "matrix_axes",
    "read_names",
    "read_program",
    "roles",
]
