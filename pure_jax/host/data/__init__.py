"""Data sets, from files to batches.

A file goes through these modules in order:

  sources       reads raw rows (dicts) of JSON-lines, JSON and Parquet files
  parquet       reads Parquet files, in a process of bounded memory
  formats/      parses a raw row into records; one module per source
  records       the two records, `Problem` and `LabelledSolution`
  file_dataset  stores the records of the files as a TFDS data set, and opens it
  batches       which rows come next, and padding of token ids

`world/` generates the embedded arithmetic world instead of reading files.
`storage` has the parts of TFDS that both kinds of data sets use.
"""
