"""Meshes that do not fit a batch or the machine are refused in a sentence."""

import jax
import pytest

from pure_jax.runs.settings.mesh import MeshSettings


def test_rows_are_split_over_data_and_fsdp_and_nothing_else():
  """Counted by one of them alone, jax would refuse the batch in its words."""
  mesh = MeshSettings(data=2, fsdp=3, tensor=5, sequence=7)
  mesh.check_rows("rl.prompts", 12)
  for rows in (2, 3, 10, 35):
    with pytest.raises(ValueError, match=f"rl.prompts={rows} .* 6 row shards"):
      mesh.check_rows("rl.prompts", rows)


def test_every_process_needs_a_part_of_the_mesh(monkeypatch):
  """One without devices in it would wait for ever, or be waited for."""
  assert MeshSettings(data=2).layout().mesh.size == 2
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  assert MeshSettings(data=8).layout().mesh.size == 8
  with pytest.raises(ValueError, match="leaves out some of the 8 devices"):
    MeshSettings(data=2).layout()
