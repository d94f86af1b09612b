"""A training step of the same operations as LitGPT's, on tensors without contents, and the bytes that live in it.

How it works: the meta device allocates nothing but builds the same graph, and a dispatch mode sees every storage come and
go: the highest sum is what `torch.cuda.max_memory_allocated` would report, but for rounding and the kernels' own buffers.
Written from LitGPT's lora.py and model.py, Lightning's `_FabricModule` and bitsandbytes 0.41's `MatMul4Bit`; it holds what
they hold and computes nothing. Attention is the GPU's flash kernel, dropout the GPU's too (a byte a number in its mask).
"""

import weakref
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from qlora_lib.cost.shapes import ModelShape

BF16 = dict(dtype=torch.bfloat16, device="meta")
flash = torch.ops.aten._scaled_dot_product_flash_attention


class Live(TorchDispatchMode):
    """Bytes of all storages that are alive now, and the most that were in each phase of a step."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.now, self.phase, self.highest = 0, "", {}
        own = [t.untyped_storage() for name, t in model.state_dict(keep_vars=True).items() if name not in ("cos", "sin")]
        self._seen = {id(storage): storage for storage in own}  # weights, which are not counted
        for rotations in (model.cos, model.sin):
            self._see(rotations.untyped_storage())

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._see(tensor.untyped_storage())
        return out

    def _see(self, storage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._seen:
            return

        def gone(_, key=key, size=size):
            del self._seen[key]
            self.now -= size

        self._seen[key] = weakref.ref(storage, gone)
        self.now += size
        self.highest[self.phase] = max(self.highest.get(self.phase, 0), self.now)


# --- the model ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Toy:
    shape: ModelShape
    rank: int = 4
    qkv: tuple[bool, bool, bool] = (True, False, True)  # which of queries, keys and values are adapted
    rest: bool = False  # the other linear layers and the head too
    bits: int = 16  # of the base
    full: bool = False
    keeps_inputs: bool = True  # of 4-bit products, as bitsandbytes before 0.43.2


class Product4bit(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, packed, shape, keep):
        ctx.weight, ctx.shape = packed, shape
        out = F.linear(x, _read_back(shape).to(x.dtype))
        ctx.held = x if keep and ctx.needs_input_grad[0] else None  # an attribute: backward does not free it
        return out

    @staticmethod
    def backward(ctx, grad):
        return grad @ _read_back(ctx.shape).to(grad.dtype), None, None, None


def _read_back(shape: tuple[int, int]) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.float16, device="meta")


class Linear(nn.Module):
    def __init__(self, toy: Toy, inputs: int, outputs: int) -> None:
        super().__init__()
        self.toy, self.widths = toy, (outputs, inputs)
        if toy.bits == 4:  # packed codes, and a scale for 64 weights
            self.register_buffer("codes", torch.empty(outputs * inputs // 2, dtype=torch.uint8, device="meta"))
            self.register_buffer("scales", torch.empty(outputs * inputs // 64, device="meta"))
        else:
            self.weight = nn.Parameter(torch.empty(outputs, inputs, **BF16), requires_grad=toy.full)

    def forward(self, x):
        if self.toy.bits == 4:
            return Product4bit.apply(x, self.codes, self.widths, self.toy.keeps_inputs)
        return F.linear(x, self.weight)


def dropout(x):
    return torch.native_dropout(x, 0.05, True)[0]


class Adapted(nn.Module):
    """A linear layer, with an adapter where it has one."""

    def __init__(self, toy: Toy, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear, self.here = Linear(toy, inputs, outputs), toy.rest and not toy.full
        if self.here:
            self.a = nn.Parameter(torch.empty(toy.rank, inputs, **BF16))
            self.b = nn.Parameter(torch.empty(outputs, toy.rank, **BF16))

    def forward(self, x):
        base = self.linear(x)
        return base + (dropout(x) @ self.a.T @ self.b.T) * 0.5 if self.here else base


class AdaptedQkv(nn.Module):
    """One layer for queries, keys and values; the adapter's output goes to their columns among zeros."""

    def __init__(self, toy: Toy) -> None:
        super().__init__()
        s = toy.shape
        widths = (s.query_width, s.kv_width, s.kv_width)
        self.linear, self.toy = Linear(toy, s.hidden_size, sum(widths)), toy
        self.widths = [w for w, on in zip(widths, toy.qkv) if on]
        if not toy.full:
            self.a = nn.Parameter(torch.empty(toy.rank * len(self.widths), s.hidden_size, **BF16))
            self.b = nn.Parameter(torch.empty(sum(self.widths), toy.rank, **BF16))

    def forward(self, x):
        base = self.linear(x)
        if self.toy.full:
            return base
        inner = F.linear(dropout(x), self.a).transpose(-2, -1)
        b = self.b.unsqueeze(-1)
        if self.toy.shape.num_heads == self.toy.shape.num_kv_heads:
            outer = F.conv1d(inner, b, groups=len(self.widths))
        else:
            parts = zip(inner.chunk(len(self.widths), dim=1), b.split(self.widths))
            outer = torch.cat([F.conv1d(x, w) for x, w in parts], dim=1)
        return base + self.among_zeros(outer.transpose(-2, -1)) * 0.5

    def among_zeros(self, x):
        if all(self.toy.qkv):
            return x
        x = x.transpose(0, 1)
        zeros = x.new_zeros((*x.shape[:-1], self.linear.widths[0])).view(-1, self.linear.widths[0])
        columns = torch.empty(sum(self.widths), dtype=torch.int64, device="meta")
        put = zeros.index_copy(1, columns, x.reshape(-1, sum(self.widths)))
        return put.view((*x.shape[:-1], self.linear.widths[0])).transpose(0, 1)


class Norm(nn.Module):
    def __init__(self, toy: Toy) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(toy.shape.hidden_size, **BF16), requires_grad=toy.full)

    def forward(self, x):
        wide = x.float()
        return (wide * torch.rsqrt((wide * wide).mean(-1, keepdim=True) + 1e-5)).to(x.dtype) * self.weight


class Block(nn.Module):
    def __init__(self, toy: Toy) -> None:
        super().__init__()
        s = self.shape = toy.shape
        self.norms = nn.ModuleList((Norm(toy), Norm(toy)))
        self.qkv, self.out = AdaptedQkv(toy), Adapted(toy, s.query_width, s.hidden_size)
        self.gate, self.up = (Adapted(toy, s.hidden_size, s.intermediate_size) for _ in range(2))
        self.down = Adapted(toy, s.intermediate_size, s.hidden_size)

    def forward(self, x, cos, sin):
        x = self.attention(self.norms[0](x), cos, sin) + x
        y = self.norms[1](x)
        return self.down(F.silu(self.gate(y)) * self.up(y)) + x

    def attention(self, x, cos, sin):
        s, (batch, length, _) = self.shape, x.shape
        groups, d = s.num_kv_heads, s.head_dim
        each = s.num_heads // groups
        qkv = self.qkv(x).view(batch, length, groups, each + 2, d).permute(0, 2, 3, 1, 4)
        q, k, v = qkv.split((each, 1, 1), dim=2)  # [B, groups, heads of a group, T, D]
        if each > 1:
            k, v = (t.expand(batch, groups, each, length, d) for t in (k, v))
        q, k, v = (t.reshape(batch, -1, length, d) for t in (q, k, v))
        q, k = (torch.cat((rotated(t, cos, sin), t[..., d:]), dim=-1) for t in (q, k))
        y = flash(q, k, v, 0.0, True)[0].transpose(1, 2)  # heads come first in it, so the next line copies
        return self.out(y.reshape(batch, length, s.query_width))


def rotated(x, cos, sin):
    half = x.size(-1) // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return (x * cos + turned * sin).to(x.dtype)


class Model(nn.Module):
    def __init__(self, toy: Toy, length: int) -> None:
        super().__init__()
        s = toy.shape
        self.embedding = nn.Embedding(s.vocab_size, s.hidden_size, **BF16)
        self.embedding.weight.requires_grad_(toy.full)
        self.blocks = nn.ModuleList(Block(toy) for _ in range(s.num_layers))
        self.norm, self.head = Norm(toy), Adapted(toy, s.hidden_size, s.vocab_size)
        for name in ("cos", "sin"):
            self.register_buffer(name, torch.empty(length, s.head_dim, **BF16))

    def forward(self, tokens, piece: int):
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        x = self.norm(x)
        return [self.head(part) for part in x.split(piece, dim=1)] if piece else self.head(x)


# --- the loop -----------------------------------------------------------------------------------------


def steps(toy: Toy, batch: int, length: int, piece: int = 128, micro_batches: int = 2) -> list[dict[str, int]]:
    """Of each micro-batch, the most bytes above the model's own in its forward pass, while its logits are turned to fp32,
    in the loss, when that is computed, and in the backward pass. Gradients stay from one to the next."""
    model = Model(toy, length)
    live = Live(model)
    found, logits = [], None
    tokens = torch.empty(batch, length, dtype=torch.int64, device="meta")
    for _ in range(micro_batches):
        live.highest = {}
        with live:
            live.phase = "forward"
            out = model(tokens, 0 if toy.full else piece)
            live.phase = "turned"
            out = [part.float() for part in out] if isinstance(out, list) else out.float()
            logits = out  # only now the ones before lose their name
            del out
            live.phase = "loss"
            if not toy.full:
                logits[-1] = logits[-1][..., :-1, :]
            loss = in_pieces(logits, tokens[:, 1:], piece)
            waits = live.now
            live.phase = "backward"
            loss.backward()
            del loss
        found.append({**live.highest, "waits": waits, "stays": live.now})
    return found


def in_pieces(logits, targets, piece: int):
    if isinstance(logits, list):
        parts = [(x.reshape(-1, x.size(-1)), t.reshape(-1)) for x, t in zip(logits, targets.split(piece, dim=1))]
    else:
        flat = logits[..., :-1, :].reshape(-1, logits.size(-1))
        parts = list(zip(flat.split(piece), targets.reshape(-1).split(piece)))
    return torch.cat([F.cross_entropy(x, t, reduction="none") for x, t in parts]).mean()
