"""The host half: strings, files, tokenizers, data sets, checkpoints."""
