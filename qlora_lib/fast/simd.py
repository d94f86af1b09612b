"""The inner loop of a 4-bit product, in LLVM's own vectors: codes are looked up in registers.

How it works: a data type's 16 levels fit one AVX-512 register (two of AVX2), and one instruction looks
up a whole vector of codes in it. A byte holds two codes, so `x` is split beforehand into its even and its
odd elements, and no code has to be shuffled into place:

    codes  16 bytes -> 16 integers z          per 32 weights: 1 load, 1 shift,
    levels[z >> 4] * x_even                                   2 look-ups, 2 fused products
    levels[z & 15] * x_odd

The sum of a block is multiplied by its absmax once, and the vector is added up once a row. A few rows go together: they
share the loads of x, and none waits for another's sum. Compilers do not find this by themselves: they turn a table look-up
into sixteen loads. numba compiles it on first use, so no compiler has to be installed.
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


def _dot_4bit(rows: int):
    """An intrinsic for so many rows at once: their sums are independent, so that the processor need not wait for any."""

    @intrinsic
    def dot_4bit(typingctx, codes, absmax, even, odd, levels, blocks, steps, out):
        """out[r] = sum over blocks b of absmax[r, b] * sum over the block of level * x, for consecutive rows r.

        All arguments are int64: the addresses of the first row's codes (uint8) and absmax (fp32), of the even and odd
        elements of x (fp32) and the 16 levels (fp32); the number of blocks in a row; the steps of
        2 * WIDTH weights in a block; the address of the results (fp32 [rows]).
        """
        return types.void(*[types.int64] * 8), generate

    def generate(context, builder, signature, arguments):
        codes, absmax, even, odd, levels, blocks, steps, out = arguments
        floats, integers, bytes_ = (ir.VectorType(t, WIDTH) for t in (F32, I32, I8))
        number = lambda n: ir.Constant(I64, n)  # noqa: E731
        zero = ir.Constant(floats, [0.0] * WIDTH)

        def load(address, kind, align):
            loaded = builder.load(builder.inttoptr(address, kind.as_pointer()))
            loaded.align = align
            return loaded

        def loop(names_and_first, before):
            phis = [builder.phi(first.type) for first in names_and_first]
            for phi, first in zip(phis, names_and_first):
                phi.add_incoming(first, before)
            return phis

        parts = [load(builder.add(levels, number(4 * at)), floats, 4) for at in range(0, 16, WIDTH)]
        in_row = builder.mul(builder.mul(blocks, steps), number(WIDTH))  # bytes of codes in a row
        scales_in_row = builder.mul(blocks, number(4))
        before = builder.block
        block, step, block_end, end = (builder.append_basic_block(name) for name in ("block", "step", "block_end", "end"))
        builder.cbranch(builder.icmp_signed(">", blocks, number(0)), block, end)

        builder.position_at_end(block)
        b, *state = loop([number(0), codes, even, odd, *[zero] * rows], before)
        places, totals = state[:3], state[3:]
        builder.branch(step)

        builder.position_at_end(step)
        k, *state = loop([number(0), *places, *[zero] * (2 * rows)], block)
        at, sums = state[:3], state[3:]
        x_even, x_odd, later, code = load(at[1], floats, 4), load(at[2], floats, 4), [], at[0]
        for r in range(rows):
            z = builder.zext(load(code, bytes_, 1), integers)
            high = _look_up(builder, parts, builder.lshr(z, ir.Constant(integers, [4] * WIDTH)))
            later += [_fma(builder, high, x_even, sums[2 * r]), _fma(builder, _look_up(builder, parts, z), x_odd, sums[2 * r + 1])]
            code = builder.add(code, in_row)
        next_k = builder.add(k, number(1))
        moved = [builder.add(a, number(WIDTH * size)) for a, size in zip(at, (1, 4, 4))]
        for phi, value in zip((k, *at, *sums), (next_k, *moved, *later)):
            phi.add_incoming(value, step)
        builder.cbranch(builder.icmp_signed("<", next_k, steps), step, block_end)

        builder.position_at_end(block_end)
        undefined, next_totals = ir.Constant(floats, ir.Undefined), []
        scale_at = builder.add(absmax, builder.mul(b, number(4)))
        for r in range(rows):
            scale = builder.insert_element(undefined, load(scale_at, F32, 4), ir.Constant(I32, 0))
            scale = builder.shuffle_vector(scale, undefined, ir.Constant(integers, [0] * WIDTH))
            next_totals.append(_fma(builder, scale, builder.fadd(later[2 * r], later[2 * r + 1]), totals[r]))
            scale_at = builder.add(scale_at, scales_in_row)
        next_b = builder.add(b, number(1))
        for phi, value in zip((b, *places, *totals), (next_b, *moved, *next_totals)):
            phi.add_incoming(value, block_end)
        builder.cbranch(builder.icmp_signed("<", next_b, blocks), block, end)

        builder.position_at_end(end)
        for r, value in enumerate(next_totals):
            result = builder.phi(floats)
            result.add_incoming(zero, before)
            result.add_incoming(value, block_end)
            totals[r] = result
        for r, result in enumerate(totals):
            address = builder.inttoptr(builder.add(out, number(4 * r)), F32.as_pointer())
            builder.store(_sum(builder, result), address)
        return context.get_dummy_value()

    return dot_4bit


ROWS = 4 if WIDTH == 16 else 2  # as many as leave registers for the rest
dot_4bit_row, dot_4bit_rows = _dot_4bit(1), _dot_4bit(ROWS)


@intrinsic
def pointer(typingctx, address):
    """An int64 address as a pointer, for numba's `carray`."""
    return types.voidptr(types.int64), lambda context, builder, _, args: builder.inttoptr(args[0], cgutils.voidptr_t)
