"""Print the vector paths that this processor runs, best first, for tests of all of them.

python -m sigmoid_attention.attention.impl.cpu
"""

from sigmoid_attention.attention.impl.cpu.compiler import PATHS, runs

if __name__ == "__main__":
    print(*filter(runs, PATHS))
