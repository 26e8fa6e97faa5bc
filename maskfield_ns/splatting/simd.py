"""Sixteen float32 lanes as one value inside numba kernels.

``lanes`` is an LLVM ``<16 x float>``: one register on AVX-512, two on AVX2, four on NEON. Kernels load, combine and
store such values with ordinary operators, so a kernel reads like the scalar equation and runs on whole rows of pixels
(or sixteen Gaussians) without hoping for auto-vectorisation.

Operators may be fused into multiply-adds (LLVM's ``contract`` flag, nothing else of fast-math: NaN, infinities and the
rounding trick in ``exp2`` stay exact). Where two kernels must round alike, they spell the fused operation with ``fma``.
"""

import operator
from typing import Any

import numpy as np
from llvmlite import ir
from numba import extending
from numba.core import cgutils, types
from numba.core.typing import templates
from numba.core.typing.templates import ConcreteTemplate, signature
from numba.extending import lower_builtin, models, register_model

WIDTH = 16
FLOAT = ir.FloatType()
INT32 = ir.IntType(32)
VECTOR = ir.VectorType(FLOAT, WIDTH)
INT_VECTOR = ir.VectorType(INT32, WIDTH)
BIT_VECTOR = ir.VectorType(ir.IntType(1), WIDTH)
FUSE = ("contract",)


# their annotations describe neither what decorators take nor what they give back
intrinsic: Any = extending.intrinsic
infer_global: Any = templates.infer_global


class Lanes(types.Type):
    def __init__(self) -> None:
        super().__init__(name="Lanes16f")


class LaneMask(types.Type):
    def __init__(self) -> None:
        super().__init__(name="Lanes16b")


lanes = Lanes()
lane_mask = LaneMask()


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type) -> None:
        super().__init__(dmm, fe_type, VECTOR)


@register_model(LaneMask)
class _LaneMaskModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type) -> None:
        super().__init__(dmm, fe_type, BIT_VECTOR)


def constant(value: float) -> ir.Constant:
    return ir.Constant(VECTOR, [float(np.float32(value))] * WIDTH)


def splat_value(builder: Any, scalar: Any) -> Any:
    first = builder.insert_element(ir.Constant(VECTOR, ir.Undefined), scalar, ir.Constant(INT32, 0))
    return builder.shuffle_vector(first, ir.Constant(VECTOR, ir.Undefined), ir.Constant(INT_VECTOR, [0] * WIDTH))


def pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any, target: Any) -> Any:
    """Address of flat element `index` of a contiguous array, as a pointer to `target`."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), target.as_pointer())


def call(builder: Any, name: str, *args: Any) -> Any:
    """Call an LLVM intrinsic that is overloaded on its (single) vector type."""
    kind = args[0].type
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(kind, [kind] * len(args)), f"{name}.v{kind.count}f32"
    )
    return builder.call(function, args)


# -- operators ---------------------------------------------------------------------------------------------------------


def _as_lanes(builder: Any, kind: Any, value: Any) -> Any:
    if kind == types.float64:
        value = builder.fptrunc(value, FLOAT)
    return value if isinstance(kind, Lanes) else splat_value(builder, value)


_PAIRS = [(lanes, lanes)] + [p for s in (types.float32, types.float64) for p in ((lanes, s), (s, lanes))]


def _binary(op: Any, result: Any, emit: Any) -> None:
    @infer_global(op)
    class _Template(ConcreteTemplate):
        cases = [signature(result, a, b) for a, b in _PAIRS]

    for pair in _PAIRS:

        @lower_builtin(op, *pair)
        def _lower(context, builder, sig, args):
            left, right = (_as_lanes(builder, kind, value) for kind, value in zip(sig.args, args, strict=True))
            return emit(builder, left, right)


_binary(operator.add, lanes, lambda b, x, y: b.fadd(x, y, flags=FUSE))
_binary(operator.sub, lanes, lambda b, x, y: b.fsub(x, y, flags=FUSE))
_binary(operator.mul, lanes, lambda b, x, y: b.fmul(x, y, flags=FUSE))
_binary(operator.truediv, lanes, lambda b, x, y: b.fdiv(x, y))
_binary(operator.gt, lane_mask, lambda b, x, y: b.fcmp_ordered(">", x, y))
_binary(operator.ge, lane_mask, lambda b, x, y: b.fcmp_ordered(">=", x, y))
_binary(operator.lt, lane_mask, lambda b, x, y: b.fcmp_ordered("<", x, y))
_binary(operator.le, lane_mask, lambda b, x, y: b.fcmp_ordered("<=", x, y))


@infer_global(operator.neg)
class _Negate(ConcreteTemplate):
    cases = [signature(lanes, lanes)]


@lower_builtin(operator.neg, lanes)
def _negate(context, builder, sig, args):
    return builder.fneg(args[0])


@infer_global(operator.and_)
class _And(ConcreteTemplate):
    cases = [signature(lane_mask, lane_mask, lane_mask)]


@lower_builtin(operator.and_, lane_mask, lane_mask)
def _and(context, builder, sig, args):
    return builder.and_(*args)


@infer_global(operator.or_)
class _Or(ConcreteTemplate):
    cases = [signature(lane_mask, lane_mask, lane_mask)]


@lower_builtin(operator.or_, lane_mask, lane_mask)
def _or(context, builder, sig, args):
    return builder.or_(*args)


@infer_global(operator.invert)
class _Invert(ConcreteTemplate):
    cases = [signature(lane_mask, lane_mask)]


@lower_builtin(operator.invert, lane_mask)
def _invert(context, builder, sig, args):
    return builder.not_(args[0])


# -- values ------------------------------------------------------------------------------------------------------------


@intrinsic
def splat(typingctx, value):
    """The same number in all lanes."""
    return lanes(types.float32), lambda context, builder, sig, args: splat_value(builder, args[0])


@intrinsic
def iota(typingctx):
    """0, 1, ..., 15."""
    return lanes(), lambda context, builder, sig, args: ir.Constant(VECTOR, [float(i) for i in range(WIDTH)])


@intrinsic
def fma(typingctx, a, b, c):
    """a * b + c, rounded once wherever it is used."""
    return lanes(lanes, lanes, lanes), lambda context, builder, sig, args: call(builder, "llvm.fma", *args)


@intrinsic
def dot2(typingctx, a, b, x, y):
    """a x + b y; one call costs numba's type inference far less than three operators."""

    def emit(context, builder, sig, args):
        a, b, x, y = args
        return call(builder, "llvm.fma", a, x, builder.fmul(b, y))

    return lanes(*[lanes] * 4), emit


@intrinsic
def dot3(typingctx, a, b, c, x, y, z):
    """a x + b y + c z."""

    def emit(context, builder, sig, args):
        a, b, c, x, y, z = args
        return call(builder, "llvm.fma", a, x, call(builder, "llvm.fma", b, y, builder.fmul(c, z)))

    return lanes(*[lanes] * 6), emit


@intrinsic
def vmin(typingctx, a, b):
    return lanes(lanes, lanes), lambda context, builder, sig, args: call(builder, "llvm.minnum", *args)


@intrinsic
def vmax(typingctx, a, b):
    return lanes(lanes, lanes), lambda context, builder, sig, args: call(builder, "llvm.maxnum", *args)


@intrinsic
def vabs(typingctx, a):
    return lanes(lanes), lambda context, builder, sig, args: call(builder, "llvm.fabs", *args)


@intrinsic
def vsqrt(typingctx, a):
    return lanes(lanes), lambda context, builder, sig, args: call(builder, "llvm.sqrt", *args)


@intrinsic
def vceil(typingctx, a):
    return lanes(lanes), lambda context, builder, sig, args: call(builder, "llvm.ceil", *args)


@intrinsic
def select(typingctx, mask, yes, no):
    return lanes(lane_mask, lanes, lanes), lambda context, builder, sig, args: builder.select(*args)


@intrinsic
def bits(typingctx, mask):
    """Bit i of the result tells whether lane i is set."""

    def emit(context, builder, sig, args):
        return builder.zext(builder.bitcast(args[0], ir.IntType(16)), ir.IntType(64))

    return types.int64(lane_mask), emit


# 2**f on [-1/2, 1/2]: Chebyshev interpolation in double precision, relative error 2e-9 before rounding
_NODES = np.cos((np.arange(64) + 0.5) * np.pi / 64) / 2
_EXP2 = np.polynomial.Polynomial.fit(_NODES, np.exp2(_NODES), 6, domain=[-0.5, 0.5], window=[-0.5, 0.5]).coef
_ROUND = 1.5 * 2.0**23  # adding it leaves the nearest integer in the low bits


@intrinsic
def exp2(typingctx, a):
    """2**a for a <= 8; arguments below -40 count as -40. Relative error below 2e-7."""

    def emit(context, builder, sig, args):
        value = call(builder, "llvm.maxnum", args[0], constant(-40.0))
        shifted = builder.fadd(value, constant(_ROUND))
        fraction = builder.fsub(value, builder.fsub(shifted, constant(_ROUND)))
        result = constant(_EXP2[-1])
        for coefficient in _EXP2[-2::-1]:
            result = call(builder, "llvm.fma", result, fraction, constant(coefficient))
        exponent = builder.shl(builder.bitcast(shifted, INT_VECTOR), ir.Constant(INT_VECTOR, [23] * WIDTH))
        return builder.bitcast(builder.add(builder.bitcast(result, INT_VECTOR), exponent), VECTOR)

    return lanes(lanes), emit


# -- memory ------------------------------------------------------------------------------------------------------------


@intrinsic
def load(typingctx, array, index):
    """Sixteen consecutive float32 from flat element `index` of a contiguous array; no bounds check."""

    def emit(context, builder, sig, args):
        return builder.load(pointer(context, builder, sig.args[0], args[0], args[1], VECTOR), align=4)

    return lanes(array, types.intp), emit


@intrinsic
def store(typingctx, array, index, value):
    def emit(context, builder, sig, args):
        builder.store(args[2], pointer(context, builder, sig.args[0], args[0], args[1], VECTOR), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, lanes), emit


@intrinsic
def load_strided(typingctx, array, index, stride):
    """Lane i is flat element ``index + i * stride``."""

    def emit(context, builder, sig, args):
        result = ir.Constant(VECTOR, ir.Undefined)
        base = pointer(context, builder, sig.args[0], args[0], args[1], FLOAT)
        for i in range(WIDTH):
            offset = builder.mul(args[2], ir.Constant(args[2].type, i))
            result = builder.insert_element(result, builder.load(builder.gep(base, [offset])), ir.Constant(INT32, i))
        return result

    return lanes(array, types.intp, types.intp), emit


@intrinsic
def store_strided(typingctx, array, index, stride, value):
    def emit(context, builder, sig, args):
        base = pointer(context, builder, sig.args[0], args[0], args[1], FLOAT)
        for i in range(WIDTH):
            offset = builder.mul(args[2], ir.Constant(args[2].type, i))
            builder.store(builder.extract_element(args[3], ir.Constant(INT32, i)), builder.gep(base, [offset]))
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, lanes), emit


@intrinsic
def lowest_bit(typingctx, value):
    """Index of the lowest set bit of a non-zero integer."""

    def emit(context, builder, sig, args):
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.int64), emit


@intrinsic
def take_next(typingctx, counter):
    """Atomically read and increment a one-element int64 array: threads share out work with it."""

    def emit(context, builder, sig, args):
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        return builder.atomic_rmw("add", data, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(counter), emit


@intrinsic
def float_bits(typingctx, value):
    """The bit pattern of a float32 as an unsigned integer."""
    return types.uint32(types.float32), lambda context, builder, sig, args: builder.bitcast(args[0], INT32)
