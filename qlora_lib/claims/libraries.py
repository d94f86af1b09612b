"""What the libraries themselves answer, for claims on calls and mechanisms that their code decides.

How it works: a LLaMA of one layer, 16 wide, is drawn and saved in a temporary folder, and the very call that a document
prints is made with it; what comes back is the model, or the error. What needs a GPU to run is read from the code. Tensors
are seeded. All of it takes a few seconds on a CPU and reads no network.
"""

import ast
import inspect
import re
import tempfile
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from functools import cache
from importlib.metadata import metadata, version

from qlora_lib.claims.experiments import paging_threshold
from qlora_lib.errors import one_line

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


def versions(*packages: str) -> str:
    return ", ".join(f"{name} {version(name)}" for name in packages)


def home(package: str) -> str:
    """Where a package says that its code lives."""
    urls = dict(re.split(r",\s*", url, maxsplit=1) for url in metadata(package).get_all("Project-URL") or [])
    return next((url for name, url in urls.items() if name.lower() in ("homepage", "repository", "source")), "")


def tried(call: Callable[[], object]) -> str:
    """Nothing where a call returns, else its error in one line, kind first."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call()
    except Exception as e:  # whatever a library raises is the finding
        return f"{type(e).__name__}: {one_line(e):.160}"
    return ""


def tiny_model(dtype: str = "float32", attention: str = "sdpa"):
    """A LLaMA of one layer with random weights; its vocabulary has 32 words."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, intermediate_size=32,
        vocab_size=32, attn_implementation=attention,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config).to(getattr(torch, dtype))


def adapted(model, rank: int = 16, alpha: float = 16, dropout: float = 0.05, targets: tuple[str, ...] = ATTENTION, **more):
    """`model` with adapters by the call that the guide's second snippet prints; seeded."""
    import torch
    from peft import LoraConfig, TaskType, get_peft_model

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        config = LoraConfig(
            r=rank, lora_alpha=alpha, lora_dropout=dropout, bias="none", task_type=TaskType.CAUSAL_LM, target_modules=list(targets)
        )
        return get_peft_model(model, config, **more)


# --- calls -----------------------------------------------------------------------------------------


@cache
def load_error(*keywords: str) -> str:
    """What AutoModelForCausalLM.from_pretrained says to keyword arguments written as `name=value`; nothing where it loads."""
    import torch

    arguments = {name: _value(text, torch=torch) for name, text in (k.split("=", 1) for k in keywords)}
    return tried(lambda: loaded(**arguments))


def loaded(**arguments):
    """A tiny model from its own folder, by AutoModelForCausalLM.from_pretrained with these arguments."""
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as folder, _no_bars():
        tiny_model().save_pretrained(folder)
        return AutoModelForCausalLM.from_pretrained(folder, **arguments)


def four_bits():
    """The same in NF4 with double quantization, by the configuration that transformers 5 asks for."""
    import torch
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float32
    )
    return loaded(quantization_config=config)


def _value(text: str, **modules):
    """A constant, or an attribute of one of the modules, as Python reads it."""
    node = ast.parse(text, mode="eval").body
    return getattr(modules[node.value.id], node.attr) if isinstance(node, ast.Attribute) else ast.literal_eval(node)


@contextmanager
def _no_bars():
    """transformers' progress bars are for models that take a while."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def unknown_names(code: str, imports: str) -> list[str]:
    """Names that an expression reads and that neither its imports nor Python's built-ins define."""
    import builtins

    known = {
        a.asname or a.name for node in ast.walk(ast.parse(imports)) if isinstance(node, ast.Import | ast.ImportFrom) for a in node.names
    }
    used = {node.id for node in ast.walk(ast.parse(code, mode="eval")) if isinstance(node, ast.Name)}
    return sorted(used - known - set(dir(builtins)))


@cache
def loads_a_script() -> str:
    """What datasets.load_dataset says to a folder that holds a loading script; nothing where it runs it."""
    from pathlib import Path

    from datasets import load_dataset

    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "own_data" / "own_data.py"
        script.parent.mkdir()
        script.write_text("import datasets\n", encoding="utf-8")
        return tried(lambda: load_dataset(str(script.parent)))


# --- adapters --------------------------------------------------------------------------------------


@cache
def adapter_dtype(base: str, autocast: bool | None = None) -> str:
    """The dtype of adapters that PEFT puts on a base of that dtype; `autocast_adapter_dtype` left out where None."""
    more = {} if autocast is None else {"autocast_adapter_dtype": autocast}
    model = adapted(tiny_model(base), **more)
    return " and ".join(sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.requires_grad}))


@cache
def trained_names() -> tuple[str, ...]:
    """Kinds of parameters that two AdamW steps change in a tiny model with adapters."""
    import torch

    model = adapted(tiny_model(), dropout=0.0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    ids = torch.arange(16)[None]
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    for _ in range(2):  # B begins at zero, so that A has a gradient from the second step on
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    changed = [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
    return tuple(sorted({next((part for part in name.split(".") if part.startswith("lora_")), name) for name in changed}))


@cache
def adapter_scale(rank: int, alpha: float) -> float:
    """What PEFT's layer multiplies B A x by before it is added to W x."""
    import torch

    model = adapted(tiny_model(), rank, alpha, 0.0, ("q_proj",))
    layer = model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    with torch.no_grad():
        b.copy_(torch.linspace(-1, 1, b.numel()).view_as(b))
        x = torch.linspace(-1, 1, a.shape[1])[None]
        difference, product = layer(x) - layer.base_layer(x), x @ a.T @ b.T
        return float((difference * product).sum() / (product * product).sum())


@cache
def merged_difference() -> tuple[float, int]:
    """(largest difference of a tiny model's logits once its adapters are merged, adapter parameters that are left)."""
    import torch

    model = adapted(tiny_model(), dropout=0.0).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.copy_(torch.linspace(-0.1, 0.1, p.numel()).view_as(p))
        ids = torch.arange(16)[None]
        beside = model(input_ids=ids).logits
        merged = model.merge_and_unload()
        difference = float((merged(input_ids=ids).logits - beside).abs().max() / beside.abs().max())
    return difference, sum(p.numel() for name, p in merged.named_parameters() if "lora_" in name)


@cache
def swapped() -> dict[str, bool]:
    """Of one base with two adapters: whether the outputs differ by adapter, and the base is as it was without them."""
    import torch

    model, ids = tiny_model().eval(), torch.arange(16)[None]
    with torch.no_grad():
        alone = model(input_ids=ids).logits
        before = {name: p.clone() for name, p in model.named_parameters()}
        both = adapted(model, dropout=0.0).eval()
        both.add_adapter("second", both.peft_config["default"])
        for name, p in both.named_parameters():
            if "lora_B" in name:
                p.fill_(0.1 if "second" in name else -0.1)
        outputs = []
        for adapter in ("default", "second", "default"):
            both.set_adapter(adapter)
            outputs.append(both(input_ids=ids).logits)
        with both.disable_adapter():
            base = both(input_ids=ids).logits
    after = {name.removeprefix("base_model.model.").replace(".base_layer", ""): p for name, p in both.named_parameters()}
    return {
        "outputs differ": not torch.equal(outputs[0], outputs[1]),
        "and come back": torch.equal(outputs[0], outputs[2]),
        "base as before": torch.equal(alone, base) and all(torch.equal(p, after[name]) for name, p in before.items()),
    }


@cache
def accumulated_difference() -> float:
    """Largest difference of a gradient added up over two micro-batches of unequal length, each divided by the tokens of
    both, from that of the whole batch; relative to the largest gradient."""
    import torch

    model = tiny_model()
    parts = [torch.arange(12)[None], torch.arange(5, 12)[None]]
    count = sum(part.shape[1] - 1 for part in parts)  # a sequence's first token is not predicted

    def gradient(batches) -> torch.Tensor:
        model.zero_grad()
        for ids, labels in batches:
            model(input_ids=ids, labels=labels, num_items_in_batch=torch.tensor(count)).loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    padded = torch.nn.functional.pad(parts[1], (0, 5))
    ids = torch.cat([parts[0], padded])
    labels = torch.cat([parts[0], torch.where(torch.arange(12) < 7, padded, -100)])
    whole, added = gradient([(ids, labels)]), gradient([(part, part) for part in parts])
    return float((whole - added).abs().max() / whole.abs().max())


@cache
def paged_attention_error() -> str:
    """What a training step with transformers' paged attention says; nothing where it runs."""
    import torch

    def step():
        ids = torch.arange(8)[None]
        tiny_model(attention="paged|eager").train()(input_ids=ids, labels=ids).loss.backward()

    return tried(step)


# --- bitsandbytes ----------------------------------------------------------------------------------


@cache
def compressed_parts() -> dict[str, int]:
    """Bytes that double quantization takes off each part of a 4-bit tensor's state; 0 where it is left as it was."""
    import bitsandbytes.functional as F

    x = normal(256, 256)
    plain, double = (F.quantize_4bit(x, quant_type="nf4", compress_statistics=dq)[1] for dq in (False, True))
    parts = {"lookup table": "code", "scaling constants": "absmax"}
    return {name: getattr(plain, part).nbytes - getattr(double, part).nbytes for name, part in parts.items()}


@cache
def paging() -> dict[str, int | str]:
    """What bitsandbytes' paged optimizers page, by their own code: which tensors, from what size on, and where to."""
    from bitsandbytes import functional
    from bitsandbytes.optim import optimizer

    buffer = inspect.getsource(optimizer.Optimizer8bit.get_state_buffer)
    states = set(re.findall(r"\[\"(\w+)\"\] = self\.get_state_buffer\(", inspect.getsource(optimizer)))
    memory = inspect.getsource(functional.get_paged)
    return {
        "paged": ", ".join(sorted(states)),
        "optimizer states": int({"state1", "state2"} <= states),
        "gradients": int(any("grad" in name for name in states)),
        "CPU": int("managed" in memory),  # CUDA's managed memory, whose pages lie on the GPU or in the CPU's memory
        "disk": int(bool(re.search(r"\b(open|memmap|mmap|from_file|tofile|save)\(", memory + buffer))),
        "smallest tensor": paging_threshold(),
    }


@cache
def levels(quant_type: str = "nf4") -> tuple[float, ...]:
    """The levels of a 4-bit type as bitsandbytes has them, in increasing order."""
    from bitsandbytes.functional import get_4bit_type

    return tuple(sorted(get_4bit_type(quant_type, device="cpu").tolist()))


def normal(*shape: int):
    """Standard normal numbers, the same each time."""
    import torch

    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@cache
def quantization_error(quant_type: str) -> tuple[float, float]:
    """(mean squared error, bits a weight) of a 4-bit type on standard normal numbers, 64 a block, scales in fp32."""
    from qlora_lib.quantization import dequantize_4bit, quantize_4bit

    x = normal(512, 512)
    q = quantize_4bit(x, quant_type=quant_type, block_size=64, double_quant=False)
    return float((dequantize_4bit(q) - x).square().mean()), 8 * q.nbytes / x.numel()
