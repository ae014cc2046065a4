"""A user's file that uses every function and every module; `make lint` checks its types."""

from functools import partial
from typing import Any, assert_type

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

import jaxnorm as jn
import jaxnorm.linen as jnn
import jaxnorm.nnx as jnnx


def use_statistics(x: jax.Array) -> jax.Array:
    whole: jn.Moments = jn.merge_moments(
        jn.moments(x[:2], 0), jn.moments(x[2:], 0, where=x[2:] > 0)
    )
    merged = jn.merge_moments_axis(jn.moments(x[None], 1), 0)
    merged = jn.sync_moments(merged, None)
    assert_type(merged, jn.Moments)
    stats: Any = jax.vmap(lambda stats: jn.sync_batch_stats(stats, "i"), axis_name="i")(
        {"mean": x, "var": jnp.abs(x)}
    )
    stats = jn.merge_batch_stats([stats, stats])
    stats = jn.merge_batch_stats([stats, stats], weights=[1, 2.5])
    stats = jn.merge_batch_stats((stats, stats), jnp.ones(2))
    mean: jax.Array = stats["mean"][0]
    by_segment = jn.moments(x, 0, segment_ids=jnp.arange(4), num_segments=4)
    return whole.mean + merged.var + mean + merged.count + by_segment.count


def relaxed(step: jax.Array) -> jax.Array:
    return 1.0 + step.astype(jnp.float32)


def use_functions(x: jax.Array, mask: jax.Array) -> jax.Array:
    scale, bias = jnp.ones(4), jnp.zeros(4)
    stats = jn.init_batch_stats(4, momentum=0.9)
    y, new = jn.batch_norm(x, stats, scale, bias, train=True, momentum=0.9, where=mask)
    assert_type(y, jax.Array)
    y, new = jn.batch_norm(y, new, train=False, channel_axis=-1, skip_nonfinite=True)
    y, new = jn.ghost_batch_norm(y, new, scale, bias, train=True, ghost_size=2)
    y, _ = jn.batch_renorm(y, jn.init_renorm_stats(4), train=True, r_max=relaxed, d_max=1.0)
    y, _ = jn.online_norm(y, jn.init_online_stats(4), scale, train=True, forward_decay=0.99)
    y = jn.layer_norm(y, scale, bias, reduction_axes=(-1,), feature_axes=-1, epsilon=1e-5)
    y = jn.rms_norm(y, scale, scale_offset=1.0)
    y = jn.group_norm(y, scale, bias, num_groups=2)
    y = jn.group_norm(y, num_groups=None, group_size=2)
    with jn.standard_primitives():
        y = jn.rms_norm(y)
    y = jn.layer_norm(y, scale, segment_ids=jnp.array([0, 1, 1, 0]), num_segments=2)
    y = jn.instance_norm(jnp.stack([y, -y], 1), scale, channel_axis=(2,))
    assert_type(y, jax.Array)
    return y


def use_inputs(x: jax.Array) -> jax.Array:
    fit = jn.update_input_stats(jn.init_input_stats(4), x, skip_nan=True)
    fit = jn.merge_input_stats(fit, jn.init_input_stats(4))
    y = jn.standardize_inputs(x, fit, clip=5.0)
    y = jn.min_max_inputs(y, fit, low=-1.0, high=1.0, invert=True)
    y, fit = jn.normalize_observations(y, fit, update=False)
    assert_type(y, jax.Array)
    fits = jn.init_input_stats({"camera": 4, "joints": {"position": 4}})
    views = {"camera": x, "joints": {"position": y}}
    fits = jn.update_input_stats(fits, views, feature_axis={"camera": 1, "joints": -1}, decay=0.9)
    scaled_views, fits = jn.normalize_observations(views, fits)
    assert_type(scaled_views, dict[str, Any])
    assert_type(jn.standardize_inputs(x=views, fit=fits, center=False), dict[str, Any])
    model = jnnx.StandardizeInputs(4, clip=5.0)
    variables = jnn.MinMaxInputs(False, low=-1.0).init(jax.random.key(0), x)
    scaled: Any = jnn.StandardizeInputs(use_running_average=True).apply(variables, x)
    return jnp.asarray(scaled) + jnnx.MinMaxInputs(4)(model(y))


def use_returns(reward: jax.Array) -> jax.Array:
    fit = jn.init_return_stats(4)
    done = jnp.zeros_like(reward)
    fit = jn.update_return_stats(fit, reward, done, discount=0.99, time_axis=0)
    targets = jn.scale_rewards(reward, fit, clip=10.0)
    assert_type(targets, jax.Array)
    old = jn.init_input_stats(4)
    new = jn.update_input_stats(old, targets)
    kernel, bias = jn.preserve_outputs(jnp.eye(4), None, old, new)
    assert_type(bias, jax.Array)
    return kernel + bias


class Linen(nn.Module):
    train: bool

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        x = jnn.BatchNorm(use_running_average=not self.train, axis=-1)(x, mask=mask)
        x = jnn.BatchNorm(momentum=None)(x, not self.train, update_stats=self.train)
        x = jnn.GhostBatchNorm(use_running_average=not self.train, num_ghosts=2)(x)
        x = jnn.BatchRenorm(use_running_average=not self.train, r_max=2.0)(x)
        x = jnn.OnlineNorm(use_running_average=not self.train, backward_decay=0.9)(x, mask=mask)
        x = jnn.LayerNorm(dtype=jnp.bfloat16, scale_init=nn.initializers.ones)(x, mask=mask)
        x = jnn.RMSNorm(scale_offset=1.0, scale_init=nn.initializers.zeros)(x)
        x = jnn.GroupNorm(num_groups=None, group_size=2, reduction_axes=-1)(x)
        x = jnn.InstanceNorm(feature_axes=(-1,), axis_name=None)(jnp.stack([x, -x], 1))
        assert_type(x, jax.Array)
        return x


class Nnx(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.batch = jnnx.BatchNorm(4, use_running_average=False, rngs=rngs)
        self.ghost = jnnx.GhostBatchNorm(4, ghost_size=2, momentum=0.9, rngs=rngs)
        self.renorm = jnnx.BatchRenorm(4, r_max=relaxed, rngs=rngs)
        self.online = jnnx.OnlineNorm(4, forward_decay=0.99, rngs=rngs)
        self.layer = jnnx.LayerNorm(4, dtype=jnp.bfloat16, rngs=rngs)
        self.rms = jnnx.RMSNorm(4, scale_offset=1.0, rngs=rngs)
        self.group = jnnx.GroupNorm(4, 2, scale_metadata={"note": "mine"}, rngs=rngs)
        self.instance = jnnx.InstanceNorm(4, use_bias=False, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        x = self.batch(x, mask=mask, update_stats=False)
        x = self.renorm(self.ghost(x), False)
        x = self.group(self.rms(self.layer(self.online(x)), mask))
        x = self.instance(jnp.stack([x, -x], 1))
        assert_type(x, jax.Array)
        return x


def use_modules(x: jax.Array) -> jax.Array:
    variables = Linen(True).init(jax.random.key(0), x)
    _, updates = Linen(True).apply(variables, x, mutable=["batch_stats"])
    stats = jn.freeze_stats(updates["batch_stats"], "BatchNorm_0")
    for finish in (jn.finish_recomputing, partial(jn.finish_accumulating, momentum=0.9)):
        started = {**variables, "batch_stats": jn.start_recomputing(stats, "BatchRenorm_0")}
        _, updates = Linen(True).apply(started, x, mutable=["batch_stats"])
        stats = finish(updates["batch_stats"])
    params = jn.zero_scales(variables["params"], "LayerNorm_0")
    logits: Any = Linen(False).apply({"params": params, "batch_stats": stats}, x)
    model = jnnx.replace_norms(Nnx(nnx.Rngs(0)), {"ghost": partial(jnnx.BatchRenorm, r_max=2.0)})
    jnnx.freeze_stats(model, "batch", frozen=True)
    jnnx.start_recomputing(model)
    jnnx.finish_recomputing(model, "batch")
    wanted = nnx.DiffState(0, jnnx.DIFFERENTIATED)
    grads = nnx.grad(lambda model: model(x).sum(), argnums=wanted)(model)
    assert jnnx.overwrite_control(model, grads)
    mean: jax.Array = model.batch.mean[...]
    kernel = jn.standardize_kernel(jnp.eye(4), gain=jnp.ones(4), epsilon=1e-10, kernel_axis=0)
    assert_type(kernel, jax.Array)
    kernel, bias = jn.fold_batch_norm(jnp.eye(4), None, jn.init_batch_stats(4), None, None)
    assert_type(bias, jax.Array)
    stats = jn.init_batch_stats(4)
    jn.fold_batch_norm_into_next(kernel, bias, stats, None, None, layer="flax.Dense")
    assert [row.path for row in jnnx.list_norms(model) if row.measured_over == "group"]
    with jnn.replace_norms({jnn.LayerNorm: jnn.RMSNorm}) as norms:
        Linen(True).init(jax.random.key(0), x)
    assert "RMSNorm of jaxnorm.linen" in str(norms)
    mask: Any = jn.weight_decay_mask(nnx.state(model, nnx.Param))
    assert not any(jax.tree.leaves(mask))
    return model(x).sum() + mean.sum() + (kernel + bias).sum() + jnp.sum(logits)


def use_diagnosis(x: jax.Array) -> None:
    stats = jn.start_recomputing({"norm": jn.init_batch_stats(4)})
    _, stats["norm"] = jn.batch_norm(x, stats["norm"], train=True)
    report = jn.diagnose(stats, {"norm": jn.moments(x, 0)}, momentum=0.99, steps=0, batch_values=4)
    assert_type(report, jn.Diagnosis)
    worst: jn.Finding = report.rows[0]
    assert worst.name == "norm"
    assert worst.finding in str(report)
    model = jnnx.BatchNorm(4, rngs=nnx.Rngs(0))
    assert jnnx.diagnose(model, nnx.clone(model), steps=10).rows


def main() -> None:
    x = jnp.linspace(-1.0, 1.0, 16).reshape(4, 4)
    use_diagnosis(x)
    results = [use_statistics(x), use_functions(x, x > -2), use_inputs(x), use_modules(x)]
    results.append(use_returns(x))
    assert all(bool(jnp.all(jnp.isfinite(result))) for result in results)


if __name__ == "__main__":
    main()
