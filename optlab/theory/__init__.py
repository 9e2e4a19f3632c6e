"""What theory says about optimizers, as pure functions that predict, on arrays and in float64 where that is on.

`least_squares` is the exact part, `landscapes` what else there is to descend, `approximation` what a network can be,
`attention` what attention is, `linearize` the tangent of a network, `curvature` and `noise` what training moves in.
"""

from optlab.theory import least_squares

__all__ = ["least_squares"]
