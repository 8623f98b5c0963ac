"""Tasks: the problems, graders and training data of a run.

A task gives a run its tokenizer, the architectures of policy and PRM, problems
to train on and held-out problems, a grader of answers, and labelled solutions
for the PRM. `task.Task` is the interface. There are two tasks:

  arithmetic  the embedded world, which generates everything itself
  files       a Hugging Face folder and data files that the user names

`tiny_files` writes a tiny random model with problems, for smoke runs of
`files`. To add a task, write a class with the attributes and methods of
`task.Task`, and let `runs.run` open it.
"""
