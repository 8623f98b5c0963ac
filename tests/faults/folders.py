"""Faults of reading models, tokenizers and rows: of folders, of the hub."""

from faults import Fault

FAULTS = (
  Fault(
    "NaN is within every range of config.json",
    "host.huggingface.json_fields:Rule.accepts",
    "self.low <= value <= self.high",
    "not (value < self.low or value > self.high)",
    ("test_hostile_configs.py::test_a_wrong_value_is_refused_with_its_field",),
  ),
  Fault(
    "a bool is a number of config.json",
    "host.huggingface.json_fields:Rule.accepts",
    "type(value) not in kinds",
    "not isinstance(value, kinds)",
    ("test_hostile_configs.py::test_a_wrong_value_is_refused_with_its_field",),
  ),
  Fault(
    "weights that are not finite are loaded",
    "host.huggingface.load:_load",
    "if fault is not None:",
    "if False:",
    ("test_hostile_files.py::test_weights_that_are_not_finite_are_named",),
  ),
  Fault(
    "weights that are not finite are exported",
    "host.huggingface.export:_export",
    "if fault is not None:",
    "if False:",
    (
      "test_hostile_files.py::test_weights_that_are_not_finite_are_not_exported",
    ),
  ),
  Fault(
    "negative values that are not finite are not found",
    "host.huggingface.files:not_finite",
    "unsigned[block].max() < limit + sign",
    "True",
    (
      "test_hostile_files.py::test_values_that_are_not_finite_are_found_as_numpy_finds_them",
    ),
  ),
  Fault(
    "weights that overflow in bfloat16 are loaded",
    "host.huggingface.files:not_finite",
    'if stored == "float32" and "bfloat16" in dtypes:',
    "if False:",
    (
      "test_hostile_files.py::test_what_overflows_in_bfloat16_is_what_jax_rounds_to_infinity",
    ),
  ),
  Fault(
    "a GGUF file without a weight gets random numbers in its place",
    "host.huggingface.gguf_files:_read_model",
    'if loaded["missing_keys"]:',
    "if False:",
    (
      "test_gguf_files.py::test_what_transformers_would_not_read_as_it_is_raises",
    ),
  ),
  Fault(
    "tensors of a GGUF file that nothing reads are ignored",
    "host.huggingface.gguf_files:_write_model",
    "if header.num_tensors != len(declared):",
    "if False:",
    (
      "test_gguf_files.py::test_what_transformers_would_not_read_as_it_is_raises",
    ),
  ),
  Fault(
    "scaled rotary frequencies of a GGUF file are lost",
    "host.huggingface.gguf_header:_check_supported",
    "if scaling or _ROPE_FACTORS in names:",
    "if False:",
    (
      "test_gguf_files.py::test_what_transformers_would_not_read_as_it_is_raises",
    ),
  ),
  Fault(
    "weights of a GGUF file that are not finite are written",
    "host.huggingface.gguf_files:_arrays",
    "if fault is not None:",
    "if False:",
    (
      "test_gguf_files.py::test_what_transformers_would_not_read_as_it_is_raises",
    ),
  ),
  Fault(
    "tokens of a GGUF file get other ids",
    "host.huggingface.gguf_files:_write_tokenizer",
    "if ids.get(token) != expected.get(token):",
    "if False:",
    ("test_gguf_files.py::test_a_token_that_would_get_another_id_raises",),
  ),
  Fault(
    "special tokens of a GGUF file that transformers loses stay lost",
    "host.huggingface.gguf_files:_added_tokens",
    "kind in (CONTROL, USER_DEFINED)",
    "kind in ()",
    (
      "test_gguf_files.py::test_special_tokens_that_transformers_loses_are_those_of_the_file",
    ),
  ),
  Fault(
    "the end of a response is the one that transformers takes for it",
    "host.huggingface.gguf_files:_save_completed",
    "setattr(tokenizer, name, value)",
    "pass",
    (
      "test_gguf_files.py::test_special_tokens_that_transformers_loses_are_those_of_the_file",
    ),
  ),
  Fault(
    "a private upload goes to a public repository",
    "host.huggingface.upload:upload_model",
    "if private and not info.private:",
    "if False:",
    ("test_push.py::test_a_private_repository_is_private",),
  ),
  Fault(
    "weights that a repository had before stay next to the new ones",
    "host.huggingface.upload:upload_model",
    "for name in stale",
    "for name in ()",
    ("test_push.py::test_stale_weights_of_the_repository_are_removed",),
  ),
  Fault(
    "a model card has an evaluation after the checkpoint",
    "runs.model_card.facts:_evaluation",
    'if row["step"] <= iteration',
    "if True",
    ("test_push.py::test_the_card_has_the_evaluation_before_the_checkpoint",),
  ),
  Fault(
    "a model card has paths of this machine",
    "runs.model_card.facts:_source",
    "pathlib.PurePath(text).name",
    "text",
    ("test_push.py::test_the_card_names_what_is_on_the_hub_and_no_path",),
  ),
  Fault(
    "a tokenizer may put any ids before a text",
    "host.text.huggingface_tokenizer:_read",
    "if unknown:",
    "if False:",
    (
      "test_hostile_tokenizers.py::test_wrong_values_of_the_tokenizer_are_refused",
    ),
  ),
  Fault(
    "a level beyond what is stored has no row",
    "host.data.records:Problem.__post_init__",
    "not -(2**31) <= self.level < 2**31",
    "False",
    ("test_hostile_rows.py::test_a_number_that_cannot_be_stored_has_its_row",),
  ),
  Fault(
    "a file of the hub is not compared with its hash",
    "host.huggingface.hub:_fetch_file",
    "digest.hexdigest() != expected",
    "False",
    ("test_hub.py::test_a_file_with_another_hash_is_not_kept",),
  ),
  Fault(
    "pickles and code of a model are fetched",
    "host.huggingface.hub:_model_files",
    "if file.endswith(files.TOKENIZER_FILES) and file != files.INDEX_FILE",
    "if file not in (files.INDEX_FILE, files.SINGLE_FILE)",
    ("test_hub.py::test_a_model_is_fetched_without_pickles_code_and_copies",),
  ),
  Fault(
    "a part of a model in the cache is taken for all of it",
    "host.huggingface.hub:_has_weights",
    "return index.exists() and",
    "return not index.exists() or",
    ("test_hub.py::test_half_a_model_in_the_cache_is_none",),
  ),
  Fault(
    "the cache does not note which commit a branch was at",
    "host.huggingface.hub:_fetch",
    "_download(name, first, revision)",
    "",
    ("test_hub.py::test_a_model_is_fetched_without_pickles_code_and_copies",),
  ),
  Fault(
    "a commit without its tokenizer in the cache is taken for all of it",
    "host.huggingface.hub:_fetch",
    "and has_options(cached.path)",
    "",
    ("test_hub.py::test_a_commit_without_its_tokenizer_is_completed",),
  ),
  Fault(
    "a model card names the data of tests as that of training",
    "runs.model_card.facts:_source",
    "role in _TRAINING_DATA",
    'kind == "dataset"',
    ("test_push.py::test_the_card_names_what_is_on_the_hub_and_no_path",),
  ),
  Fault(
    "a resumed run takes what the branch is now",
    "runs.locations:Locator._fetch",
    "self._known.get(name.key)",
    "None",
    (
      "test_names_in_configs.py::test_files_of_one_data_set_are_of_one_commit_as_recorded",
    ),
  ),
  Fault(
    "processes look up the commit of a branch by themselves",
    "runs.locations:locate",
    "find_at(commits)",
    "find_at({})",
    (
      "test_locations.py::test_other_processes_take_the_commits_of_process_zero",
    ),
  ),
  Fault(
    "a test set is trained on because a config names only its data set",
    "host.data.formats.public:PublicData.file",
    "self.train if for_training",
    "self.train or self.held_out if for_training",
    (
      "test_names_in_configs.py::test_a_run_trains_on_no_test_set_unless_its_file_is_named",
      "test_public.py::test_an_id_alone_is_the_file_of_its_use",
    ),
  ),
  Fault(
    "problems of another file than the one that was split are held out",
    "runs.locations:_locate_labelled",
    "data.held_out_one_in is not None",
    "False",
    (
      "test_names_in_configs.py::test_held_out_problems_are_those_of_the_file_that_was_split",
    ),
  ),
  Fault(
    "an id is asked for although a folder has its name",
    "runs.locations:Locator.model",
    "pathlib.Path(text).is_dir()",
    "pathlib.Path(text).is_absolute()",
    ("test_names_in_configs.py::test_what_is_here_comes_first",),
  ),
)
