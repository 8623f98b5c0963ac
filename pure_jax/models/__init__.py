"""The decoder, its weights, and the two heads: language model and PRM."""
