"""Text to token ids and back.

tokenization             the contract that every tokenizer serves, step
                         boundaries, and the prompt formats
huggingface_tokenizer    the tokenizer of a Hugging Face folder
chat_template            renders its chat template, within limits
sentencepiece_tokenizer  the tokenizer of the embedded world
stop_texts               ends a response at its first answer in a box
"""
