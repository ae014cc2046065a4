"""Normalizations and their derivatives in every form, and in float64 by the formulas."""

import contextlib
import functools

import jax
import numpy as np
import pytest
import reference
from cases import NORMS, STATEFUL, fresh, near, normals, parameters

from jaxnorm import kernels
from jaxnorm.kernels.library import library
from jaxnorm.kernels.target import as_on

NAMES = ["batch", "ghost", "layer", "group", "instance"]
PLAIN = ["cpu", "gpu", "tpu"]
NATIVE = pytest.param(
    "native", marks=pytest.mark.skipif(not library().loaded, reason=kernels.status())
)
in_every_form = pytest.mark.parametrize("form", [NATIVE, *PLAIN])


def function(name, where=None, **options):
    """Give a normalization as a function of x, scale and bias alone, which yields y alone."""
    norm, options = NORMS[name], {**NORMS[name].options, **options}

    def normalized(x, scale, bias):
        if name not in STATEFUL:
            return norm.function(x, scale, bias, where=where, **options)
        stats = fresh(name, x.shape[-1])
        return norm.function(x, stats, scale, bias, where=where, **options)[0]

    return normalized


@functools.cache
def compiled(name, form, **options):
    """Compile y, the cotangents of x, scale and bias, and the tangent of y, for one form."""

    def program(where, operands, tangents, cotangent):
        normalized = function(name, where, **options)
        y, tangent = jax.jvp(normalized, operands, tangents)
        return y, jax.vjp(normalized, *operands)[1](cotangent), tangent

    jitted = jax.jit(program)

    def run(*args):
        with contextlib.nullcontext() if form == "native" else as_on(form):
            return jitted(*args)

    return run


class Exact:
    """y and its derivatives in float64, by the formulas."""

    def __init__(self, name, x, where=None, epsilon=None, labels=None):
        if labels is None:
            labels = NORMS[name].labels(x.shape, **NORMS[name].options)
        self.labels = np.unique(labels, return_inverse=True)[1].reshape(x.shape)
        self.keep = reference.counted(x, where)
        epsilon = epsilon if epsilon is not None else 1e-5 if name in STATEFUL else 1e-6
        self.subtracted = (lambda values: 0.0) if NORMS[name].about_zero else self.mean
        self.deviation = x.astype(np.float64) - self.subtracted(x)
        self.rstd = 1 / np.sqrt(self.mean(self.deviation**2) + epsilon)
        self.unscaled = self.deviation * self.rstd

    def mean(self, values):
        """Average over the positions that share a label and count, at each position."""
        values = np.where(self.keep, values.astype(np.float64), 0)
        sums, counts = (
            np.bincount(self.labels.ravel(), part.ravel()) for part in (values, self.keep)
        )
        return (sums / np.maximum(counts, 1))[self.labels]

    def projected(self, v):
        """Give the derivative of the unscaled value, which is symmetric."""
        return self.rstd * (v - self.subtracted(v) - self.unscaled * self.mean(self.unscaled * v))

    def y(self, scale, bias):
        """Give the value."""
        return self.unscaled * scale + bias

    def cotangents(self, scale, g):
        """Give the cotangents of x, scale and bias."""
        leading = tuple(range(g.ndim - 1))
        of_scale = (g * self.unscaled).sum(leading)
        return self.projected(scale * g), of_scale, g.sum(leading, dtype=np.float64)

    def tangent(self, scale, dx, dscale, dbias):
        """Give the tangent of y."""
        return self.projected(dx) * scale + self.unscaled * dscale + dbias


def within_largest(actual, expected, tolerance):
    """Hold two arrays together within a part of the largest value."""
    near(actual, expected, tolerance * np.abs(expected).max())


def drawn(shape, **options):
    """Draw x and its parameters, their tangents, and a cotangent of y."""
    operands = normals(*shape, **options), *parameters(shape[-1])
    tangents = normals(*shape, seed=3), *parameters(shape[-1], seed=5)
    return operands, tangents, normals(*shape, seed=4)


def error_of(y, expected, where=True):
    """Give the largest error of what counts, in units of max(1, |y|)."""
    error = np.abs(y - expected) / np.maximum(1, np.abs(expected))
    return np.max(error, where=where, initial=0)
