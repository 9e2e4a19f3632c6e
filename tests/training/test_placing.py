"""A placed state is a copy: the step gives its buffers away, and never the caller's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optlab.training import parallelize


@pytest.mark.parametrize("strategy", ["single", "pmap", "jit", "zero1", "fsdp"])
def test_the_source_of_a_placed_state_outlives_the_steps(strategy):
    def step(state, batch):
        mean = jax.lax.pmean(jnp.mean(batch), "data") if strategy == "pmap" else jnp.mean(batch)
        params = jax.tree.map(lambda x: x + mean, state["params"])
        return {"params": params, "key": state["key"]}, {"mean": mean}

    ours = {"params": [jnp.zeros((8, 3)), jnp.zeros(()), np.zeros(5)], "key": jax.random.key(0)}
    place_state, place_batch, run = parallelize(step, strategy)
    state, batch = place_state(ours), place_batch(np.ones((8, 2)))
    for _ in range(2):
        state, _ = run(state, batch)
    again, _ = run(place_state(state), batch)
    assert [float(jnp.sum(x)) for x in ours["params"]] == [0, 0, 0]
    assert jax.random.key_data(ours["key"]).shape == (2,)
    assert [float(x.ravel()[0]) for x in state["params"]] == [2, 2, 2]
    assert [float(x.ravel()[0]) for x in again["params"]] == [3, 3, 3]


def test_a_step_without_metrics_is_waited_for():
    """Hundreds of simulated devices' collectives in flight abort the process (jax 0.10.2)."""
    step = lambda state, batch: (state + jnp.mean(batch), {})
    place_state, place_batch, run = parallelize(step, "jit")
    state, batch = place_state(jnp.zeros(64)), place_batch(np.ones((64, 64)))
    for _ in range(400):
        state, metrics = run(state, batch)
    assert metrics == {}
    assert float(state[0]) == 400
