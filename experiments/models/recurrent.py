"""Recurrent networks for sequences, which can have unequal lengths."""

from collections.abc import Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments.errors import at_least
from experiments.models.base import Model, position
from experiments.models.sequences import sequences
from experiments.norms.base import Places

BATCH_SCALE = 0.1  # the initial scale of batch normalization (Cooijmans et al. 2016, section 4)
State = tuple[jax.Array, ...]  # the output comes first


class Step(nn.Module):
    """One time step. Examples whose sequence has ended keep their state.

    Attributes:
        norm: creates the normalizations.
        hidden: the width of the state.
        position: the position of the normalizations.
        dtype: the dtype of the computation and of the state.
        train: whether this is training.
        gates: the number of gates; each has a kernel for the input and one for the state.
        states: the number of arrays in a state.
    """

    norm: Any
    hidden: int
    position: str
    dtype: Any
    train: bool

    gates: ClassVar[int]
    states: ClassVar[int]

    @nn.compact
    def __call__(self, state: State, inputs: tuple[jax.Array, jax.Array]) -> tuple[State, None]:
        """Advance by projected inputs x (batch, gates * hidden) where `valid` (batch,) is True."""
        x, valid = inputs
        output, *rest = self.advanced(state, x, valid)
        if self.position == "after":
            output = self.norm(name="norm_output")(output, valid, train=self.train)
        new = (output, *rest)
        return tuple(
            jnp.where(valid[:, None], *pair) for pair in zip(new, state, strict=True)
        ), None

    def advanced(self, state: State, x: jax.Array, valid: jax.Array) -> State:
        """Return the next state."""
        raise NotImplementedError

    def normalized(self, name: str, x: jax.Array, valid: jax.Array, **options: Any) -> jax.Array:
        """Normalize the input of an activation, if `position` is before."""
        if self.position == "after":
            return x
        if self.norm.norm.of_the_batch:
            options["scale_init"] = nn.initializers.constant(BATCH_SCALE)
        return self.norm(name=name, **options)(x, valid, train=self.train)

    def of_input_and_state(
        self, x: jax.Array, output: jax.Array, valid: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Return the contributions of input and state to all gates, normalized and without bias."""
        h = nn.Dense(
            self.gates * self.hidden,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=self._orthogonal,
            name="of_state",
        )(output)
        return (
            self.normalized("norm_input", x, valid, use_bias=False),
            self.normalized("norm_hidden", h, valid, use_bias=False),
        )

    def bias(self, *values: float) -> jax.Array:
        """Return the bias of the gates; `values` are the initial values, one for each gate."""
        return _Bias(jnp.repeat(jnp.array(values), self.hidden), name="gates")().astype(self.dtype)

    def _orthogonal(self, key: jax.Array, shape: tuple[int, int], dtype: Any) -> jax.Array:
        """Return one orthogonal matrix for each gate."""
        square = (self.hidden, self.hidden)
        keys = jax.random.split(key, self.gates)
        matrices = [nn.initializers.orthogonal()(key, square, dtype) for key in keys]
        return jnp.concatenate(matrices, axis=1)


class _Bias(nn.Module):
    """A bias parameter."""

    first: jax.Array

    @nn.compact
    def __call__(self) -> jax.Array:
        return self.param("bias", lambda _: self.first.astype(jnp.float32))


class LSTMStep(Step):
    """The step of an LSTM with input x, output h and cell c, where N normalizes:

    i, f, g, o = N(W x) + N(U h) + b,  c' = sigmoid(f) c + sigmoid(i) tanh(g),
    h' = sigmoid(o) tanh(N(c')).
    """

    gates: ClassVar[int] = 4
    states: ClassVar[int] = 2

    def advanced(self, state: State, x: jax.Array, valid: jax.Array) -> State:
        h, c = state
        of_input, of_state = self.of_input_and_state(x, h, valid)
        bias = self.bias(
            0.0, 1.0, 0.0, 0.0
        )  # the forget gate is open at first (Jozefowicz et al. 2015)
        i, f, g, o = jnp.split(of_input + of_state + bias, self.gates, axis=-1)
        c = nn.sigmoid(f) * c + nn.sigmoid(i) * nn.tanh(g)
        return nn.sigmoid(o) * nn.tanh(self.normalized("norm_cell", c, valid)), c


class GRUStep(Step):
    """The step of a GRU with input x and output h, where N normalizes and v, u split into r, z, n:

    v = N(W x) + b,  u = N(U h),  r = sigmoid(v_r + u_r),  z = sigmoid(v_z + u_z),
    n = tanh(v_n + r u_n),  h' = (1 - z) n + z h.
    """

    gates: ClassVar[int] = 3
    states: ClassVar[int] = 1

    def advanced(self, state: State, x: jax.Array, valid: jax.Array) -> State:
        [h] = state
        of_input, of_state = self.of_input_and_state(x, h, valid)
        v_r, v_z, v_n = jnp.split(of_input + self.bias(0.0, 0.0, 0.0), self.gates, axis=-1)
        u_r, u_z, u_n = jnp.split(of_state, self.gates, axis=-1)
        r, z = nn.sigmoid(v_r + u_r), nn.sigmoid(v_z + u_z)
        n = nn.tanh(v_n + r * u_n)
        return ((1 - z) * n + z * h,)


class Recurrent(Model, kw_only=True):
    """A recurrent layer over the first axis of an input, and a linear head on its last output.

    Words get a learned vector as wide as the state.

    Time steps beyond the length of an example change neither its state nor the statistics. With
    normalization before the activations, the contributions of the input and of the state are
    normalized, and the cell if there is one (Ba et al. 2016; Cooijmans et al. 2016). With
    normalization after them, the output of every step is. Batch statistics are separate for each
    time step (Cooijmans).

    Attributes:
        hidden: the width of the state.
        position: the position of the normalizations, before or after the activations.
    """

    hidden: int
    position: str

    takes_lengths: ClassVar[bool] = True
    step: ClassVar[type[Step]]

    @nn.compact
    def __call__(
        self,
        inputs: jax.Array,
        lengths: jax.Array | None = None,
        mask: jax.Array | None = None,
        *,
        train: bool,
    ) -> jax.Array:
        """Return the logits (batch, classes) of sequences (batch, time, ...), or of words.

        Masked examples, where `mask` is False, do not affect the others.
        """
        x, valid = sequences(self.embedded(inputs, self.hidden), lengths, mask)
        width = self.step.gates * self.hidden
        x = nn.Dense(width, use_bias=False, dtype=self.dtype, name="of_input")(x)
        step = nn.scan(
            self.step,
            variable_broadcast="params",
            variable_axes={"batch_stats": 0, "intermediates": 0},
            split_rngs={"params": False, "noise": True},
            in_axes=1,
        )(self.norm, self.hidden, self.position, self.dtype, train, name="recurrence")
        start = (jnp.zeros((len(x), self.hidden), x.dtype),) * self.step.states
        state, _ = step(start, (x, valid))
        return self.logits(self.dropped(state[0], train))

    def own_problems(self, input_shape: tuple[int, ...]) -> Iterator[str]:
        yield from position(self.position)
        yield from at_least("model.hidden", self.hidden, 1)
        if len(input_shape) < 2 and self.vocabulary is None:
            yield (
                f"model={self.title} takes sequences, but the data have shape "
                f"{list(input_shape)}; give model=mlp"
            )

    def places(self, input_shape: tuple[int, ...]) -> Places:
        gates = self.step.gates * self.hidden
        before = [gates, gates, self.hidden][: 1 + self.step.states]
        return Places(self.title, [self.hidden] if self.position == "after" else before)


class LSTM(Recurrent, kw_only=True):
    """Long short-term memory (Hochreiter & Schmidhuber 1997, with the forget gate of Gers 2000)."""

    step: ClassVar[type[Step]] = LSTMStep


class GRU(Recurrent, kw_only=True):
    """Gated recurrent units (Cho et al. 2014)."""

    step: ClassVar[type[Step]] = GRUStep
