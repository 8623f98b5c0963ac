"""Every field of a run, with its unit. Other configs start from this one.

The groups `rl.credit` and `rl.loss` are in method.py, `rl.alarms` in alarms.py,
`files` in files.py.
Groups mirror the library's configs: `rl.credit`, `rl.loss` and `rl.optim` have
the fields of `CreditConfig`, `LossConfig` and `OptimConfig`.

Clip range, KL coefficient, temperature and samples per prompt are the paper's
(arXiv 2504.15275). Sizes, learning rates and numbers of steps suit the embedded
world; other runs should override them.
"""

from configs import alarms, method
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from pure_jax.runs.settings.checks import ConfigError


def get_config() -> ConfigDict:
  """The fields and their defaults."""
  fields = dict(
    # Of weights, sampling and data order, below 2**32; the world has its own.
    seed=0,
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


def check_variant(variant: str, *allowed: str) -> None:
  """Raises ConfigError, with the variants of a config, for any other text."""
  if variant in allowed:
    return
  *others, last = map(repr, allowed)
  names = f"Variants are {', '.join(others)} and {last}"
  if not others:
    names = f"The only variant is {last}"
  raise ConfigError(f"{names}, not {variant!r}.")


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
    max_operations=5,  # The most operations of a problem, at most 1,000.
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
    # Share of the labelled responses of which a shorter copy is added, which
    # ends too early and whose last step is labelled bad. Needs score.read_end.
    early_ends=0.0,
    # Folder for the states of the trunk that the first stage trains on, in the
    # workdir unless the path is absolute. Each is computed once, and once only
    # for all runs that share the folder. Unset computes the trunk in each
    # update.
    trunk_states=placeholder(str),
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
    # What the PRM reads: "insert" adds a score token after each step,
    # "replace" overwrites the separator, as the paper's reference does in RL,
    # "each" encodes every step by itself, as TRL did to train the paper's PRM.
    separator="insert",
    # RL gives an empty step this reward, in [-1, 1], instead of the PRM's
    # score; unset keeps the score.
    empty_step_reward=placeholder(float),
    # True: the PRM reads EOS before the last score, so that it can learn that
    # an end comes too early (prm.early_ends). Needs separator="insert".
    read_end=False,
  )


def rl() -> dict:
  """Reinforcement learning."""
  return dict(
    iterations=100,  # Each has a rollout, scores and its updates.
    prompts=32,  # Prompts of an iteration; 64 in the paper.
    samples_per_prompt=8,  # Responses to each prompt (G of credit).
    # The share of prompts whose answer may be used if both rewards are used,
    # or by online_prm.
    # None uses the answer of every prompt whose source gives one.
    answer_fraction=0.1,
    credit=method.credit(),
    loss=method.loss(),
    sampler=sampler(max_new_tokens=48),
    rollout=rollout(),
    engine=engine(),
    old_logp=old_logp(),
    updates=updates(),
    # Adapts the coefficient of the KL penalty after each iteration, starting
    # from credit.kl_coef or loss.kl_coef, that of the penalty in use. Unset
    # keeps it constant. target: nats per token; horizon: responses.
    # --config.rl.adaptive_kl="{'target': 0.1, 'horizon': 10000}"
    adaptive_kl=placeholder(ConfigDict),
    critic=critic(),
    # Micro-batches in which a batch is scored and differentiated. Those of a
    # mini-batch are no larger.
    micro_batches=1,
    # Number of row lengths to compile: the longest that a text can be, half
    # of it, a quarter, and so on. Where samples share a prompt in packed rows,
    # packed_tokens and shorter rows in equal steps. A batch takes the shortest
    # that holds its texts.
    length_buckets=1,
    # Tokens of a row that several texts share; more if a single text needs
    # them. Unset gives each text its own row. Empty micro-batches cost no
    # time, so packing saves time only with several micro-batches. In a row
    # with room for the longest prompt and all of its longest responses, the
    # prompt is read once for all of them.
    packed_tokens=placeholder(int),
    # Layouts of the other models, on the devices of `mesh`; None takes the
    # layout of `mesh`. The dict needs only fields that are not 1 or "fsdp":
    # --config.rl.rollout_mesh="{'data': 4, 'tensor': 2, 'rules': 'tensor'}"
    rollout_mesh=placeholder(ConfigDict),  # Of the policy while it samples.
    reference_mesh=placeholder(ConfigDict),  # Of the reference policy.
    prm_mesh=placeholder(ConfigDict),  # Of the PRM.
    optim=optimizer(3e-4),
    lora=lora(),  # Of the policy; the reference has no adapters.
    # After this many consecutive updates that are not finite, the run saves
    # state and batch and stops. This applies to the supervised stages too.
    max_skipped_updates=5,
    alarms=alarms.alarms(),
    online_prm=online_prm(),
    **reports(),
  )


def reports() -> dict:
  """Evaluations, samples and checkpoints of RL."""
  return dict(
    eval_every=10,  # Iterations between evaluations.
    eval_prompts=256,  # Held-out prompts of an evaluation.
    # Longest response to a problem of files.benchmarks, tokens; None:
    # sampler.max_new_tokens.
    benchmark_new_tokens=placeholder(int),
    # Responses drawn at temperature 1 for each problem of files.benchmarks,
    # besides the greedy one; 0 draws none.
    benchmark_samples=0,
    # Metric of evaluations whose best checkpoint is kept. None: the average
    # over files.benchmarks if there are any, else the held-out accuracy.
    best_metric=placeholder(str),
    # Rows of the table of generations that every evaluation writes, for the
    # held-out problems and for each of files.benchmarks; 0 writes none.
    generations=4,
    # What the repetition of a response counts: "characters" of its text, like
    # the paper's code, or "tokens".
    repetition_unit="characters",
    samples_every=10,  # Iterations between printed samples.
    checkpoint_every=10,  # Iterations between checkpoints.
    checkpoints_kept=2,  # The latest ones; the best one is kept too.
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
    # True: the first \boxed{...} with content ends a response.
    stop_on_boxed=False,
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
    # log-probs before top-k, top-p and min-p, "update" those of the update
    # itself, which are the same if a rollout has a single update. The last two
    # without a KL penalty leave out the reference policy and kl_reference.
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
  """The updates of an iteration, all of the same advantages and old log-probs.

  Schedules of the optimizer count updates, not iterations.
  """
  return dict(
    # Mini-batches that the responses are divided into; each gives one update.
    mini_batches=1,
    epochs=1,  # How often the updates go over all responses.
    # True: every epoch draws its mini-batches at random. False: they are
    # consecutive responses, which keeps the samples of a prompt together.
    shuffle=False,
  )


def critic() -> dict:
  """The critic of credit.baseline="gae"; other baselines read none of it.

  It starts as the policy with a head of zeros, has the policy's layout, and is
  updated as often as the policy, on the same mini-batches.
  """
  return dict(
    optim=optimizer(1e-3),
    # The value loss is clipped if a value moves further than this from the one
    # before the updates, in units of reward; None is off. The first update of
    # an iteration is never clipped.
    value_clip=0.2,
    warmup_iterations=0,  # First iterations, which train only the critic.
  )


def online_prm() -> dict:
  """Updates of the PRM on rollouts, during RL; all of its weights."""
  return dict(
    # Iterations between updates, each on the rollout that was scored last;
    # unset leaves the PRM as it is.
    every=placeholder(int),
    # "steps": of a checker, the embedded world's or that of the equations in a
    # text. "verdicts": the worst step of a response is good if the answer is
    # right, bad if not, for rl.answer_fraction of the prompts.
    labels="verdicts",
    optim=optimizer(1e-4),
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
    # Decoupled, per update, times the learning rate; not of norms and biases.
    weight_decay=0.0,
    beta1=0.9,  # Decay of the first moment.
    beta2=0.95,  # Decay of the second moment.
    max_grad_norm=1.0,  # Gradients are scaled down to this global norm.
    warmup_steps=0,  # Updates of linear warm-up from 0.
    # Updates until the rate has decayed to 0, warm-up included, and not fewer
    # than the stage has; 0 keeps the rate constant.
    decay_steps=0,
    decay="cosine",  # Shape of that decay: "cosine" or "linear".
  )
  return defaults | changes
