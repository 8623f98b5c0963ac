"""Pallas kernels, installed as `pure_jax.kernels`.

This file imports nothing. In a checkout the folder is visible as a top-level
package `kernels`, which is the name of a Hugging Face package that transformers
looks for; it must find no code here.
"""
