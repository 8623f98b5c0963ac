"""One file per source: how its raw rows become problems or labelled steps."""
