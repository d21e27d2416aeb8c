"""The engine: rounds, jobs, trainers, sparse communication, ledger, evaluation, checkpoints.

It knows no method by name, no data set and no command line; `methods`, `data_partitions` and `launch` bring those.
"""

__version__ = "0.1.0"
