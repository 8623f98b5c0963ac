"""Plans for TPU slices with the real TPU compiler, if libtpu is installed."""

import importlib.metadata
import json
import os
import subprocess
import sys

import pytest
from checkout import EXPERIMENTS, ROOT

from pure_jax.runs.planning.devices import find_devices
from pure_jax.runs.settings.conversion import ConfigError

CONFIG = EXPERIMENTS / "configs" / "qwen2p5_7b.py"


def has_libtpu() -> bool:
  try:
    importlib.metadata.version("libtpu")
  except importlib.metadata.PackageNotFoundError:
    return False
  return True


needs_libtpu = pytest.mark.skipif(
  not has_libtpu(), reason="needs the TPU compiler: pip install '.[plan]'"
)


def run_code(code: str) -> subprocess.CompletedProcess[str]:
  """Runs code in a process that has not looked for devices yet."""
  return subprocess.run(
    [sys.executable, "-c", code],
    capture_output=True,
    text=True,
    check=False,
    env=os.environ
    | {
      "PYTHONPATH": f"{ROOT / 'experiments'}:{os.environ.get('PYTHONPATH', '')}"
    },
  )


def run_plan(*options: str) -> subprocess.CompletedProcess[str]:
  """Runs plan.py in a process that has not looked for devices yet."""
  return subprocess.run(
    [sys.executable, str(EXPERIMENTS / "plan.py"), *options],
    capture_output=True,
    text=True,
    timeout=600,
    check=False,
  )


def test_without_the_tpu_compiler_a_topology_says_what_to_install(monkeypatch):
  def version(package):
    raise importlib.metadata.PackageNotFoundError(package)

  monkeypatch.setattr(importlib.metadata, "version", version)
  with pytest.raises(ConfigError, match=r"pip install -e '\.\[plan\]'"):
    find_devices("v5e:4x4")


@needs_libtpu
def test_an_unknown_topology_ends_the_script_in_a_sentence():
  done = run_plan(f"--config={CONFIG}", "--topology=v5e:3x5")
  assert done.returncode == 1
  assert done.stderr.splitlines()[-1].startswith("error: --topology=v5e:3x5")


@needs_libtpu
def test_a_plan_for_a_tpu_slice():
  """A tiny run of the paper, compiled for 16 chips that need not be there.

  fsdp gathers weights in scores and update. The estimate follows from the
  counts.
  """
  done = run_plan(
    f"--config={CONFIG}:smoke",
    "--topology=v5e:4x4",
    "--config.rl.prompts=16",
    "--json",
  )
  assert done.returncode == 0, done.stderr
  plan = json.loads(done.stdout)
  assert (plan["chips"], plan["device_kind"]) == (16, "TPU v5 lite")
  assert plan["fits"] is True
  for stage in plan["stages"]:
    costs, bound = stage["compiled"]["costs"], stage["bound"]
    assert bound["compute"] == pytest.approx(costs["flops"] / 197e12)
    if stage["compiled"]["name"] in ("score", "update"):
      assert "all-gather" in costs["collectives"]
    assert all(loop["ends"] == "early" for loop in costs["loops"]["others"])
  assert plan["step_seconds"] == pytest.approx(
    sum(stage["bound"]["seconds"] for stage in plan["stages"])
  )


@needs_libtpu
@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1"])
def test_the_tpu_compilers_program_is_counted_exactly(topology):
  """A scan of products with sharded weights: every FLOP and gathered byte.

  The TPU compiler writes products as convolutions, omits trip counts and
  spreads an all-gather over several fusions.
  """
  code = f"""
import json, jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
from pure_jax.runs.planning.devices import find_devices
from pure_jax.runs.planning.hlo.costs import count_costs
from pure_jax.parallel import sharding
devices = find_devices({topology!r})
mesh = sharding.make_layout(fsdp=4, devices=devices).mesh
rows = NamedSharding(mesh, P("fsdp"))
def layer(x, w):
  return jax.lax.with_sharding_constraint(jnp.tanh(x @ w), rows), None
f = jax.jit(lambda x, w: jax.lax.scan(layer, x, w)[0], out_shardings=rows,
  in_shardings=(rows, NamedSharding(mesh, P(None, "fsdp"))))
text = f.lower(jax.ShapeDtypeStruct((4096, 1024), jnp.bfloat16),
  jax.ShapeDtypeStruct((24, 1024, 1024), jnp.bfloat16)).compile().as_text()
costs = count_costs(text, 4)
print(json.dumps([costs.flops, {{k: v.sent_bytes for k, v in
  costs.collectives.items()}}]))
"""
  done = run_code(code)
  assert done.returncode == 0, done.stderr
  flops, sent = json.loads(done.stdout.splitlines()[-1])
  assert flops == 24 * 2 * 1024 * 1024 * 1024
  weights = 24 * 1024 * 1024 * 2
  assert sum(sent.values()) == pytest.approx(weights * 3 / 4)


@needs_libtpu
def test_continuous_batching_decodes_in_place():
  """With 2,047 entries, the compiler copies the whole cache before the loop."""
  done = run_code("""
import json, jax, jax.numpy as jnp
from pure_jax.runs.planning.compiler import compile_stage
from pure_jax.runs.planning.devices import find_devices
from pure_jax.runs.planning.estimates import Estimates
from pure_jax.runs.planning.programs import Stage, with_shardings
from pure_jax.models import params, policy
from pure_jax.models.config import ModelConfig
from pure_jax.parallel import sharding
from pure_jax.rollout.engine_programs import EngineConfig
from pure_jax.rollout.sampling import SamplingConfig
from pure_jax.training import rollouts
from pure_jax.types import Prompts
devices = find_devices("v5p:2x2x1")
layout = sharding.make_layout(data=4, devices=devices)
model = ModelConfig(vocab_size=512, width=256, num_layers=1, num_heads=4,
  num_kv_heads=1, head_dim=128, mlp_width=256, compute_dtype="bfloat16")
sampler = SamplingConfig(max_new_tokens=2048, pad_id=0, stop_ids=(1,))
engine = rollouts.make_engine(model, sampler, 8, layout, EngineConfig(256, 64))
declared = policy.declare_policy(model)
weights = with_shardings(params.abstract_params(declared),
  sharding.weight_shardings(declared, layout))
prompts = Prompts(jax.ShapeDtypeStruct((64, 256), jnp.int32),
  jax.ShapeDtypeStruct((64, 256), bool))
key = jax.eval_shape(lambda: jax.random.key(0))
others = with_shardings((prompts, key), sharding.replicated(layout))
stage = Stage("rollout", engine, (weights, *others), Estimates(0, 0))
print(json.dumps({p.name: [p.memory.aliased, p.memory.temporaries]
  for p in compile_stage(stage, 4).programs}))
""")
  assert done.returncode == 0, done.stderr
  aliased, temporaries = json.loads(done.stdout.splitlines()[-1])["decode"]
  # Keys and values of a chip's 64 rows, in bfloat16.
  cache = 2 * 64 * (256 + 2047) * 128 * 2
  assert aliased > cache
  assert temporaries < cache / 4
