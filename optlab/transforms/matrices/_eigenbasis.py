"""SOAP and Shampoo: matrices moved by what their gradients' second moments are along their rows and columns.

L is an average of GGᵀ, and R of GᵀG. Their eigenvectors are a basis in which the entries of the gradient are nearly
uncorrelated: Adam within it is SOAP, and L^-¼ G R^-¼ is Shampoo. Of a tall matrix Gᵀ is meant, so that m ≤ n.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax import lax

from optlab._checks import check_decay, check_not_negative, check_positive, is_number
from optlab._integers import is_count
from optlab.transforms._numerics import cast_like, check_state_dtypes, check_wide, roots, squares_like, wide_dtype
from optlab.transforms.matrices._divide import Mesh
from optlab.transforms.matrices._leaves import check_real, matrix_leaves
from optlab.transforms.matrices._map import on_matrices, stacks_of
from optlab.transforms.matrices._plan import Work

Side: TypeAlias = jax.Array | None  # (N, k, k), of the rows or the columns; None where there are too many
product = functools.partial(jnp.matmul, precision="highest")


class FactorsState(NamedTuple):
    """The state of `scale_by_soap` and `scale_by_shampoo`.

    Attributes:
        count: updates made so far, shape (), int32.
        mu: m, in the parameters' shapes.
        nu: v, in the parameters' shapes; SOAP's is in the eigenbasis.
        L: averages of GGᵀ: in a parameter's place (matrices, m, m), or None where m > max_precond_dim.
        R: averages of GᵀG, likewise.
        left: what was made of L when it was last looked at: SOAP's Q_L, Shampoo's root.
        right: the same of R.
    """

    count: jax.Array  # type: ignore[assignment]  # a tuple has a method of that name
    mu: Any
    nu: Any
    L: Any
    R: Any
    left: Any
    right: Any


def scale_by_soap(
    b1: float = 0.95,
    b2: float = 0.95,
    eps: float = 1e-8,
    *,
    every: int = 10,
    max_precond_dim: int = 10_000,
    mu_dtype: Any | None = None,
    nu_dtype: Any | None = None,
    factor_dtype: Any | None = None,
    mesh: Mesh | None = None,
    axis_name: str | Sequence[str] = (),
) -> optax.GradientTransformationExtraArgs:
    """Q_L·(Q_Lᵀm̂Q_R / (√v̂ + ε))·Q_Rᵀ with v ← β₂v + (1 − β₂)(Q_LᵀGQ_R)²: Adam in Shampoo's eigenbasis.

    The columns of Q_L and Q_R are the eigenvectors of L ← β₂L + (1 − β₂)GGᵀ and R ← β₂R + (1 − β₂)GᵀG. The first step
    finds them by `eigh`, and moves nothing. Then every few steps one power iteration and a QR decomposition bring them
    up to date, under a `lax.cond`; under `jax.vmap` over states, as in a population, that is a choice between results,
    and every step decomposes. An axis longer than `max_precond_dim` keeps its own basis, Q = 1.

    The eigenvectors' signs make no difference to the update, and where L or R is singular, as R of a wide matrix is at
    first, the coordinate axes complete the basis. But eigenvectors of nearly equal eigenvalues hang on the last bit, so
    that another kind of device takes another path after some steps. Everything is computed in at least float32, and
    divided over devices as in `orthogonalize`. To a derivative of the update the bases are constants.

    Source: Vyas et al. 2024, SOAP (arXiv 2409.11321), Algorithm 3; from their code that the first step moves nothing,
    and that the eigenvectors are kept in the order of their eigenvalues.

    Args:
        b1: decay of the average of gradients (β₁), in [0, 1).
        b2: decay of the averages of squares, L and R among them (β₂), in [0, 1).
        eps: added to the root (ε).
        every: steps from one basis to the next.
        max_precond_dim: the longest axis that has a basis.
        mu_dtype: the dtype that m is stored in; None is at least float32.
        nu_dtype: the dtype that v is stored in; None is at least float32.
        factor_dtype: the dtype that L, R, Q_L and Q_R are stored in; None is at least float32.
        mesh: over which the work is divided, where the leaves' types don't show it.
        axis_name: mapped axes of pmap or shard_map along which all devices hold the same gradients (after their mean).
    """

    def step(G, M, V, L, R, Q_L, Q_R, t, b1, b2, eps):  # type: ignore[no-untyped-def]
        m, v = b1 * M + (1 - b1) * G, b2 * V + (1 - b2) * _between(_t(Q_L), G, Q_R) ** 2
        correct = lambda x, decay: x / (1 - decay ** jnp.maximum(t, 1))
        u = _between(_t(Q_L), correct(m, b1), Q_R) / (roots(correct(v, b2)) + eps)
        U, M, V = (jnp.where(t == 0, 0, x) for x in (_between(Q_L, u, _t(Q_R)), m, v))
        L, R = _averages(L, R, G, b2)
        case = jnp.where(t == 0, 1, jnp.where(t % every == 0, 2, 0))
        constant = lax.stop_gradient((L, R, Q_L, Q_R))
        V, Q_L, Q_R = lax.switch(case, (_same_basis, _first_basis, _next_basis), V, *constant)
        return U, M, V, L, R, Q_L, Q_R

    who, dtypes = "scale_by_soap", {"mu_dtype": mu_dtype, "nu_dtype": nu_dtype, "factor_dtype": factor_dtype}
    work = lambda m, n, k: 8 * m * n * k + (2 * k**3 + 8 * k**3 // 3) // every
    describe = _describe("soap", f"QR every {every}", work, max_precond_dim)
    numbers = {"b1": b1, "b2": b2, "eps": eps}
    return _by_factors(who, step, numbers, every, max_precond_dim, dtypes, describe, mesh, axis_name)


def _same_basis(V, L, R, Q_L, Q_R):  # type: ignore[no-untyped-def]
    return V, Q_L, Q_R


def _first_basis(V, L, R, Q_L, Q_R):  # type: ignore[no-untyped-def]
    return V, _eigenvectors(L), _eigenvectors(R)


def _eigenvectors(A: Side) -> Side:
    """The largest eigenvalue's first. Those of the null space are what is orthogonal to the others in e₁, e₂, ….

    `eigh` alone would have any basis of it, which the last bit of A decides; R of a wide matrix has such a space.
    """
    if A is None:
        return None
    n, (sigma, Q) = A.shape[-1], jnp.linalg.eigh(A)
    sigma, Q = sigma[:, ::-1], Q[..., ::-1]
    is_null = _is_null(sigma, sigma[:, :1])
    e = jnp.eye(n, dtype=A.dtype)[:, jnp.maximum(jnp.cumsum(is_null, -1) - 1, 0)].swapaxes(0, 1)
    return jnp.linalg.qr(jnp.where(is_null[:, None, :], e, Q))[0]


def _is_null(sigma: jax.Array, largest: jax.Array) -> jax.Array:
    """True for the eigenvalues that are zero to rounding, whose last bits would count otherwise."""
    return sigma <= sigma.shape[-1] * jnp.finfo(sigma.dtype).eps * largest


def _next_basis(V, L, R, Q_L, Q_R):  # type: ignore[no-untyped-def]
    """A power iteration, in the order of the eigenvalues, which v follows."""

    def iterate(A: Side, Q: Side, V: jax.Array) -> tuple[Side, jax.Array]:
        if A is None or Q is None:
            return Q, V
        AQ = product(A, Q)
        order = jnp.argsort(jnp.sum(Q * AQ, axis=-2), axis=-1, descending=True)
        Q = jnp.linalg.qr(jnp.take_along_axis(AQ, order[:, None, :], -1))[0]
        return Q, jnp.take_along_axis(V, order[:, :, None], -2)

    Q_L, V = iterate(L, Q_L, V)
    Q_R, V = iterate(R, Q_R, V.mT)
    return V.mT, Q_L, Q_R


def scale_by_shampoo(
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    *,
    ridge: float = 1e-6,
    every: int = 10,
    max_precond_dim: int = 10_000,
    mu_dtype: Any | None = None,
    nu_dtype: Any | None = None,
    factor_dtype: Any | None = None,
    mesh: Mesh | None = None,
    axis_name: str | Sequence[str] = (),
) -> optax.GradientTransformationExtraArgs:
    """L^-¼·m̂·R^-¼ at the size of Adam's update, with L ← β₂L + (1 − β₂)GGᵀ and R ← β₂R + (1 − β₂)GᵀG.

    Each matrix has the Frobenius norm of m̂ / (√v̂ + ε), which is grafting. The roots are those of L + ρλI, λ being its
    largest eigenvalue, found by `eigh` at the first step and then every few steps. An axis longer than
    `max_precond_dim` has no factor; the other's root is then L^-½. Dtypes, devices and `jax.vmap` are as in
    `scale_by_soap`.

    Source: Gupta, Koren and Singer 2018 (arXiv 1802.09568), Algorithm 1; averages, grafting and roots that are kept for
    some steps: Shi et al. 2023 (arXiv 2309.06497), sections 2 and 3; a ridge relative to λ: Anil et al. 2020 (arXiv
    2002.09018).

    Args:
        b1: decay of the average of gradients (β₁), in [0, 1).
        b2: decay of the averages of squares, L and R among them (β₂), in [0, 1).
        eps: added to the root of Adam's update (ε).
        ridge: what is added to the eigenvalues, as a share of the largest (ρ), positive.
        every: steps from one root to the next.
        max_precond_dim: the longest axis that has a factor.
        mu_dtype: as in `scale_by_soap`.
        nu_dtype: as in `scale_by_soap`.
        factor_dtype: the dtype that L, R and their roots are stored in; None is at least float32.
        mesh: as in `scale_by_soap`.
        axis_name: as in `scale_by_soap`.
    """
    check_positive("ridge", ridge)

    def step(G, M, V, L, R, left, right, t, b1, b2, eps, ridge):  # type: ignore[no-untyped-def]
        M, V = b1 * M + (1 - b1) * G, b2 * V + (1 - b2) * G**2
        m, v = M / (1 - b1 ** (t + 1)), V / (1 - b2 ** (t + 1))
        L, R = _averages(L, R, G, b2)

        def anew(L: Any, R: Any, *_: Any) -> Any:
            return _roots(L, R, ridge)

        constant = lax.stop_gradient((L, R, left, right))
        left, right = lax.cond(t % every == 0, anew, lambda _, __, *kept: kept, *constant)
        U, norm = _between(left, m, right), lambda X: roots(jnp.sum(X * X, axis=(-2, -1), keepdims=True))
        size = norm(U)
        U = U * (norm(m / (roots(v) + eps)) / jnp.where(size > 0, size, 1))
        return U, M, V, L, R, left, right

    who, dtypes = "scale_by_shampoo", {"mu_dtype": mu_dtype, "nu_dtype": nu_dtype, "factor_dtype": factor_dtype}
    describe = _describe(
        "shampoo", f"root every {every}", lambda m, n, k: 4 * m * n * k + 11 * k**3 // every, max_precond_dim
    )
    numbers = {"b1": b1, "b2": b2, "eps": eps, "ridge": ridge}
    return _by_factors(who, step, numbers, every, max_precond_dim, dtypes, describe, mesh, axis_name)


def _roots(L: Side, R: Side, ridge: Any) -> tuple[Side, Side]:
    """Of L / λ and R / λ: what a matrix' size is, grafting decides."""

    def root(A: Side) -> Side:
        if A is None:
            return None
        sigma, Q = jnp.linalg.eigh(A)
        largest = sigma[:, -1:]
        sigma = jnp.where(_is_null(sigma, largest), 0, sigma / jnp.where(largest > 0, largest, 1)) + ridge
        return product(Q * (sigma ** (-1 / 2 if L is None or R is None else -1 / 4))[:, None, :], Q.mT)

    return root(L), root(R)


def _averages(L: Side, R: Side, G: jax.Array, decay: Any) -> tuple[Side, Side]:
    average = lambda A, X: None if A is None else decay * A + (1 - decay) * product(X, X.mT)
    return average(L, G), average(R, G.mT)


def _between(left: Side, X: jax.Array, right: Side) -> jax.Array:
    """left·X·right, where None is 1."""
    X = X if left is None else product(left, X)
    return X if right is None else product(X, right)


def _t(X: Side) -> Side:
    return None if X is None else X.mT


def _describe(
    form: str, steps: str, flops: Callable[[int, int, int], int], longest: int
) -> Callable[[tuple[int, int], str], Work]:
    """flops(m, n, k) is the work that the axis of length k makes."""

    def describe(shape: tuple[int, int], dtype: str) -> Work:
        each = sum(flops(*shape, k) for k in shape if k <= longest)
        return Work(form, steps, str(jnp.promote_types(dtype, jnp.float32)), each)

    return describe


def _by_factors(
    who: str,
    step: Callable[..., tuple[Any, ...]],
    numbers: dict[str, Any],
    every: int,
    longest: int,
    dtypes: dict[str, Any],
    describe: Callable[[tuple[int, int], str], Work],
    mesh: Mesh | None,
    axis_name: str | Sequence[str],
) -> optax.GradientTransformationExtraArgs:
    """The transformation whose update is step(G, m, v, L, R, left, right, count, **numbers), computed wide."""
    check_wide(**numbers)
    check_state_dtypes(**dtypes)
    check_decay("b1", numbers["b1"])
    check_decay("b2", numbers["b2"])
    check_not_negative("eps", numbers["eps"])
    for name, value in {"every": every, "max_precond_dim": longest}.items():
        if not is_count(value):
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    # What optax.inject_hyperparams gives are arrays, which have to be handed to each device.
    plain = {name: x for name, x in numbers.items() if is_number(x)}
    given = {name: x for name, x in numbers.items() if name not in plain}

    def f(*operands: Any) -> tuple[Any, ...]:
        *stored, t, given = operands
        dtype = jnp.result_type(jnp.float32, *jax.tree.leaves(stored))

        def wide(stored: Any) -> Any:
            return jax.tree.map(lambda x: x.astype(dtype), stored)

        def at_once(stored: Any) -> Any:
            return cast_like(tuple(step(*wide(stored), t, **plain, **given)), tuple(stored))

        # On a CPU the last bits of a product depend on how many matrices a stack has, and eigenvectors on these.
        def each(stored: Any) -> Any:
            return jax.tree.map(lambda x: x[0], at_once(jax.tree.map(lambda x: x[None], stored)))

        return lax.platform_dependent(tuple(stored), cpu=lambda stored: lax.map(each, stored), default=at_once)

    def init_fn(params: optax.Params) -> FactorsState:
        leaves = matrix_leaves(who, params)
        sizes = [(x, *stacks_of(x, axes)) for x, axes in leaves]

        def factors(side: int) -> Any:
            def dtype(x: Any) -> Any:
                return dtypes["factor_dtype"] or wide_dtype(x)

            def zeros(x: Any, count: Any, k: Any) -> Any:
                return jnp.zeros((count, k, k), dtype(x)) if k <= longest else None

            tree = [zeros(x, count, (m, n)[side]) for x, count, m, n in sizes]
            return jax.tree.unflatten(jax.tree.structure(params), tree)

        # In 16 bits m's rounding would be noise that v, in which it isn't, makes large.
        mu, nu = (squares_like(params, 0, dtypes[name]) for name in ("mu_dtype", "nu_dtype"))
        return FactorsState(jnp.zeros([], jnp.int32), mu, nu, factors(0), factors(1), factors(0), factors(1))

    def update_fn(
        updates: optax.Updates, state: FactorsState, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, FactorsState]:
        del params
        check_real(who, updates)
        count, mu, nu, *factors = state
        done, *moved = on_matrices(
            f,
            *(updates, mu, nu),
            layout=extra_args.get("layout"),
            who=who,
            states=factors,
            shared=(count, given),
            describe=describe,
            mesh=mesh,
            axis_name=axis_name,
        )
        return done, FactorsState(optax.safe_increment(count), *moved)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
