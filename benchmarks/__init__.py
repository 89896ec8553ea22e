"""How fast the operator is, and against what: operations x shapes x peers, with the machine.

    python -m benchmarks cpu --quick              a look, in a minute; writes nothing
    python -m benchmarks cpu --out benchmarks/results
    python -m benchmarks targets benchmarks/results
    python -m benchmarks publish benchmarks/results

One more operation is an entry in `operations.OPERATIONS`, one more competitor in `peers.PEERS`, one
more machine kind a suite in `suites.SUITES`, which brings its grids, its device and its stopwatch.
"""
