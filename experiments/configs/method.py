"""The groups `credit` and `loss` of RL: every field with its unit."""

from ml_collections.config_dict import placeholder


def credit() -> dict:
  """How rewards become advantages; see `pure_jax.settings.CreditConfig`.

  Its group_size follows from samples_per_prompt.
  """
  return dict(
    # "sum", "mean", "min", "min_eq3", "softmin" or "min_dense".
    form="min",
    temperature=0.1,  # Temperature of softmin (Eq. 5), in units of reward.
    discount=1.0,  # Per step, in 0..1; values below 1 need "sum".
    # "paper_a", "paper_b", "main", "step", "grpo" or "none"; "gae" trains a
    # critic and needs fold_verifiable.
    baseline="main",
    # N of "paper_a" and "paper_b", tokens; None: sampler.max_new_tokens.
    baseline_length=placeholder(int),
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
    # Clips that penalty per token, nats; None is off.
    kl_limit=placeholder(float),
    # "tokens" whitens advantages over the tokens of the batch, "reference_main"
    # does so with the faults of that branch, "none" does not.
    whitening="tokens",
    # True: separators and EOS get no advantage.
    zero_terminal_advantage=False,
    # True: the last token of a truncated response gets no advantage.
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
    # Clips the KL penalty of the loss per token, nats; a clipped token gets no
    # gradient from it. None is off.
    kl_limit=10.0,
    # Clips log(policy / old policy), nats; a clipped token gets no gradient
    # from its ratio. None clips only above 60.
    log_ratio_limit=20.0,
    # Bounds the loss of a token with a negative advantage at this multiple of
    # it (verl has 3); None is off.
    dual_clip=placeholder(float),
    # Loss and gradients of an update are 0 if the mean ratio of its tokens, all
    # micro-batches together, exceeds this (TRL has 10); None is off.
    ratio_guard=placeholder(float),
  )
