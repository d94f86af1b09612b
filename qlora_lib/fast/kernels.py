"""One token through a LLaMA-family model, compiled: every layer, its attention and its adapters.

How it works: at batch 1 a linear layer is a matrix times a vector, each weight used once, so the time is
that of fetching the weights. In 4 bits there are eight times fewer bytes than in 32; they stay 4-bit in memory
and are looked up in registers (simd.py). Calling some four hundred small operations from Python would cost
as much again, so one compiled call does the whole token, and its threads share the rows of each product.

A layer is described by two rows of numbers per linear module, so that one kernel serves any mixture of 4-bit
and 32-bit modules, with and without adapters (see the names of the columns).
"""

import math
from pathlib import Path

import numpy as np
from numba import carray, njit, prange

from qlora_lib.fast.simd import ROWS, WIDTH, dot_4bit_row, dot_4bit_rows, pointer

# Columns that describe a linear module (int64; addresses of fp32 unless said otherwise).
FORMAT, WEIGHT, ABSMAX, LEVELS, INPUTS, OUTPUTS, BLOCK, A, B, RANK, BIAS = range(11)
DENSE, FOUR_BIT = 0, 1  # FORMAT; WEIGHT is then fp32 [out, in], or codes uint8 [out, in / 2]
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
COMPILE = {"fastmath": {"reassoc", "contract", "arcp", "nsz"}, "error_model": "numpy", "cache": True}


@njit(**COMPILE)
def floats(address, n):
    """fp32 [n] at an address."""
    return carray(pointer(address), n, np.float32)


@njit(**COMPILE)
def dot(a, b, n):
    total = np.float32(0)
    for i in range(n):
        total += a[i] * b[i]
    return total


@njit(**COMPILE)
def split(x, n, even, odd):
    """x [n] -> its even and odd elements [n / 2] each."""
    for i in range(n // 2):
        even[i] = x[2 * i]
        odd[i] = x[2 * i + 1]


@njit(**COMPILE)
def normalize(x, weight, epsilon, out):
    """RMS norm: x / sqrt(mean(x^2) + epsilon) * weight, all [n]."""
    n = x.size
    scale = np.float32(1 / math.sqrt(dot(x, x, n) / n + epsilon))
    for i in range(n):
        out[i] = weight[i] * (x[i] * scale)


@njit(**COMPILE)
def adapt(module, x, h):
    """h [rank] = A x."""
    n = module[INPUTS]
    for r in range(module[RANK]):
        h[r] = dot(floats(module[A] + 4 * n * r, n), x, n)


@njit(**COMPILE)
def rows(module, first, count, x, even, odd, h, out):
    """`count` elements of W x + B h + bias from the first on, into out [count]."""
    n = module[INPUTS]
    if module[FORMAT] == FOUR_BIT:
        blocks, steps = n // module[BLOCK], module[BLOCK] // (2 * WIDTH)
        codes, absmax = module[WEIGHT] + first * (n // 2), module[ABSMAX] + 4 * first * blocks
        inputs = even.ctypes.data, odd.ctypes.data
        if count == ROWS:
            dot_4bit_rows(codes, absmax, inputs[0], inputs[1], module[LEVELS], blocks, steps, out.ctypes.data)
        else:
            for i in range(count):
                dot_4bit_row(
                    codes + i * (n // 2), absmax + 4 * i * blocks, inputs[0], inputs[1], module[LEVELS], blocks, steps,
                    out.ctypes.data + 4 * i,
                )  # fmt: skip
    else:
        for i in range(count):
            out[i] = dot(floats(module[WEIGHT] + 4 * n * (first + i), n), x, n)
    rank = module[RANK]
    for i in range(count):
        if rank:
            out[i] += dot(floats(module[B] + 4 * rank * (first + i), rank), h, rank)
        if module[BIAS]:
            out[i] += floats(module[BIAS] + 4 * (first + i), 1)[0]


@njit(**COMPILE)
def place(modules, group):
    """(module, first row in it, outputs of the modules before) of a group of rows, counted over all modules."""
    m, before = 0, 0
    while group >= -(-modules[m, OUTPUTS] // ROWS):
        group -= -(-modules[m, OUTPUTS] // ROWS)
        before += modules[m, OUTPUTS]
        m += 1
    return m, group * ROWS, before


@njit(parallel=True, **COMPILE)
def products(modules, x, even, odd, h, out):
    """Several modules on one input: their outputs one after another in `out`; h is scratch [modules, rank]."""
    split(x, modules[0, INPUTS], even, odd)
    groups = 0
    for m in range(modules.shape[0]):
        adapt(modules[m], x, h[m])
        groups += -(-modules[m, OUTPUTS] // ROWS)
    for i in prange(groups):
        m, first, before = place(modules, i)
        count = min(ROWS, modules[m, OUTPUTS] - first)
        rows(modules[m], first, count, x, even, odd, h[m], out[before + first : before + first + count])


@njit(parallel=True, **COMPILE)
def gated(modules, x, even, odd, h, out):
    """silu(gate) * up of one input, [inner]; modules: gate's and up's; h is scratch [2, rank]."""
    split(x, modules[0, INPUTS], even, odd)
    for m in range(2):
        adapt(modules[m], x, h[m])
    inner = modules[0, OUTPUTS]
    for i in prange(-(-inner // ROWS)):
        first = i * ROWS
        count = min(ROWS, inner - first)
        gate, up = out[first : first + count], np.empty(ROWS, np.float32)
        rows(modules[0], first, count, x, even, odd, h[0], gate)
        rows(modules[1], first, count, x, even, odd, h[1], up)
        for j in range(count):
            gate[j] = gate[j] / (1 + math.exp(-gate[j])) * up[j]


@njit(parallel=True, **COMPILE)
def dense_product(weight, x, out):
    """out [n] = weight [n, m] x [m]: the output head."""
    for i in prange(weight.shape[0]):
        out[i] = dot(weight[i], x, x.size)


@njit(**COMPILE)
def rotate(vector, cosine, sine):
    """Rotary position embedding in place, of one head [d]; halves are pairs."""
    half = vector.size // 2
    for i in range(half):
        a, b = vector[i], vector[i + half]
        vector[i] = a * cosine[i] - b * sine[i]
        vector[i + half] = b * cosine[i + half] + a * sine[i + half]


@njit(parallel=True, **COMPILE)
def attend(q, keys, values, length, scale, scores, out):
    """q [heads, d]; keys and values [kv heads, capacity, d], of which `length` are filled -> out [heads, d]."""
    heads, d = q.shape
    group = heads // keys.shape[0]
    for head in prange(heads):
        kv, weights, highest = head // group, scores[head], np.float32(-np.inf)
        for t in range(length):
            weights[t] = dot(q[head], keys[kv, t], d) * scale
            highest = max(highest, weights[t])
        total = np.float32(0)
        for t in range(length):
            weights[t] = math.exp(weights[t] - highest)
            total += weights[t]
        for i in range(d):
            out[head, i] = 0
        for t in range(length):
            for i in range(d):
                out[head, i] += weights[t] * values[kv, t, i]
        for i in range(d):
            out[head, i] /= total


@njit(**COMPILE)
def token(
    x, position, modules, norms, head_norms, final_norm, epsilon, head, cosine, sine, keys, values, scale, scratch, h, scores, logits
):
    """One token's embedding x [hidden] -> logits [vocabulary]; its keys and values are added to the cache.

    modules: int64 [layers, 7, columns]; norms: [layers, 2, hidden], before attention and before the MLP;
    head_norms: [layers, 2, d] of queries and keys, or empty; head: [vocabulary, hidden];
    cosine, sine: [positions, d]; keys, values: [layers, kv heads, capacity, d];
    scratch: [6, widest]; h: [3, rank]; scores: [heads, capacity]. With empty logits only the cache is written.
    """
    layers, hidden, d = modules.shape[0], x.size, keys.shape[3]
    normed, wide, even, odd, mixed, narrow = scratch[0], scratch[1], scratch[2], scratch[3], scratch[4], scratch[5]
    for layer in range(layers):
        m = modules[layer]
        normalize(x, norms[layer, 0], epsilon, normed[:hidden])
        products(m[:3], normed, even, odd, h, wide)
        n_q, n_k = m[0, OUTPUTS], m[1, OUTPUTS]
        q, k = wide[:n_q].reshape(-1, d), wide[n_q : n_q + n_k].reshape(-1, d)
        v = wide[n_q + n_k : n_q + 2 * n_k].reshape(-1, d)
        for i in range(q.shape[0]):
            if head_norms.size:
                normalize(q[i], head_norms[layer, 0], epsilon, q[i])
            rotate(q[i], cosine[position], sine[position])
        for i in range(k.shape[0]):
            if head_norms.size:
                normalize(k[i], head_norms[layer, 1], epsilon, k[i])
            rotate(k[i], cosine[position], sine[position])
            keys[layer, i, position] = k[i]
            values[layer, i, position] = v[i]
        attend(q, keys[layer], values[layer], position + 1, scale, scores, mixed[:n_q].reshape(-1, d))
        products(m[3:4], mixed, even, odd, h, narrow)
        for i in range(hidden):
            x[i] += narrow[i]
        normalize(x, norms[layer, 1], epsilon, normed[:hidden])
        gated(m[4:6], normed, even, odd, h, mixed)
        products(m[6:7], mixed, even, odd, h, narrow)
        for i in range(hidden):
            x[i] += narrow[i]
    if logits.size:
        normalize(x, final_norm, epsilon, normed[:hidden])
        dense_product(head, normed[:hidden], logits)


def compiled_before() -> bool:
    """Whether `token` was compiled on this machine already: by this process, or kept by an earlier one."""
    return bool(token.signatures) or any(Path(token.stats.cache_path).glob("kernels.token-*.nbi"))


# --- training: the optimizer ----------------------------------------------------------------------

IEEE = {"fastmath": {"contract"}, "error_model": "numpy", "cache": True}


@njit(**IEEE)
def quantize_block(values, n, code_of, codes):
    """codes [n] of values [n], and their absmax; code_of: uint8 [65,536], by the place in [-1, 1]."""
    absmax = np.float32(0)
    for i in range(n):
        absmax = max(absmax, abs(values[i]))
    if absmax == 0:
        for i in range(n):
            codes[i] = 0
        return absmax
    inverse, one, half = np.float32(1) / absmax, np.float32(1), np.float32(0.5)
    for i in range(n):
        value = min(max(values[i] * inverse, -one), one)
        codes[i] = code_of[np.int32((value + one) * half * np.float32(65_535) + half)]
    return absmax


@njit(parallel=True, **IEEE)
def adamw_8bit(addresses, sizes, levels1, levels2, code_of1, code_of2, beta1, rest1, beta2, rest2, correction2, epsilon, rate, decay):
    """One update of many matrices with 8-bit states in blocks of 256.

    addresses: int64 [matrices, 6], of weights, gradients (fp32), both averages' codes (uint8) and absmax (fp32);
    sizes: [matrices]; levels: fp32 [256]; code_of: as above; rest = 1 - beta; rate = -learning rate / (1 - beta1^t);
    correction2 = sqrt(1 - beta2^t); decay = 1 - learning rate * weight decay.
    """
    for m in prange(sizes.size):
        size = sizes[m]
        blocks = (size + 255) // 256
        weights, grads = floats(addresses[m, 0], size), floats(addresses[m, 1], size)
        codes1, codes2 = carray(pointer(addresses[m, 2]), size, np.uint8), carray(pointer(addresses[m, 3]), size, np.uint8)
        absmax1, absmax2 = floats(addresses[m, 4], blocks), floats(addresses[m, 5], blocks)
        first, second = np.empty(256, np.float32), np.empty(256, np.float32)
        for b in range(blocks):
            at = 256 * b
            n = min(256, size - at)
            scale1, scale2 = absmax1[b], absmax2[b]
            for i in range(n):
                grad = grads[at + i]
                first[i] = levels1[codes1[at + i]] * scale1 * beta1 + rest1 * grad
                second[i] = levels2[codes2[at + i]] * scale2 * beta2 + rest2 * grad * grad
            for i in range(n):
                slope = rate * first[i] / (np.float32(math.sqrt(second[i])) / correction2 + epsilon)
                weights[at + i] = weights[at + i] * decay + slope
            absmax1[b] = quantize_block(first, n, code_of1, codes1[at : at + n])
            absmax2[b] = quantize_block(second, n, code_of2, codes2[at : at + n])
