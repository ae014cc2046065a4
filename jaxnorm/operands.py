"""What the standardized value and its derivative are both computed from.

A *statistic* has one entry for each set of values that is measured together (`Scope`), a
*parameter* (a scale or a bias) one for each feature, or one for each feature of each example.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnorm import axes as _axes
from jaxnorm import dtypes as _dtypes
from jaxnorm.arrays import broadcast_over, masked
from jaxnorm.kernels.native import Result
from jaxnorm.kernels.view import View
from jaxnorm.scope import Scope


class Form(NamedTuple):
    """How an input is standardized (hashable).

    Attributes:
        scope: what its moments were taken over.
        features: the axes of the scale and the bias; empty if there is neither.
        leading: those of them that come before the feature axes: parameters by example.
        given: whether the moments do not depend on the input: running statistics.
        positive: whether var + epsilon is known to be above zero.
    """

    scope: Scope
    features: tuple[int, ...]
    leading: tuple[int, ...] = ()
    given: bool = False
    positive: bool = False

    def expand(self, parameter: jax.Array, x: jax.Array) -> jax.Array:
        """Broadcast a parameter to the input."""
        return broadcast_over(parameter, x, _axes.other_axes(x.ndim, self.features))

    def view(self, x: jax.Array, mask: jax.Array | None) -> View | None:
        """The view in which the kernels can take the input, None if they cannot."""
        features = tuple(axis for axis in self.features if axis not in self.leading)
        return self.scope.view(x, mask, features, self.leading)

    def native(self, view: View | None) -> View | None:
        """The view, or None for given statistics, with which the plain form always runs.

        Each value is multiplied once then, and compilers do that in passing where the input is made
        or used. A kernel would read and write it once more.
        """
        return None if self.given else view

    def apart(self) -> Form:
        """The form in which each example that has its own parameters has its own statistics.

        It is this form if they have these already, if nothing would be left to measure over, or if
        its sums are not by channel.
        """
        reduced = tuple(axis for axis in self.scope.reduced if axis not in self.leading)
        if reduced in ((), self.scope.reduced):
            return self
        apart = self._replace(scope=self.scope._replace(reduced=reduced))
        return apart if apart.by_channel else self

    def repeat(self, statistic: jax.Array | None, x: jax.Array) -> Any:
        """Repeat a statistic of this form as the form `apart` has it."""
        apart = self.apart()
        if statistic is None or apart is self:
            return statistic
        repeated = jnp.expand_dims(statistic, self.repeated)
        return jnp.broadcast_to(repeated, apart.scope.statistic_shape(x))

    @property
    def repeated(self) -> tuple[int, ...]:
        """The axes along which `repeat` repeats."""
        reduced = self.apart().scope.reduced
        more = set(self.scope.reduced).difference(reduced)
        return tuple(_axes.kept_axis(axis, reduced) for axis in sorted(more))

    @property
    def by_channel(self) -> bool:
        """Whether no parameter varies along the axes that are measured over."""
        rows = () if self.scope.segments is None else (0,)
        return not set(self.features) & {*rows, *self.scope.reduced}

    def by_value(self, x: jax.Array) -> bool:
        """Whether a parameter has an entry for each value of the input."""
        return len(self.features) == x.ndim

    def without_parameter(self, ndim: int) -> tuple[int, ...]:
        """The axes of a sum by channel, of `ndim` axes, that a parameter by channel lacks."""
        kept = [_axes.kept_axis(axis, self.scope.reduced) for axis in self.features]
        return _axes.other_axes(ndim, kept)

    def statistic(self, x: jax.Array) -> Result:
        """The shape and dtype of a statistic."""
        return self.scope.statistic_shape(x), _dtypes.statistics_dtype(x.dtype)

    def parameter(self, x: jax.Array) -> Result:
        """The shape and dtype of a parameter."""
        shape = tuple(x.shape[axis] for axis in self.features)
        return shape, _dtypes.statistics_dtype(x.dtype)


class Standardization(NamedTuple):
    """The standardized value (x - mean) * gain + shift of an input, before scale and bias.

    Attributes:
        form: how it is standardized.
        x: the input.
        center, correction: the mean, a statistic, as a pair (`Centered`); no correction is 0.
        gain, shift: statistics; no shift is 0.
        mask: where values count; None means everywhere.
    """

    form: Form
    x: jax.Array
    center: jax.Array
    correction: jax.Array | None
    gain: jax.Array
    shift: jax.Array | None = None
    mask: jax.Array | None = None

    def apart(self) -> Standardization:
        """The same in the form `Form.apart`."""
        statistics = (self.center, self.correction, self.gain, self.shift)
        center, correction, gain, shift = (self.form.repeat(one, self.x) for one in statistics)
        form = self.form.apart()
        return Standardization(form, self.x, center, correction, gain, shift, self.mask)

    def broadcast(self, statistic: jax.Array) -> jax.Array:
        """Broadcast a statistic to the input."""
        return self.form.scope.broadcast(statistic, self.x)

    def expand(self, parameter: jax.Array) -> jax.Array:
        """Broadcast a parameter to the input."""
        return self.form.expand(parameter, self.x)

    def per_statistic(self, parameter: jax.Array) -> jax.Array:
        """Broadcast a parameter to the statistics, which are of single channels."""
        return broadcast_over(parameter, self.gain, self.form.without_parameter(self.gain.ndim))

    def deviation(self) -> jax.Array:
        """x - mean, where x is replaced by 0 if it does not count and is not finite."""
        x = self.x
        if self.mask is not None:
            x = jnp.where(self.mask | jnp.isfinite(x), x, 0)
        return self.form.scope.deviation(x, self.center, self.correction)

    def defined(self) -> jax.Array | None:
        """Where the value is not replaced by 0: where x counts or is finite; None: everywhere."""
        if self.mask is None:
            return None
        y = self.deviation() * self.broadcast(self.gain)
        return self.mask | (jnp.isfinite(self.x) & jnp.isfinite(y))

    def value(self) -> jax.Array:
        """(x - mean) * gain + shift where that is defined, 0 elsewhere."""
        y = self.deviation() * self.broadcast(self.gain)
        if self.shift is not None:
            y = y + self.broadcast(self.shift)
        return masked(y, self.defined())


class Statistics(NamedTuple):
    """What standardizes: the moments (`Centered`), epsilon, r and d of batch renormalization."""

    count: jax.Array  # type: ignore[assignment]  # hides tuple.count
    center: jax.Array
    correction: jax.Array | None
    var: jax.Array
    epsilon: jax.Array
    r: jax.Array | None = None
    d: jax.Array | None = None

    def rstd(self, form: Form) -> jax.Array:
        """1 / sqrt(var + epsilon), or 0 if nothing counts, or nothing varies and epsilon is 0."""
        variance = self.var + self.epsilon
        if form.positive:
            return jax.lax.rsqrt(variance)
        empty = (self.count == 0) | (variance == 0)
        return jnp.where(empty, 0, jax.lax.rsqrt(jnp.where(empty, 1, variance)))

    def rstd_of_varying(self, form: Form, mask: jax.Array | None) -> jax.Array:
        """rstd, but 0 where nothing that counts varies, which is then not multiplied by infinity.

        What does not count may be huge there, and its sums infinite.
        """
        rstd = self.rstd(form)
        if form.given or mask is None:
            return rstd
        return jnp.where(self.var == 0, 0, rstd)

    def gain(self, form: Form) -> jax.Array:
        """The factor of x - mean: rstd, times r in batch renormalization."""
        rstd = self.rstd(form).astype(self.center.dtype)
        return rstd if self.r is None else rstd * self.r

    def standardization(
        self, form: Form, x: jax.Array, mask: jax.Array | None = None
    ) -> Standardization:
        """The standardization of `x` by these statistics."""
        gain = self.gain(form)
        return Standardization(form, x, self.center, self.correction, gain, self.d, mask)

    def of_value(self, form: Form, x: jax.Array, mask: jax.Array | None = None) -> Standardization:
        """The standardization for the value alone, which is exactly 0 where nothing varies.

        With a mask, values that do not count may vary where those that count do not.
        """
        s = self.standardization(form, x, mask)
        if form.given or form.scope.about_zero or mask is not None:
            return s
        return s._replace(gain=jax.lax.select(self.var == 0, jnp.zeros_like(s.gain), s.gain))
