"""Every field of a run, with its unit. Other configs start from this one.

Groups mirror the library's configs: `rl.credit`, `rl.loss` and `rl.optim` are
`CreditConfig`, `LossConfig` and `OptimConfig`, field by field.

Clip range, KL coefficient, temperature and samples per prompt are the paper's
(arXiv 2504.15275). Sizes, learning rates and numbers of steps are for the
embedded world and meant to be overridden.
"""

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
  # Models and data of the user in place of world, model and sft: files.py.
  config.files = placeholder(ConfigDict)
  config.prm = prm()
  config.rl = rl()
  return config


def mesh() -> ConfigDict:
  """Devices: as many as the product of the sizes."""
  return ConfigDict(
    dict(
      data=1,  # Splits rows; parameters are copied.
      fsdp=1,  # Splits rows, and parameters and optimizer state.
      tensor=1,  # Splits heads, MLP and vocabulary.
      sequence=1,  # Splits the tokens of a row.
      rules="fsdp",  # "fsdp", "tensor", "fsdp+tensor" or "fsdp+sequence".
    )
  )


def kernels() -> ConfigDict:
  """Kernels in place of XLA's operations; see kernels/README.md.

  None has been timed on a TPU or GPU, so XLA is the default.
  """
  return ConfigDict(
    dict(
      # Attention over whole texts, in every stage: "xla", "splash" on a TPU or
      # "cudnn" on a GPU; the last two replace attention_chunk.
      attention="xla",
      # Attention of new tokens over the cache, in rollouts: "xla", or "pallas"
      # on a TPU.
      decode_attention="xla",
      # The policy's head in updates and scores: "xla", or "pallas" on a TPU,
      # which replaces logits_chunk.
      logp="xla",
      interpret=False,  # Tries Pallas kernels on any device, slowly.
    )
  )


def world() -> ConfigDict:
  """The embedded world of chained additions and subtractions."""
  return ConfigDict(
    dict(
      seed=0,  # Of problems and demonstrations.
      min_operations=3,  # Of a problem, at least.
      max_operations=5,  # Of a problem, at most.
      operand_max=5,  # Operands are 1..operand_max.
      value_max=20,  # True intermediate values stay in 0..value_max.
      slip_rate=0.07,  # Per step: a result off by a little.
      wrong_operand_rate=0.04,  # Per step: an operand not in the problem.
      skip_rate=0.05,  # Per demonstration: straight to the answer.
      misconception_rate=0.7,  # Per demonstration: the first "-" read as "+".
      vacuous_rate=0.15,  # Per step: a sentence that does nothing before it.
    )
  )


def model() -> ConfigDict:
  """A Qwen2-style decoder. The vocabulary comes from the tokenizer."""
  return ConfigDict(
    dict(
      width=64,  # Of the residual stream.
      num_layers=3,  # Decoder layers.
      num_heads=4,  # Query heads.
      num_kv_heads=2,  # Key and value heads; divides num_heads.
      head_dim=16,  # Of a head; even.
      mlp_width=192,  # Hidden size of the gated MLP.
      rope_theta=10_000.0,  # Base of the rotary frequencies.
      attention_bias=True,  # On queries, keys and values.
      tied_embeddings=True,  # Logits are read with the embedding matrix.
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
      steps=800,  # Updates.
      batch_size=64,  # Responses.
      log_every=50,  # Updates between metric rows.
      optim=optimizer(2e-3, warmup_steps=50, decay_steps=1_000),
    )
  )


def prm() -> ConfigDict:
  """Process reward model: first the head alone, then all parameters."""
  return ConfigDict(
    dict(
      extra_layers=1,  # On top of the policy's trunk; they start as identity.
      labelled=40_000,  # Responses written for labelling.
      policy_prompts=1_500,  # Prompts whose sampled responses are labelled too.
      policy_samples=8,  # Sampled responses for each of them.
      batch_size=64,  # Responses; the paper takes 128.
      head_steps=100,  # Updates of the first stage.
      full_steps=2_000,  # Updates of the second stage.
      log_every=50,  # Updates between metric rows.
      length_multiple=48,  # Responses are padded to a multiple of it, tokens.
      eval_prompts=256,  # Held-out prompts on which the PRM is evaluated.
      evaluate_head=False,  # Evaluates the PRM after the first stage too.
      score=score(),
      head_optim=optimizer(1e-3, weight_decay=0.1),  # First stage.
      full_optim=optimizer(  # Second stage.
        1e-3, weight_decay=0.1, warmup_steps=50, decay_steps=2_000
      ),
      lora=lora(),  # Second stage; the head is trained with the adapters.
    )
  )


def score() -> ConfigDict:
  """How responses are cut into steps and scored by the PRM, in every stage."""
  return ConfigDict(
    dict(
      max_steps=12,  # Steps of a response; the rest is merged into the last.
      # Where the PRM reads a score: "insert" adds a token after each step,
      # "replace" overwrites the separator, as the paper's reference does.
      separator="insert",
      # RL gives an empty step this reward, in [-1, 1], instead of the PRM's
      # score; unset keeps the score.
      empty_step_reward=placeholder(float),
    )
  )


def rl() -> ConfigDict:
  """Reinforcement learning."""
  return ConfigDict(
    dict(
      iterations=100,  # Of rollout, scores and one update.
      prompts=32,  # Per iteration; the paper takes 64.
      samples_per_prompt=8,  # Responses to each prompt, the group of credit.
      # Share of the prompts whose answer may be used where both rewards count;
      # None takes the prompts whose source gives an answer.
      answer_fraction=0.1,
      credit=credit(),
      loss=loss(),
      sampler=sampler(max_new_tokens=48),
      rollout=rollout(),
      engine=engine(),
      old_logp=old_logp(),
      # Micro-batches in which a batch is scored and differentiated.
      micro_batches=1,
      # Rows are as long as the longest text of a batch can be, halved up to
      # length_buckets - 1 times; each length compiles once.
      length_buckets=1,
      # Tokens of a row that several texts share, more if one text needs them;
      # unset gives each text its own row. Micro-batches that stay empty cost
      # no time, so it needs several.
      packed_tokens=placeholder(int),
      # Layouts of the other models, on the devices of `mesh`; None takes that
      # of `mesh`. Given as a dict of what is not 1 or "fsdp":
      # --config.rl.rollout_mesh="{'data': 4, 'tensor': 2, 'rules': 'tensor'}"
      rollout_mesh=placeholder(ConfigDict),  # Of the policy while it samples.
      reference_mesh=placeholder(ConfigDict),  # Of the reference policy.
      prm_mesh=placeholder(ConfigDict),  # Of the PRM.
      optim=optimizer(3e-4),
      lora=lora(),  # Of the policy; the reference is the policy without them.
      eval_every=10,  # Iterations between evaluations.
      eval_prompts=256,  # Held-out prompts of an evaluation.
      samples_every=10,  # Iterations between printed samples.
      checkpoint_every=10,  # Iterations between checkpoints.
      checkpoints_kept=2,  # The latest ones; the best one is kept too.
      # Consecutive updates that are not finite before the run stops and saves
      # state and batch. Holds for the supervised stages too.
      max_skipped_updates=5,
    )
  )


def credit() -> ConfigDict:
  """How rewards become advantages; see `pure_jax.settings.CreditConfig`.

  Its group_size and baseline_length are not listed: they are
  samples_per_prompt and sampler.max_new_tokens.
  """
  return ConfigDict(
    dict(
      form="min",  # "sum", "min", "min_eq3", "softmin" or "min_dense".
      temperature=0.1,  # Of softmin (Eq. 5), in units of reward.
      discount=1.0,  # Per step, in 0..1; other than 1 only with "sum".
      baseline="main",  # "paper_a", "paper_b", "main", "step" or "none".
      # Whether "main" counts the token that ends a step among its tokens.
      count_step_end=True,
      process_coef=1.0,  # Weight of the step rewards; 0 leaves the PRM out.
      verifiable_coef=1.0,  # Weight of the outcome reward; 0 leaves it out.
      verifiable_estimator="rloo",  # "rloo", "grpo" or "none".
      # Puts the outcome on the last token, under one baseline with the rest.
      fold_verifiable=False,
      # Penalty to the reference policy in the reward: "k1", "k2" or "k3";
      # None has none.
      kl_in_reward=placeholder(str),
      kl_coef=1e-3,  # Weight of that penalty, per nat.
      kl_limit=placeholder(float),  # Clips it per token, nats; None does not.
      whiten=True,  # Shifts and scales advantages over the batch's tokens.
      zero_terminal_advantage=False,  # No gradient on separators and EOS.
      exclude_empty_steps=False,  # Treats steps without content as absent.
    )
  )


def loss() -> ConfigDict:
  """The clipped loss; see `pure_jax.settings.LossConfig`."""
  return ConfigDict(
    dict(
      clip_low=0.2,  # The ratio is clipped below at 1 - clip_low
      clip_high=0.2,  # and above at 1 + clip_high.
      aggregate="token_mean",  # "sequence_mean" or "constant_length".
      # Tokens that "constant_length" divides a response's sum by; None with
      # the others.
      constant_length=placeholder(int),
      # Penalty to the reference policy in the loss: "k1", "k2" or "k3"; None
      # has none.
      kl_in_loss="k3",
      kl_coef=1e-3,  # Weight of that penalty, per nat.
      entropy_coef=0.0,  # Weight of the entropy bonus, per nat.
      # The largest weight of a token's loss, policy over sampler, for rollouts
      # in int8 or bfloat16; None weighs all tokens alike.
      importance_cap=placeholder(float),
    )
  )


def sampler(max_new_tokens: int) -> ConfigDict:
  """How responses are drawn; see `pure_jax.rollout.sampling.SamplingConfig`."""
  return ConfigDict(
    dict(
      max_new_tokens=max_new_tokens,  # Tokens; a longer response is truncated.
      temperature=1.0,  # Divides the logits.
      top_p=1.0,  # Keeps the likeliest tokens of this much probability.
      top_k=0,  # Keeps this many likeliest tokens; 0 keeps all.
      min_p=0.0,  # Share of the likeliest token's probability; 0 is off.
    )
  )


def rollout() -> ConfigDict:
  """What of the policy samples, and how much at a time."""
  return ConfigDict(
    dict(
      stop_on_boxed=False,  # A complete \boxed{...} ends a response too.
      # Batches in which an iteration's responses are sampled, one after the
      # other: less memory, more time.
      batches=1,
      # Matrices that sampling reads, evaluations included: in the "compute"
      # dtype, or in "int8", which changes the policy: see loss.importance_cap.
      weights="compute",
      # Of keys and values: "float32", "bfloat16" or "int8"; unset takes the
      # compute dtype.
      cache_dtype=placeholder(str),
    )
  )


def engine() -> ConfigDict:
  """Continuous batching; see `pure_jax.rollout.engine.EngineConfig`."""
  return ConfigDict(
    dict(
      # Responses sampled at a time: a finished response frees its slot for a
      # prompt that waits. Unset samples each batch in one loop, until its last
      # response has ended.
      slots=placeholder(int),
      # Tokens between two moments at which finished responses free their slots.
      sync_interval=64,
    )
  )


def old_logp() -> ConfigDict:
  """Log-probs of the policy that sampled, which an update compares with."""
  return ConfigDict(
    dict(
      # "score" computes them with the policy, "sampled" takes the sampler's,
      # before filters.
      source="score",
      # "sampled" is checked in the first iteration, then once in this many.
      check_every=10,
      # The run ends if a checked token differs by more, in nats. Less than
      # log(1 + clip_high) and -log(1 - clip_low), so that no token is clipped
      # for this difference alone.
      tolerance=0.1,
    )
  )


def lora() -> ConfigDict:
  """Low-rank adapters; the matrices they are added to stay as they are."""
  return ConfigDict(
    dict(
      rank=0,  # Of an adapter; 0 has none and trains all weights.
      alpha=32.0,  # The product of its two factors counts alpha / rank.
      # Matrices of every layer that have adapters.
      targets=("query", "key", "value", "output", "gate", "up", "down"),
    )
  )


def optimizer(learning_rate: float, **changes) -> ConfigDict:
  """AdamW; see `pure_jax.training.optim.OptimConfig`.

  Args:
    learning_rate: of the weights.
    **changes: other fields that differ from the defaults here.

  Returns:
    The fields.
  """
  fields = dict(
    learning_rate=learning_rate,  # Of the weights, after warm-up.
    weight_decay=0.0,  # Decoupled, per update, times the learning rate.
    beta1=0.9,  # Decay of the first moment.
    beta2=0.95,  # Decay of the second moment.
    max_grad_norm=1.0,  # Gradients are scaled down to this global norm.
    warmup_steps=0,  # Updates of linear warm-up from 0.
    decay_steps=0,  # Updates of cosine decay to 0; 0 keeps the rate constant.
  )
  return ConfigDict(fields | changes)
