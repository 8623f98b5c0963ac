"""Faults of metrics, intervals and grading."""

from faults import Fault

FAULTS = (
  Fault(
    "pass@k draws with replacement",
    "host.evaluation.answer_metrics:pass_at_k",
    "(subsets - math.comb(wrong, k)) / subsets",
    "1 - (wrong / correct.shape[1]) ** k",
    ("test_answer_metrics.py::test_pass_at_k_draws_without_replacement",),
  ),
  Fault(
    "each of several tied answers wins the vote",
    "host.evaluation.answer_metrics:_majority",
    "tie = np.arange(1, draw.shape[1])",
    "tie = np.ones(draw.shape[1] - 1)",
    ("test_answer_metrics.py::test_ties_of_the_majority_are_expectations",),
  ),
  Fault(
    "votes are counted by the text of the answers",
    "host.evaluation.tables:_sample_metrics",
    "key=equivalence.vote_key,",
    "key=None,",
    ("test_tables.py::test_every_number_by_enumeration",),
  ),
  Fault(
    "repetition counts tokens, which the authors do not",
    "host.evaluation.repetition:response_repetition",
    'unit == "characters"',
    'unit == "letters"',
    ("test_rollout_metrics.py::test_the_authors_measures_by_hand",),
  ),
  Fault(
    "responses that nobody can grade count as wrong",
    "host.evaluation.rollout_metrics:rollout_metrics",
    "np.asarray(gradable) & ~right",
    "np.asarray(gradable) | ~right",
    (
      "test_rollout_metrics.py::test_a_response_that_nobody_can_grade_is_not_wrong",
    ),
  ),
  Fault(
    "the clip ratio counts truncated responses only",
    "host.evaluation.rollout_metrics:response_facts",
    "at_limit=lengths == mask.shape[1],",
    "at_limit=np.asarray(rollout.truncated),",
    ("test_rollout_metrics.py::test_the_authors_measures_by_hand",),
  ),
  Fault(
    "pass@n counts samples of problems without a known answer",
    "host.evaluation.rollout_metrics:pass_at_n",
    "pass_at_k(groups[known], group_size)",
    "pass_at_k(groups, group_size)",
    ("test_rollout_metrics.py::test_pass_at_n_counts_problems",),
  ),
  Fault(
    "the mean gives large benchmarks a larger weight",
    "host.evaluation.intervals:estimate_mean",
    "value=float(np.mean([values.mean() for values in benchmarks])),",
    "value=float(np.concatenate(benchmarks).mean()),",
    ("test_tables.py::test_every_number_by_enumeration",),
  ),
  Fault(
    "the bootstrap draws each problem once",
    "host.evaluation.intervals:estimate_statistic",
    "rng.integers(0, benchmark.count, benchmark.count)",
    "rng.permutation(benchmark.count)",
    ("test_intervals.py::test_the_confidence_is_two_sided",),
  ),
  Fault(
    "several values are compared as one number",
    "host.grading.equivalence:equivalent",
    "if several:",
    "if several and False:",
    (
      "test_equivalence.py::test_a_comma_separates_values_only_if_there_are_several",
    ),
  ),
  Fault(
    "the AUC ranks tied scores by the highest",
    "host.evaluation.prm_metrics:auc",
    "rank = (np.cumsum(ties) - (ties - 1) / 2)[group]",
    "rank = np.cumsum(ties)[group]",
    ("test_prm_metrics.py::test_auc_counts_a_tie_as_half",),
  ),
  Fault(
    "the first error is one step late",
    "host.evaluation.prm_metrics:predicted_errors",
    "np.where(has_error, good_so_far.sum(-1), 0)",
    "np.where(has_error, good_so_far.sum(-1) + 1, 0)",
    ("test_prm_metrics.py::test_the_first_error_is_the_first_of_several",),
  ),
  Fault(
    "a state of the suffix automaton is not split",
    "host.evaluation.repetition:_different_substrings",
    "if longest[target] > longest[state] + 1:",
    "if longest[target] > longest[state] + 2:",
    ("test_repetition.py::test_repetition_counts_different_substrings",),
  ),
  Fault(
    "neutral steps are good whatever the config says",
    "host.data.formats.prm800k:make_format",
    "0: NEUTRAL_LABELS[neutral_labels]",
    "0: 1",
    ("test_prm800k.py::test_neutral_steps_are_good_bad_or_unlabelled",),
  ),
  Fault(
    "prepared labels of one choice serve another",
    "host.data.formats.prm800k:make_format",
    'f"{quality_control=} {screening=} {bad_problems=} {neutral_labels=}"',
    'f"{quality_control=} {screening=} {bad_problems=}"',
    ("test_prm800k.py::test_options_make_another_data_set",),
  ),
)
