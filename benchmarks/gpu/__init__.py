"""What `make bench-gpu` measures on one NVIDIA GPU, in less than nine minutes.

    python -m benchmarks gpu --out benchmarks/results
    python -m benchmarks targets benchmarks/results
    python -m benchmarks publish benchmarks/results

`plan.py` says what, in the order of its importance; `driver.py` hands it out to a process of its
own, which may crash or hang without ending the run; `speed.py`, `errors.py` and `readings.py`
measure; `page.py` writes docs/gpu.md.
"""
