"""The operator on the CPU: a C++ kernel behind a plain C interface, compiled where it runs."""
