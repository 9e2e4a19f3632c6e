"""JAX's primitives by what `read_program` takes them for. What is in no list is unknown, and said to be.

The lists hold the spellings of JAX 0.10 to 0.12; the tests hold them against what each installed version has.
"""

ADDS = {"add", "sub", "add_any", "concatenate", "stack", "complex", "select_n"}
PAIRS = {"mul", "div", "max", "min", "pow", "atan2"}
COPIES = {
    *("convert_element_type", "reshape", "broadcast_in_dim", "transpose", "squeeze", "copy", "copy_p", "name"),
    *("sharding_constraint", "reshard", "layout_constraint", "device_put", "mesh_cast", "with_memory_space_constraint"),
}
LINEAR = (
    ADDS
    | COPIES
    | {
        *(
            "neg",
            "reduce_precision",
            "mul",
            "div",
            "real",
            "imag",
            "conj",
            "reduce_sum",
            "slice",
            "split",
            "stop_gradient",
        ),
        *(
            "optimization_barrier",
            "pvary",
            "pcast",
            "rev",
            "pad",
            "tile",
            "unstack",
            "broadcast_to",
            "psum",
            "all_gather",
        ),
        *(
            "psum_invariant",
            "all_gather_invariant",
            "pbroadcast",
            "ppermute",
            "reduced_vary_cast",
            "reduced_vary_cast_p",
        ),
        *("vary_unreduced_cast", "vary_unreduced_cast_p", "tie", "relayout"),
    }
)
# A value from those at the same position, one for each operand where there are several results.
ELEMENTWISE = {
    *("abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan", "atan2", "atanh", "bessel_i0e"),
    *("bessel_i1e", "bitcast_convert_type", "cbrt", "ceil", "clamp", "clz", "complex", "conj", "convert_element_type"),
    *("copy", "copy_p", "cos", "cosh", "digamma", "div", "eq", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1"),
    *("floor", "ge", "gt", "igamma", "igamma_grad_a", "igammac", "imag", "integer_pow", "is_finite", "le", "lgamma"),
    *("log", "log1p", "log2", "logistic", "lt", "max", "min", "mul", "ne", "neg", "nextafter", "not", "or"),
    *("one_minus_square", "polygamma", "polynomial", "population_count", "pow", "random_gamma_grad", "real"),
    *("reduce_precision", "regularized_incomplete_beta", "rem", "round", "rsqrt", "select_n", "shift_left"),
    *("shift_right_arithmetic", "shift_right_logical", "sign", "sin", "sinh", "sqrt", "square", "stop_gradient", "sub"),
    *("tan", "tanh", "xor", "zeta", "mulhi", "eq_to", "le_to", "lt_to"),
    *("name", "sharding_constraint", "reshard", "layout_constraint", "device_put", "mesh_cast", "optimization_barrier"),
    *("with_memory_space_constraint", "relayout", "tie"),
    *("pvary", "pcast", "psum", "pmax", "pmin", "psum_invariant", "pbroadcast", "ppermute", "reduced_vary_cast"),
    *("reduced_vary_cast_p", "vary_unreduced_cast", "vary_unreduced_cast_p"),
}
# Positions are mixed along some axes, and the axes stay; or stay where they are as long as before.
ALONG_AXES = {
    *("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp", "rev", "fft"),
    *("reduce_window", "reduce_window_sum", "reduce_window_max", "reduce_window_min", "select_and_gather_add"),
    *("all_to_all", "reduce_scatter"),
}
# Functions of a matrix: what they give is that matrix in another form, where it has the same shape.
OF_MATRICES = {
    *("cholesky", "qr", "geqrf", "householder_product", "lu", "triangular_solve", "svd", "eigh", "eig", "schur"),
    *("hessenberg", "symmetric_product", "tridiagonal", "tridiagonal_solve", "custom_linear_solve", "ormqr", "geqp3"),
}
# Programs within the program, with the operands of the equation: their name and the parameter that holds them.
CALLS = {
    **dict.fromkeys(("jit", "pjit", "checkpoint", "remat", "remat2", "composite", "run_scoped"), "jaxpr"),
    **dict.fromkeys(("closed_call", "core_call", "call", "custom_jvp_call", "custom_vjp_call"), "call_jaxpr"),
    **{"custom_vjp_call_jaxpr": "fun_jaxpr", "custom_vmap_call": "call", "custom_partitioning": "call"},
}
GATHERS = {"all_gather", "all_gather_invariant"}
