"""What every test runs under: a CPU that looks like eight devices, no rank promotion, a compilation cache."""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
from hypothesis import settings

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parent.parent / ".jax_cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)

# The first example of a test compiles, which no deadline could tell from a slow one.
# The same examples in every run; others are looked for on purpose (`--hypothesis-profile=default`), not as code lands.
settings.register_profile("optlab", deadline=None, derandomize=True)
settings.load_profile("optlab")
