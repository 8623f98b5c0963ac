"""Plans for TPU slices by the real TPU compiler, where libtpu is installed."""

import importlib.metadata
import json
import os
import subprocess
import sys

import plan_script
import pytest
from checkout import ROOT


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
  """In a process that has not looked for devices yet."""
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
from pure_jax.runs.planning import compiler as plan_compiler
from pure_jax.runs.planning.hlo import costs as hlo_costs
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
costs = hlo_costs.count_costs(text, 4)
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
def test_rows_that_take_turns_are_decoded_in_place():
  """Of 2,047 slots the compiler copies the whole cache before the loop."""
  done = run_code("""
import json, jax, jax.numpy as jnp
from pure_jax.runs.planning import compiler as plan_compiler
from pure_jax.runs.planning import engine as plan_engine
from pure_jax.runs.planning import stages as plan_stages
from pure_jax.models import params, policy
from pure_jax.models.config import ModelConfig
from pure_jax.parallel import sharding
from pure_jax.rollout.engine_programs import EngineConfig
from pure_jax.rollout.sampling import SamplingConfig
from pure_jax.training import rollouts
from pure_jax.types import Prompts
devices = plan_compiler.find_devices("v5p:2x2x1")
layout = sharding.make_layout(data=4, devices=devices)
model = ModelConfig(vocab_size=512, width=256, num_layers=1, num_heads=4,
  num_kv_heads=1, head_dim=128, mlp_width=256, compute_dtype="bfloat16")
sampler = SamplingConfig(max_new_tokens=2048, pad_id=0, stop_ids=(1,))
engine = rollouts.make_engine(model, sampler, 8, layout, EngineConfig(256, 64))
def placed(x, place):
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)
declared = policy.declare_policy(model)
weights = jax.tree.map(placed, params.abstract_params(declared),
  sharding.weight_shardings(declared, layout))
prompts = Prompts(jax.ShapeDtypeStruct((64, 256), jnp.int32),
  jax.ShapeDtypeStruct((64, 256), bool))
key = jax.eval_shape(lambda: jax.random.key(0))
others = jax.tree.map(
  lambda x: placed(x, sharding.replicated(layout)), (prompts, key))
found = plan_engine.compile_engine(plan_stages.EngineStage("rollout",
  engine.programs, (weights, *others), prompts=32, samples=8, shards=4,
  new_tokens=2048, chunk=64, ring_length=engine.spec.ring_length), 4)
print(json.dumps({p.name: [p.memory.aliased, p.memory.temporaries]
  for p in found.parts}))
""")
  assert done.returncode == 0, done.stderr
  aliased, temporaries = json.loads(done.stdout.splitlines()[-1])["decode"]
  # Keys and values of a chip's 64 rows, in bfloat16.
  cache = 2 * 64 * (256 + 2047) * 128 * 2
  assert aliased > cache
  assert temporaries < cache / 4
