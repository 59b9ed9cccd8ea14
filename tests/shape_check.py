"""The checker behind shape annotations in tests. An int may stand where a float is asked for, as type checkers hold."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
