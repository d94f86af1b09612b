"""The inner loop of a 4-bit product, in LLVM's own vectors: codes are looked up in registers.

How it works: a data type's 16 levels fit one AVX-512 register (two of AVX2), and one instruction looks
up a whole vector of codes in it. A byte holds two codes, so `x` is split beforehand into its even and its
odd elements, and no code has to be shuffled into place:

    codes  16 bytes -> 16 integers z          per 32 weights: 1 load, 1 shift,
    levels[z >> 4] * x_even                                   2 look-ups, 2 fused products
    levels[z & 15] * x_odd

The sum of a block is multiplied by its absmax once, and the vector is added up once a row. Compilers do not
find this by themselves: they turn a table look-up into sixteen loads. numba compiles it on first use, so
no compiler has to be installed.
"""

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

FEATURES = binding.get_host_cpu_features()
WIDTH = 16 if FEATURES.get("avx512f") else 8 if FEATURES.get("avx2") else 0  # fp32 lanes; 0: no look-up

F32, I8, I32, I64 = ir.FloatType(), ir.IntType(8), ir.IntType(32), ir.IntType(64)


def _function(builder, name: str, result, arguments):
    return builder.module.globals.get(name) or ir.Function(builder.module, ir.FunctionType(result, arguments), name)


def _fma(builder, a, b, c):
    vector = a.type
    return builder.call(_function(builder, f"llvm.fma.v{vector.count}f32", vector, [vector] * 3), [a, b, c])


def _look_up(builder, levels, z):
    """levels[z & 15] for a vector of integers."""
    vector, integers = levels[0].type, z.type
    if len(levels) == 1:  # the instruction reads the low four bits alone
        permute = _function(builder, "llvm.x86.avx512.permvar.sf.512", vector, [vector, integers])
        return builder.call(permute, [levels[0], z])
    permute = _function(builder, "llvm.x86.avx2.permps", vector, [vector, integers])  # the low three
    low, high = (builder.call(permute, [part, z]) for part in levels)
    eight = builder.and_(z, ir.Constant(integers, [8] * integers.count))
    return builder.select(builder.icmp_unsigned("!=", eight, ir.Constant(integers, [0] * integers.count)), high, low)


def _sum(builder, vector):
    """All lanes added, halves first."""
    while vector.type.count > 1:
        n, undefined = vector.type.count // 2, ir.Constant(vector.type, ir.Undefined)
        low, high = (
            builder.shuffle_vector(vector, undefined, ir.Constant(ir.VectorType(I32, n), list(range(at, at + n))))
            for at in (0, n)
        )
        vector = builder.fadd(low, high)
    return builder.extract_element(vector, ir.Constant(I32, 0))


@intrinsic
def dot_4bit(typingctx, codes, absmax, even, odd, levels, blocks, steps):
    """sum over blocks b of absmax[b] * sum over the block of level * x, as fp32.

    All arguments are int64: the addresses of a row's codes (uint8), its absmax (fp32), the even and odd
    elements of x (fp32) and the 16 levels (fp32); the number of blocks in the row; and the steps of
    2 * WIDTH weights in a block.
    """
    signature = types.float32(*[types.int64] * 7)

    def generate(context, builder, signature, arguments):
        codes, absmax, even, odd, levels, blocks, steps = arguments
        floats, integers, bytes_ = (ir.VectorType(t, WIDTH) for t in (F32, I32, I8))
        number = lambda n: ir.Constant(I64, n)  # noqa: E731
        zero = ir.Constant(floats, [0.0] * WIDTH)

        def load(address, kind, align):
            loaded = builder.load(builder.inttoptr(address, kind.as_pointer()))
            loaded.align = align
            return loaded

        parts = [load(builder.add(levels, number(4 * at)), floats, 4) for at in range(0, 16, WIDTH)]
        before = builder.block
        block, step, block_end, end = (builder.append_basic_block(name) for name in ("block", "step", "block_end", "end"))
        builder.cbranch(builder.icmp_signed(">", blocks, number(0)), block, end)

        builder.position_at_end(block)
        b, total, *places = [builder.phi(t) for t in (I64, floats, I64, I64, I64)]
        for phi, first in zip((b, total, *places), (number(0), zero, codes, even, odd)):
            phi.add_incoming(first, before)
        builder.branch(step)

        builder.position_at_end(step)
        k, sum_even, sum_odd, *at = [builder.phi(t) for t in (I64, floats, floats, I64, I64, I64)]
        for phi, first in zip((k, sum_even, sum_odd, *at), (number(0), zero, zero, *places)):
            phi.add_incoming(first, block)
        z = builder.zext(load(at[0], bytes_, 1), integers)
        high = _look_up(builder, parts, builder.lshr(z, ir.Constant(integers, [4] * WIDTH)))
        next_even = _fma(builder, high, load(at[1], floats, 4), sum_even)
        next_odd = _fma(builder, _look_up(builder, parts, z), load(at[2], floats, 4), sum_odd)
        next_k = builder.add(k, number(1))
        moved = [builder.add(a, number(WIDTH * size)) for a, size in zip(at, (1, 4, 4))]
        for phi, later in zip((k, sum_even, sum_odd, *at), (next_k, next_even, next_odd, *moved)):
            phi.add_incoming(later, step)
        builder.cbranch(builder.icmp_signed("<", next_k, steps), step, block_end)

        builder.position_at_end(block_end)
        scale = load(builder.add(absmax, builder.mul(b, number(4))), F32, 4)
        undefined = ir.Constant(floats, ir.Undefined)
        scale = builder.insert_element(undefined, scale, ir.Constant(I32, 0))
        scale = builder.shuffle_vector(scale, undefined, ir.Constant(integers, [0] * WIDTH))
        next_total = _fma(builder, scale, builder.fadd(next_even, next_odd), total)
        next_b = builder.add(b, number(1))
        for phi, later in zip((b, total, *places), (next_b, next_total, *moved)):
            phi.add_incoming(later, block_end)
        builder.cbranch(builder.icmp_signed("<", next_b, blocks), block, end)

        builder.position_at_end(end)
        result = builder.phi(floats)
        result.add_incoming(zero, before)
        result.add_incoming(next_total, block_end)
        return _sum(builder, result)

    return signature, generate


@intrinsic
def pointer(typingctx, address):
    """An int64 address as a pointer, for numba's `carray`."""
    return types.voidptr(types.int64), lambda context, builder, _, args: builder.inttoptr(args[0], cgutils.voidptr_t)
