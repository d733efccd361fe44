"""Executables are compiled once a shape, and listed for who wants to look into them."""

import jax
import jax.numpy as jnp

from tokenswift_jax.engine import compile_cache
from tokenswift_jax.engine.compile_cache import CompileCache


def test_an_executable_is_compiled_once_a_shape_and_the_latest_used_is_listed_last():
    mine, others = CompileCache(), CompileCache()
    function = jax.jit(lambda values: values + 1)
    assert mine.run(function, jnp.float32(1)) == 2
    spent = mine.compile_seconds
    assert spent > 0
    scalar = mine.compile(function, jnp.float32(3))
    assert mine.compile_seconds == spent
    assert compile_cache.cached_executables()[-1] is scalar
    vector = mine.compile(function, jnp.ones(3, jnp.float32))
    assert mine.compile_seconds > spent
    assert compile_cache.cached_executables()[-2:] == [scalar, vector]
    assert others.run(function, jnp.float32(4)) == 5
    assert others.compile_seconds == 0, "an earlier run compiled it"
    assert compile_cache.cached_executables()[-2:] == [vector, scalar]
