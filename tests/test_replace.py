"""Normalizations of a model that exists, replaced by others: what is kept, what is said."""

import re
import warnings
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import KEY, alike, close, identical, near, normals, oracle, parameters, seen
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

import jaxnorm as jn
import jaxnorm.linen as jnn
import jaxnorm.nnx as jnnx

pytestmark = pytest.mark.numerical

X = normals(6, 5, 8, mean=2.0)
SCALE, BIAS = parameters(8)
run = nnx.jit(lambda model, x: model(x))
FIVE = ("BatchNorm", "LayerNorm", "RMSNorm", "GroupNorm", "InstanceNorm")


class Doubled(nnx.BatchNorm):
    """A normalization of somebody else's with a call of its own."""

    def __call__(self, x, use_running_average=None, *, mask=None):
        return 2 * super().__call__(x, use_running_average, mask=mask)


class Slow(nnx.BatchNorm):
    """A normalization of somebody else's with other defaults."""

    def __init__(self, num_features, *, rngs):
        super().__init__(num_features, momentum=0.999, epsilon=1e-3, rngs=rngs)


class CenterNorm(nnx.Module):
    """A normalization that is derived from none."""

    def __init__(self, size):
        self.size = size
        self.shift = nnx.Param(jnp.zeros(size))

    def __call__(self, x):
        return x - x.mean(-1, keepdims=True) + self.shift


class Net(nnx.Module):
    """Normalizations where models have them: attributes, lists, dicts, chains, two places."""

    def __init__(self, rngs):
        norm = partial(nnx.BatchNorm, 8, momentum=0.9, epsilon=1e-3, rngs=rngs)
        self.first = norm(scale_metadata={"note": "mine"})
        self.blocks = nnx.List([nnx.Dict(norm=norm()), nnx.Dict(norm=Slow(8, rngs=rngs))])
        self.plain = nnx.data({"layer": nnx.LayerNorm(8, rngs=rngs)})
        self.chain = nnx.Sequential(nnx.Linear(8, 8, rngs=rngs), nnx.RMSNorm(8, rngs=rngs))
        self.group = nnx.GroupNorm(8, num_groups=None, group_size=4, rngs=rngs)
        self.instance = nnx.InstanceNorm(8, use_bias=False, rngs=rngs)
        self.last = self.first

    def __call__(self, x):
        x = self.plain["layer"](self.blocks[1].norm(self.blocks[0].norm(self.first(x))))
        return self.last(self.instance(self.group(self.chain(x))))


@pytest.fixture(scope="module")
def trained():
    """Give a net of Flax's normalizations whose parameters and statistics are not the first."""
    model = Net(nnx.Rngs(KEY))
    for place, (_, variable) in enumerate(nnx.to_flat_state(nnx.state(model))):
        draws = normals(*variable.shape, seed=place)
        variable.set_value(jnp.asarray(draws if draws.ndim > 1 else 1 + 0.1 * np.abs(draws)))
    for _, module in nnx.iter_modules(model):
        if hasattr(module, "use_fast_variance"):
            module.use_fast_variance = False  # Flax's default is less exact
    return model


def batch_norm(library=nnx, **options):
    """Give a batch normalization that has been trained."""
    model = library.BatchNorm(8, rngs=nnx.Rngs(KEY), **options)
    given = seen("batch", 8) | {"scale": jnp.asarray(SCALE), "bias": jnp.asarray(BIAS)}
    for name, value in given.items():
        if getattr(model, name) is not None:
            getattr(model, name).set_value(value)
    return model


def replaced(model, rule, **options):
    """Replace without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return jnnx.replace_norms(model, rule, **options)


def types(model):
    """Give the classes of the normalizations by their paths."""
    return {row.path: row.norm for row in jnnx.list_norms(model, {})}


def error(kind, call, *words):
    """Hold an error to what it says."""
    with pytest.raises(kind) as raised:
        call()
    for word in words:
        assert word in str(raised.value), str(raised.value)


# NNX


def test_every_normalization_of_flax_becomes_ours_and_gives_the_same(trained):
    flaxs, ours = nnx.clone(trained), jnnx.replace_norms(trained)
    assert {norm.partition(" of ")[2] for norm in types(ours).values()} == {"jaxnorm.nnx"}
    assert {norm.partition(" of ")[0] for norm in types(ours).values()} == set(FIVE)
    identical(nnx.to_pure_dict(nnx.state(ours)), nnx.to_pure_dict(nnx.state(flaxs)))
    for mode in (nnx.Module.eval, nnx.Module.train):
        mode(ours), mode(flaxs)
        near(run(ours, X), run(flaxs, X), 2e-5)
    close(dict(stats_of(ours)), dict(stats_of(flaxs)), rtol=1e-5)
    assert ours.blocks[1].norm.momentum == 0.999


def stats_of(model):
    """Give the running statistics by their paths."""
    flat = nnx.to_flat_state(nnx.state(model, nnx.BatchStat))
    return {path: variable[...] for path, variable in flat}


def test_the_model_does_not_change_and_shares_no_variable_with_the_new_one(trained):
    before = jax.tree.map(np.array, nnx.state(trained))
    ours = jnnx.replace_norms(trained)
    assert all("flax.nnx" in norm for path, norm in types(trained).items() if "1" not in path)
    ours.train()
    run(ours, X)
    assert not np.array_equal(ours.first.mean[...], trained.first.mean[...])
    identical(nnx.state(trained), before)


def test_a_normalization_at_two_places_stays_one(trained):
    ours = jnnx.replace_norms(trained)
    assert ours.first is ours.last
    assert isinstance(ours.first, jnnx.BatchNorm)
    assert ours.first.scale.get_metadata("note") == "mine"


def test_a_model_that_is_a_normalization_is_replaced():
    model = jnnx.replace_norms(batch_norm(use_running_average=True))
    assert type(model) is jnnx.BatchNorm
    assert model.use_running_average is True


IN_FAMILY = {
    "synced": (partial(jnnx.BatchNorm, axis_name="devices"), set()),
    "cumulative": (partial(jnnx.BatchNorm, momentum=None), {"count"}),
    "ghost": (partial(jnnx.GhostBatchNorm, num_ghosts=2), set()),
    "renorm": (jnnx.BatchRenorm, {"steps"}),
    "online": (jnnx.OnlineNorm, {"control_x", "control_y"}),
}


@pytest.mark.parametrize("name", IN_FAMILY)
def test_what_measures_over_the_batch_keeps_statistics_and_options(name):
    new, added = IN_FAMILY[name]
    old = batch_norm(epsilon=1e-2, momentum=0.7, dtype=jnp.bfloat16, use_running_average=True)
    model = jnnx.replace_norms(old, {nnx.BatchNorm: new})
    assert type(model) is (new.func if isinstance(new, partial) else new)
    variables = {k: v[...] for k, v in vars(model).items() if isinstance(v, nnx.Variable)}
    assert variables.keys() == {"scale", "bias", "mean", "var"} | added
    identical({k: variables[k] for k in ("mean", "var")}, seen("batch", 8))
    assert all(not variables[k].any() for k in added)
    assert model.epsilon == 1e-2
    assert model.dtype == jnp.bfloat16
    assert getattr(model, "momentum", 0.7) == (None if name == "cumulative" else 0.7)
    assert getattr(model, "axis_name", None) == ("devices" if name == "synced" else None)
    y, _ = oracle("batch", X, SCALE, BIAS, stats=seen("batch", 8), train=False, epsilon=1e-2)
    model.dtype = None
    near(run(model, X), y)


@pytest.mark.parametrize(
    ("name", "new", "options"),
    [
        ("group", partial(jnnx.GroupNorm, num_groups=2), {"num_groups": 2}),
        ("group", partial(jnnx.GroupNorm, num_groups=None, group_size=2), {"num_groups": 4}),
        ("instance", jnnx.InstanceNorm, {}),
        ("layer", jnnx.LayerNorm, {}),
        ("rms", jnnx.RMSNorm, {}),
    ],
)
def test_scale_bias_and_epsilon_go_on_where_no_statistics_are_kept(name, new, options):
    with pytest.warns(UserWarning, match="^replace_norms: '' loses its .*mean, var"):
        model = jnnx.replace_norms(batch_norm(epsilon=1e-2), {nnx.BatchNorm: new})
    assert not jax.tree.leaves(nnx.state(model, nnx.BatchStat))
    y, _ = oracle(name, X, SCALE, None if name == "rms" else BIAS, epsilon=1e-2, **options)
    near(run(model, X), y)


def test_the_axes_of_the_channels_go_on():
    x = np.moveaxis(X, -1, 1)
    for name, new in (("layer", jnnx.LayerNorm), ("instance", jnnx.InstanceNorm)):
        model = replaced(batch_norm(axis=1), {nnx.BatchNorm: new})
        axes = {"reduction_axes": 1, "feature_axes": 1} if name == "layer" else {"channel_axis": 1}
        near(model(x), oracle(name, x, SCALE, BIAS, epsilon=1e-5, **axes)[0])
    layer = jnnx.LayerNorm(8, feature_axes=1, reduction_axes=1, rngs=nnx.Rngs(0))
    assert jnnx.replace_norms(layer, {jnnx.LayerNorm: jnnx.BatchNorm}).axis == 1
    assert (
        jnnx.replace_norms(layer, {"": partial(jnnx.LayerNorm, reduction_axes=-1)}).axis_name
        is None
    )
    error(
        ValueError, lambda: replaced(batch_norm(axis=1), {nnx.BatchNorm: jnnx.GroupNorm}), "axis 1"
    )


def test_mapped_axes_go_on_only_where_the_same_is_measured():
    model = nnx.Dict(norm=batch_norm(axis_name="devices", axis_index_groups=[[0, 1]]))
    assert jnnx.replace_norms(model).norm.axis_name == "devices"
    (row,) = jnnx.list_norms(model, {nnx.BatchNorm: jnnx.LayerNorm})
    assert "its running statistics, axis_name='devices', axis_index_groups=" in row.note
    layer = replaced(model, {nnx.BatchNorm: jnnx.LayerNorm}).norm
    assert layer.axis_name is None
    layer = jnnx.LayerNorm(8, axis_name="model", rngs=nnx.Rngs(0))
    assert jnnx.replace_norms(layer, {jnnx.LayerNorm: jnnx.RMSNorm}).axis_name == "model"


def test_values_that_are_lost_are_named_and_first_values_are_none():
    model = nnx.Dict(norm=nnx.BatchNorm(8, rngs=nnx.Rngs(0)))
    jnnx.replace_norms(model, {nnx.BatchNorm: jnnx.RMSNorm})
    nnx.jit(lambda model: jnnx.replace_norms(model))(model)
    model.norm.bias.set_value(jnp.asarray(BIAS))
    with pytest.warns(UserWarning, match="'norm' loses its bias$"):
        jnnx.replace_norms(model, {nnx.BatchNorm: jnnx.RMSNorm})
    jnnx.replace_norms(model, lambda path, norm: CenterNorm(8))  # which may hold them
    with pytest.warns(UserWarning, match="'norm' loses its .*mean"):  # not known under jit
        nnx.jit(lambda model: jnnx.replace_norms(model, {nnx.BatchNorm: jnnx.LayerNorm}))(model)


def test_options_that_exclude_each_other_are_not_mixed():
    group = nnx.GroupNorm(8, 2, rngs=nnx.Rngs(0))
    by_size = partial(jnnx.GroupNorm, num_groups=None, group_size=2)
    assert jnnx.replace_norms(group, {nnx.GroupNorm: by_size}).num_groups == 4
    assert jnnx.replace_norms(group).num_groups == 2
    ghost = jnnx.GhostBatchNorm(8, ghost_size=2, rngs=nnx.Rngs(0))
    new = jnnx.replace_norms(ghost, {"": partial(jnnx.GhostBatchNorm, num_ghosts=2)})
    assert (new.num_ghosts, new.ghost_size) == (2, None)


def test_given_dtypes_are_those_of_the_kept_variables():
    new = partial(jnnx.BatchNorm, param_dtype=jnp.bfloat16)
    model = jnnx.replace_norms(batch_norm(), {nnx.BatchNorm: new})
    assert (model.scale.dtype, model.mean.dtype) == (jnp.bfloat16, jnp.float32)
    near(model.scale[...], SCALE, 0.01)


def test_the_mark_of_frozen_statistics_goes_on():
    model = nnx.Dict(norm=batch_norm(jnnx))
    jnnx.freeze_stats(model)
    new = jnnx.replace_norms(model, {jnnx.BatchNorm: partial(jnnx.GhostBatchNorm, num_ghosts=2)})
    assert new.norm.frozen
    jnnx.start_recomputing(model)
    error(ValueError, lambda: jnnx.replace_norms(model, {"norm": jnnx.BatchRenorm}), "finish_")


def test_new_parameters_are_initialized():
    init = nnx.initializers.normal()
    new = partial(jnnx.LayerNorm, bias_init=init)
    rms = nnx.Dict(a=nnx.RMSNorm(8, rngs=nnx.Rngs(0)), b=nnx.RMSNorm(8, rngs=nnx.Rngs(0)))
    model = jnnx.replace_norms(rms, {nnx.RMSNorm: new}, rngs=nnx.Rngs(3))
    rngs = nnx.Rngs(3)
    rngs.params()  # of the scale, which the old one replaces
    identical(model.a.bias[...], init(rngs.params(), (8,), jnp.float32))
    assert (model.a.bias[...] != model.b.bias[...]).all()


def test_rules_by_type_path_and_function(trained):
    rms, ghost = jnnx.RMSNorm, partial(jnnx.GhostBatchNorm, ghost_size=2)
    found = types(replaced(trained, {"blocks/0": None, "blocks": rms, nnx.BatchNorm: ghost}))
    assert found["first"] == "GhostBatchNorm of jaxnorm.nnx"
    assert found["blocks/0/norm"] == "BatchNorm of flax.nnx"
    assert found["blocks/1/norm"] == "RMSNorm of jaxnorm.nnx"
    assert found["plain/layer"] == "LayerNorm of flax.nnx"
    for key in ("blocks/*/norm", "blocks/?", ("blocks",)):
        found = types(replaced(trained, {key: rms}))
        assert [path for path in found if "RMSNorm of jaxnorm" in found[path]] == [
            "blocks/0/norm",
            "blocks/1/norm",
        ]
    assert "jaxnorm" in types(replaced(trained, {("blocks", 1, "norm"): ghost}))["blocks/1/norm"]

    def rule(path, norm):
        if isinstance(norm, nnx.GroupNorm):
            return CenterNorm(8)
        return ghost if path == "first" else None

    found = types(jnnx.replace_norms(trained, rule))
    assert found["group"].startswith("CenterNorm of ")
    assert [path for path in found if "Ghost" in found[path]] == ["first"]


def test_a_type_leaves_alone_what_has_a_call_of_its_own():
    model = nnx.Dict(own=Doubled(8, rngs=nnx.Rngs(0)), slow=Slow(8, rngs=nnx.Rngs(0)))
    with pytest.warns(UserWarning, match="'own' .*stays, because its class has its own __call__"):
        new = jnnx.replace_norms(model)
    assert (type(new.own), type(new.slow)) == (Doubled, jnnx.BatchNorm)
    assert "the __call__ of Doubled" in jnnx.list_norms(model, {Doubled: jnnx.BatchNorm})[0].note
    new = jnnx.replace_norms(model, {Doubled: jnnx.BatchNorm})
    assert (type(new.own), type(new.slow)) == (jnnx.BatchNorm, Slow)
    kept = jnnx.replace_norms(model, {Doubled: None, nnx.BatchNorm: jnnx.BatchNorm})
    assert (type(kept.own), type(kept.slow)) == (Doubled, jnnx.BatchNorm)


def test_the_list_says_what_there_is_and_what_would_be_done():
    rngs = nnx.Rngs(0)
    model = nnx.Dict(
        a=nnx.BatchNorm(8, rngs=rngs),
        b=jnnx.OnlineNorm(8, rngs=rngs),
        c=CenterNorm(8),
        d=nnx.SpectralNorm(nnx.Linear(8, 8, rngs=rngs), rngs=rngs),
        e=nnx.WeightNorm(nnx.Linear(8, 8, rngs=rngs), rngs=rngs),
        f=jnnx.StandardizeInputs(8),
    )
    table = str(jnnx.list_norms(model, {nnx.BatchNorm: jnnx.LayerNorm}))
    assert re.split("  +", table.splitlines()[1]) == [
        *("a", "BatchNorm of flax.nnx", "batch", "LayerNorm of jaxnorm.nnx"),
        "LayerNorm does not take over its running statistics",
    ]
    rows = jnnx.list_norms(model)
    assert [(row.path, row.measured_over) for row in rows] == [
        *(("a", "batch"), ("b", "batch"), ("c", ""), ("d", ""), ("e", ""))
    ]
    assert [row.path for row in rows if row.becomes] == ["a"]
    assert "SpectralNorm of flax.nnx" in str(rows)
    assert str(jnnx.list_norms(nnx.Linear(2, 2, rngs=rngs))).split() == [
        *("path", "norm", "measured", "over", "becomes", "note")
    ]


def test_a_class_of_somebody_elses_is_replaced_where_the_names_are_the_same():
    model = nnx.Dict(norm=CenterNorm(8))
    error(ValueError, lambda: jnnx.replace_norms(model, {CenterNorm: jnnx.RMSNorm}), "num_features")
    model.norm.num_features = 8
    error(ValueError, lambda: jnnx.replace_norms(model, {CenterNorm: jnnx.RMSNorm}), "['shift']")
    model.norm.bias, model.norm.epsilon = model.norm.shift, 1e-3
    del model.norm.shift
    model.norm.bias.set_value(jnp.asarray(BIAS))
    new = jnnx.replace_norms(model, {CenterNorm: jnnx.LayerNorm}).norm
    assert new.epsilon == 1e-3
    near(run(new, X), oracle("layer", X, None, BIAS, epsilon=1e-3)[0])


ERRORS = {
    "a type": ({nnx.RMSNorm: jnnx.RMSNorm}, ValueError, ["RMSNorm", "'norm' (BatchNorm of flax"]),
    "a path": ({"head": jnnx.BatchNorm}, ValueError, ["'head'", "'norm'"]),
    "a function": (lambda path, norm: None, ValueError, ["replaces no", "'norm'"]),
    "a class alone": (jnnx.BatchNorm, TypeError, ["dict or a function"]),
    "a module alone": (batch_norm(), TypeError, ["dict or a function"]),
    "a number": (3, TypeError, ["dict or a function", "3"]),
    "a key": ({3: jnnx.BatchNorm}, TypeError, ["key", "3"]),
    "of Linen": ({"norm": jnn.BatchNorm}, TypeError, ["a class of jaxnorm.nnx"]),
    "a module": ({"norm": batch_norm()}, TypeError, ["functools.partial"]),
    "by place": ({"norm": partial(jnnx.GroupNorm, 2)}, TypeError, ["by name"]),
    "groups": ({"norm": jnnx.GroupNorm}, ValueError, ["'norm' cannot", "num_groups=32", "8"]),
    "both": ({"norm": jnnx.GhostBatchNorm}, ValueError, ["'norm'", "num_ghosts", "ghost_size"]),
    "unknown": ({"norm": partial(jnnx.LayerNorm, momentum=0.9)}, TypeError, ["momentum"]),
}


@pytest.mark.parametrize("name", ERRORS)
def test_wrong_rules_are_errors_that_say_what_there_is(name):
    rule, kind, words = ERRORS[name]
    error(kind, lambda: replaced(nnx.Dict(norm=batch_norm()), rule), *words)


def test_what_cannot_be_replaced_is_an_error():
    class InTuple(nnx.Module):
        def __init__(self):
            self.norms = nnx.data((batch_norm(), batch_norm()))

    error(ValueError, lambda: jnnx.replace_norms(InTuple()), "norms/0", "tuple", "nnx.List")
    rms = jnnx.RMSNorm(8, scale_offset=1.0, rngs=nnx.Rngs(0))
    error(ValueError, lambda: replaced(rms, {"": jnnx.LayerNorm}), "scale_offset=1.0")
    assert jnnx.replace_norms(rms, {"": partial(jnnx.RMSNorm, epsilon=1e-3)}).scale_offset == 1.0


def stack(out_axes=0):
    """Give three batch normalizations in one module."""

    @nnx.vmap(in_axes=0, out_axes=out_axes)
    def create(scale):
        norm = nnx.BatchNorm(8, rngs=nnx.Rngs(0))
        norm.scale.set_value(scale)
        return norm

    return create(jnp.asarray(normals(3, 8)))


@pytest.mark.long
def test_stacks_stay_stacks():
    model = nnx.Dict(stack=stack())
    axes = nnx.StateAxes({...: 0})

    @nnx.jit
    @nnx.vmap(in_axes=(axes, None))
    def each(model, x):
        return model.stack(x)

    new = jnnx.replace_norms(model, {nnx.BatchNorm: partial(jnnx.BatchRenorm, momentum=None)})
    assert {k: v.shape for k, v in new.stack.__dict__.items() if isinstance(v, nnx.BatchStat)} == {
        **{"mean": (3, 8), "var": (3, 8), "count": (3,), "steps": (3,)}
    }
    each(new, X)
    assert new.stack.steps[...].tolist() == [1, 1, 1]
    groups = replaced(model, {nnx.BatchNorm: partial(jnnx.GroupNorm, num_groups=2)})
    expected = [
        oracle("group", X, s, np.zeros(8), num_groups=2, epsilon=1e-5)[0]
        for s in groups.stack.scale[...]
    ]
    near(each(groups, X), np.stack(expected))
    wrong = nnx.Dict(stack=stack(out_axes=1))
    error(ValueError, lambda: jnnx.replace_norms(wrong), "out_axes=0")


def test_shardings_go_on():
    mesh = jax.make_mesh((8,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        metadata = {"out_sharding": ("model",)}
        old = nnx.LayerNorm(8, scale_metadata=metadata, bias_metadata=metadata, rngs=nnx.Rngs(0))
        new = jnnx.replace_norms(old, {nnx.LayerNorm: jnnx.BatchNorm})
    assert new.scale.get_metadata() == old.scale.get_metadata()
    assert new.scale[...].sharding == NamedSharding(mesh, PartitionSpec("model"))


def test_models_are_replaced_under_jit_and_as_shapes(trained):
    shapes = nnx.state(nnx.eval_shape(lambda: jnnx.replace_norms(Net(nnx.Rngs(KEY)))))
    expected = nnx.state(trained)
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, expected)
    norm = batch_norm(use_running_average=True)
    y = nnx.jit(lambda norm: jnnx.replace_norms(norm, {"": jnnx.BatchRenorm})(X))(norm)
    near(y, oracle("batch", X, SCALE, BIAS, stats=seen("batch", 8), train=False)[0])


# Linen


class Block(nn.Module):
    """Normalizations as packages make them: partials, one called twice, in setup's lists."""

    norm: partial = partial(nn.BatchNorm, momentum=0.5, epsilon=1e-3)

    @nn.compact
    def __call__(self, x, train=True):
        norm = self.norm(use_running_average=not train)
        x = norm(norm(nn.Dense(8)(x)))
        return nn.LayerNorm()(x)


class Parts(nn.Module):
    """Normalizations in a list and a dict."""

    def setup(self):
        self.norms = [nn.BatchNorm(axis_name=None), nn.InstanceNorm(use_scale=False)]
        self.others = {"group": nn.GroupNorm(num_groups=2), "rms": nn.RMSNorm()}

    def __call__(self, x, train=True):
        x = self.norms[1](self.norms[0](x, use_running_average=not train))
        return self.others["rms"](self.others["group"](x))


class Lifted(nn.Module):
    """Blocks inside of Flax's transforms."""

    @nn.compact
    def __call__(self, x, train=True):
        axes = {"params": 0, "batch_stats": 0}
        scanned = nn.scan(
            lambda block, x: (block(x, train), None),
            variable_axes=axes,
            split_rngs={"params": True},
            length=2,
        )
        x, _ = scanned(Block(name="scanned"), x)
        x = nn.remat(Block, static_argnums=(2,))(name="remat")(x, train)
        mapped = nn.vmap(Block, variable_axes=axes, split_rngs={"params": True}, in_axes=(0, None))
        return mapped(name="mapped")(x, train)


def applied(model, rule=None, *, train=True, replace=True):
    """Give a compiled function of the variables: the output and the new statistics."""

    @jax.jit
    def apply(variables):
        if not replace:
            return model.apply(variables, X, train, mutable=["batch_stats"])
        with jnn.replace_norms(rule):
            return model.apply(variables, X, train, mutable=["batch_stats"])

    return apply


@pytest.mark.parametrize(
    "model", [Block(), Parts(), pytest.param(Lifted(), marks=pytest.mark.long)], ids=repr
)
def test_linen_models_give_the_same_with_the_same_variables(model):
    variables = model.init(KEY, X)
    with jnn.replace_norms() as norms:
        alike(model.init(KEY, X), variables)
    assert {row.becomes for row in norms} == {row.norm.replace("flax", "jaxnorm") for row in norms}
    assert len({row.path for row in norms}) == len(norms)
    for train in (False, True):
        y, new = applied(model, train=train)(variables)
        expected, updated = applied(model, train=train, replace=False)(variables)
        near(y, expected, 2e-5)
        near(*(jax.flatten_util.ravel_pytree(stats)[0] for stats in (new, updated)), 1e-4)


@pytest.mark.long
def test_linen_gradients_are_the_same():
    model = Block()
    variables = model.init(KEY, X)

    def gradient(replace):
        apply = applied(model, replace=replace)
        weights = normals(*X.shape)
        return jax.grad(lambda v: jnp.vdot(apply(v)[0], weights))(variables)["params"]

    ours, flaxs = (jax.flatten_util.ravel_pytree(gradient(replace))[0] for replace in (True, False))
    near(ours, flaxs, 1e-4)


def test_linen_batch_becomes_others_with_scale_and_bias():
    norm = nn.BatchNorm(use_running_average=True, epsilon=1e-2, axis_name="devices")
    variables = {"params": {"scale": SCALE, "bias": BIAS}, "batch_stats": seen("batch", 8)}
    cases = {
        "group": (partial(jnn.GroupNorm, num_groups=2), {"num_groups": 2}),
        "instance": (jnn.InstanceNorm, {}),
        "layer": (jnn.LayerNorm, {}),
    }
    for name, (new, options) in cases.items():
        with jnn.replace_norms({nn.BatchNorm: new}) as norms:
            y = norm.apply(variables, X, use_running_average=None)
        near(y, oracle(name, X, SCALE, BIAS, epsilon=1e-2, **options)[0])
        assert "take over its running statistics, axis_name='devices'" in norms[0].note
        with jnn.replace_norms({nn.BatchNorm: new}):
            assert list(norm.init(KEY, X)) == ["params"]


def test_linen_renormalization_goes_on_from_a_checkpoint_of_batch_normalization():
    norm = nn.BatchNorm(momentum=0.5)
    variables = {"params": {"scale": SCALE, "bias": BIAS}, "batch_stats": seen("batch", 8)}
    with jnn.replace_norms({nn.BatchNorm: partial(jnn.BatchRenorm, r_max=2.0, d_max=1.0)}):
        y, new = norm.apply(variables, X, False, mutable=["batch_stats"])
    options = {"momentum": 0.5, "r_max": 2.0, "d_max": 1.0, "train": True}
    stats = seen("renorm", 8)
    expected, stats = oracle("renorm", X, SCALE, BIAS, stats=stats, **options)
    near(y, expected)
    close(new["batch_stats"], stats, rtol=1e-5)


def test_linen_marks_are_heeded_and_pairs_are_folded():
    model = nn.Sequential([nn.Dense(8), nn.BatchNorm(False, momentum=0.5)])
    variables = model.init(KEY, X)
    marked = variables | {"batch_stats": jn.freeze_stats(variables["batch_stats"])}
    error(ValueError, lambda: jnn.check_marks(model, marked, X), "replace_norms")
    with jnn.replace_norms():
        jnn.check_marks(model, marked, X)
        y, new = model.apply(marked, X, mutable=["batch_stats"])
    identical(new["batch_stats"], marked["batch_stats"])
    evaluated = nn.Sequential([nn.Dense(8), nn.BatchNorm(True)])
    near(y, evaluated.apply(variables, X))
    with jnn.replace_norms():
        folded = jnn.fold(evaluated, variables, {"layers_0": "layers_1"}, X)
    near(y, nn.Dense(8).apply({"params": folded["params"]["layers_0"]}, X))


class LinenDoubled(nn.BatchNorm):
    """A normalization of somebody else's with a call of its own."""

    @nn.compact
    def __call__(self, x, use_running_average=None):
        return 2 * super().__call__(x, use_running_average)


class CopiedNorm(nn.Module):
    """A copy of Flax's normalization, as packages have."""

    epsilon: float = 1e-5
    mine: int = 1

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, (8,))
        return x / jnp.sqrt((x**2).mean(-1, keepdims=True) + self.epsilon) * scale


def test_linen_rules_by_type_path_and_function():
    model = nn.Sequential([LinenDoubled(True), nn.BatchNorm(True), CopiedNorm(epsilon=1e-2)])

    def becomes(rule):
        with jnn.replace_norms(rule) as norms:
            model.init(KEY, X)
        return [row.becomes.partition(" ")[0] for row in norms]

    with pytest.warns(UserWarning, match="'layers_0' .*stays, because"):
        assert becomes(None) == ["", "BatchNorm", ""]
    assert becomes({LinenDoubled: jnn.BatchNorm, CopiedNorm: jnn.RMSNorm}) == [
        "BatchNorm",
        "",
        "RMSNorm",
    ]
    assert becomes({"layers_1": jnn.RMSNorm}) == ["", "RMSNorm", ""]
    assert becomes({("layers_0",): None, "*": jnn.BatchRenorm}) == ["", "BatchRenorm", ""]
    assert becomes(
        lambda path, norm: jnn.RMSNorm(epsilon=1e-2) if path == "layers_2" else None
    ) == [*("", "", "RMSNorm")]
    variables = {"params": {"scale": jnp.asarray(SCALE)}}
    with jnn.replace_norms({CopiedNorm: jnn.RMSNorm}):
        y = CopiedNorm(epsilon=1e-2).apply(variables, X)
    near(y, oracle("rms", X, SCALE, epsilon=1e-2)[0])


def test_linen_errors_say_what_was_called():
    model = nn.Sequential([nn.BatchNorm(True)])

    def called(rule, run=lambda: model.init(KEY, X)):
        with jnn.replace_norms(rule):
            run()

    error(ValueError, lambda: called({"head": jnn.BatchNorm}), "'head'", "'layers_0' (BatchNorm")
    error(ValueError, lambda: called(lambda path, norm: None), "replaces no normalization")
    error(TypeError, lambda: called({"layers_0": jnnx.BatchNorm}), "a class of jaxnorm.linen")
    error(TypeError, lambda: called(jnn.BatchNorm), "dict or a function")
    error(TypeError, lambda: called(model), "dict or a function")
    with pytest.raises(ValueError, match="num_groups=3") as raised:
        called({"layers_0": partial(jnn.GroupNorm, num_groups=3)})
    assert "'layers_0'" in raised.value.__notes__[0]
    compiled = jax.jit(model.init)
    compiled(KEY, X)
    error(ValueError, lambda: called(None, lambda: compiled(KEY, X)), "inside the function")
    with pytest.raises(ZeroDivisionError):
        called({"head": jnn.BatchNorm}, lambda: 1 / 0)
