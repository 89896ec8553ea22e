"""The Python argument blocks have the fields of the kernel's C structs, at the same offsets."""

import ctypes
import subprocess

import pytest

from sigmoid_attention.attention.impl.cpu import abi, compiler
from sigmoid_attention.attention.impl.cpu.key_means import MeanArguments, NextBiasArguments

PROGRAM = """
#include <cstddef>
#include <cstdio>
#include <type_traits>
#include "{header}"
template <class T> constexpr char KIND = std::is_floating_point<T>::value ? 'd' : 'q';
int main() {{
    {lines}
    std::printf("size - %zu\\n", sizeof({struct}));
}}
"""
LINE = 'std::printf("{0} %c %zu\\n", KIND<std::decay_t<decltype({1}().{0})>>, offsetof({1}, {0}));'
CODES = {ctypes.c_int64: "q", ctypes.c_double: "d"}


def offsets_of_the_compiler(header: str, struct: str, names: list[str], folder) -> list[list[str]]:
    source, program = folder / "offsets.cpp", folder / "offsets"
    lines = "\n    ".join(LINE.format(name, struct) for name in names)
    source.write_text(PROGRAM.format(header=header, struct=struct, lines=lines))
    command = compiler.find_compiler().command
    options = ("-std=c++17", "-w", f"-I{compiler.KERNEL}", str(source), "-o", str(program))
    subprocess.run((*command, *options), check=True, timeout=60)
    done = subprocess.run([str(program)], capture_output=True, text=True, check=True, timeout=60)
    return [line.split() for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    ("header", "struct", "block"),
    [
        ("call.h", "Call", abi.ArgumentBlock),
        ("key_means.h", "MeanCall", MeanArguments),
        ("key_means.h", "NextBiasCall", NextBiasArguments),
    ],
    ids=["attention", "key-means", "next-bias"],
)
def test_every_field_stands_where_the_compiler_puts_it(header, struct, block, tmp_path):
    fields = abi.leaves(block)
    # Every leaf takes 8 bytes, so that no field of the struct can be missing here.
    assert ctypes.sizeof(block) == 8 * len(fields)
    expected = [[name, CODES[kind], str(offset)] for name, kind, offset in fields]
    expected.append(["size", "-", str(ctypes.sizeof(block))])
    names = [name for name, *_ in fields]
    assert offsets_of_the_compiler(header, struct, names, tmp_path) == expected


def test_the_packed_block_has_the_size_of_the_structure():
    assert abi._BLOCK.size == ctypes.sizeof(abi.ArgumentBlock)


def test_without_a_backward_pass_its_fields_are_zero():
    values = abi._NO_GRADIENTS
    names = [name for name, *_ in abi.leaves(abi.ArgumentBlock)]
    first = names.index("grad_out.data")
    assert names[first + len(values) - 1] == "grad_slopes" and not any(values)
