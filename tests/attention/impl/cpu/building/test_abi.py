"""The Python argument block has the fields of the kernel's C struct, at the same offsets."""

import ctypes
import subprocess

from sigmoid_attention.attention.impl.cpu import abi, compiler

PROGRAM = """
#include <cstddef>
#include <cstdio>
#include <type_traits>
#include "call.h"
template <class T> constexpr char KIND = std::is_floating_point<T>::value ? 'd' : 'q';
int main() {{
    {lines}
    std::printf("size - %zu\\n", sizeof(Call));
}}
"""
LINE = (
    'std::printf("{0} %c %zu\\n", KIND<std::decay_t<decltype(Call().{0})>>, offsetof(Call, {0}));'
)
CODES = {ctypes.c_int64: "q", ctypes.c_double: "d"}


def offsets_of_the_compiler(names: list[str], folder) -> list[list[str]]:
    source, program = folder / "offsets.cpp", folder / "offsets"
    source.write_text(PROGRAM.format(lines="\n    ".join(map(LINE.format, names))))
    command = compiler.find_compiler().command
    options = ("-std=c++17", "-w", f"-I{compiler.KERNEL}", str(source), "-o", str(program))
    subprocess.run((*command, *options), check=True, timeout=60)
    done = subprocess.run([str(program)], capture_output=True, text=True, check=True, timeout=60)
    return [line.split() for line in done.stdout.splitlines()]


def test_every_field_stands_where_the_compiler_puts_it(tmp_path):
    fields = abi.leaves(abi.ArgumentBlock)
    # Every leaf takes 8 bytes, so that no field of the struct can be missing here.
    assert ctypes.sizeof(abi.ArgumentBlock) == abi._BLOCK.size == 8 * len(fields)
    expected = [[name, CODES[kind], str(offset)] for name, kind, offset in fields]
    expected.append(["size", "-", str(ctypes.sizeof(abi.ArgumentBlock))])
    assert offsets_of_the_compiler([name for name, *_ in fields], tmp_path) == expected


def test_without_a_backward_pass_its_fields_are_zero():
    values = abi._NO_GRADIENTS
    names = [name for name, *_ in abi.leaves(abi.ArgumentBlock)]
    first = names.index("grad_out.data")
    assert names[first + len(values) - 1] == "grad_slopes" and not any(values)
