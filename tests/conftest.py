"""What every test runs under, set before jax starts.

A CPU with eight fake devices, no network, and rank promotion as an error: an
array of the wrong rank must not be broadcast into a plausible number.
`test_imports.py` checks that these are in force.
"""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
