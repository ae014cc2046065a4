"""What the compiled programs communicate: few collectives, of the channels, never of the batch."""

import functools

import jax
import jax.numpy as jnp
import pytest
from cases import fresh
from devices import kinds, mesh
from jax.sharding import PartitionSpec as P

import jaxnorm as jn
from benchmarks.collectives import collectives
from benchmarks.collectives import compiled as program

WAYS = ["pmap", "shard_map", "unchecked", "jit", "explicit"]
SYNCED = {"pmap": 1, "shard_map": 1, "unchecked": 1, "jit": 2, "explicit": 2}
SAMPLE_NORMS = {
    "layer": jn.layer_norm,
    "rms": jn.rms_norm,
    "group": functools.partial(jn.group_norm, num_groups=4),
    "instance": jn.instance_norm,
}


def compiled(way, function, devices, *, batch=16, channels=8, masked=True):
    """Compile a function of a sharded batch and its mask."""
    x, where = jnp.zeros((batch, 16, 2, channels)), jnp.ones((batch, 16, 1, 1)) if masked else None
    return program(way, function, (x, where), devices)


def layer(way, *, train=True, channels=8):
    """Give a batch normalization of what one device has, synced by name or by jit."""
    name = {} if way in ("jit", "explicit") else {"axis_name": "i"}

    def forward(x, where):
        return jn.batch_norm(x, fresh("batch", channels), train=train, where=where, **name)

    return forward


def with_gradient(forward):
    """Give the results of a function and the gradient of its first."""

    def both(x, where):
        y, backward, new = jax.vjp(lambda x: forward(x, where), x, has_aux=True)
        return backward(jnp.sin(y)), new

    return both


@pytest.mark.parametrize(("devices", "masked"), [(2, True), (8, True), (8, False)])
@pytest.mark.parametrize("way", WAYS)
def test_synced_batch_norm_communicates_once_each_way(way, devices, masked):
    forward = layer(way)
    there = kinds(compiled(way, forward, devices, masked=masked))
    back = kinds(compiled(way, with_gradient(forward), devices, masked=masked))
    assert set(there) <= {"all-gather", "all-reduce"}
    assert len(there) == SYNCED[way]
    assert len(back) == SYNCED[way] + 1
    assert back[-1] == "all-reduce"


@pytest.mark.long
@pytest.mark.parametrize("way", WAYS)
def test_it_communicates_channels_whatever_the_batch(way):
    def numbers(**sizes):
        function = with_gradient(layer(way, channels=sizes.get("channels", 8)))
        found = collectives(compiled(way, function, 8, **sizes))
        return sum(collective.nbytes for collective in found) // 4

    assert numbers() == numbers(batch=64)
    by_channel = numbers(channels=16) - numbers()
    assert numbers(channels=32) == numbers() + 3 * by_channel
    assert numbers() - by_channel in (0, 2)  # a count may be one number for all channels
    assert numbers() <= (3 * 8 + 2) * 8  # moments of eight devices, two sums back


@pytest.mark.parametrize("way", WAYS)
def test_evaluation_communicates_nothing(way):
    assert kinds(compiled(way, with_gradient(layer(way, train=False)), 8)) == []


@pytest.mark.parametrize("way", ["jit", "explicit"])
def test_local_scope_under_jit_communicates_nothing_for_the_output(way):
    def forward(x, where):
        stats = fresh("ghost", 8)
        return jn.ghost_batch_norm(x, stats, train=True, where=where, num_ghosts=8)

    output = with_gradient(lambda x, where: (forward(x, where)[0], None))
    assert kinds(compiled(way, output, 8)) == []
    for collective in collectives(compiled(way, forward, 8)):
        assert collective.nbytes <= 4 * 3 * 8 * 8  # the running statistics


@pytest.mark.parametrize("way", ["jit", "explicit"])
@pytest.mark.parametrize("name", SAMPLE_NORMS)
def test_sample_norms_of_a_sharded_batch_communicate_nothing(name, way):
    def forward(x, where):
        return SAMPLE_NORMS[name](x, where=where), None

    assert kinds(compiled(way, with_gradient(forward), 8)) == []


def test_two_names_take_one_collective():
    grid = mesh(shape=(2, 4), names=("i", "j"))

    def forward(x):
        return jn.batch_norm(x, fresh("batch", 8), train=True, axis_name=("i", "j"))

    rows = P(("i", "j"))
    function = jax.shard_map(forward, mesh=grid, in_specs=rows, out_specs=(rows, P()))
    assert kinds(jax.jit(function).lower(jnp.zeros((16, 8))).compile()) == ["all-gather"]


def test_many_channels_are_reduced_and_not_gathered():
    channels = 2**20 // (3 * 4 * 8) + 1

    def numbers(channels):
        function = compiled("pmap", layer("pmap", channels=channels), 8, channels=channels, batch=8)
        return [(c.kind, c.nbytes // 4) for c in collectives(function)]

    assert numbers(channels - 1) == [("all-gather", 3 * 8 * (channels - 1))]
    assert numbers(channels) == [("all-reduce", channels)] * 2 + [("all-reduce", 3 * channels)]
