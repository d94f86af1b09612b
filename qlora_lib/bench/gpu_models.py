"""Models of known shapes with random weights, built where they will run: nothing is downloaded, and no host memory is used.

How it works: the modules are made on torch's `meta` device, where a tensor has a shape and no bytes. The linear
layers are exchanged for bitsandbytes' by transformers' own quantizer, as in `models.load_base`. Then one weight
after the other is drawn on the target device, in the dtype that it would be loaded in, and a 4-bit one is
quantized at once. So at most one weight more than the finished model exists, and no fp32 copy of the model ever.
Weights are drawn as transformers initializes a LLaMA: a normal distribution of width 0.02, and norms of one.
"""

import gc

import torch

from qlora_lib.bench.settings import NF4_DQ
from qlora_lib.config import Quantization
from qlora_lib.cost.shapes import LLAMA_8B, TINYLLAMA, ModelShape
from qlora_lib.models import (
    import_bitsandbytes,
    keep_weights_as_packed,
    quantization_arguments,
)

SHAPES = {
    "tinyllama-1.1b": TINYLLAMA,
    "llama-3.1-8b": LLAMA_8B,
    "tiny-2-layers": ModelShape(64, 2, 4, 2, 16, 192, 320),  # these two show on any machine that the check runs
    "tiny-3-layers": ModelShape(128, 3, 4, 2, 32, 256, 512),
}
POSITIONS = 2048  # longest sequence; it decides no size
END_OF_TEXT = 2


def llama_config(shape: ModelShape):
    """A `LlamaConfig` of these widths."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        tie_word_embeddings=shape.tied_embeddings,
        max_position_embeddings=POSITIONS,
        bos_token_id=1,
        eos_token_id=END_OF_TEXT,
        pad_token_id=None,
    )


def blank_model(shape: ModelShape, quantization: Quantization, dtype: torch.dtype):
    """The model on the `meta` device: its modules, names, shapes and dtypes, and no bytes."""
    from transformers import AutoModelForCausalLM
    from transformers.quantizers import AutoHfQuantizer

    import_bitsandbytes()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(llama_config(shape), dtype=dtype)
    for settings in quantization_arguments(quantization, dtype).values():
        quantizer = AutoHfQuantizer.from_config(settings, pre_quantized=False)
        quantizer.preprocess_model(model=model, config=model.config, dtype=dtype, device_map=None, checkpoint_files=[])
        model.hf_quantizer = quantizer
        quantizer.postprocess_model(model)
    return model


def random_model(shape: ModelShape, method: str, dtype: torch.dtype, on: str, seed: int):
    """A base as `models.load_base` would load it for this method; weights from `seed`.

    Args:
        method: `qlora` has its linear layers in NF4 with double quantization, the head stays in `dtype`.
        dtype: of what is not quantized, and of the products.
        on: `cpu` or `cuda`.
    """
    model = blank_model(shape, NF4_DQ if method == "qlora" else Quantization(), dtype)
    generator = torch.Generator(on).manual_seed(seed)
    for module in model.modules():
        for name, blank in list(module.named_parameters(recurse=False)):
            setattr(module, name, _drawn(blank, model.config.initializer_range, dtype, on, generator))
    if shape.tied_embeddings:
        model.tie_weights()
    rotary = model.model.rotary_emb  # its frequencies are computed, not drawn
    model.model.rotary_emb = type(rotary)(model.config).to(on)
    keep_weights_as_packed(model)
    return model.eval()


def _drawn(blank, std: float, dtype: torch.dtype, on: str, generator: torch.Generator):
    import bitsandbytes as bnb

    values = torch.empty(blank.shape, dtype=dtype, device=on)
    if values.ndim == 1:
        values.fill_(1.0)  # a norm
    else:
        values.normal_(0.0, std, generator=generator)
    if isinstance(blank, bnb.nn.Params4bit):  # as transformers does with a weight that it has read
        return bnb.nn.Params4bit(values, requires_grad=False, **blank.__dict__).to(values.device)
    return torch.nn.Parameter(values)


def free_memory(on: str) -> int:
    """Bytes that can be allocated now; what torch keeps of freed tensors is given back first."""
    gc.collect()
    if on == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info()[0]
    import psutil

    from qlora_lib.hardware import total_memory

    return min(psutil.virtual_memory().available, total_memory())
