"""Faults of scores, updates and packed rows."""

from faults import Fault

FAULTS = (
  Fault(
    "norms decay",
    "models.params:declare_layers",
    "weight(letter, ONES, keep_dtype=True, decays=False)",
    "weight(letter, ONES, keep_dtype=True)",
    ("test_optim.py::test_weights_that_are_declared_so_do_not_decay",),
  ),
  Fault(
    "the optimizer ignores which weights decay",
    "training.optim:make_optimizer",
    "None if declared is None else decaying(declared)",
    "None",
    (
      "test_optim.py::test_weights_that_are_declared_so_do_not_decay",
      "test_optim.py::"
      "test_updates_equal_those_of_torch_with_two_groups_of_parameters",
    ),
  ),
  Fault(
    "a schedule may end before its stage",
    "training.optim:OptimConfig.check_updates",
    "0 < self.decay_steps < updates",
    "updates < 0",
    (
      "test_optim.py::test_the_rate_is_above_0_in_every_update_of_a_stage",
      "test_rl_settings.py::"
      "test_a_schedule_counts_the_updates_of_every_mini_batch",
    ),
  ),
  Fault(
    "the critic's update divides each micro-batch by its own count",
    "training.critic:_gradients",
    "rollout.completion_mask, denominator, )",
    "rollout.completion_mask, None, )",
    ("test_critic_updates.py::test_four_micro_batches_equal_one_batch",),
  ),
  Fault(
    "the update is given no values of the critic",
    "training.train:experience_from",
    "values=batch.values,",
    "values=batch.scores.old_logp,",
    (
      "test_critic_updates.py::test_metrics_are_those_of_the_batch_before_and_of_the_update",
    ),
  ),
  Fault(
    "the update divides each micro-batch by its own count",
    "training.passes:_row_gradients",
    "*(spec.loss, denominator, kl_coef, token_count)",
    "*(spec.loss, None, kl_coef, token_count)",
    ("test_train.py::test_four_micro_batches_equal_one_batch",),
  ),
  Fault(
    "the guard compares a mean with the denominator of the loss",
    "training.passes:_batch_counts",
    "return losses.loss_denominator(mask, config), token_count",
    "return (losses.loss_denominator(mask, config),) * 2",
    (
      "test_guard.py::test_micro_batches_and_packed_rows_are_guarded_as_one_batch",
    ),
  ),
  Fault(
    "the guard sees the loss and not the gradients",
    "training.passes:policy_gradients",
    "(loss, grads), metrics = ratios.apply_guard( (loss, grads),",
    "loss, metrics = ratios.apply_guard( loss,",
    (
      "test_guard.py::test_micro_batches_and_packed_rows_are_guarded_as_one_batch",
    ),
  ),
  Fault(
    "the mini-batches of an epoch mix the orders of several",
    "training.mini_batches:rows_of_updates",
    "order.T.reshape(",
    "order.reshape(",
    ("test_updates.py::test_updates_of_two_epochs_are_those_of_a_loop",),
  ),
  Fault(
    "skips that a good mini-batch follows are not reported",
    "training.mini_batches:join_updates",
    "maxima=jax.tree.map(jnp.max, metrics.maxima)",
    "maxima=jax.tree.map(lambda x: x[-1], metrics.maxima)",
    (
      "test_updates.py::test_a_mini_batch_that_is_not_finite_is_skipped_by_itself",
    ),
  ),
  Fault(
    "credit ignores the adapted KL coefficient",
    "training.train:_update",
    "experience, spec.credit, state.kl_coef",
    "experience, spec.credit, None",
    (
      "test_updates.py::test_the_kl_coefficient_is_that_of_the_state_and_follows_the_kl",
    ),
  ),
  Fault(
    "the loss ignores the adapted KL coefficient",
    "training.train:_update",
    "spec, state.params, base, *data, rows, state.kl_coef",
    "spec, state.params, base, *data, rows, None",
    (
      "test_updates.py::test_the_kl_coefficient_is_that_of_the_state_and_follows_the_kl",
    ),
  ),
  Fault(
    "the KL coefficient stays as it was",
    "training.train:_update",
    "state.replace(kl_coef=kl_coef)",
    "state",
    (
      "test_updates.py::test_the_kl_coefficient_is_that_of_the_state_and_follows_the_kl",
    ),
  ),
  Fault(
    "the update ignores the banned ids",
    "training.passes:rollout_logp",
    "banned_ids=sampler.banned_ids,",
    "banned_ids=(),",
    ("test_train.py::test_at_the_first_iteration_ratios_are_1_and_kl_is_0",),
  ),
  Fault(
    "the update ignores the temperature",
    "training.passes:rollout_logp",
    "temperature=sampler.temperature or 1.0,",
    "temperature=1.0,",
    ("test_train.py::test_the_update_reads_the_sampled_distribution",),
  ),
  Fault(
    "importance weights compare the policy with itself",
    "training.train:experience_from",
    "sampled_logp=rollout.sampled_logp,",
    "sampled_logp=scores.old_logp,",
    ("test_importance.py::test_the_update_is_given_what_the_sampler_said",),
  ),
  Fault(
    "a check of the sampler changes the old log-probs",
    "training.score:make_checked_score",
    "scores.replace(old_logp=rollout.full_logp), drift",
    "scores, drift",
    ("test_score.py::test_a_check_finds_a_sampler_that_is_off_at_one_token",),
  ),
  Fault(
    "the reference is read without a KL penalty",
    "training.score:make_sampled_score",
    "reference if spec.penalizes_kl else None",
    "reference",
    ("test_score.py::test_without_a_kl_penalty_only_the_prm_is_read",),
  ),
  Fault(
    "samples that share a prompt attend to each other",
    "models.transformer:attention_mask",
    "same &= (of_keys == 0) | (of_keys == of_queries)",
    "same &= of_keys >= 0",
    ("test_packed.py::test_samples_that_share_their_prompt_equal_unpacked",),
  ),
  Fault(
    "a token after a shared prompt is read from its own hidden state",
    "training.packing:read_micro_batch",
    "jnp.where(is_completion, source - 1, -1)",
    "jnp.where(is_completion, source, -1)",
    ("test_packed.py::test_samples_that_share_their_prompt_equal_unpacked",),
  ),
  Fault(
    "shuffled mini-batches share prompts that are not theirs",
    "runs.rl.functions:update_rows",
    "samples = 1",
    "pass",
    (
      "test_row_lengths.py::test_samples_share_a_prompt_where_a_row_holds_them",
    ),
  ),
  Fault(
    "texts of a packed row attend to each other",
    "training.packing:read_micro_batch",
    "segment_ids=jnp.where(is_token, text // packing.samples + 1, 0),",
    "segment_ids=is_token.astype(jnp.int32),",
    ("test_packed.py::test_packed_equals_unpacked",),
  ),
  Fault(
    "positions are not reset between the texts of a row",
    "training.packing:read_micro_batch",
    "positions=gather(packing.ranks, source, act_sharding),",
    "positions=positions_from_mask(is_token),",
    ("test_packing.py::test_rows_hold_whole_texts_one_after_the_other",),
  ),
  Fault(
    "a text that does not fit overwrites others",
    "training.packing:pack",
    "fits = jnp.all(lengths <= W)",
    "fits = jnp.all(lengths >= 0)",
    ("test_packing.py::test_a_text_that_does_not_fit_gives_nan",),
  ),
  Fault(
    "the last micro-batch of packed rows is skipped",
    "training.packing:pack",
    "(last_row // R + 1)",
    "jnp.maximum(last_row // R, 1)",
    (
      "test_packed.py::test_packed_equals_unpacked",
      "test_packing.py::test_rows_hold_whole_texts_one_after_the_other",
    ),
  ),
  Fault(
    "packed rows ignore the sampler's log-probs",
    "training.passes:_packed_gradients",
    "sampled_logp = take(experience.sampled_logp)",
    "sampled_logp = take(experience.old_logp)",
    (
      "test_importance.py::test_micro_batches_and_packed_rows_weigh_as_one_batch",
    ),
  ),
  Fault(
    "samples share prompts in rows that the devices cannot split",
    "training.row_choice:share_prompts",
    "and min(shape.rows, texts // k) % shards == 0",
    "",
    (
      "test_row_lengths.py"
      "::test_samples_share_a_prompt_only_in_rows_that_devices_can_split",
    ),
  ),
  Fault(
    "every batch goes to the widest rows",
    "training.row_choice:choose",
    "for rows, function in compiled.items():",
    "for rows, function in reversed(compiled.items()):",
    ("test_packing.py::test_a_batch_goes_to_the_narrowest_rows_that_hold_it",),
  ),
  Fault(
    "steps are encoded with the separator behind them",
    "host.text.tokenization:encode_each_step",
    "[*tokenizer.encode(step), *score_ids]",
    "[*tokenizer.encode(step + SEPARATOR)[:-1], *score_ids]",
    ("test_each_step.py::test_only_this_mode_keeps_the_ids_of_a_step",),
  ),
  Fault(
    "no text begins with the beginning token",
    "host.text.tokenization:encode_each_step",
    "tokenizer.bos_id is not None and",
    "False and",
    ("test_each_step.py::test_ids_and_labels_are_those_of_trls_trainer",),
  ),
  Fault(
    "the separators inside the last step are lost",
    "host.text.tokenization:merge_overflow",
    "SEPARATOR.join(steps[last:])",
    '"".join(steps[last:])',
    (
      "test_separate_steps.py"
      "::test_every_step_of_a_response_is_scored_and_no_other",
    ),
  ),
  Fault(
    "a step that does not fit is scored at another token",
    "host.data.batches:pad_prm_texts",
    "score_mask[row, :fits] = True",
    "score_mask[row, :count] = True",
    (
      "test_each_step.py"
      "::test_a_step_that_does_not_fit_has_no_score_and_none_of_another_step",
    ),
  ),
  Fault(
    "a step that does not fit has the reward 0",
    "steps:read_step_rewards",
    "-jnp.ones_like(rewards)",
    "jnp.zeros_like(rewards)",
    ("test_each_step.py::test_an_unread_step_gets_the_worst_reward",),
  ),
  Fault(
    "labelled solutions are limited without their score tokens",
    "host.text.tokenization:PRMText.num_response_tokens",
    "sum(map(len, self.steps))",
    "sum(map(len, self.steps)) - len(self.steps)",
    (
      "test_each_step.py"
      "::test_labelled_solutions_are_limited_and_batched_with_their_scores",
    ),
  ),
  Fault(
    "an update that overflows is applied",
    "training.train:apply_gradients",
    "& _finite(updated())",
    "",
    (
      "test_finite_updates.py::test_an_update_that_overflows_is_skipped_and_counted",
    ),
  ),
  Fault(
    "the guard sees the weights and not the moments",
    "training.train:apply_gradients",
    "_finite(updated())",
    "_finite(updated()[0])",
    (
      "test_finite_updates.py::test_an_update_that_overflows_is_skipped_and_counted",
    ),
  ),
  Fault(
    "an online PRM learns from the best step of a response",
    "training.online_prm:label_worst_steps",
    "jnp.argmin(rewards, axis=1)",
    "jnp.argmax(rewards, axis=1)",
    ("test_online_prm.py::test_the_worst_step_gets_the_verdict",),
  ),
  Fault(
    "micro-batches of an online PRM weigh the same, whatever their labels",
    "training.online_prm:make_prm_update",
    'metrics["labelled_steps"] / jnp.maximum(count, 1)',
    "len(labels) / len(rollout.tokens)",
    ("test_online_prm.py::test_an_update_is_one_of_the_prms_training",),
  ),
  Fault(
    "an online PRM without labels decays",
    "training.online_prm:make_prm_update",
    "count > 0",
    "count >= 0",
    ("test_online_prm.py::test_without_a_labelled_step_nothing_moves",),
  ),
)
