"""Packaging: the library, with `kernels/` installed as `pure_jax.kernels`.

Packages are listed by hand. A bare `find_packages` would install `kernels` as
a top-level package, where it shadows the Hugging Face package of that name.
`tests/project/test_package.py` builds the wheel and looks.
"""

import pathlib

import setuptools

ROOT = pathlib.Path(__file__).parent

# A floor is the oldest release that was seen to do what the code uses it for;
# docs/extending.md says which tests ran with all floors together. A reason
# stands beside each floor that one of our calls or a fault of older releases
# sets.
RUNTIME = [
  "absl-py>=2.0",
  "array_record>=0.5",  # As tensorflow-datasets asks.
  "flax>=0.10",  # flax.struct only.
  "huggingface_hub>=1.33",  # Goes on if a connection breaks.
  "importlib_resources>=6.0",  # tensorflow-datasets needs, does not ask.
  # On a CPU, jaxlib 0.10.0 and 0.10.1 print false errors about each program
  # that they read from the compilation cache.
  "jax>=0.10.2,<0.13",
  "jinja2>=3.1",  # transformers needs it for chat templates.
  "matplotlib>=3.9",
  "ml_collections>=1.0",
  "numpy>=2.0",  # As jax asks.
  "optax>=0.2.5",  # optax.tree.
  "orbax-checkpoint>=0.11.17",  # Older ones do not import with this jax.
  "pyarrow>=16.1",  # Parquet files of problems and steps.
  "safetensors>=0.8",  # As transformers asks; offset_keys came in 0.6.
  "scipy>=1.15",  # bootstrap(rng=).
  "sentencepiece>=0.2",
  "sympy>=1.13.3",
  "tensorboardX>=2.6.2.2",
  # Reads array_record without TensorFlow. Older ones fail with protobuf 7.
  "tensorflow-datasets>=4.9.10",
  "tqdm>=4.66",
  # Older ones take tokenizers whose errors do not name the fault.
  "transformers>=5.17",
]

# An oracle for the tests, never a runtime dependency. Capped to the release the
# tests ran with: its CPU build (2.13.0+cpu) satisfies the bound and wins where
# pip can find it, a newer plain release would bring several GB of CUDA.
TORCH = "torch>=2.13,<2.14"

# transformers reads a GGUF file with torch and these two.
GGUF = [
  "accelerate>=1.15.0",
  "gguf>=0.19.0",
]

EXTRAS = {
  "test": [
    TORCH,
    *GGUF,
    "build>=1.0.3",
    "ipykernel>=6.29",
    # An oracle for the reader of formulas. The extra picks one of the three
    # ANTLR runtimes that it works with.
    "math-verify[antlr4_13_2]>=0.9.0",
    "nbclient>=0.10",
    "nbformat>=5.10",
    "pytest>=8.4",  # Older ones catch exceptions of threads.
    "pytest-xdist>=3.8",  # --no-loadscope-reorder.
    "ruff>=0.17.6,<0.18",  # A newer formatter may format differently.
    "setuptools>=77.0.3",
  ],
  # The TPU compiler, to plan for slices that are not here. Each jax names the
  # one release whose programs it can read.
  "plan": ["jax[tpu]"],
  # To measure against PyTorch.
  "bench": [TORCH],
  # Qwen's vocabulary, to look at its merged separators in the tests.
  "qwen-vocabulary": ["dashscope>=2.0.2", "tiktoken>=0.14.0"],
  # To make a Hugging Face folder of a GGUF file.
  "gguf": [TORCH, *GGUF],
}

setuptools.setup(
  name="pure_jax",
  version="0.1.0",
  description="Min-form credit assignment for process rewards, in JAX.",
  long_description=(ROOT / "README.md").read_text(encoding="utf-8")
  if (ROOT / "README.md").exists()
  else "",
  long_description_content_type="text/markdown",
  license_expression="Apache-2.0",
  license_files=["LICENSE"],
  python_requires=">=3.11",
  classifiers=[
    "Programming Language :: Python :: 3.11",
    "Programming Language :: Python :: 3.12",
    "Programming Language :: Python :: 3.13",
  ],
  packages=[
    "pure_jax",
    "pure_jax.host",
    "pure_jax.host.checkpoints",
    "pure_jax.host.data",
    "pure_jax.host.data.formats",
    "pure_jax.host.data.world",
    "pure_jax.host.distributed",
    "pure_jax.host.evaluation",
    "pure_jax.host.grading",
    "pure_jax.host.grading.answers",
    "pure_jax.host.huggingface",
    "pure_jax.host.logs",
    "pure_jax.host.text",
    "pure_jax.host.workers",
    "pure_jax.kernels",
    "pure_jax.models",
    "pure_jax.parallel",
    "pure_jax.rollout",
    "pure_jax.runs",
    "pure_jax.runs.evaluation",
    "pure_jax.runs.memory",
    "pure_jax.runs.model_card",
    "pure_jax.runs.planning",
    "pure_jax.runs.planning.hlo",
    "pure_jax.runs.rl",
    "pure_jax.runs.run_report",
    "pure_jax.runs.settings",
    "pure_jax.runs.tasks",
    "pure_jax.training",
  ],
  package_dir={"pure_jax.kernels": "kernels"},
  package_data={"pure_jax.runs.run_report": ["page.html"]},
  install_requires=RUNTIME,
  extras_require=EXTRAS,
)
