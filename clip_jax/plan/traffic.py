"""How much a compiled step moves between memory and cores, read from its text."""

import re
from collections.abc import Mapping

from clip_jax.plan.hlo import Instruction, Program, parse, shapes, visits

FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "while",
    "conditional",
    "call",
    "after-all",
    "partition-id",
    "iota",
    "copy-done",
    "slice-done",
    "optimization-barrier",
}
"""Instructions that move nothing, or whose work is counted elsewhere."""


def traffic(text: str) -> int:
    """Bytes read and written in one step, loops counted.

    Every instruction outside of fusions, and every fusion, reads its operands and writes its
    results once. What lies in a core's own memory (`S(1)` in the text of a TPU program) is free,
    and of an array that is only sliced, or changed in a part, that part counts.

    Args:
      text: `jax.stages.Compiled.as_text()`.
    """
    program = parse(text)
    fused = {
        name
        for lines in program.values()
        for line in lines
        if line.op not in ("while", "conditional", "call")
        for name in re.findall(r"(?:calls|to_apply)=%?([\w.\-]+)", line.rest)
    }
    total = 0
    for name, times in visits(program, "", 1):
        if name not in fused:
            lines = {line.name: line for line in program[name]}
            total += times * sum(_moved(line, lines, program) for line in program[name])
    return total


def _moved(line: Instruction, lines: Mapping[str, Instruction], program: Program) -> int:
    if line.op in FREE:
        return 0
    if line.op == "dynamic-slice":
        return 2 * _size(line.shape)
    operands = _operands(line)
    if line.op == "dynamic-update-slice":
        update = lines.get(operands[1]) if len(operands) > 1 else None
        return 2 * _size(update.shape) if update else 0
    called = re.search(r"calls=%?([\w.\-]+)", line.rest)
    inside = program.get(called[1], []) if called and line.op == "fusion" else []
    read = sum(
        _read(index, lines[operand], inside)
        for index, operand in enumerate(operands)
        if operand in lines
    )
    return read + _written(line, inside)


def _read(index: int, operand: Instruction, inside: list[Instruction]) -> int:
    """Of one operand, which the lines of a fusion may only slice."""
    whole = _size(operand.shape)
    if not whole:
        return 0
    names = [i.name for i in inside if i.op == "parameter" and i.rest.startswith(f"({index})")]
    uses = [i for i in inside if names and names[0] in _operands(i)]
    if uses and all(use.op == "dynamic-slice" for use in uses):
        return min(whole, sum(_size(use.shape) for use in uses))
    if uses and all(
        use.op == "dynamic-update-slice" and _operands(use)[0] == names[0] for use in uses
    ):
        return 0  # Changed in place.
    return whole


def _written(line: Instruction, inside: list[Instruction]) -> int:
    whole = _size(line.shape)
    sizes = {i.name: i.shape for i in inside}
    updates = [i for i in inside if i.op == "dynamic-update-slice"]
    if not whole or not updates:
        return whole
    spared = sum(_size(i.shape) - _size(sizes.get(_operands(i)[1], "")) for i in updates)
    return max(whole - spared, 0)


def _operands(line: Instruction) -> list[str]:
    return re.findall(r"%([\w.\-]+)", line.rest[: line.rest.find(")")])


def _size(shape: str) -> int:
    """Bytes of the arrays of a shape that lie in main memory."""
    arrays = re.findall(r"\w+\[[\d,]*\](?:\{[^}]*\})?", shape)
    return sum(size for one in arrays if "S(" not in one for _, size in shapes(one))
