"""How prompts and steps become token ids, and back; tokenizers; stop texts."""
