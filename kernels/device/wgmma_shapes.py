#!/usr/bin/env python3
"""Writes wgmma_shapes.cuh: PTX text names every accumulator register, and templates cannot build strings."""

from pathlib import Path

HEADER = """// Written by wgmma_shapes.py. One WgmmaShape<N> for each N, from WGMMA_SHAPE of wgmma.cuh; a thread holds N / 2 accumulators.
#pragma once

"""


def main() -> None:
    lines = [HEADER]
    for n in range(8, 257, 8):
        first = n // 2 - 4
        names = ", ".join(f"%{i}" for i in range(first, first + 4))
        values = ", ".join(f'"+f"(d[{i}])' for i in range(first, first + 4))
        before = n - 8
        text = f'WGMMA_TEXT_{before} ", {names}"' if before else f'"{names}"'
        operands = f"WGMMA_OPERANDS_{before}, {values}" if before else values
        numbers = ", ".join(str(n // 2 + i) for i in range(7))
        lines.append(f"#define WGMMA_TEXT_{n} {text}\n#define WGMMA_OPERANDS_{n} {operands}\n")
        lines.append(f"WGMMA_SHAPE({n}, {numbers})\n")
    Path(__file__).with_name("wgmma_shapes.cuh").write_text("".join(lines))


if __name__ == "__main__":
    main()
