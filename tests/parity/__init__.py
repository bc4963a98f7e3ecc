"""Parity: our numbers against those of the published implementations, case by case.

The cases are found by looking through the folders below PARITY_ROOT (default ``../shared/parity``): whatever holds a
cases.json is a fixture, and the handlers of its family (``tests/parity/handlers``) say how each kind of case is run.
``python -m tests.parity [words]`` prints a line per case with its error; pytest runs the same cases one by one.
"""
