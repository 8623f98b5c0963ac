"""Plans for TPU slices by the real TPU compiler, where libtpu is installed."""

import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys

import plan_script
import pytest

ROOT = pathlib.Path(__file__).parent.parent


def has_libtpu() -> bool:
  try:
    importlib.metadata.version("libtpu")
  except importlib.metadata.PackageNotFoundError:
    return False
  return True


needs_libtpu = pytest.mark.skipif(
  not has_libtpu(), reason="needs the TPU compiler: pip install '.[plan]'"
)


@pytest.mark.skipif(has_libtpu(), reason="the TPU compiler is here")
def test_without_the_tpu_compiler_a_topology_says_what_to_install():
  config = plan_script.CONFIGS / "qwen2p5_7b.py"
  done = plan_script.run(f"--config={config}", "--topology=v5e:4x4")
  assert done.returncode == 1
  assert "pip install -e '.[plan]'" in done.stderr


@needs_libtpu
def test_a_topology_that_no_compiler_knows():
  config = plan_script.CONFIGS / "qwen2p5_7b.py"
  done = plan_script.run(f"--config={config}", "--topology=v5e:3x5")
  assert done.returncode == 1
  assert done.stderr.splitlines()[-1].startswith("error: --topology=v5e:3x5")


@needs_libtpu
def test_a_plan_for_a_tpu_slice():
  """The real compiler: a tiny run of the paper's on 16 chips that are not here.

  Weights are gathered and gradients scattered, as fsdp does; the estimate
  follows from the counts.
  """
  config = plan_script.CONFIGS / "qwen2p5_7b.py"
  done = plan_script.run(
    f"--config={config}:smoke",
    "--topology=v5e:4x4",
    "--config.rl.prompts=16",
    "--json",
  )
  assert done.returncode == 0, done.stderr
  plan = json.loads(done.stdout)
  assert (plan["chips"], plan["device_kind"]) == (16, "TPU v5 lite")
  assert plan["fits"] is True
  for found in plan["stages"]:
    costs, bound = found["compiled"]["costs"], found["bound"]
    assert bound["compute"] == pytest.approx(costs["flops"] / 197e12)
    if found["compiled"]["name"] in ("score", "update"):
      assert "all-gather" in costs["collectives"]
    assert all(loop["ends"] == "early" for loop in costs["loops"]["others"])
  assert plan["step_seconds"] == pytest.approx(
    sum(found["bound"]["seconds"] for found in plan["stages"])
  )


@needs_libtpu
@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1"])
def test_the_tpu_compilers_program_is_counted_exactly(topology):
  """A scan of products with split weights: every FLOP and gathered byte.

  The TPU compiler writes products as convolutions, gives no trip counts and
  spreads a gather over several fusions.
  """
  code = f"""
import json, jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
import plan_compiler
from pure_jax.host import hlo_costs
from pure_jax.parallel import sharding
devices = plan_compiler.find_devices({topology!r})
mesh = sharding.make_layout(fsdp=4, devices=devices).mesh
rows = NamedSharding(mesh, P("fsdp"))
def layer(x, w):
  return jax.lax.with_sharding_constraint(jnp.tanh(x @ w), rows), None
f = jax.jit(lambda x, w: jax.lax.scan(layer, x, w)[0], out_shardings=rows,
  in_shardings=(rows, NamedSharding(mesh, P(None, "fsdp"))))
text = f.lower(jax.ShapeDtypeStruct((4096, 1024), jnp.bfloat16),
  jax.ShapeDtypeStruct((24, 1024, 1024), jnp.bfloat16)).compile().as_text()
costs = hlo_costs.count(text, 4)
print(json.dumps([costs.flops, {{k: v.sent_bytes for k, v in
  costs.collectives.items()}}]))
"""
  done = subprocess.run(
    [sys.executable, "-c", code],
    capture_output=True,
    text=True,
    check=False,
    env=os.environ
    | {
      "PYTHONPATH": f"{ROOT / 'experiments'}:{os.environ.get('PYTHONPATH', '')}"
    },
  )
  assert done.returncode == 0, done.stderr
  flops, sent = json.loads(done.stdout.splitlines()[-1])
  assert flops == 24 * 2 * 1024 * 1024 * 1024
  weights = 24 * 1024 * 1024 * 2
  assert sum(sent.values()) == pytest.approx(weights * 3 / 4)
