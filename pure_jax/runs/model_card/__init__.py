"""The model card (README.md) of a model that a run trained.

`facts` collects what the run's folder says, `text` writes the card.
"""
