"""Programs stay small: the lines of HLO before optimization, beside Flax's for the same modules."""

import flax.linen as nn
import jax
import pytest
from cases import KEY, normals

import jaxnorm.linen as jnn
from jaxnorm.kernels.target import as_on

X = normals(8, 6, 6, 64)
CASES = {
    "batch": ("BatchNorm", {"use_running_average": False}),
    "evaluation": ("BatchNorm", {"use_running_average": True}),
    "layer": ("LayerNorm", {}),
    "layer, channels first": ("LayerNorm", {"reduction_axes": 1, "feature_axes": 1}),
    "rms": ("RMSNorm", {}),
    "group": ("GroupNorm", {"num_groups": 32}),
    "instance": ("InstanceNorm", {}),
}
# The plain form measures the mean as a pair, about the mean of a part: some twenty operations on
# statistics. A group is measured by channel first there, so that channels may be split.
PLAIN = {"forward": 1.6, "both": 1.2}
MOST = {("group", "forward"): 2.4, ("group", "both"): 1.8}


def lines(library, name, which):
    """Count the lines of a layer's forward program, or of its loss and gradients."""
    kind, options = CASES[name]
    module = getattr(library, kind)(**options)
    variables = module.init(KEY, X)

    def loss(params, x):
        y, new = module.apply({**variables, "params": params}, x, mutable=["batch_stats"])
        return (y**2).sum(), new

    gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    program = jax.jit({"forward": loss, "both": gradients}[which])
    return len(program.lower(variables["params"], X).as_text("hlo").splitlines())


@pytest.mark.long
@pytest.mark.parametrize("which", ["forward", "both"])
@pytest.mark.parametrize("name", CASES)
def test_a_program_is_hardly_longer_than_flaxs(name, which):
    flaxs = lines(nn, name, which)
    assert lines(jnn, name, which) <= 1.3 * flaxs
    with as_on("cpu"):
        assert lines(jnn, name, which) <= MOST.get((name, which), PLAIN[which]) * flaxs


def test_layers_alike_are_lowered_once():
    class Net(nn.Module):
        layers: int

        @nn.compact
        def __call__(self, x):
            for _ in range(self.layers):
                x = jnn.GroupNorm(num_groups=32)(x)
            return x

    def equations(layers):
        net = Net(layers)
        variables = net.init(KEY, X)
        return len(jax.make_jaxpr(net.apply)(variables, X).eqns)

    assert equations(8) - equations(4) == 4 * (equations(4) - equations(3))
    assert equations(1) <= 4
