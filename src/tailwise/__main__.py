"""`python -m tailwise`."""

import os
import sys

if __name__ == "__main__":
    # `-m` looks for modules in the current folder first, where files of a model may lie: a numpy.py there would run.
    if sys.path[:1] in ([""], [os.getcwd()]):  # noqa: PTH109 - as the interpreter has put it there
        del sys.path[0]
    from tailwise.cli.main import run

    run()
