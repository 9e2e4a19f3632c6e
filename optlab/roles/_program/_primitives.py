"""JAX's primitives by what `read_program` takes them for. What is in no list is unknown, and said to be.

The lists hold the spellings of JAX 0.10 to 0.12; the tests compare them with each installed version.
"""


def _names(text: str) -> set[str]:
    return set(text.split())


# The value itself, position by position.
COPIES = _names("""
    convert_element_type reduce_precision stop_gradient copy copy_p name optimization_barrier tie device_put
    sharding_constraint reshard layout_constraint relayout mesh_cast with_memory_space_constraint pvary pcast
    pbroadcast reduced_vary_cast reduced_vary_cast_p vary_unreduced_cast vary_unreduced_cast_p
""")
# The value itself at other positions, or a part of it.
MOVES = _names("""
    reshape broadcast_in_dim broadcast_to transpose squeeze slice split unstack rev pad tile all_gather
    all_gather_invariant
""")
ADDS = _names("add sub add_any complex select_n concatenate stack")
PAIRS = _names("mul div max min pow atan2")
PRODUCTS = _names("dot_general ragged_dot_general conv_general_dilated")
LINEAR = ADDS | COPIES | MOVES | _names("neg mul div real imag conj reduce_sum psum psum_invariant ppermute")
# A value from those at the same position, one for each operand where there are several results.
ELEMENTWISE = (COPIES | ADDS | PAIRS) - {"concatenate", "stack"} | _names("""
    abs acos acosh and asin asinh atan atanh bessel_i0e bessel_i1e bitcast_convert_type cbrt ceil clamp clz conj cos
    cosh digamma eq eq_to erf erf_inv erfc exp exp2 expm1 floor ge gt igamma igamma_grad_a igammac imag integer_pow
    is_finite le le_to lgamma log log1p log2 logistic lt lt_to mulhi ne neg nextafter not one_minus_square or polygamma
    polynomial population_count random_gamma_grad real regularized_incomplete_beta rem round rsqrt shift_left
    shift_right_arithmetic shift_right_logical sign sin sinh sqrt square tan tanh xor zeta
    psum psum_invariant pmax pmin ppermute
""")
# Positions are mixed along some axes, and the axes stay; or stay where they are as long as before.
ALONG_AXES = _names("""
    cumsum cumprod cummax cummin cumlogsumexp rev fft reduce_window reduce_window_sum reduce_window_max
    reduce_window_min select_and_gather_add all_to_all reduce_scatter
""")
# Functions of a matrix: what they give is that matrix in another form, where it has the same shape.
OF_MATRICES = _names("""
    cholesky qr geqrf householder_product lu triangular_solve svd eigh eig schur hessenberg symmetric_product
    tridiagonal tridiagonal_solve custom_linear_solve ormqr geqp3
""")
# Programs within the program, with the operands of the equation: their name and the parameter that holds them.
CALLS = {
    **dict.fromkeys(("jit", "pjit", "checkpoint", "remat", "remat2", "composite", "run_scoped"), "jaxpr"),
    **dict.fromkeys(("closed_call", "core_call", "call", "custom_jvp_call", "custom_vjp_call"), "call_jaxpr"),
    **{"custom_vjp_call_jaxpr": "fun_jaxpr", "custom_vmap_call": "call", "custom_partitioning": "call"},
}
GATHERS = {"all_gather", "all_gather_invariant"}
