"""Inner loops over blocks of channels, for any number of channels chosen at run time.

A pixel row of a tile is sixteen lanes, and a tile keeps one such vector per row and channel. The loops below hold a
block of up to eight channels in registers; kernels walk through the channels with ``BLOCKS`` (8, then what is left).
Images have their channels last, so `pack` and `unpack` transpose between the two layouts with shuffles.
"""

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types

from maskfield_ns.splatting.simd import FLOAT, FUSE, INT32, VECTOR, WIDTH, intrinsic, lanes, pointer, splat_value

INTP = ir.IntType(64)


def _wide(count: int) -> ir.VectorType:
    return ir.VectorType(FLOAT, count)


def _shuffle(builder: Any, a: Any, b: Any, order: list[int]) -> Any:
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(INT32, len(order)), order))


def _concatenate(builder: Any, parts: list[Any]) -> Any:
    """One vector out of equally long ones (their number a power of two)."""
    while len(parts) > 1:
        n = parts[0].type.count
        parts = [_shuffle(builder, a, b, list(range(2 * n))) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def _interleave(builder: Any, vectors: list[Any]) -> Any:
    """[a0 b0 c0 ... a1 b1 c1 ...]; every step draws from two registers only."""
    if len(vectors) == 1:
        return vectors[0]
    if len(vectors) == 3:
        padded = [*vectors, ir.Constant(VECTOR, ir.Undefined)]
        joined = _interleave(builder, padded)
        keep = [i for i in range(4 * WIDTH) if i % 4 != 3]
        return _shuffle(builder, joined, ir.Constant(joined.type, ir.Undefined), keep)
    even, odd = _interleave(builder, vectors[::2]), _interleave(builder, vectors[1::2])
    n = even.type.count
    return _shuffle(builder, even, odd, [j for i in range(n) for j in (i, n + i)])


def _deinterleave(builder: Any, wide: Any, count: int) -> list[Any]:
    undefined = ir.Constant(wide.type, ir.Undefined)
    if count in (1, 3):
        return [_shuffle(builder, wide, undefined, list(range(k, WIDTH * count, count))) for k in range(count)]
    n = wide.type.count
    even = _deinterleave(builder, _shuffle(builder, wide, undefined, list(range(0, n, 2))), count // 2)
    odd = _deinterleave(builder, _shuffle(builder, wide, undefined, list(range(1, n, 2))), count // 2)
    return [v for pair in zip(even, odd, strict=True) for v in pair]


def _lane_sums(builder: Any, vectors: list[Any]) -> Any:
    """The sums over the lanes of each vector, as a vector of ``len(vectors)`` numbers."""
    count = len(vectors)
    groups = 1
    while groups < count:
        groups *= 2
    parts = vectors + [ir.Constant(VECTOR, [0.0] * WIDTH)] * (groups - count)
    size = WIDTH  # lanes a sum is still spread over
    while size > 1 or len(parts) > 1:
        paired = len(parts) > 1
        left, right = (parts[::2], parts[1::2]) if paired else (parts, parts)
        n = left[0].type.count
        starts = range(0, 2 * n if paired else n, size)
        low = [s + i for s in starts for i in range(size // 2)]
        high = [s + size // 2 + i for s in starts for i in range(size // 2)]
        parts = [
            builder.fadd(_shuffle(builder, a, b, low), _shuffle(builder, a, b, high))
            for a, b in zip(left, right, strict=True)
        ]
        size //= 2
    return _shuffle(builder, parts[0], parts[0], list(range(count)))


def _add_to(builder: Any, address: Any, value: Any) -> None:
    builder.store(builder.fadd(builder.load(address, align=4), value), address, align=4)


def _at(builder: Any, base: Any, index: Any, kind: Any = VECTOR) -> Any:
    return builder.bitcast(builder.gep(base, [index]), kind.as_pointer())


def _times(builder: Any, value: Any, factor: int) -> Any:
    return builder.mul(value, ir.Constant(INTP, factor))


def _plus(builder: Any, value: Any, term: int) -> Any:
    return builder.add(value, ir.Constant(INTP, term))


def _fuse_add(builder: Any, total: Any, a: Any, b: Any) -> Any:
    return builder.fadd(total, builder.fmul(a, b, flags=FUSE), flags=FUSE)


def _variables(builder: Any, count: int) -> list[Any]:
    """Accumulators for a loop; LLVM turns them into registers."""
    variables = [cgutils.alloca_once(builder, VECTOR) for _ in range(count)]
    for variable in variables:
        builder.store(ir.Constant(VECTOR, [0.0] * WIDTH), variable)
    return variables


def make_mix(block: int) -> Any:
    """Forward: add the weighted features of a list of Gaussians to one row of a tile."""

    @intrinsic
    def mix(typingctx, total, at, weights, pairs, first, count, features, channels, channel):
        # total[at + 16 i] += sum over j of weights[16 p_j] * features[g_j * channels + channel + i],
        # where (p_j, g_j) are pairs[2 (first + j)] and the number after it
        def emit(context, builder, sig, args):
            kinds = sig.args
            address = [pointer(context, builder, kinds[0], args[0], _plus(builder, args[1], 16 * i), VECTOR)
                       for i in range(block)]  # fmt: skip
            sums = [cgutils.alloca_once(builder, VECTOR) for _ in range(block)]
            for variable, source in zip(sums, address, strict=True):
                builder.store(builder.load(source, align=4), variable)
            weights = pointer(context, builder, kinds[2], args[2], ir.Constant(INTP, 0), FLOAT)
            pairs = pointer(context, builder, kinds[3], args[3], _times(builder, args[4], 2), INT32)
            features = pointer(context, builder, kinds[6], args[6], args[8], FLOAT)
            with cgutils.for_range(builder, args[5]) as loop:
                place = _times(builder, loop.index, 2)
                pair = builder.sext(builder.load(builder.gep(pairs, [place])), INTP)
                gaussian = builder.sext(builder.load(builder.gep(pairs, [_plus(builder, place, 1)])), INTP)
                weight = builder.load(_at(builder, weights, _times(builder, pair, 16)), align=4)
                row = builder.gep(features, [builder.mul(gaussian, args[7])])
                for i, variable in enumerate(sums):
                    value = splat_value(builder, builder.load(builder.gep(row, [ir.Constant(INTP, i)])))
                    builder.store(_fuse_add(builder, builder.load(variable), value, weight), variable)
            for variable, target in zip(sums, address, strict=True):
                builder.store(builder.load(variable), target, align=4)
            return context.get_dummy_value()

        kinds = (total, types.intp, weights, pairs, types.intp, types.intp, features, types.intp, types.intp)
        return types.void(*kinds), emit

    return mix


def make_gather(block: int, with_dot: bool) -> Any:
    """Backward: one Gaussian over its rows in a tile."""

    @intrinsic
    def gather(typingctx, gradient, at, rows, count, weights, dots, image, channels, channel, features, source):
        # gradient[at + i] += sum over rows j and lanes of weights[16 j] * image[row_j, channel + i]
        # and, with dots: dots[16 j] += sum over i of features[source + i] * image[row_j, channel + i]
        def emit(context, builder, sig, args):
            kinds = sig.args
            rows = pointer(context, builder, kinds[2], args[2], ir.Constant(INTP, 0), INT32)
            weights = pointer(context, builder, kinds[4], args[4], ir.Constant(INTP, 0), FLOAT)
            dots = pointer(context, builder, kinds[5], args[5], ir.Constant(INTP, 0), FLOAT)
            image = pointer(context, builder, kinds[6], args[6], _times(builder, args[8], 16), FLOAT)
            own = pointer(context, builder, kinds[9], args[9], args[10], FLOAT)
            stride = _times(builder, args[7], 16)
            sums = _variables(builder, block)
            values = []
            if with_dot:
                for i in range(block):
                    values.append(splat_value(builder, builder.load(builder.gep(own, [ir.Constant(INTP, i)]))))
            with cgutils.for_range(builder, args[3]) as loop:
                row = builder.sext(builder.load(builder.gep(rows, [loop.index])), INTP)
                lane0 = _times(builder, loop.index, 16)
                weight = builder.load(_at(builder, weights, lane0), align=4)
                start = builder.mul(row, stride)
                dot = []
                for i in range(block):
                    pixel = builder.load(_at(builder, image, _plus(builder, start, 16 * i)), align=4)
                    builder.store(_fuse_add(builder, builder.load(sums[i]), weight, pixel), sums[i])
                    if with_dot:
                        if i < 2:
                            dot.append(builder.fmul(values[i], pixel, flags=FUSE))
                        else:
                            dot[i % 2] = _fuse_add(builder, dot[i % 2], values[i], pixel)
                if with_dot:
                    total = builder.fadd(dot[0], dot[1]) if block > 1 else dot[0]
                    _add_to(builder, _at(builder, dots, lane0), total)
            gradient = pointer(context, builder, kinds[0], args[0], args[1], _wide(block))
            _add_to(builder, gradient, _lane_sums(builder, [builder.load(v) for v in sums]))
            return context.get_dummy_value()

        kinds = (gradient, types.intp, rows, types.intp, weights, dots, image)
        return types.void(*kinds, types.intp, types.intp, features, types.intp), emit

    return gather


def make_unpack(block: int) -> Any:
    """One block of channels of a tile row to sixteen pixels of an image with channels last."""

    @intrinsic
    def unpack(typingctx, image, at, channels, tile, source, rest, background, channel):
        # image[at + pixel * channels + channel + i] =
        #     tile[source + 16 i][pixel] + rest[pixel] * background[channel + i]
        def emit(context, builder, sig, args):
            kinds = sig.args
            empty = pointer(context, builder, kinds[6], args[6], args[7], FLOAT)
            vectors = []
            for i in range(block):
                place = _plus(builder, args[4], 16 * i)
                value = builder.load(pointer(context, builder, kinds[3], args[3], place, VECTOR), align=4)
                level = splat_value(builder, builder.load(builder.gep(empty, [ir.Constant(INTP, i)])))
                vectors.append(_fuse_add(builder, value, args[5], level))
            wide = _interleave(builder, vectors)
            image = pointer(context, builder, kinds[0], args[0], builder.add(args[1], args[7]), FLOAT)
            dense = builder.icmp_signed("==", args[2], ir.Constant(INTP, block))
            with builder.if_else(dense) as (together, apart):
                with together:
                    builder.store(wide, builder.bitcast(image, wide.type.as_pointer()), align=4)
                with apart:
                    for pixel in range(WIDTH):
                        part = list(range(pixel * block, (pixel + 1) * block))
                        value = _shuffle(builder, wide, ir.Constant(wide.type, ir.Undefined), part)
                        target = _at(builder, image, _times(builder, args[2], pixel), _wide(block))
                        builder.store(value, target, align=4)
            return context.get_dummy_value()

        kinds = (image, types.intp, types.intp, tile, types.intp, lanes, background, types.intp)
        return types.void(*kinds), emit

    return unpack


def make_pack(block: int) -> Any:
    """The inverse of `unpack`, without a background: returns nothing, fills the tile's row."""

    @intrinsic
    def pack(typingctx, tile, target, image, at, channels, channel):
        def emit(context, builder, sig, args):
            kinds = sig.args
            image = pointer(context, builder, kinds[2], args[2], builder.add(args[3], args[5]), FLOAT)
            out = pointer(context, builder, kinds[0], args[0], args[1], FLOAT)

            def put(wide):
                for i, vector in enumerate(_deinterleave(builder, wide, block)):
                    builder.store(vector, _at(builder, out, ir.Constant(INTP, 16 * i)), align=4)

            dense = builder.icmp_signed("==", args[4], ir.Constant(INTP, block))
            with builder.if_else(dense) as (together, apart):
                with together:
                    put(builder.load(builder.bitcast(image, _wide(WIDTH * block).as_pointer()), align=4))
                with apart:
                    parts = []
                    for pixel in range(WIDTH):
                        source = _at(builder, image, _times(builder, args[4], pixel), _wide(block))
                        parts.append(builder.load(source, align=4))
                    put(_concatenate(builder, parts))
            return context.get_dummy_value()

        return types.void(tile, types.intp, image, types.intp, types.intp, types.intp), emit

    return pack


@intrinsic
def add_lane_sums(typingctx, target, at, a, b, c, d, e, f, g, h):
    """target[at : at + 8] += the sums over the lanes of eight vectors."""

    def emit(context, builder, sig, args):
        address = pointer(context, builder, sig.args[0], args[0], args[1], _wide(8))
        _add_to(builder, address, _lane_sums(builder, list(args[2:])))
        return context.get_dummy_value()

    return types.void(target, types.intp, *[lanes] * 8), emit
