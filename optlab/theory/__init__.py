"""Theory of optimizers as pure functions that predict, on arrays and in float64 where that is on.

`least_squares` is the exact part, `landscapes` what else there is to descend, `approximation` what a network can be,
`attention` what attention is, `linearize` the tangent of a network, `curvature` and `noise` what training moves in,
`adam` what its two moments do to a step, `measures` what a run logs of all this. `curvature` needs the
extra `theory`.
"""

from optlab.theory import (
    adam,
    approximation,
    attention,
    curvature,
    landscapes,
    least_squares,
    linearize,
    measures,
    noise,
)

__all__ = [
    "adam",
    "approximation",
    "attention",
    "curvature",
    "landscapes",
    "least_squares",
    "linearize",
    "measures",
    "noise",
]
