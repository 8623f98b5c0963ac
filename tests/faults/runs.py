"""Faults of runs: loops, rows of texts, evaluations, plans."""

from faults import Fault

FAULTS = (
  Fault(
    "skipped updates of the critic do not end a loop",
    "runs.loop:StopConditions._too_many_skipped",
    '("critic_skipped_in_a_row", self.critic_updates)',
    '("skipped_in_a_row", self.updates)',
    (
      "test_critic_runs.py::test_skipped_updates_of_the_critic_alone_stop_the_run",
    ),
  ),
  Fault(
    "the warm-up of the critic trains the policy",
    "runs.rl.functions:RLFunctions.update",
    "if value is None or iteration > warmup:",
    "if True:",
    (
      "test_critic_runs.py::test_the_critic_moves_and_the_policy_starts_after_the_warm_up",
    ),
  ),
  Fault(
    "skipped updates do not end a loop",
    "runs.loop:StopConditions.reason",
    "if too_many:",
    "if False:",
    (
      "test_supervised.py::test_a_stage_stops_at_the_update_that_is_one_too_many",
    ),
  ),
  Fault(
    "a run with fewer updates than end a loop ends on none",
    "runs.loop:StopConditions._too_many_skipped",
    "min(most, updates)",
    "most",
    (
      "test_supervised.py::test_a_run_stops_when_as_many_updates_as_it_has_were_skipped",
    ),
  ),
  Fault(
    "every iteration draws the same mini-batches",
    "runs.spec:RunSpec.mini_batch_order",
    "RandomStream.MINI_BATCHES.value, iteration)",
    "RandomStream.MINI_BATCHES.value, 1)",
    (
      "test_rl_settings.py::test_mini_batches_take_every_response_once_in_an_order_of_their_own",
    ),
  ),
  Fault(
    "a plan counts one epoch of updates",
    "runs.planning.estimates:model_flops",
    "3 * policy * spec.step.epochs",
    "3 * policy",
    ("test_plan_updates.py::test_every_epoch_needs_the_flops_of_an_update",),
  ),
  Fault(
    "a stage that ended on skipped updates is finished",
    "runs.loop:StopConditions.check_resumed",
    "step >= self.total and too_many",
    "False",
    (
      "test_supervised.py::test_a_stage_without_any_update_stops_however_short_it_is",
    ),
  ),
  Fault(
    "a resumed stage starts again with the first batch",
    "runs.loop:StageCheckpoints.resume",
    'cursor = Cursor(**restored.extra["cursor"])',
    "cursor = Cursor(self._seed)",
    (
      "test_supervised.py::test_sigterm_saves_the_current_step_and_the_stage_resumes_exactly",
    ),
  ),
  Fault(
    "every batch goes to the narrowest rows",
    "runs.rl.functions:_choose",
    "np.asarray(jax.device_get(lengths))",
    "0 * np.asarray(jax.device_get(lengths))",
    (
      "test_row_lengths.py::test_the_longest_text_of_a_batch_chooses_the_function",
    ),
  ),
  Fault(
    "held-out prompts are measured as if samples shared them",
    "runs.rl.functions:RLFunctions.score_held_out",
    ", samples=1",
    "",
    (
      "test_row_lengths.py::test_responses_to_other_prompts_are_measured_one_by_one",
    ),
  ),
  Fault(
    "samples that share a prompt are measured one by one",
    "training.row_choice:make_measure",
    "own.reshape(-1, samples).sum(1)",
    "own[::samples]",
    (
      "test_row_lengths.py::test_prompts_are_measured_with_the_samples_that_share_them",
    ),
  ),
  Fault(
    "an update says nothing about the drift of the sampler",
    "training.passes:_with_drift",
    "masked.masked_max(difference, mask)",
    "0 * masked.masked_max(difference, mask)",
    (
      "test_packed.py::test_an_update_on_its_own_old_log_probs_needs_no_scores_of_the_policy",
    ),
  ),
  Fault(
    "the first iteration does not check the sampler",
    "runs.rl.functions:RLFunctions.score_iteration",
    "(iteration - 1) % old_logp.check_every",
    "iteration % old_logp.check_every",
    (
      "test_row_lengths.py::test_the_sampler_is_checked_from_the_first_iteration",
    ),
  ),
  Fault(
    "rows of an update have no columns for the prompt",
    "runs.rl.functions:_policy_shapes",
    "shapes = _row_shapes(spec, spec.prompt_tokens, texts)",
    "shapes = _row_shapes(spec, 0, texts)",
    (
      "test_row_lengths.py::test_the_widest_rows_hold_a_prompt_and_the_longest_response",
    ),
  ),
  Fault(
    "a benchmark of a run has the problems of the one before",
    "runs.validation:evaluate_benchmarks",
    "first = own.stop",
    "first = own.start",
    (
      "test_validation.py::test_each_benchmark_has_its_own_problems_and_the_average_is_of_means",
    ),
  ),
  Fault(
    "a resumed run keeps the tables of lost iterations",
    "host.logs.generations:GenerationsWriter._remove_texts",
    "int(name[1]) >= step",
    "int(name[1]) > 10**9",
    (
      "test_generations.py::test_a_resumed_run_leaves_the_files_of_an_uninterrupted_one",
    ),
  ),
  Fault(
    "rows that fill up a batch are progress",
    "runs.evaluation.generation:ResponseGenerator.start",
    "on_progress(lengths[: len(requests)], ended[: len(requests)])",
    "on_progress(lengths, ended)",
    (
      "test_response_generation.py::test_rows_that_fill_up_a_batch_are_no_progress",
    ),
  ),
  Fault(
    "an evaluation gives the PRM the prompts of the policy",
    "runs.evaluation.generation:ResponseGenerator.start",
    "[r.prm_prompt for r in filled]",
    "[r.prompt for r in filled]",
    ("test_response_generation.py::test_policy_and_prm_get_their_own_prompts",),
  ),
  Fault(
    "RL encodes the prompts of a PRM as the policy's",
    "runs.tasks.files:FilesTask._prm_tokenizer",
    "self.prm_model is None",
    "self.prm_model is not None",
    (
      "test_prompt_ids.py::test_the_prompts_of_a_prm_have_the_ids_of_its_own_folder",
    ),
  ),
  Fault(
    "a run is rolled back to a checkpoint that is as new as the alarm",
    "runs.rl.roll_backs:begin",
    "alarm.step - changes.iterations",
    "alarm.step",
    (
      "test_roll_backs.py::test_a_run_goes_back_to_the_newest_checkpoint_that_is_old_enough",
    ),
  ),
  Fault(
    "a roll-back is finished once more when the run is continued",
    "runs.rl.roll_backs:finish",
    "not done[-1].finished",
    "True",
    (
      "test_roll_backs.py::test_a_killed_roll_back_is_finished_and_not_begun_again",
    ),
  ),
  Fault(
    "a run that was rolled back draws the same samples",
    "runs.spec:RunSpec.key",
    "self.roll_backs and stream is RandomStream.ROLLOUTS",
    "False",
    ("test_roll_backs.py::test_a_run_is_changed_with_its_random_keys",),
  ),
  Fault(
    "changes of a roll-back are those of the config as it is now",
    "runs.rl.roll_backs:finish",
    "RollBackSettings(**roll_back.changes)",
    "run.spec.settings.rl.alarms.roll_back",
    ("test_roll_backs.py::test_a_run_is_changed_with_its_random_keys",),
  ),
  Fault(
    "a run goes back to a checkpoint that an uninterrupted one has not",
    "host.checkpoints.checkpointer:Checkpoints.steps",
    "regular and self._metrics_of(x).interim",
    "False",
    (
      "test_preservation.py::test_preemption_leaves_no_trace_in_what_is_preserved",
    ),
  ),
  Fault(
    "a roll-back that cannot be run is found when its checkpoints are gone",
    "runs.settings.roll_backs:check_roll_backs",
    "range(1, change.times + 1)",
    "()",
    (
      "test_roll_backs.py::test_a_roll_back_that_cannot_be_is_an_error_at_the_start",
    ),
  ),
  Fault(
    "a run is rolled back without end",
    "runs.rl.alarms:AlarmWatch.check",
    'action == "roll_back" and not self._may_roll_back',
    "False",
    ("test_roll_backs.py::test_a_run_is_rolled_back_at_most_n_times",),
  ),
  Fault(
    "the best evaluation is that of a policy without a checkpoint",
    "runs.rl.report:summarize",
    'row["step"] > 0',
    'row["step"] >= 0',
    (
      "test_validation.py::test_the_best_evaluation_is_that_of_the_best_checkpoint",
    ),
  ),
  Fault(
    "unlabelled steps before the first error count as good",
    "runs.evaluation.prm_tables:with_first_error",
    "known = (labelled_good | ~(before & data.step_mask)).all(1)",
    "known = (labelled_good | True).all(1)",
    ("test_prm_tables.py::test_only_a_first_error_that_is_known_counts",),
  ),
  Fault(
    "states of another trunk are read",
    "runs.trunk_states:_fingerprint",
    "digest.update(np.ascontiguousarray(read_everywhere(leaf)).data)",
    "pass",
    ("test_trunk_states.py::test_another_trunk_does_not_read_these_states",),
  ),
  Fault(
    "states of the trunk keep those of their batch in memory",
    "runs.trunk_states:_compute",
    "row[: len(missing[key].steps)].copy()",
    "row[: len(missing[key].steps)]",
    ("test_trunk_states.py::test_states_keep_no_others_in_memory",),
  ),
  Fault(
    "states of the trunk keep those of their file in memory",
    "runs.trunk_states:_read_folder",
    "states[key].copy()",
    "states[key]",
    ("test_trunk_states.py::test_states_keep_no_others_in_memory",),
  ),
  Fault(
    "states of the trunk are not kept",
    "runs.trunk_states:_compute",
    "processes.on_process_zero(lambda states=states: _write(folder, states))",
    "pass",
    ("test_trunk_states.py::test_what_is_there_is_not_computed_again",),
  ),
  Fault(
    "steps of texts without padding end where those with padding do",
    "runs.trunk_states:_without_padding",
    "ends = np.cumsum(mask)[score_position[score_mask]]",
    "ends = 1 + score_position[score_mask]",
    (
      "test_trunk_states.py::test_texts_have_no_padding_and_end_at_their_scores",
    ),
  ),
  Fault(
    "a PRM is evaluated on the problems that it was trained on",
    "runs.evaluation.prm_data:read_data",
    "_, held_out = split_by_problem",
    "held_out, _ = split_by_problem",
    ("test_evaluate_prm_data.py::test_only_held_out_problems_are_scored",),
  ),
  Fault(
    "a plan counts the body of a loop once",
    "runs.planning.hlo.costs:_count",
    "total.plus(costs, loop.trips)",
    "total.plus(costs)",
    ("test_hlo_costs.py::test_every_trip_of_a_scan_is_counted",),
  ),
  Fault(
    "policy and critic have one limit of skipped updates",
    "runs.loop:StopConditions._too_many_skipped",
    '("skipped_in_a_row", self.updates)',
    '("skipped_in_a_row", max(self.updates, self.critic_updates))',
    (
      "test_supervised.py::test_a_run_stops_when_as_many_updates_as_it_has_were_skipped",
    ),
  ),
  Fault(
    "a range has no upper end",
    "ranges:within",
    "not low <= value <= high",
    "not low <= value",
    ("test_ranges.py::test_a_range_is_what_its_message_says",),
  ),
  Fault(
    "numbers that float32 rounds to 0 are accepted",
    "runs.settings.conversion:_build",
    "not _LEAST <= abs(value) <= _MOST",
    "abs(value) > _MOST",
    ("test_ranges.py::test_no_number_that_cannot_be_meant_is_accepted",),
  ),
)
