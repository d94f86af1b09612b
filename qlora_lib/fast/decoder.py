"""Greedy and sampled decoding on a CPU with weights that stay in four bits.

How it works: transformers reads the prompt, unless it is short; its keys and values are copied into a cache of fixed size,
and from there on every token is one compiled call (kernels.py) on the very tensors of the model. `Decoder.of`
says None for a model that the kernels do not know: another device or dtype, another architecture, 8-bit layers,
a sliding window, an adapter that is not plain LoRA; the caller then uses transformers' `generate`.

Of an adapter it keeps copies, scaled and laid out for the kernels. Each text begins with a look whether they are still
the model's own, so a decoder goes along with a switch of adapters, a merge and a training step; a text that has been begun
is ended with the weights it began with.
"""

import sys

import numpy as np
import torch

from qlora_lib.errors import QloraError
from qlora_lib.fast import kernels as k
from qlora_lib.fast.decoders import end_tokens
from qlora_lib.fast.install import FAMILIES, installed, plain
from qlora_lib.fast.threads import use_torchs_threads

SHORT = 8  # tokens of a prompt that are read one by one


class Decoder:
    """One model, ready to decode one sequence at a time. Holds the model's own tensors, no copies of its weights."""

    def __init__(self, model, modules: np.ndarray, keep: list):
        base = plain(model)
        config, inner = base.config, base.model
        self.model, self.modules, self._keep = model, modules, keep
        self._described = _state(base)
        first = inner.layers[0].self_attn
        self.head_dim = first.head_dim
        self.scale = np.float32(first.scaling)
        self.kv_heads = int(modules[0, 1, k.OUTPUTS]) // self.head_dim
        self.heads = int(modules[0, 0, k.OUTPUTS]) // self.head_dim
        self.norms = np.stack([np.stack([_array(n.weight) for n in _norms(layer)]) for layer in inner.layers])
        self.head_norms = np.zeros((0, 0, 0), np.float32)
        if hasattr(first, "q_norm"):
            pairs = [(layer.self_attn.q_norm, layer.self_attn.k_norm) for layer in inner.layers]
            self.head_norms = np.stack([np.stack([_array(n.weight) for n in pair]) for pair in pairs])
        self.final_norm = _array(inner.norm.weight)
        self.epsilon = np.float32(config.rms_norm_eps)
        self.embedding = _array(base.get_input_embeddings().weight)  # [vocabulary, hidden]
        self.head = _array(base.get_output_embeddings().weight)
        self.rotary = inner.rotary_emb
        self.ends = end_tokens(model)
        use_torchs_threads()

    @classmethod
    def of(cls, model) -> "Decoder | None":
        """The decoder of a loaded model (PEFT or plain), or None where it does not apply."""
        base = plain(model)
        config = getattr(base, "config", None)
        if k.WIDTH == 0 or getattr(config, "model_type", None) not in FAMILIES or config.hidden_act != "silu":
            return None
        if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
            return None
        if (getattr(config, "rope_parameters", None) or {}).get("rope_type") in ("dynamic", "longrope"):
            return None  # their angles change with the length of the text
        if any(p.device.type != "cpu" for p in base.parameters()) or base.get_input_embeddings().weight.dtype != torch.float32:
            return None
        described = _describe_all(base)
        if described is None:
            return None
        if not k.compiled_before():
            print("compiling the decoder for this processor, once: some seconds", file=sys.stderr, flush=True)
        return cls(model, *described)

    @torch.inference_mode()
    def start(self, ids: torch.Tensor, capacity: int) -> np.ndarray:
        """Read the prompt ids [1, T]; logits [vocabulary] for the next token. `capacity`: tokens in all.

        Raises: QloraError when an adapter that the kernels do not know has been put on since.
        """
        self._look_again()
        layers, length = len(self.modules), ids.shape[1]
        shape = (layers, self.kv_heads, capacity, self.head_dim)
        self.keys, self.values = np.empty(shape, np.float32), np.empty(shape, np.float32)
        positions = torch.arange(capacity).unsqueeze(0)
        cosine, sine = self.rotary(torch.zeros(1, dtype=torch.float32), positions)
        self.cosine, self.sine = _array(cosine[0]), _array(sine[0])
        widest = int(max(self.modules[..., k.INPUTS].max(), self.modules[0, :3, k.OUTPUTS].sum(), self.modules[0, 4:6, k.OUTPUTS].sum()))
        self.scratch = np.empty((6, widest), np.float32)
        self.h = np.empty((3, max(1, int(self.modules[..., k.RANK].max()))), np.float32)
        self.scores = np.empty((self.heads, capacity), np.float32)
        self.logits = np.empty(len(self.head), np.float32)
        self.position = 0
        return self._read_short(ids[0].tolist()) if length <= SHORT else self._read_long(ids)

    def _look_again(self) -> None:
        """Describe the modules anew where another adapter is active, or weights were replaced or written to."""
        base = plain(self.model)
        state = _state(base)
        if _same(state, self._described):
            return
        described = _describe_all(base)
        if described is None:
            raise QloraError("the decoder does not know the adapter that is active now", "Ask fast_decoder(model) for another")
        self.modules, self._keep = described
        self._described = state

    def _read_short(self, tokens: list[int]) -> np.ndarray:
        """A few tokens one by one: sooner than turning all 4-bit weights back for them."""
        for token in tokens[:-1]:
            self._token(token, self.logits[:0])
        return self.step(tokens[-1])

    def _read_long(self, ids: torch.Tensor) -> np.ndarray:
        """Many tokens at once, by transformers; keys and values are copied over."""
        from transformers import DynamicCache

        cache = DynamicCache()
        with installed(self.model):
            logits = self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0, -1]
        self.position = ids.shape[1]
        for i, layer in enumerate(cache.layers):
            self.keys[i, :, : self.position] = layer.keys[0].numpy()
            self.values[i, :, : self.position] = layer.values[0].numpy()
        return logits.float().numpy()

    def step(self, token: int) -> np.ndarray:
        """Read one more token; logits [vocabulary] for the next, in a buffer that the next call overwrites."""
        self._token(token, self.logits)
        return self.logits

    def _token(self, token: int, logits: np.ndarray) -> None:
        k.token(
            self.embedding[token].copy(), self.position, self.modules, self.norms, self.head_norms, self.final_norm, self.epsilon, self.head,
            self.cosine, self.sine, self.keys, self.values, self.scale, self.scratch, self.h, self.scores, logits,
        )  # fmt: skip
        self.position += 1


def _norms(layer):
    return layer.input_layernorm, layer.post_attention_layernorm


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().float().contiguous().numpy()


def _modules(base) -> list[list]:
    """The linear modules of each layer, in the kernels' order."""
    parts = [{**dict(layer.self_attn.named_children()), **dict(layer.mlp.named_children())} for layer in base.model.layers]
    return [[named[name] for name in k.MODULES] for named in parts]


def _state(base) -> tuple[list, list]:
    """What the description of the modules depends on: tensors, and values that change when they have to be read anew."""
    tensors, values = [], []
    for module in sum(_modules(base), []):
        if hasattr(module, "lora_A"):
            names = [] if module.disable_adapters or module.merged else [n for n in module.active_adapters if n in module.lora_A]
            values.append([(name, module.scaling[name]) for name in names])
            tensors += [part[name].weight for name in names for part in (module.lora_A, module.lora_B)]
            module = module.base_layer
        tensors += [t for t in (getattr(module, "weight", None), getattr(module, "bias", None)) if t is not None]
    values += [(t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors]
    return tensors, values


def _same(a: tuple[list, list], b: tuple[list, list]) -> bool:
    """The very tensors, not equal ones: an address may be another tensor's by now."""
    return a[1] == b[1] and len(a[0]) == len(b[0]) and all(x is y for x, y in zip(a[0], b[0]))


def _describe_all(base) -> tuple[np.ndarray, list] | None:
    """int64 [layers, modules, columns] and the tensors that its addresses point to; None for a module of another kind."""
    keep = []
    rows = [[_describe(module, keep) for module in layer] for layer in _modules(base)]
    return None if any(row is None for layer in rows for row in layer) else (np.array(rows, np.int64), keep)


def _describe(module, keep: list) -> list[int] | None:
    """The columns of kernels.py for one linear module, PEFT's LoRA around it included; None when it is another kind."""
    row = [0] * 11
    if hasattr(module, "lora_A"):
        adapters = [] if module.disable_adapters or module.merged else module.active_adapters
        adapters = [a for a in adapters if a in module.lora_A]
        if any(module.use_dora.get(a) or module.lora_bias.get(a) for a in adapters):
            return None
        if adapters:
            a = torch.cat([module.lora_A[n].weight.detach().float() for n in adapters]).contiguous()  # [R, in]
            b = torch.cat([module.lora_B[n].weight.detach().float() * module.scaling[n] for n in adapters], dim=1)
            b = b.contiguous()  # [out, R]
            keep += [a, b]
            row[k.A], row[k.B], row[k.RANK] = a.data_ptr(), b.data_ptr(), len(a)
        module = module.base_layer
    if not isinstance(module, torch.nn.Linear):
        return None
    row[k.INPUTS], row[k.OUTPUTS] = module.in_features, module.out_features
    if module.bias is not None:
        bias = module.bias.detach().float().contiguous()
        keep.append(bias)
        row[k.BIAS] = bias.data_ptr()
    weight = module.weight
    state = getattr(weight, "quant_state", None)
    if state is not None:
        return _four_bit(row, weight, state, keep)
    if weight.dtype != torch.float32 or not weight.is_contiguous():
        return None
    row[k.FORMAT], row[k.WEIGHT] = k.DENSE, weight.data_ptr()
    return row


def _four_bit(row: list[int], weight, state, keep: list) -> list[int] | None:
    import bitsandbytes as bnb

    block, inputs = state.blocksize, row[k.INPUTS]
    if inputs % block or block % (2 * k.WIDTH):
        return None
    absmax = state.absmax
    if state.nested:
        absmax = bnb.functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
    absmax, levels, codes = absmax.float().contiguous(), state.code.float().contiguous(), weight.data.contiguous()
    keep += [absmax, levels, codes]
    row[k.FORMAT], row[k.WEIGHT], row[k.ABSMAX] = k.FOUR_BIT, codes.data_ptr(), absmax.data_ptr()
    row[k.LEVELS], row[k.BLOCK] = levels.data_ptr(), block
    return row
