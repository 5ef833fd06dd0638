"""What a compiled program computes and sends, read in its text."""

import json
import math
import re
from typing import NamedTuple

COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
OPERATION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.+?) ([\w\-]+)\((.*)$")
ARRAY = re.compile(r"\b(?:pred|[suf]\d+|bf16|f8\w*|c\d+)\[([\d,]*)\]")
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


class Operation(NamedTuple):
    """One line of a program: shapes of what it makes and of what it takes, and how often it runs."""

    kind: str
    made: list[tuple[int, ...]]
    taken: list[tuple[int, ...]]
    said: str
    times: int


def shapes(said):
    return [tuple(map(int, filter(None, found.split(",")))) for found in ARRAY.findall(said)]


def _computations(text):
    """Name -> lines ``(name, kind, shapes, rest)``, and the name of the first that runs."""
    found, entry, lines = {}, None, None
    for line in text.splitlines():
        if head := COMPUTATION.match(line):
            lines = found[head[2]] = []
            entry = head[2] if head[1] else entry
        elif lines is not None and (one := OPERATION.match(line)):
            lines.append((one[1], one[3], shapes(one[2]), one[4]))
    return found, entry


def _trips(rest):
    config = re.search(r"backend_config=(\{.*\})", rest)
    return int(json.loads(config[1])["known_trip_count"]["n"])


def operations(compiled):
    """Every operation that a compiled program runs, loops counted."""
    computations, entry = _computations(compiled.as_text())
    found = []

    def visit(name, times):
        made = {one: shape for one, _, shape, _ in computations[name]}
        for _, kind, shape, rest in computations[name]:
            operands = re.findall(r"%([\w.\-]+)", rest.split("), ")[0])
            taken = [s for one in operands for s in made.get(one, [])]
            found.append(Operation(kind, shape, taken, rest, times))
            inner = times * (_trips(rest) if kind == "while" else 1)
            for called in re.findall(r"(?:body|calls|to_apply)=%?([\w.\-]+)", rest):
                visit(called, inner)

    visit(entry, 1)
    return found


def dot_flops(compiled):
    """Of all matrix products of a program, on the device it runs on."""

    def flops(one):
        axes = map(int, filter(None, re.search(r"lhs_contracting_dims=\{([\d,]*)\}", one.said)[1].split(",")))
        return 2 * one.times * math.prod(one.made[0]) * math.prod(one.taken[0][axis] for axis in axes)

    return sum(flops(one) for one in operations(compiled) if one.kind == "dot")


def collectives(compiled):
    """The operations of a program by which devices speak to one another."""
    return [one for one in operations(compiled) if one.kind.removesuffix("-start") in COLLECTIVES]
