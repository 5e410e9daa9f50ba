"""What a program does, read from its text: floating-point operations of a model, and visits to the host."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.interpreters.partial_eval import dce_jaxpr

# A compiled program's operations that leave the device: Python callbacks, queues to and from the host, its memory.
_HOST = re.compile(
    r"custom_call_target=\"([^\"]*(?:callback|host)[^\"]*)\""
    r"|\s(infeed|outfeed)\("
    r"|\s((?:send|recv)(?:-done)?)\([^\n]*is_host_transfer=true",
    re.IGNORECASE,
)


def model_flops(function: Callable, *arguments: Any) -> float:
    """Return 2 x the multiply-adds of every convolution and matrix product that a function asks for.

    Counted in its trace: a loop of known length counts once per iteration, one of unknown length once, and of several
    branches the most expensive counts. XLA itself counts every loop once, and counts the padding that it adds as work.

    Args:
      function: pure.
      *arguments: arrays or `jax.ShapeDtypeStruct`. Give valid pixels and real proposals alone, without padding.
    """
    trace = jax.make_jaxpr(function)(*arguments).jaxpr
    needed, _ = dce_jaxpr(trace, [True] * len(trace.outvars))  # as compilers do
    return _products(needed)


def _products(jaxpr: Any) -> float:
    return sum(_products_of(equation) for equation in jaxpr.eqns)


def _products_of(equation: Any) -> float:
    name = equation.primitive.name
    inner = [_products(jaxpr) for jaxpr in _inner(equation)]
    if name == "cond":
        return max(inner)
    if name == "scan":
        return equation.params["length"] * sum(inner)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        outputs = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) / outputs
    if name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        summed = math.prod(left[axis] for axis in contracted)
        return 2 * math.prod(equation.outvars[0].aval.shape) * summed
    return sum(inner)


def _inner(equation: Any) -> Iterator[Any]:
    """Yield the traces that an operation holds."""
    for value in equation.params.values():
        for one in value if isinstance(value, tuple | list) else [value]:
            one = getattr(one, "jaxpr", one)
            if hasattr(one, "eqns"):
                yield one


def host_calls(program: jax.stages.Compiled) -> tuple[str, ...]:
    """Return the operations of a compiled program that visit the host; none is as it should be."""
    return tuple(sorted({next(filter(None, found)) for found in _HOST.findall(program.as_text())}))
