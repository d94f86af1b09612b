"""Load a base in 32, 16, 8 or 4 bits; attach, load and merge LoRA adapters.

How it works: the real paths of transformers, PEFT and bitsandbytes, the same on a CPU and a GPU.
Everything is read from local folders that `assets` has verified: no pickles, no remote code, no
network. Weights of `full` are kept in fp32 whatever the dtype of the products, since AdamW's
small updates vanish in 16-bit weights and AMP cannot unscale fp16 gradients of fp16 weights.
"""

import logging
import warnings
from functools import cache, partial, wraps
from pathlib import Path

import torch
from safetensors import SafetensorError

from qlora_lib.config import Lora, Quantization
from qlora_lib.errors import QloraError, UsageError, nearest, one_line, out_of_memory
from qlora_lib.fast import quantize
from qlora_lib.hardware import DType
from qlora_lib.processes import current

CHECKPOINTING = {"use_reentrant": False}  # the variant PyTorch recommends; needs no input gradients


def load_tokenizer(path: Path):
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as e:
        raise QloraError(f"no tokenizer can be read from {path}: {e}") from None


def weight_dtype(method: str, dtype: DType) -> torch.dtype:
    """The dtype that unquantized weights are stored in."""
    return torch.float32 if method == "full" else dtype.torch


def load_base(path: Path, quantization: Quantization, dtype: torch.dtype, on: str, storage: torch.dtype = torch.uint8):
    """The model of a local folder, its linear layers quantized as asked; the head stays 16/32-bit.

    Args:
        path: a transformers folder with safetensors.
        quantization: format `none`, `int8`, `nf4` or `fp4`; `double_quant` for the 4-bit ones.
        dtype: of the weights that are not quantized, and of the products.
        on: `cpu` or `cuda`; of several processes each has a GPU of its own.
        storage: the dtype whose numbers 4-bit codes are packed into; it changes no bit of them.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    import_bitsandbytes()
    transformers_logging.disable_progress_bar()
    with quiet():
        try:
            model = AutoModelForCausalLM.from_pretrained(
                path,
                dtype=dtype,
                device_map={"": torch.cuda.current_device() if on == "cuda" and current().world > 1 else on},
                **quantization_arguments(quantization, dtype, storage),
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as e:
            if out_of_memory(e):
                raise
            raise QloraError(f"the model in {path} cannot be loaded: {e}") from None
    keep_weights_as_packed(model)
    return model.eval()


def import_bitsandbytes():
    """bitsandbytes, imported in a twentieth of the time, with our kernel for quantizing on a CPU.

    On import it decorates a few functions with `torch.compile`, which loads the whole compiler, a second or more
    in every process; where its own library does the work, as nearly everywhere, none of them is ever called. Here
    each is compiled when it is first called.
    """
    compile_now = torch.compile

    def compile_later(function=None, **options):
        if function is None:
            return partial(compile_later, **options)
        compiled = cache(partial(compile_now, function, **options))
        return wraps(function)(lambda *args, **kwargs: compiled()(*args, **kwargs))

    torch.compile = compile_later
    try:
        import bitsandbytes
    finally:
        torch.compile = compile_now
    quantize.install()
    return bitsandbytes


def quantization_arguments(quantization: Quantization, dtype: torch.dtype, storage: torch.dtype = torch.uint8) -> dict:
    """Nothing for `none`: a checkpoint that was saved quantized is then loaded as it is."""
    from transformers import BitsAndBytesConfig

    if quantization.format == "none":
        return {}
    if quantization.format == "int8":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    four_bit = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization.format,
        bnb_4bit_use_double_quant=quantization.double_quant,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=storage,
    )
    return {"quantization_config": four_bit}


def keep_weights_as_packed(model) -> None:
    """Stop bitsandbytes from repacking 4-bit weights on CPUs with AVX512-BF16.

    There, an evaluation forward rewrites the packed weights for a fused product, and a later
    backward reads them in the old order. Training evaluates between steps, so it must not happen.
    """
    import bitsandbytes as bnb

    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False


class quiet:
    """Silence what the stack warns thousands of times (8-bit casts on a CPU) or tells about nothing."""

    def __enter__(self):
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        warnings.filterwarnings("ignore", message=".*MatMul8bitLt.*")
        warnings.filterwarnings("ignore", message=".*quantization_config.*")
        warnings.filterwarnings("ignore", message=".*adapter keys.*")  # `load_adapter` says it itself
        self._logger = logging.getLogger("bitsandbytes")
        self._level = self._logger.level
        self._logger.setLevel(logging.ERROR)

    def __exit__(self, *exc):
        self._logger.setLevel(self._level)
        self._warnings.__exit__(*exc)


# --- adapters ------------------------------------------------------------------------------------


def linear_names(model) -> list[str]:
    """Last names of the linear layers that can carry an adapter (the output head left out)."""
    head = model.get_output_embeddings()
    return list(
        dict.fromkeys(
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear) and module is not head
        )
    )


def attach_lora(model, lora: Lora, seed: int):
    """A PEFT model with fresh adapters: A random from `seed`, B zero, so that nothing changes yet."""
    from peft import LoraConfig, get_peft_model

    available = linear_names(model)
    targets = lora.target_modules
    for name in [] if targets == "all-linear" else targets:
        if name not in available:
            raise UsageError(f"lora.target_modules: the model has no linear layer '{name}'", nearest(name, available))
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=available if targets == "all-linear" else targets,
        use_rslora=lora.use_rslora,
    )
    torch.manual_seed(seed)
    return get_peft_model(model, config)


def prepare_for_training(model, method: str, gradient_checkpointing: bool):
    """Set up gradients: QLoRA as PEFT prepares it, checkpointing only when it is asked for."""
    from peft import prepare_model_for_kbit_training

    model.config.use_cache = False
    if method == "qlora":  # freezes all, casts 16-bit leftovers to fp32
        model = prepare_model_for_kbit_training(
            model, use_gradient_checkpointing=gradient_checkpointing, gradient_checkpointing_kwargs=CHECKPOINTING
        )
    elif gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=CHECKPOINTING)
    return model


def save_adapter(model, folder: Path) -> None:
    """PEFT's own format, safetensors; the base's embeddings are never copied into it."""
    for config in model.peft_config.values():  # PEFT holds a set, whose order changes from process to process
        if isinstance(config.target_modules, set):
            config.target_modules = sorted(config.target_modules)
    model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)


def check_adapter(folder: Path) -> Path:
    """The folder, if it holds a PEFT adapter in safetensors; else a UsageError."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"no folder {folder}", "Give the folder of an adapter, e.g. my-run/adapter")
    for needed in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / needed).is_file():
            has = ", ".join(sorted(p.name for p in folder.glob("*"))[:8]) or "nothing"
            hint = "Give the folder that PEFT's save_pretrained wrote with safetensors"
            if (folder / "adapter" / needed).is_file():
                hint = f"Did you mean {folder / 'adapter'}?"
            raise UsageError(f"{folder} is no adapter: {needed} is missing (it has: {has})", hint)
    return folder


def load_adapter(model, folder: Path, trainable: bool = False, name: str = "default"):
    """`model` with the adapter of a local PEFT folder on it.

    A plain model is wrapped, its layers in place; a PEFT model gets one adapter more, called `name`, beside those it has,
    which stay as active as they were. After a failure the model is as before.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import safe_open

    folder, base = check_adapter(folder), None if hasattr(model, "peft_config") else model
    try:
        with quiet(), safe_open(folder / "adapter_model.safetensors", "pt") as file:
            stored = set(file.keys())
            if base is None:
                model.load_adapter(folder, name, is_trainable=trainable, local_files_only=True)
            else:
                model = PeftModel.from_pretrained(base, folder, name, is_trainable=trainable, local_files_only=True)
        if model.peft_config[name].is_prompt_learning:
            raise UsageError(f"the adapter in {folder} is of virtual tokens", "Give one that changes layers, such as LoRA")
        # PEFT only warns of these, and the layers without weights of their own then adapt nothing.
        places = set(get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False))
        empty, homeless = places - stored, stored - places - set(model.state_dict())
        if empty or homeless:
            raise QloraError(
                f"the adapter in {folder} does not fit this base: {len(empty)} of its {len(places)} places "
                f"stay empty and {len(homeless)} tensors have none, the first is {min(empty | homeless)}",
                "Give the adapter of this very model",
            )
    except QloraError:
        _take_off(model, base, name)
        raise
    except (RuntimeError, ValueError, OSError, KeyError, TypeError, SafetensorError) as e:
        _take_off(model, base, name)
        if out_of_memory(e):
            raise
        raise QloraError(
            f"the adapter in {folder} does not load on this base: {one_line(e):.200}", "Give the adapter of this very model"
        ) from None
    return model


def _take_off(model, base, name: str) -> None:
    """Undo what a failed `load_adapter` has put in place: one adapter of several, or all that wraps a plain base."""
    if base is not None:
        unwrap(base)
    elif name in model.peft_config:
        delete_adapter(model, name)


def delete_adapter(model, name: str) -> None:
    """Free one adapter of a PEFT model."""
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of which one is active now
        model.delete_adapter(name)


def unwrap(base) -> None:
    """Put the layers of a plain transformers model back to where PEFT has put its own around them; adapters are lost."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for place, module in list(base.named_modules()):
        if isinstance(module, BaseTunerLayer):
            parent, _, last = place.rpartition(".")
            setattr(base.get_submodule(parent), last, module.get_base_layer())
    base.__dict__.pop("peft_config", None)


def merge_adapter(model):
    """The plain model with the adapter's product added to its weights (16/32-bit bases)."""
    return model.merge_and_unload()
