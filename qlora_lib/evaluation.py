"""One evaluation of one model, for `qlora eval`: load, score, say the protocol."""

import os
import sys
from pathlib import Path

from qlora_lib import hardware
from qlora_lib.config import Evaluation, Quantization
from qlora_lib.errors import UsageError


def load_for_use(model: str, adapter: Path | None, quantization: str, double_quant: bool, dtype: str):
    """(model with its adapter, tokenizer, asset, dtype) on this machine's device, for inference."""
    from qlora_lib import models
    from qlora_lib.assets import resolve_model
    from qlora_lib.trained_on import warn_of_another_base

    if adapter is not None:
        models.check_adapter(adapter)  # told before a model is loaded
        warn_of_another_base(adapter, quantization)
    asset = resolve_model(model)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    on = hardware.device()
    chosen = hardware.choose_dtype(dtype, on)
    print(f"{chosen.name} on {on}: {chosen.reason}", file=sys.stderr)
    base = models.load_base(asset.path, Quantization(format=quantization, double_quant=double_quant), chosen.torch, on)
    if adapter is not None:
        base = models.load_adapter(base, adapter).eval()
    return base, models.load_tokenizer(asset.path), asset, chosen


def evaluate_perplexity(
    model: str,
    data: str,
    adapter: Path | None = None,
    quantization: str = "none",
    double_quant: bool = True,
    text_column: str = "text",
    context: int = 512,
    stride: int | None = None,
    windows: int | None = None,
    batch_size: int = 1,
    dtype: str = "auto",
) -> dict:
    """Perplexity of `model` on a registered set's test split or on the whole of a local file or folder."""
    from qlora_lib.data import file_tokens, prepare
    from qlora_lib.metrics.perplexity import perplexity
    from qlora_lib.metrics.tasks import estimate
    from qlora_lib.texts import check_source, is_registered

    stride = stride or context
    if stride > context:
        raise UsageError(f"stride {stride} exceeds context {context}", "Give a stride of at most the context")
    registered = is_registered(data)
    check_source(data, text_column)  # a bad file is told before a model is loaded
    loaded, tokenizer, asset, chosen = load_for_use(model, adapter, quantization, double_quant, dtype)
    if registered:
        tokens = prepare(data, text_column, context, tokenizer).tokens["test"]
    else:
        tokens = file_tokens(Path(data), text_column, tokenizer)
    if windows is not None:
        tokens = tokens[: context + (windows - 1) * stride]
    result = perplexity(loaded, tokens, context, stride, batch_size, progress=sys.stderr.isatty())
    return {
        "task": "perplexity",
        **what_ran(asset, adapter, quantization, double_quant, chosen),
        "data": f"{data}, test split" if registered else str(data),
        "protocol": result["protocol"],
        "n": result["tokens_scored"],
        "tokens_scored": result["tokens_scored"],
        "perplexity": result["perplexity"],
        "confidence_interval": estimate(result["window_nll"], result["window_tokens"], perplexity=True)[1],
    }


KINDS = {"sst2": ("classification",), "squad": ("qa",), "responses": ("instructions", "chat")}


def evaluate_task(
    model: str,
    task: str,
    data: str,
    adapter: Path | None = None,
    quantization: str = "none",
    double_quant: bool = True,
    context: int = 512,
    examples: int | None = None,
    batch_size: int = 1,
    answer_tokens: int = 48,
    dtype: str = "auto",
) -> dict:
    """`sst2` (accuracy), `squad` (exact match, F1) or `responses` (perplexity of an instruction set's answers)."""
    from qlora_lib.metrics.tasks import estimate, score_task
    from qlora_lib.tasks.load import load_task

    loaded_data = load_task(data)
    if loaded_data.task not in KINDS[task]:
        raise UsageError(
            f"task {task} needs data for {KINDS[task][0]}, and '{data}' is for {loaded_data.task}", "See: qlora eval --help"
        )
    settings = Evaluation(context=context, stride=context, batch_size=batch_size, answer_tokens=answer_tokens, samples=0)
    chosen_examples = loaded_data.splits["test"][:examples]
    loaded, tokenizer, asset, chosen = load_for_use(model, adapter, quantization, double_quant, dtype)
    scores = score_task(loaded, tokenizer, loaded_data.task, chosen_examples, settings, progress=sys.stderr.isatty())
    estimates = {name: estimate(each, scores.weights, name.endswith("perplexity")) for name, each in scores.each.items()}
    first = next(iter(estimates.values()))
    return {
        "task": task,
        **what_ran(asset, adapter, quantization, double_quant, chosen),
        "data": f"{loaded_data.name}, test split",
        "stand_in_for": loaded_data.stand_in_for,
        "left_out": loaded_data.left_out,
        "protocol": scores.protocol,
        "n": len(chosen_examples),
        "prompts_cut": scores.prompts_cut,
        **{name: value for name, (value, _) in estimates.items()},
        "confidence_interval": first[1],
        "confidence_intervals": {name: spread for name, (_, spread) in estimates.items()},
    }


def what_ran(asset, adapter, quantization: str, double_quant: bool, chosen) -> dict:
    """What was evaluated, in the words of `--json`."""
    return {
        "model": asset.name,
        "revision": asset.revision,
        "adapter": str(adapter) if adapter else None,
        "quantization": quantization if quantization in ("none", "int8") else f"{quantization}{'+dq' if double_quant else ''}",
        "dtype": chosen.name,
        "dtype_reason": chosen.reason,
    }
