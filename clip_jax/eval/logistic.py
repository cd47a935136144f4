"""Multinomial logistic regression with an L2 penalty, solved as far as float32 goes, on the device.

The problem is scikit-learn's, with C = 1 / strength: over weights W (D, K) and a free bias (K),
minimise the sum over samples of -log softmax(x W + bias)[label], plus strength / 2 times |W|^2.

Float32 is enough for three reasons. The features are centred, which the bias makes up for exactly.
Each step of L-BFGS starts from the inverse of an ordinary regression's Hessian, in the eigenbasis
of the features' covariance, so features of unequal scale cost no precision and few steps. And the
line search looks for the zero of the slope, which stays sharp where differences between values of
the objective drown in rounding; logits are linear along a line, so that costs no matrix product.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from clip_jax.eval.checks import require_finite, require_indices, require_lengths

CONVERGED = 1e-13
"""Decrement at which to stop: what is left moved no probability by 1e-5 wherever we looked."""
MEMORY = 10
"""Pairs of steps and gradient changes that L-BFGS remembers."""
PATIENCE = 30
"""Steps without a new best after which rounding is all that is left."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Probe:
    """A linear classifier of features."""

    weights: Float[np.ndarray, "D K"]
    bias: Float[np.ndarray, " K"]
    strength: float
    """Of the penalty it was fitted with; scikit-learn's 1 / C."""
    steps: int
    """Of L-BFGS."""
    decrement: float
    """Newton's estimate (twice, a sample) of what the objective still lacks; below 1e-13 when
    converged. One that stays large tells of a strength too weak for float32."""

    def logits(self, features: Float[np.ndarray, "n D"]) -> Float[np.ndarray, "n K"]:
        """Score of each class, in float64."""
        return features.astype(np.float64) @ self.weights + self.bias

    def probabilities(self, features: Float[np.ndarray, "n D"]) -> Float[np.ndarray, "n K"]:
        """Probability of each class; rows sum to 1."""
        logits = self.logits(features)
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        return odds / odds.sum(axis=1, keepdims=True)


class Regression:
    """A training set made ready, so that several strengths share the work and one compilation."""

    def __init__(
        self,
        features: Float[np.ndarray, "n D"],
        labels: Int[np.ndarray, " n"],
        classes: int,
        *,
        rows: int = 0,
        mesh: Mesh | None = None,
    ):
        """Centre the features, find their eigenbasis, and place them.

        Args:
          features: of any scale.
          labels: 0 to classes - 1; every class has a sample.
          classes: at least 2.
          rows: pad to so many with samples of weight 0; sets of equal rows share a compilation.
          mesh: divide the samples over all its devices; the default device alone if None.

        Raises:
          ValueError: no sample; features that are not finite; labels out of range; a class
            without a sample.
        """
        require_lengths(features=features, labels=labels)
        require_finite("features", features)
        require_indices("labels", labels, classes)
        if classes < 2:
            raise ValueError(f"at least 2 classes are needed, got {classes}")
        if (empty := np.flatnonzero(np.bincount(labels, minlength=classes) == 0)).size:
            raise ValueError(f"no sample to learn classes {empty.tolist()} from")
        self.classes, self.samples, self.mesh = classes, len(labels), mesh
        self.mean = features.mean(axis=0, dtype=np.float64)
        divided, whole, parts = None, None, 1
        if mesh is not None:
            divided = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
            whole, parts = NamedSharding(mesh, PartitionSpec()), mesh.size
        fill = -(-max(rows, self.samples) // parts) * parts - self.samples
        # The bias is the weight of a last feature that is always 1.
        centred = np.pad((features - self.mean).astype(np.float32), ((0, fill), (0, 1)))
        centred[:, -1] = 1.0
        padded = (
            centred,
            np.pad(labels.astype(np.int32), (0, fill)),
            np.pad(np.full(self.samples, 1 / self.samples, np.float32), (0, fill)),
        )
        x, labels, share = jax.device_put(padded, divided)
        spread, basis = np.linalg.eigh(np.asarray(_covariance(x, share), np.float64))
        found = (basis.astype(np.float32), np.maximum(spread, 0.0).astype(np.float32))
        basis, spread = jax.device_put(found, whole)
        self.data = dict(x=x, labels=labels, share=share, basis=basis, spread=spread)

    def solve(self, strength: float, *, steps: int = 1000) -> Probe:
        """The probe of least objective, from zero, whatever was solved before.

        Args:
          strength: of the penalty, above 0.
          steps: at most; the paper's limit.

        Raises:
          ValueError: strength is not above 0.
        """
        problem = self._problem(strength, self.classes)
        theta, taken, decrement = jax.device_get(_minimise(problem, self.classes, steps))
        weights = theta[:-1].astype(np.float64)
        return Probe(
            weights=weights,
            bias=theta[-1] - self.mean @ weights,
            strength=strength,
            steps=int(taken),
            decrement=float(decrement),
        )

    def solve_each(
        self, targets: Bool[np.ndarray, "n K"], strength: float, *, steps: int = 1000
    ) -> tuple[Float[np.ndarray, "D K"], Float[np.ndarray, " K"]]:
        """As `solve`, of K problems of two classes each on the same features, all at once.

        Args:
          targets: a column a problem, in place of the labels; each has both values.
          strength: of the penalty of each, above 0.

        Returns:
          Weights and biases of the log-odds, features @ weights + bias, in float64.

        Raises:
          ValueError: another number of samples; columns of one value; strength is not above 0.
        """
        if len(targets) != self.samples:
            raise ValueError(f"{len(targets)} rows of targets for {self.samples} samples")
        if (plain := np.flatnonzero(targets.all(axis=0) | ~targets.any(axis=0))).size:
            raise ValueError(f"every sample has the same target in columns {plain.tolist()}")
        problem, fill = self._problem(strength, 2), len(self.data["x"]) - self.samples
        labels = np.pad(targets.T.astype(np.int32), ((0, 0), (0, fill)))
        divided = None
        if self.mesh is not None:
            divided = NamedSharding(self.mesh, PartitionSpec(None, self.mesh.axis_names))
        labels = jax.device_put(labels, divided)
        theta = np.asarray(_minimise_each(problem, labels, steps), np.float64)
        weights = (theta[:, :-1, 1] - theta[:, :-1, 0]).T
        return weights, theta[:, -1, 1] - theta[:, -1, 0] - self.mean @ weights

    def _problem(self, strength: float, classes: int) -> "_Problem":
        if not strength > 0:
            raise ValueError(f"strength must be above 0, got {strength}")
        # Of two classes scikit-learn has one vector w, for which ours are -w / 2 and w / 2.
        penalty = strength * (2 if classes == 2 else 1) / self.samples
        return _Problem(**self.data, penalty=jnp.float32(penalty))


class _Problem(NamedTuple):
    """What is minimised; all terms are means over the samples."""

    x: Float[Array, "n D1"]
    """Centred features, and a last column of ones."""
    labels: Int[Array, " n"]
    share: Float[Array, " n"]
    """Of each sample in the mean: 1 / samples, or 0 for padding."""
    basis: Float[Array, "D D"]
    spread: Float[Array, " D"]
    """Eigenvectors and eigenvalues of the features' covariance."""
    penalty: Float[Array, ""]

    def weighs(self):
        """Penalty of each row of theta, (D1, 1); none for the bias."""
        return self.penalty * (jnp.arange(self.x.shape[1]) < len(self.spread))[:, None]

    def logits_and_gradient(self, theta):
        logits = _dot(self.x, theta)
        right = jax.nn.one_hot(self.labels, theta.shape[1])
        off = (jax.nn.softmax(logits) - right) * self.share[:, None]
        return logits, _dot(self.x.T, off) + self.weighs() * theta


class _State(NamedTuple):
    """Of L-BFGS; `theta` holds the weights and, as its last row, the bias."""

    theta: Float[Array, "D1 K"]
    logits: Float[Array, "n K"]
    gradient: Float[Array, "D1 K"]
    moves: Float[Array, "M D1 K"]
    changes: Float[Array, "M D1 K"]
    inverse: Float[Array, " M"]
    """1 / (move . change); 0 where there is none yet."""
    step: Int[Array, ""]
    best: Float[Array, ""]
    """Least decrement so far, where it was, and how many steps ago."""
    kept: Float[Array, "D1 K"]
    since: Int[Array, ""]


def _dot(a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    # Full float32 also where the device's default is less.
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


@jax.jit
def _covariance(x: Float[Array, "n D1"], share: Float[Array, " n"]) -> Float[Array, "D D"]:
    x = x[:, :-1]
    return _dot(x.T, x * share[:, None])


@functools.partial(jax.jit, static_argnums=1)
def _minimise(problem: _Problem, classes: int, steps: Int[Array, ""] | int):
    """Weights and bias, steps taken, decrement."""
    start = jnp.zeros((problem.x.shape[1], classes))
    none, zero = jnp.zeros((MEMORY, *start.shape)), jnp.int32(0)
    logits, gradient = problem.logits_and_gradient(start)
    first = _State(
        theta=start,
        logits=logits,
        gradient=gradient,
        moves=none,
        changes=none,
        inverse=jnp.zeros(MEMORY),
        step=zero,
        best=jnp.float32(jnp.inf),
        kept=start,
        since=zero,
    )
    last = jax.lax.while_loop(
        lambda s: (s.step < steps) & (s.best > CONVERGED) & (s.since < PATIENCE),
        functools.partial(_advance, problem),
        first,
    )
    return last.kept, last.step, last.best


@jax.jit
def _minimise_each(problem: _Problem, labels: Int[Array, "K n"], steps: Int[Array, ""] | int):
    """Weights and bias of two classes, for each row of labels: (K, D1, 2)."""
    # One wide matrix product over all: the samples are read once, not once a problem.
    return jax.vmap(lambda own: _minimise(problem._replace(labels=own), 2, steps)[0])(labels)


def _advance(problem: _Problem, state: _State) -> _State:
    solve = _inverse_hessian(problem, state.logits)
    towards = -_two_loops(state, solve)
    move = _line_search(problem, state, towards) * towards
    theta = state.theta + move
    logits, gradient = problem.logits_and_gradient(theta)
    change = gradient - state.gradient
    product = jnp.sum(move * change)
    decrement = jnp.sum(gradient * solve(gradient))
    better, slot = decrement < state.best, state.step % MEMORY
    return _State(
        theta=theta,
        logits=logits,
        gradient=gradient,
        moves=state.moves.at[slot].set(move),
        changes=state.changes.at[slot].set(change),
        inverse=state.inverse.at[slot].set(jnp.where(product > 0, 1 / product, 0.0)),
        step=state.step + 1,
        best=jnp.minimum(decrement, state.best),
        kept=jnp.where(better, theta, state.kept),
        since=jnp.where(better, 0, state.since + 1),
    )


def _inverse_hessian(problem: _Problem, logits):
    """Inverse Hessian if all samples and classes were of the mean curvature p (1 - p)."""
    odds = jax.nn.softmax(logits)
    mean = jnp.sum(odds * (1 - odds) * problem.share[:, None]) / odds.shape[1]
    curvature = jnp.maximum(mean, 1e-7)  # Where every sample is certain, it would vanish.
    stiffness = (curvature * problem.spread + problem.penalty)[:, None]

    def solve(theta):
        weights = _dot(problem.basis, _dot(problem.basis.T, theta[:-1]) / stiffness)
        return jnp.concatenate([weights, theta[-1:] / curvature])

    return solve


def _two_loops(state: _State, solve) -> Float[Array, "D1 K"]:
    """L-BFGS's estimate of the inverse Hessian times the gradient."""

    def back(count, carry):
        rest, sizes = carry
        slot = (state.step - 1 - count) % MEMORY
        size = state.inverse[slot] * jnp.sum(state.moves[slot] * rest)
        return rest - size * state.changes[slot], sizes.at[slot].set(size)

    def forth(count, found):
        slot = (state.step + count) % MEMORY
        size = state.inverse[slot] * jnp.sum(state.changes[slot] * found)
        return found + state.moves[slot] * (sizes[slot] - size)

    rest, sizes = jax.lax.fori_loop(
        0, MEMORY, back, (state.gradient, jnp.zeros_like(state.inverse))
    )
    last = (state.step - 1) % MEMORY
    known = state.inverse[last] > 0
    scale = jnp.sum(state.changes[last] * solve(state.changes[last])) * state.inverse[last]
    found = solve(rest) / jnp.where(known & (scale > 0), scale, 1.0)
    return jax.lax.fori_loop(0, MEMORY, forth, found)


def _line_search(problem: _Problem, state: _State, towards) -> Float[Array, ""]:
    """How far to go: where the slope is a tenth of that at the start, or less, either way.

    Newton's method on the slope of a convex function, kept within what is known to hold its zero.
    """
    slopes = _slopes(problem, state, towards)

    def nearer(carry):
        distance, low, high, slope, bend, count = carry
        low, high = jnp.where(slope < 0, distance, low), jnp.where(slope < 0, high, distance)
        newton = jnp.minimum(distance - slope / bend, 10 * distance)
        halfway = jnp.where(jnp.isinf(high), 2 * distance, (low + high) / 2)
        distance = jnp.where((newton > low) & (newton < high), newton, halfway)
        return distance, low, high, *slopes(distance), count + 1

    one = jnp.float32(1.0)
    enough = 0.1 * jnp.abs(slopes(0 * one)[0])
    return jax.lax.while_loop(
        lambda carry: (jnp.abs(carry[3]) > enough) & (carry[5] < 20),
        nearer,
        (one, 0 * one, jnp.inf * one, *slopes(one), jnp.int32(0)),
    )[0]


def _slopes(problem: _Problem, state: _State, towards):
    """First and second derivative of the objective along a direction, by distance."""
    along, weighs = _dot(problem.x, towards), problem.weighs()
    own = jnp.take_along_axis(along, problem.labels[:, None], axis=1)[:, 0]
    tilt, bow = jnp.sum(weighs * state.theta * towards), jnp.sum(weighs * towards**2)

    def slopes(distance):
        odds = jax.nn.softmax(state.logits + distance * along)
        mean = jnp.sum(odds * along, axis=1)
        variance = jnp.sum(odds * (along - mean[:, None]) ** 2, axis=1)
        slope = jnp.sum((mean - own) * problem.share) + tilt + distance * bow
        return slope, jnp.sum(variance * problem.share) + bow

    return slopes
