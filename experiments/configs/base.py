"""Every field of a run, with its unit. Other configs start from this one.

Groups mirror the library's configs: `rl.credit`, `rl.loss` and `rl.optim` have
the fields of `CreditConfig`, `LossConfig` and `OptimConfig`.

Clip range, KL coefficient, temperature and samples per prompt are the paper's
(arXiv 2504.15275). Sizes, learning rates and numbers of steps suit the embedded
world; other runs should override them.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
  """The fields and their defaults."""
  fields = dict(
    seed=0,  # Of weights, sampling and data order; the world has its own.
    progress=True,  # Progress bars on stderr.
    mesh=mesh(),
    kernels=kernels(),
    world=world(),
    model=model(),
    sft=sft(),
    # The user's models and data, which replace world, model and sft: files.py.
    files=placeholder(ConfigDict),
    prm=prm(),
    rl=rl(),
  )
  return ConfigDict(fields)


def mesh() -> dict:
  """The mesh; the number of devices is the product of the sizes."""
  return dict(
    data=1,  # Devices that split rows and copy parameters.
    fsdp=1,  # Devices that split rows, parameters and optimizer state.
    tensor=1,  # Devices that split heads, MLP and vocabulary.
    sequence=1,  # Devices that split the tokens of a row.
    rules="fsdp",  # "fsdp", "tensor", "fsdp+tensor" or "fsdp+sequence".
  )


def kernels() -> dict:
  """Kernels that replace XLA's operations; see kernels/README.md.

  No kernel has been timed on a TPU or GPU, so XLA is the default.
  """
  return dict(
    # Attention over whole texts, in every stage: "xla", "splash" on a TPU or
    # "cudnn" on a GPU; the last two replace attention_chunk.
    attention="xla",
    # Attention of new tokens over the cache, in rollouts: "xla", or "pallas"
    # on a TPU.
    decode_attention="xla",
    # The policy's head in updates and scores: "xla", or "pallas" on a TPU,
    # which replaces logits_chunk.
    logp="xla",
    interpret=False,  # Interprets Pallas kernels on any device, slowly.
  )


def world() -> dict:
  """The embedded world of chained additions and subtractions."""
  return dict(
    seed=0,  # Seed of problems and demonstrations.
    min_operations=3,  # The fewest operations of a problem.
    max_operations=5,  # The most operations of a problem.
    operand_max=5,  # Operands are 1..operand_max.
    value_max=20,  # True intermediate values stay in 0..value_max.
    slip_rate=0.07,  # Per step, probability of a slightly wrong result.
    wrong_operand_rate=0.04,  # Per step, probability of a wrong operand.
    skip_rate=0.05,  # Per demonstration, probability of no equations.
    # Per demonstration, probability that the first "-" is read as "+".
    misconception_rate=0.7,
    # Per step, probability of a sentence before it that does nothing.
    vacuous_rate=0.15,
  )


def model() -> dict:
  """A Qwen2-style decoder. The vocabulary comes from the tokenizer."""
  return dict(
    width=64,  # Width of the residual stream.
    num_layers=3,  # Decoder layers.
    num_heads=4,  # Query heads.
    num_kv_heads=2,  # Key and value heads; divides num_heads.
    head_dim=16,  # Width of a head; even.
    mlp_width=192,  # Hidden size of the gated MLP.
    rope_theta=10_000.0,  # Base of the rotary frequencies.
    attention_bias=True,  # Biases on queries, keys and values.
    tied_embeddings=True,  # The embedding matrix computes the logits.
    # Dtype of matrix products: "float32", "bfloat16", or "auto", which is
    # bfloat16 on accelerators and float32 on CPUs. Weights, optimizer and
    # reductions are float32.
    compute_dtype="auto",
  )


def sft() -> dict:
  """Supervised start on demonstrations."""
  return dict(
    demonstrations=30_000,  # Demonstrations of the train split.
    steps=800,  # Updates.
    batch_size=64,  # Responses.
    log_every=50,  # Updates between metric rows.
    optim=optimizer(2e-3, warmup_steps=50, decay_steps=1_000),
  )


def prm() -> dict:
  """Process reward model; stage 1 trains the head, stage 2 all parameters."""
  return dict(
    extra_layers=1,  # Layers on the policy's trunk, initially the identity.
    labelled=40_000,  # Responses written for labelling.
    policy_prompts=1_500,  # Prompts whose samples are labelled as well.
    policy_samples=8,  # Sampled responses for each of these prompts.
    batch_size=64,  # Responses; 128 in the paper.
    head_steps=100,  # Updates of the first stage.
    full_steps=2_000,  # Updates of the second stage.
    log_every=50,  # Updates between metric rows.
    length_multiple=48,  # Responses are padded to a multiple of this, tokens.
    eval_prompts=256,  # Held-out prompts on which the PRM is evaluated.
    evaluate_head=False,  # Evaluates the PRM after the first stage as well.
    score=score(),
    head_optim=optimizer(1e-3, weight_decay=0.1),  # Of the first stage.
    full_optim=optimizer(  # Of the second stage.
      1e-3, weight_decay=0.1, warmup_steps=50, decay_steps=2_000
    ),
    lora=lora(),  # Of the second stage, which also trains the head.
  )


def score() -> dict:
  """How responses are cut into steps and scored by the PRM, in every stage."""
  return dict(
    max_steps=12,  # Steps of a response; the rest is merged into the last.
    # Where the PRM scores a step: "insert" adds a token after each step,
    # "replace" overwrites the separator, as the paper's reference does.
    separator="insert",
    # RL gives an empty step this reward, in [-1, 1], instead of the PRM's
    # score; unset keeps the score.
    empty_step_reward=placeholder(float),
  )


def rl() -> dict:
  """Reinforcement learning."""
  return dict(
    iterations=100,  # Each has a rollout, scores and its updates.
    prompts=32,  # Prompts of an iteration; 64 in the paper.
    samples_per_prompt=8,  # Responses to each prompt (G of credit).
    # If both rewards are used: the share of prompts whose answer may be used.
    # None uses the answer of every prompt whose source gives one.
    answer_fraction=0.1,
    credit=credit(),
    loss=loss(),
    sampler=sampler(max_new_tokens=48),
    rollout=rollout(),
    engine=engine(),
    old_logp=old_logp(),
    updates=updates(),
    # Adapts the coefficient of the KL penalty after each iteration, starting
    # from credit.kl_coef or loss.kl_coef, whichever penalty there is. Unset
    # keeps it. target: nats per token; horizon: responses.
    # --config.rl.adaptive_kl="{'target': 0.1, 'horizon': 10000}"
    adaptive_kl=placeholder(ConfigDict),
    critic=critic(),
    # Micro-batches in which a batch is scored and differentiated. Mini-batches
    # of fewer responses than one of these are differentiated at once.
    micro_batches=1,
    # Number of row lengths to compile: the longest that a text can be, half
    # of it, a quarter, and so on.
    length_buckets=1,
    # Tokens of a row that several texts share; more if a single text needs
    # them. Unset gives each text its own row. Empty micro-batches cost no
    # time, so packing saves time only with several micro-batches.
    packed_tokens=placeholder(int),
    # Layouts of the other models, on the devices of `mesh`; None takes the
    # layout of `mesh`. The dict needs only fields that are not 1 or "fsdp":
    # --config.rl.rollout_mesh="{'data': 4, 'tensor': 2, 'rules': 'tensor'}"
    rollout_mesh=placeholder(ConfigDict),  # Of the policy while it samples.
    reference_mesh=placeholder(ConfigDict),  # Of the reference policy.
    prm_mesh=placeholder(ConfigDict),  # Of the PRM.
    optim=optimizer(3e-4),
    lora=lora(),  # Of the policy; the reference has no adapters.
    eval_every=10,  # Iterations between evaluations.
    eval_prompts=256,  # Held-out prompts of an evaluation.
    samples_every=10,  # Iterations between printed samples.
    checkpoint_every=10,  # Iterations between checkpoints.
    checkpoints_kept=2,  # The latest ones; the best one is kept too.
    # After this many consecutive updates that are not finite, the run saves
    # state and batch and stops. This applies to the supervised stages too.
    max_skipped_updates=5,
  )


def credit() -> dict:
  """How rewards become advantages; see `pure_jax.settings.CreditConfig`.

  Two of its fields follow from others: group_size is samples_per_prompt, and
  baseline_length is sampler.max_new_tokens.
  """
  return dict(
    # "sum", "mean", "min", "min_eq3", "softmin" or "min_dense".
    form="min",
    temperature=0.1,  # Temperature of softmin (Eq. 5), in units of reward.
    discount=1.0,  # Per step, in 0..1; values below 1 need "sum".
    # "paper_a", "paper_b", "main", "step", "grpo" or "none"; "gae" trains a
    # critic and needs fold_verifiable.
    baseline="main",
    # Weight of later TD errors in "gae", in 0..1: 1 is the sum to go minus the
    # value, 0 the TD error.
    gae_lambda=1.0,
    # Whether "main" counts the token that ends a step among its tokens.
    count_step_end=True,
    process_coef=1.0,  # Weight of the step rewards; 0 leaves the PRM out.
    verifiable_coef=1.0,  # Weight of the outcome reward; 0 leaves it out.
    verifiable_estimator="rloo",  # "rloo", "grpo" or "none".
    # Adds the outcome to the reward of the last token; all rewards then have
    # one baseline.
    fold_verifiable=False,
    # Estimator of the KL penalty to the reference policy in the reward: "k1",
    # "k2" or "k3"; None has no penalty.
    kl_in_reward=placeholder(str),
    kl_coef=1e-3,  # Weight of that penalty, per nat.
    kl_limit=placeholder(float),  # Clips it per token, nats; None is off.
    # Whitens advantages over the batch's "tokens", or as "reference_main" does,
    # with its faults; or "none".
    whitening="tokens",
    zero_terminal_advantage=False,  # True: none on separators and EOS.
    # True: none on the last token of a truncated response.
    zero_truncated_end=False,
    exclude_empty_steps=False,  # Treats steps without content as absent.
  )


def loss() -> dict:
  """The clipped loss; see `pure_jax.settings.LossConfig`."""
  return dict(
    clip_low=0.2,  # The ratio is clipped below at 1 - clip_low.
    clip_high=0.2,  # The ratio is clipped above at 1 + clip_high.
    aggregate="token_mean",  # Or "sequence_mean", "constant_length".
    # "constant_length" divides a response's sum by this many tokens; None for
    # the other two.
    constant_length=placeholder(int),
    # Estimator of the KL penalty to the reference policy in the loss: "k1",
    # "k2" or "k3"; None has no penalty.
    kl_in_loss="k3",
    kl_coef=1e-3,  # Weight of that penalty, per nat.
    entropy_coef=0.0,  # Weight of the entropy bonus, per nat.
    # Cap of a token's importance weight, policy over sampler, for rollouts in
    # int8 or bfloat16; None gives all tokens the same weight.
    importance_cap=placeholder(float),
    # Clips the penalty of the loss per token, nats; a clipped token gets no
    # gradient from it. None is off.
    kl_limit=10.0,
    # Clips log(policy / old policy), nats; a clipped token gets no gradient
    # from its ratio. None is off.
    log_ratio_limit=20.0,
    # Bounds the loss of a token with a negative advantage at this multiple of
    # it (verl has 3); None is off.
    dual_clip=placeholder(float),
    # The loss of a micro-batch is 0 if its mean ratio exceeds this (TRL has
    # 10); None is off.
    ratio_guard=placeholder(float),
  )


def sampler(max_new_tokens: int) -> dict:
  """How responses are drawn; see `pure_jax.rollout.sampling.SamplingConfig`."""
  return dict(
    max_new_tokens=max_new_tokens,  # Tokens; a longer response is truncated.
    temperature=1.0,  # Divides the logits.
    top_p=1.0,  # Keeps the likeliest tokens up to this probability.
    top_k=0,  # Keeps this many likeliest tokens; 0 keeps all.
    min_p=0.0,  # Drops tokens below this share of the top probability; 0: off.
  )


def rollout() -> dict:
  """Precision, batches and stops of rollouts."""
  return dict(
    stop_on_boxed=False,  # True: a complete \boxed{...} ends a response.
    # Number of batches in which an iteration is sampled, one after the other.
    # More batches need less memory and more time.
    batches=1,
    # Dtype of the matrices in sampling, evaluations included: the "compute"
    # dtype, or "int8", which changes the policy: see loss.importance_cap.
    weights="compute",
    # Dtype of keys and values: "float32", "bfloat16" or "int8"; unset is the
    # compute dtype.
    cache_dtype=placeholder(str),
  )


def engine() -> dict:
  """Continuous batching; see
  `pure_jax.rollout.engine_programs.EngineConfig`."""
  return dict(
    # Responses sampled at a time: a finished response frees its slot for a
    # waiting prompt. Unset samples each batch in one loop, until its last
    # response has ended.
    slots=placeholder(int),
    # Host sync interval, in tokens: finished responses then free their slots.
    sync_interval=64,
  )


def old_logp() -> dict:
  """Log-probs of the policy before the update, pi_old of the ratio."""
  return dict(
    # "score" computes them with the policy, "sampled" uses the sampler's
    # log-probs before top-k, top-p and min-p.
    source="score",
    # With "sampled", the policy checks them in the first iteration and then
    # once in this many.
    check_every=10,
    # The run ends if a checked log-prob differs by more than this, in nats.
    # Keep it below log(1 + clip_high) and -log(1 - clip_low), so that this
    # difference alone clips no token.
    tolerance=0.1,
  )


def updates() -> dict:
  """The updates of an iteration. Advantages and old log-probs are the same.

  Schedules of the optimizer count updates, not iterations.
  """
  return dict(
    # Mini-batches that the responses are divided into; each gives one update.
    mini_batches=1,
    epochs=1,  # How often the updates go over all responses.
    # Draws other mini-batches in every epoch; False takes the responses in
    # their order, so that all samples of a prompt are in one mini-batch if it
    # has as many.
    shuffle=False,
  )


def critic() -> dict:
  """The critic of credit.baseline="gae"; other baselines read none of it.

  It starts as the policy with a head of zeros, in the policy's layout, and is
  updated as often as the policy, on the same mini-batches.
  """
  return dict(
    optim=optimizer(1e-3),
    # A value may move by this much from the one that the advantages were made
    # of, in units of reward; None is off. It has no effect on a single update.
    value_clip=0.2,
    # The first iterations train the critic and not the policy.
    warmup_iterations=0,
  )


def lora() -> dict:
  """Low-rank adapters; the matrices below them are frozen."""
  return dict(
    rank=0,  # Rank of an adapter; 0 trains all weights, without adapters.
    alpha=32.0,  # The product of the two factors is scaled by alpha / rank.
    # Matrices of every layer that have adapters.
    targets=("query", "key", "value", "output", "gate", "up", "down"),
  )


def optimizer(learning_rate: float, **changes) -> dict:
  """AdamW; see `pure_jax.training.optim.OptimConfig`."""
  defaults = dict(
    learning_rate=learning_rate,  # Of the weights, after warm-up.
    weight_decay=0.0,  # Decoupled, per update, times the learning rate.
    beta1=0.9,  # Decay of the first moment.
    beta2=0.95,  # Decay of the second moment.
    max_grad_norm=1.0,  # Gradients are scaled down to this global norm.
    warmup_steps=0,  # Updates of linear warm-up from 0.
    decay_steps=0,  # Updates of cosine decay to 0; 0 keeps the rate constant.
  )
  return defaults | changes
