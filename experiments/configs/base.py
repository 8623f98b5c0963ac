"""Every field of a run, with its unit. Other configs start from this one.

Clip range, KL coefficient, temperature and samples per prompt are the paper's
(arXiv 2504.15275); sizes, learning rates and numbers of steps are those of the
embedded world and meant to be overridden.
"""

from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
  """The fields and their defaults."""
  config = ConfigDict()
  config.seed = 0  # Of weights, sampling and order; the world has its own.
  config.progress = True  # Progress bars on stderr.
  config.mesh = mesh()
  config.kernels = kernels()
  config.world = world()
  config.model = model()
  config.sft = sft()
  config.files = placeholder(ConfigDict)  # Instead of the three: files.py.
  config.prm = prm()
  config.rl = rl()
  return config


def mesh() -> ConfigDict:
  """Devices: as many as the product of the sizes."""
  return ConfigDict(
    dict(
      data=1,  # Parts of the rows; parameters are copies.
      fsdp=1,  # Parts of the rows and of parameters and optimizer state.
      tensor=1,  # Parts of heads, MLP and vocabulary.
      sequence=1,  # Parts of the tokens of a row.
      rules="fsdp",  # "fsdp", "tensor", "fsdp+tensor" or "fsdp+sequence".
    )
  )


def kernels() -> ConfigDict:
  """What models call in place of XLA's operations; see kernels/README.md.

  None has been timed on a TPU or GPU, so XLA is the default.
  """
  return ConfigDict(
    dict(
      # Of whole texts: "xla", "splash" on a TPU or "cudnn" on a GPU, which
      # take the place of attention_chunk. Of every stage.
      attention="xla",
      # Of new tokens to what came before, in rollouts: "xla", or "pallas" on a
      # TPU.
      decode_attention="xla",
      # Of the policy's head in updates and scores: "xla", or "pallas" on a
      # TPU, which takes the place of logits_chunk.
      logp="xla",
      interpret=False,  # Runs them step by step on any device: a slow trial.
    )
  )


def world() -> ConfigDict:
  """The embedded world of chained additions and subtractions."""
  return ConfigDict(
    dict(
      seed=0,  # Of problems and demonstrations.
      min_operations=3,
      max_operations=5,
      operand_max=5,  # Operands are 1..operand_max.
      value_max=20,  # True intermediate values stay in 0..value_max.
      slip_rate=0.07,  # Per step: a result off by a little.
      wrong_operand_rate=0.04,  # Per step: an operand not in the problem.
      skip_rate=0.05,  # Per demonstration: straight to the answer.
      misconception_rate=0.7,  # First "-" computed as "+".
      vacuous_rate=0.15,  # Per step: a sentence that does nothing before it.
    )
  )


def model() -> ConfigDict:
  """A Qwen2-style decoder. The vocabulary comes from the tokenizer."""
  return ConfigDict(
    dict(
      width=64,
      num_layers=3,
      num_heads=4,
      num_kv_heads=2,
      head_dim=16,
      mlp_width=192,
      rope_theta=10_000.0,
      attention_bias=True,
      tied_embeddings=True,
      # Of matrix products: "float32", "bfloat16", or "auto": bfloat16 on
      # accelerators. Weights, optimizer and reductions are float32.
      compute_dtype="auto",
    )
  )


def sft() -> ConfigDict:
  """Supervised start on demonstrations."""
  return ConfigDict(
    dict(
      demonstrations=30_000,  # Rows of the train split.
      steps=800,
      batch_size=64,  # Responses.
      log_every=50,  # Steps between metric rows.
      optim=optimizer(2e-3, warmup_steps=50, decay_steps=1_000),
    )
  )


def prm() -> ConfigDict:
  """Process reward model: head alone, then all parameters."""
  return ConfigDict(
    dict(
      extra_layers=1,  # On top of the policy's trunk, start as identity.
      labelled=40_000,  # Responses written to be labelled.
      policy_prompts=1_500,  # Prompts whose samples are labelled too.
      policy_samples=8,  # Samples for each of them.
      batch_size=64,  # Responses; the paper takes 128.
      head_steps=100,
      full_steps=2_000,
      log_every=50,
      length_multiple=48,  # Responses are padded to a multiple of it, tokens.
      eval_prompts=256,  # Held-out prompts to judge the PRM on.
      evaluate_head=False,  # Also judge it after the head's training.
      separator="insert",  # Or "replace", as the reference does.
      head_optim=optimizer(1e-3, weight_decay=0.1),
      full_optim=optimizer(
        1e-3, weight_decay=0.1, warmup_steps=50, decay_steps=2_000
      ),
      lora=lora(),  # Of the second stage; the head is trained with them.
    )
  )


def rl() -> ConfigDict:
  """Reinforcement learning."""
  return ConfigDict(
    dict(
      iterations=100,
      prompts=32,  # Per iteration; the paper takes 64.
      samples_per_prompt=8,
      max_new_tokens=48,
      max_steps=12,  # Steps kept apart; the rest joins the last.
      temperature=1.0,
      top_p=1.0,
      top_k=0,  # 0 turns the filter off.
      reward_mode="prm+vr",  # "prm", "prm+vr" or "vr".
      # Prompts with an answer in "prm+vr"; None: those whose source gives one.
      answer_fraction=0.1,
      credit="min",  # "sum", "min", "min_eq3" or "softmin".
      credit_temperature=0.1,  # Of softmin (Eq. 5).
      discount=1.0,  # Of the sum form.
      baseline="main",  # "paper_a", "paper_b", "main", "step" or "none".
      process_coef=1.0,  # Weight of the process advantage.
      verifiable_coef=1.0,  # Weight of the verifiable advantage.
      whiten=True,  # Over the tokens of the batch.
      zero_terminal_advantage=False,  # No gradient on separators and EOS.
      kl_placement="loss",  # "loss", "reward" or "none".
      kl_estimator="k3",  # "k1", "k2" or "k3".
      kl_coef=1e-3,  # Constant: no state to keep in a checkpoint.
      # Reward of an empty step instead of the PRM's score; unset keeps it.
      empty_step_reward=placeholder(float),
      clip_low=0.2,  # The ratio is clipped at 1 - clip_low
      clip_high=0.2,  # and 1 + clip_high.
      # "token_mean", "sequence_mean" or "constant_length" (max_new_tokens).
      loss_aggregate="token_mean",
      entropy_coef=0.0,
      micro_batches=1,  # Parts in which a batch is scored and differentiated.
      # Layouts beside `mesh`, on the same devices; None takes it. Given as a
      # dict of what is not 1 or "fsdp":
      # --config.rl.rollout_mesh="{'data': 4, 'tensor': 2, 'rules': 'tensor'}"
      rollout_mesh=placeholder(ConfigDict),  # Of the policy that samples.
      reference_mesh=placeholder(ConfigDict),  # Of the reference policy.
      prm_mesh=placeholder(ConfigDict),  # Of the PRM.
      # Rows are as long as the longest text of a batch can be, halved up to
      # length_buckets - 1 times; each length compiles once.
      length_buckets=1,
      # Columns of rows that several texts share, more where one text needs
      # them; unset gives each text its own row. Parts that stay empty cost no
      # time, so it takes several micro_batches.
      packed_tokens=placeholder(int),
      optim=optimizer(3e-4),
      eval_every=10,  # Iterations between evaluations.
      eval_prompts=256,  # Held-out prompts.
      samples_every=10,  # Iterations between printed samples.
      checkpoint_every=10,
      checkpoints_kept=2,  # And the best one.
      # Updates in a row that are not finite, before the run stops; state and
      # batch are saved. Of the supervised stages too.
      max_skipped_updates=5,
      lora=lora(),  # Of the policy; the reference is what stays.
      **rollout(),
    )
  )


def rollout() -> dict[str, Any]:
  """Fields of `rl`: how responses are drawn, and what their log-probs are."""
  return dict(
    min_p=0.0,  # Share of the likeliest token's probability; 0 is off.
    stop_on_boxed=False,  # A complete \boxed{...} ends a response too.
    rollout_parts=1,  # Parts in which a batch is sampled: memory for time.
    # Rows sampled at a time with continuous batching: places of responses
    # that have ended go to prompts that wait. Unset samples each part in
    # one loop, until the last has ended.
    rollout_rows=placeholder(int),
    rollout_chunk=64,  # Tokens between two looks at which have ended.
    # Of keys and values while sampling: "float32", "bfloat16" or "int8";
    # unset takes compute_dtype.
    cache_dtype=placeholder(str),
    # Matrices that are sampled with, evaluations included: "compute" dtype, or
    # "int8", which is not quite the policy: see importance_cap.
    rollout_weights="compute",
    # The most a token's loss is weighed by where the sampler is not quite the
    # policy (int8 or bfloat16 rollouts); unset weighs all alike.
    importance_cap=placeholder(float),
    # Log-probs that the update compares with: "score" reads the policy once
    # more, "sampled" takes the sampler's, before filters.
    old_logp="score",
    # "sampled" is checked in iteration 1 and every so many after it.
    old_logp_check_every=10,
    # A token further off, in nats, ends the run. Less than log(1 + clip_high)
    # and -log(1 - clip_low): then no token is clipped for the drift alone.
    old_logp_tolerance=0.1,
  )


def lora() -> ConfigDict:
  """Low-rank adapters: the weights beside them stay as they are."""
  return ConfigDict(
    dict(
      rank=0,  # Of the product beside a matrix; 0 trains all weights.
      alpha=32.0,  # The product counts alpha / rank.
      # Matrices of every layer that have adapters.
      targets=("query", "key", "value", "output", "gate", "up", "down"),
    )
  )


def optimizer(learning_rate: float, **changes) -> ConfigDict:
  """AdamW fields; see `pure_jax.training.optim.OptimConfig`."""
  fields = dict(
    learning_rate=learning_rate,
    weight_decay=0.0,
    beta1=0.9,
    beta2=0.95,
    max_grad_norm=1.0,
    warmup_steps=0,
    decay_steps=0,  # Cosine decay to 0; 0 keeps the rate constant.
  )
  return ConfigDict(fields | changes)
