"""The run-time check of shapes and types that the tests run with.

An int passes for a float, as in the configuration and everywhere else in Python's type system (PEP 484).
"""

from beartype import BeartypeConf, beartype

typechecker = beartype(conf=BeartypeConf(is_pep484_tower=True))
