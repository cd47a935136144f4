"""What a compiled program sends between devices, read from its text."""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "send")
"""Of exchanges; a TPU program sends what goes to another slice through the hosts."""

BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "f16": 16, "c64": 64, "c128": 128}
"""Sizes that the last digits of a type's name do not tell."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """One exchange between devices."""

    kind: str
    """One of `KINDS`."""
    shapes: tuple[str, ...]
    """Of its results on one device, as the compiler writes them: `bf16[768,3072]`."""
    bytes: int
    """Of those results, each time."""
    times: int
    """How often a step runs it: the trip counts of the loops around it, multiplied."""
    group: int
    """Devices that take part in one exchange; 1 where each sends to one other."""
    axes: tuple[str, ...]
    """Mesh axes along which they lie."""
    source: str
    """Where it comes from, as JAX names it."""

    @property
    def total(self) -> int:
        """Bytes of its results in one step."""
        return self.bytes * self.times

    @property
    def sent(self) -> float:
        """Bytes that each device sends in one step, around a ring."""
        rest = (self.group - 1) / max(self.group, 1)
        per_result = {
            "all-gather": rest,
            "all-reduce": 2 * rest,
            "reduce-scatter": self.group - 1,
            "all-to-all": rest,
            "collective-permute": 1,
            "send": 1,
        }
        return float(self.total * per_result[self.kind])


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    shape: str
    op: str
    rest: str
    """Operands and attributes, unread."""
    root: bool


Program = Mapping[str, list[Instruction]]
"""Instructions by name of their computation; "" is the entry."""


def collectives(text: str, mesh: Mesh) -> list[Collective]:
    """All exchanges of one run of a compiled program, loops counted.

    A collective that the TPU compiler spreads over several fusions, to overlap it with
    arithmetic, counts once; an all-reduce of which each device keeps only a slice, in a fusion of
    its own, is what a TPU runs as a reduce-scatter, and counts as that.

    Args:
      text: `jax.stages.Compiled.as_text()`.
      mesh: of the program's devices, in their order.

    Raises:
      ValueError: a loop's trip count cannot be read.
    """
    program = parse(text)
    chains: set[tuple[str, str]] = set()
    found = []
    for computation, times in visits(program, "", 1):
        for line in program[computation]:
            kind = line.op.removesuffix("-start")
            if kind not in KINDS:
                continue
            chain = re.search(r'chain_id="(\d+)"', line.rest)
            if chain:
                if (kind, chain[1]) in chains:
                    continue
                chains.add((kind, chain[1]))
            found.append(_collective(line, kind, program[computation], times, mesh))
    return found


def parse(text: str) -> Program:
    """A module's computations."""
    program: dict[str, list[Instruction]] = {}
    current: list[Instruction] = []
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$", line)
        if head:
            current = program.setdefault("" if head[1] else head[2], [])
        elif line.startswith("  "):
            made = _instruction(line.strip())
            if made:
                current.append(made)
    return program


def _instruction(line: str) -> Instruction | None:
    head = re.match(r"(ROOT )?%?([\w.\-]+) = ", line)
    if not head:
        return None
    rest = line[head.end() :]
    end = _close(rest) + 1 if rest.startswith("(") else rest.find(" ")
    op = re.match(r" ?([\w\-]+)(\(.*)", rest[end:])
    return op and Instruction(head[2], rest[:end], op[1], op[2], bool(head[1]))


def _close(text: str) -> int:
    """Where the bracket at the beginning is closed."""
    depth = 0
    for index, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return index
    return len(text) - 1


def shapes(text: str) -> list[tuple[str, int]]:
    """Arrays in a shape, which may be a tuple, each with its bytes; layouts are left out."""
    made = []
    for kind, sizes in re.findall(r"\b(pred|bf16|[a-z]\d+[a-z0-9]*)\[([\d,]*)\]", text):
        digits = re.match(r"[a-z](\d+)", kind)
        bits = BITS.get(kind) or int(digits[1] if digits else 32)
        count = math.prod(int(size) for size in sizes.split(",") if size)
        made.append((f"{kind}[{sizes}]", -(-count * bits // 8)))
    return made


def visits(program: Program, name: str, times: int) -> Iterator[tuple[str, int]]:
    """Every computation that runs, with how often, once for each place that calls it."""
    yield name, times
    for line in program[name]:
        if line.op in KINDS or line.op.removesuffix("-start") in KINDS:
            continue  # What it calls adds two numbers.
        called = re.findall(r"(?:calls|to_apply|body|branch_computations|called_computations)="
                            r"(%[\w.\-]+|\{[^}]*\})", line.rest)  # fmt: skip
        more = _trips(program, line) if line.op == "while" else 1
        for inner in called:
            for one in re.findall(r"%([\w.\-]+)", inner):
                if one in program:
                    yield from visits(program, one, times * more)


def _trips(program: Program, loop: Instruction) -> int:
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest)
    if known:
        return int(known[1])
    condition = re.search(r"condition=%([\w.\-]+)", loop.rest)
    lines = program.get(condition[1], []) if condition else []
    constants = {
        line.name: int(value[1])
        for line in lines
        if line.op == "constant" and (value := re.match(r"\((\d+)\)", line.rest))
    }
    for line in lines:
        if line.root and line.op == "compare" and "direction=LT" in line.rest:
            for operand in re.findall(r"%([\w.\-]+)", line.rest):
                if operand in constants:
                    return constants[operand]
    raise ValueError(f"the trip count of loop {loop.name} cannot be read from its condition")


def _collective(
    line: Instruction, kind: str, around: list[Instruction], times: int, mesh: Mesh
) -> Collective:
    results = shapes(line.shape)
    if line.op.endswith("-start") and line.shape.startswith("("):
        # Operands come first, then results, then what counts the progress.
        results = [one for one in results if not one[0].startswith("u32[]")]
        if kind != "all-reduce":
            results = results[len(results) // 2 :]
    if kind == "all-reduce":
        kept = [i for i in around if i.root and i.op == "dynamic-slice"]
        if kept and kept[0].rest.startswith(f"(%{line.name},"):
            kind, results = "reduce-scatter", shapes(kept[0].shape)
    if kind == "send":
        results = results[:1]  # What follows counts the progress.
        groups = np.arange(mesh.devices.size)[:: mesh.devices[0].size][None]
    else:
        permutes = kind == "collective-permute"
        groups = _pairs(line.rest) if permutes else _group(line.rest, mesh)
    source = re.search(r'op_name="([^"]*)"', line.rest)
    return Collective(
        kind=kind,
        shapes=tuple(shape for shape, _ in results),
        bytes=sum(size for _, size in results),
        times=times,
        group=1 if kind in ("collective-permute", "send") else groups.shape[1],
        axes=_axes(groups, mesh),
        source=source[1] if source else "",
    )


def _axes(groups: Int[np.ndarray, "G n"], mesh: Mesh) -> tuple[str, ...]:
    """Axes in which the members of one group differ."""
    places = np.stack(np.unravel_index(groups, mesh.devices.shape))
    differ = (places != places[:, :, :1]).any(axis=(1, 2))
    return tuple(name for name, is_so in zip(mesh.axis_names, differ, strict=True) if is_so)


def _pairs(rest: str) -> Int[np.ndarray, "G 2"]:
    pairs = re.search(r"source_target_pairs=\{(\{[\d,{}]*\})\}", rest)
    numbers = re.findall(r"\d+", pairs[1]) if pairs else []
    return np.array(numbers, int).reshape(-1, 2)


def _group(rest: str, mesh: Mesh) -> Int[np.ndarray, "1 n"]:
    """Numbers of the devices in the first group; the others are alike."""
    everyone = np.arange(mesh.devices.size)
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", rest)
    if listed:
        return np.array([listed[1].split(",")], int)
    iota = re.search(r"replica_groups=(\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?)", rest)
    if iota:
        return _iota(iota[1])[:1]
    named = re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?)\))? \{([^}]*)\}", rest
    )
    if named:
        return _named(*named.groups())
    return everyone[None]


def _iota(text: str) -> Int[np.ndarray, "..."]:
    """`[groups,size]<=[dims]T(order)`: numbers from 0 on, laid out, turned and cut."""
    shape, dims, *order = ([int(n) for n in re.findall(r"\d+", part)]
                           for part in re.split(r"<=|T", text))  # fmt: skip
    made = np.arange(math.prod(dims)).reshape(dims)
    return made.transpose(order[0] if order else range(made.ndim)).reshape(shape)


def _named(axes: str, ids: str | None, chosen: str) -> Int[np.ndarray, "1 n"]:
    """`mesh['a'=16,'b'=16], device_ids=([2,4]T(1,0)) {'a','b':(2)4}`: axes, or parts of axes."""
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes)}
    count = math.prod(sizes.values())
    order = np.arange(count)
    if ids:
        order = _iota(f"[{count}]<={ids}").reshape(-1)
    numbers = order.reshape(tuple(sizes.values()))
    for position, (name, size) in enumerate(sizes.items()):
        part = re.search(rf"'{name}'(?::\((\d+)\)(\d+))?", chosen)
        if not part:
            index = np.zeros(1, int)
        elif part[1] is None:
            index = np.arange(size)
        else:
            before, length = int(part[1]), int(part[2])
            index = np.arange(length) * (size // before // length)
        numbers = np.take(numbers, index, axis=position)
    return numbers.reshape(1, -1)
