"""The checks of check_accelerator.py: hardware, correctness, speed.

A piece is a `pieces.Piece(name, seconds, run)`. `check_accelerator.PIECES`
lists all of them in order. `run(context)` gets a `pieces.Context` and returns
a dict of plain JSON values. `report.py` knows these fields of it, all of them
optional, and the file of the piece keeps any others:

* "summary": one line, printed as the piece ends.
* "checks": a list of what `checks.check` and `checks.compare` return. One that
  is not right makes the piece "wrong" and the exit status 1.
* "tables": {title: [row, ...]}, where a row is a dict of columns.
* "notes": sentences, such as why a kernel cannot run here.

A piece that cannot do its work raises: `pieces.PieceError` with a sentence for
what was foreseen, anything else for what was not. The next piece still runs.
A piece starts only if `seconds` of it are left; one that could go on for longer
looks at `context.seconds_left()`.

`runner.py` runs pieces in one process, `supervisor.py` starts that process
and outlives it if a piece crashes it.
"""
