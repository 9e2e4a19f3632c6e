"""Orthogonalization of a stack of matrices: all singular values to about one (Newton–Schulz), or to one (SVD).

A step is an odd quintic of the singular values, X ← aX + bAX + cA²X with A = XXᵀ. Which quintics follow each other is a
tuple of coefficients; how they are computed is a form, which changes the rounding and the cost, not the result.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from optlab.transforms._numerics import roots, wide_dtype

Coefficients = tuple[tuple[float, float, float], ...]

LARGEST = 1.25  # no singular value may end above it
SAFETY = 1.01  # room for rounding between the steps of Polar Express
LEAST_IN_16_BITS = 1e-4  # lower bound of Polar Express: for lower ones the rounding of 16 bits grows without limit
CACHE = 2**17  # numbers in a piece of a stack on a CPU: from matrices of 64×64 to 768×768 the fastest, or nearly
BLOCKS_FROM = 512  # rows from which on half the square products done in blocks pay on a CPU
PART = 2**25  # numbers in a part of a stack on an accelerator: 0.1 GB in float32, a millisecond's work for an H100
CUSHION = 0.02407327424182761  # of Polar Express: a quintic isn't asked to look after what is smaller than this


def keller_jordan(steps: int) -> Coefficients:
    """One quintic again and again, steepest at 0, so that small singular values grow fast; they end in 0.68…1.2.

    Source: Jordan et al. 2024, kellerjordan.github.io/posts/muon.
    """
    return ((3.4445, -4.7750, 2.0315),) * steps


@functools.lru_cache
def polar_express(steps: int, lower_bound: float) -> Coefficients:
    """The quintics whose composition comes nearest to 1 on [lower_bound, 1], each best for what the last one leaves.

    All but the last are for singular values up to 1.01 of what they should be.

    Source: Amsel et al. 2025 (arXiv 2505.16932), Algorithm 1.
    """
    quintics, lower, upper = [], lower_bound, 1.0
    for _ in range(steps):
        a, b, c = _best_quintic(max(lower, CUSHION * upper), upper)
        p = lambda x, a=a, b=b, c=c: a * x + b * x**3 + c * x**5
        if lower < CUSHION * upper:  # the neglected ones below are to count in the middle of the range after all
            middle = (p(lower) + p(upper)) / 2
            a, b, c = a / middle, b / middle, c / middle
        quintics.append((a, b, c))
        lower = a * lower + b * lower**3 + c * lower**5
        upper = 2 - lower
    safe = [(a / SAFETY, b / SAFETY**3, c / SAFETY**5) for a, b, c in quintics[:-1]]
    return (*safe, quintics[-1])


def _best_quintic(lower: float, upper: float) -> tuple[float, float, float]:
    """ax + bx³ + cx⁵ with the least largest distance to 1 on the interval, by Remez' exchange."""
    if lower / upper > 1 - 5e-6:  # where the exchange would only see rounding: the Taylor series at 1
        return 15 / 8 / upper, -10 / 8 / upper**3, 3 / 8 / upper**5
    inner, error = ((3 * lower + upper) / 4, (lower + 3 * upper) / 4), math.inf
    while True:
        points = np.array([lower, *inner, upper])
        signs = np.array([1.0, -1.0, 1.0, -1.0])  # below 1, above, below, above
        a, b, c, new = np.linalg.solve(np.stack([points, points**3, points**5, signs], 1), np.ones(4))
        if abs(error - new) < 1e-14:
            return float(a), float(b), float(c)
        error, root = new, math.sqrt(9 * b * b - 20 * a * c)
        inner = (math.sqrt((-3 * b - root) / (10 * c)), math.sqrt((-3 * b + root) / (10 * c)))


@functools.lru_cache
def extremes(coefficients: Coefficients) -> tuple[float, float]:
    """(least of p(σ)/σ, largest p(σ)) on (0, 1], p the composition: positive means that no direction is reversed."""
    x = np.concatenate([np.geomspace(1e-12, 1e-2, 20_000), np.linspace(1e-2, 1, 80_001)])
    y = x
    for a, b, c in coefficients:
        y = a * y + b * y**3 + c * y**5
    return float((y / x).min()), float(y.max())


def flops(shape: tuple[int, int], chunks: Sequence[int], form: str) -> int:
    """Of one matrix m ≤ n: its products, a multiplication and an addition being two; an SVD's by Golub and Van Loan."""
    m, n = shape
    if form == "svd":
        return 6 * n * m * m + 20 * m**3
    if form == "standard":
        return sum(chunks) * (4 * m * m * n + 2 * m**3)
    return sum(4 * m * m * n + 2 * m**3 * (k + 3 * (k - 1)) for k in chunks)


# Most steps of the Gram form between restarts, by the dtype that it is computed in. A step makes an error in A = XXᵀ up
# to twelve times larger: with more steps, or in bfloat16, singular values would end above LARGEST.
GRAM_STEPS = {"float64": 3, "float32": 3, "float16": 2}


def restarts(steps: int, most: int) -> tuple[int, ...]:
    """The Gram form's steps between restarts: `most` at most, the longer runs last."""
    count = -(-steps // most)
    return tuple(steps // count + (i >= count - steps % count) for i in range(count))


class Recipe(NamedTuple):
    """The way in which the quintics are computed on a platform.

    form: "standard" or "gram"; "svd" computes none.
    chunks: steps between the Gram form's restarts; its sum is the number of steps.
    dtype: of the products.
    precision: of the products, as in `jax.default_matmul_precision`.
    """

    form: str
    chunks: tuple[int, ...]
    dtype: str
    precision: str


class Recipes(NamedTuple):
    """One for each platform. A GPU's is that of all platforms but the other two."""

    cpu: Recipe
    gpu: Recipe
    tpu: Recipe


def newton_schulz(X: jax.Array, coefficients: Coefficients, recipes: Recipes, eps: float) -> jax.Array:
    """A stack (N, m, n), m ≤ n, through the quintics by the platform's recipe, normalized in at least float32."""

    def by(recipe: Recipe) -> Callable[..., jax.Array]:
        step, rest = _gram if recipe.form == "gram" else _standard, iter(coefficients)
        pieces = [[next(rest) for _ in range(k)] for k in recipe.chunks]

        def f(X: jax.Array, blocks: int = 1) -> jax.Array:
            Y = _normalize(X.astype(wide_dtype(X)), eps).astype(recipe.dtype)
            for piece in pieces:
                Y = step(Y, piece, _Symmetric(blocks, recipe.precision))
            return Y.astype(X.dtype)

        return f

    cpu, gpu, tpu = map(by, recipes)
    if X.size <= CACHE and len(set(recipes)) == 1:
        return cpu(X)
    if X.size > CACHE:
        cpu = functools.partial(_in_pieces, cpu)
    if X.size > PART:
        gpu, tpu = functools.partial(_in_place, gpu), functools.partial(_in_place, tpu)
    return _by_platform(X, {"cpu": cpu, "default": gpu} | ({"tpu": tpu} if recipes.tpu != recipes.gpu else {}))


def _by_platform(X: jax.Array, branches: dict[str, Callable[[jax.Array], jax.Array]]) -> jax.Array:
    """Chooses by the platform for which the program is lowered: only its branch gets into the program."""
    return lax.platform_dependent(X, **branches)


def _in_place(f: Callable[[jax.Array], jax.Array], X: jax.Array) -> jax.Array:
    """f part by part of the stack, each written where it was read: what f needs in between is for one part at a time.

    Parts are of one size, so that they are one program; the last may begin within the one before it.
    """
    size = -(-len(X) // -(-X.size // PART))
    count = -(-len(X) // size)

    def body(i: jax.Array, X: jax.Array) -> jax.Array:
        start = jnp.minimum(i * size, len(X) - size)
        part = lax.dynamic_slice_in_dim(X, start, size)
        is_done = (start + jnp.arange(size) < i * size)[:, None, None]
        return lax.dynamic_update_slice_in_dim(X, jnp.where(is_done, part, f(part)), start, 0)

    return lax.fori_loop(0, count, body, X)


def _in_pieces(f: Callable[..., jax.Array], X: jax.Array) -> jax.Array:
    """f piece by piece of the stack, which stays in a CPU's cache; some at once, for one fills another's gaps."""
    size = CACHE // X[0].size
    if size < 2:  # matrix by matrix: a product of two matrices is faster than one of stacks of one
        blocks = 2 if X.shape[-2] >= BLOCKS_FROM else 1
        return lax.scan(lambda _, Y: (None, f(Y, blocks)), None, X, unroll=4 // blocks)[1]
    pieces = jnp.pad(X, ((0, -len(X) % size), (0, 0), (0, 0))).reshape(-1, size, *X.shape[1:])
    done = lax.scan(lambda _, piece: (None, f(piece)), None, pieces, unroll=2)[1]
    return done.reshape(-1, *X.shape[1:])[: len(X)]


Blocks = list[list[jax.Array]]


@dataclasses.dataclass(frozen=True)
class _Symmetric:
    """Products that are symmetric, in blocks: those below the diagonal are never computed.

    A symmetric matrix of count × count blocks is the list of its rows of blocks, each from the diagonal on.
    """

    count: int
    precision: str

    def product(self, X: jax.Array, Y: jax.Array) -> jax.Array:
        return jnp.matmul(X, Y, precision=self.precision)

    def outer(self, X: jax.Array) -> Blocks:
        """XXᵀ."""
        rows = [X] if self.count == 1 else jnp.array_split(X, self.count, axis=-2)
        return [[self.product(x, y.mT) for y in rows[i:]] for i, x in enumerate(rows)]

    def commuting(self, A: Blocks, B: Blocks) -> Blocks:
        """AB of two that commute, which makes it symmetric."""
        n = range(self.count)
        terms = lambda i, j: [self.product(_at(A, i, k), _at(B, k, j)) for k in n]
        return [[functools.reduce(jnp.add, terms(i, j)) for j in n[i:]] for i in n]

    def times(self, A: Blocks, X: jax.Array) -> jax.Array:
        """AX."""
        n = range(self.count)
        whole = A[0][0] if self.count == 1 else jnp.block([[_at(A, i, j) for j in n] for i in n])
        return self.product(whole, X)


def _at(A: Blocks, i: int, j: int) -> jax.Array:
    return A[i][j - i] if i <= j else A[j][i - j].mT


def _standard(X: jax.Array, coefficients: Sequence[tuple[float, float, float]], symmetric: _Symmetric) -> jax.Array:
    for a, b, c in coefficients:
        A = symmetric.outer(X)
        B = jax.tree.map(lambda x, y, b=b, c=c: b * x + c * y, A, symmetric.commuting(A, A))
        X = a * X + symmetric.times(B, X)
    return X


def _gram(X: jax.Array, coefficients: Sequence[tuple[float, float, float]], symmetric: _Symmetric) -> jax.Array:
    """The same on A = XXᵀ alone, which is small: X ← QX at the end, Q = Z…Z, Z = aI + bA + cA², A ← ZAZ."""
    A = symmetric.outer(X)
    Q: Blocks | None = None
    Z: Blocks | None = None
    for a, b, c in coefficients:
        if Z is not None:
            A = symmetric.commuting(symmetric.commuting(Z, A), Z)
        Z = jax.tree.map(lambda x, y, b=b, c=c: b * x + c * y, A, symmetric.commuting(A, A))
        for row in Z:
            row[0] += a * jnp.broadcast_to(jnp.eye(row[0].shape[-1], dtype=X.dtype), row[0].shape)
        Q = Z if Q is None else symmetric.commuting(Q, Z)
    assert Q is not None  # a chunk has a step at least
    return symmetric.times(Q, X)


@jax.custom_jvp
def polar(X: jax.Array) -> jax.Array:
    """UVᵀ of X = UΣVᵀ, (N, m, n); directions whose singular value is zero to rounding stay zero."""
    U, _, Vt = _svd(_normalize(X, 0.0))
    return jnp.matmul(U, Vt, precision="highest")


@polar.defjvp
def _polar_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """For a change E of X, with M = UᵀEV: U((M − Mᵀ) / (σᵢ + σⱼ))Vᵀ + (EV − UM)Σ⁻¹Vᵀ + UΣ⁻¹(UᵀE − MVᵀ).

    An SVD's own derivative, which JAX would take, is infinite where two singular values are equal, as those of an
    orthogonal momentum are. What would be divided by a zero one is left out.
    """
    (X,), (E,) = primals, tangents
    X, scale, size = _scaled(X, 0.0)
    U, sigma, Vt = _svd(X / size)
    UH, V, E = U.conj().mT, Vt.conj().mT, E / scale / size
    product = functools.partial(jnp.matmul, precision="highest")
    M = product(product(UH, E), V)
    s, t = sigma[..., :, None], sigma[..., None, :]
    turned = product(product(U, _over(M - M.conj().mT, s + t)), Vt)
    left = product(_over(product(E, V) - product(U, M), t), Vt)
    right = product(U, _over(product(UH, E) - product(M, Vt), s))
    return product(U, Vt), turned + left + right


def _over(x: jax.Array, y: jax.Array) -> jax.Array:
    """x / y, and 0 where y is."""
    return jnp.where(y > 0, x / jnp.where(y > 0, y, 1), 0)


def _svd(X: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """U, Σ, Vᵀ; where a singular value is zero to rounding, it is zero, and so are its column and its row."""
    U, sigma, Vt = jnp.linalg.svd(X, full_matrices=False)
    rounding = max(X.shape[-2:]) * jnp.finfo(X.dtype).eps
    is_kept = jnp.where(sigma > rounding * sigma[..., :1], 1.0, 0.0).astype(sigma.dtype)
    return U * is_kept[..., None, :], sigma * is_kept, Vt * is_kept[..., :, None]


def _normalize(X: jax.Array, eps: float) -> jax.Array:
    """X / (‖X‖ + ε) in the Frobenius norm, without overflow or underflow of the squares; zero stays zero."""
    X, _, size = _scaled(X, eps)
    return X / size


def _scaled(X: jax.Array, eps: float) -> tuple[jax.Array, jax.Array, jax.Array]:
    """X by its largest entry, which cancels in whatever follows and in its derivatives; that; and ‖X‖ + ε by it."""
    scale = jnp.max(jnp.abs(X), axis=(-2, -1), keepdims=True)
    scale = lax.stop_gradient(jnp.where(scale < jnp.finfo(X.dtype).tiny, 1, scale))
    X = X / scale
    norm = roots(jnp.sum((X * X.conj()).real, axis=(-2, -1), keepdims=True))
    least = eps if 1e-30 < eps < 1e-3 else 1e-3  # norm is at least 1 but for zeros, where the derivative is 1 / ε
    return X, scale, jnp.maximum(norm + eps / scale, least)
