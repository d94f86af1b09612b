"""Merge an adapter into its base: a plain checkpoint, onto the dequantized 4-bit weights or onto the original ones.

How it works: an adapter of QLoRA was trained to correct the base that was there, the one in four bits. What the 4-bit
codes stand for, written out in 32 bits, is that same base: W' = dequantize(quantize(W)) + s B A keeps the adapter's loss. The
original W is another base, and so is what remains after W' is quantized again, so there the loss is another one; `check`
measures all of them. The record beside an adapter says what base it was trained on. PEFT itself does the merging, in
fp32, whatever the dtype that is written.

    W --quantize--> codes --dequantize--> W~      trained: W~ + s B A
    onto "dequantized":  W~ + s B A      the trained function, at 16 or 32 bits
    onto "original":     W  + s B A      another function: near, often better, never the trained one

Memory: the model in fp32, and its 4-bit copy beside it while weights are written out.
"""

import json
import math
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from qlora_lib import hardware, models
from qlora_lib.adapters import Adapters
from qlora_lib.assets.store import sha256_of
from qlora_lib.config import Evaluation, Quantization
from qlora_lib.errors import QloraError, UsageError
from qlora_lib.lora import dequantized, is_quantized
from qlora_lib.paths import abandoned, part_of, write_atomic
from qlora_lib.trained_on import DTYPES, Base, base_of

Onto = Literal["dequantized", "original"]
NAMES = {dtype: name for name, dtype in DTYPES.items()}
TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "chat_template*")


@dataclass(frozen=True)
class Way:
    """One way to deploy an adapter, measured."""

    what: str
    loss: float  # mean nats a token
    perplexity: float


@dataclass(frozen=True)
class Merged:
    out: str
    model: str
    revision: str | None
    adapter: str
    adapter_sha256: str
    trained_on: str  # format of the base in training
    onto: Onto
    dtype: str
    bytes: int
    check: list[Way] = field(default_factory=list)
    check_data: str | None = None
    check_protocol: str | None = None


def plain_base(base: Base, onto: Onto):
    """The base in fp32 on the CPU, without quantization: its original weights, or what the codes of training stand for."""
    config = json.loads((base.asset.path / "config.json").read_text(encoding="utf-8"))
    if config.get("quantization_config"):
        raise UsageError(f"the weights of {base.asset.name} are quantized in their files", "Give the 16/32-bit model with --model")
    plain = models.load_base(base.asset.path, Quantization(), torch.float32, "cpu")
    if onto == "original":
        return plain
    if not base.quantized:
        raise UsageError("this adapter was trained on a base that is not quantized: there is nothing to dequantize", "Give --onto original")
    quantized = base.load()
    with torch.no_grad():
        for name, module in quantized.named_modules():
            if isinstance(module, torch.nn.Linear) and is_quantized(module):
                plain.get_submodule(name).weight.copy_(dequantized(module))
        for name, parameter in quantized.named_parameters():  # in 16 bits in training: their rounding is part of that base
            if parameter.is_floating_point():
                plain.get_parameter(name).copy_(parameter)
    return plain


def merged_model(base: Base, adapter: Path, onto: Onto):
    """A plain fp32 model: `adapter` merged onto the base by PEFT.

    Raises: UsageError for an adapter that cannot be merged, QloraError for one that does not fit or is not finite.
    """
    _check_kind(adapter)
    plain = plain_base(base, onto)
    ends = plain.get_input_embeddings(), plain.get_output_embeddings()
    model = models.load_adapter(plain, adapter)
    inner = model.base_model.model
    if plain.config.tie_word_embeddings and (inner.get_input_embeddings(), inner.get_output_embeddings()) != ends:
        raise UsageError(
            "the adapter changes the embedding or the output head, which share one weight in this model: there is no merged weight for both",
            "Use it unmerged: qlora generate --adapter",
        )
    try:
        with models.quiet():
            merged = model.merge_and_unload(safe_merge=True)
    except (ValueError, NotImplementedError) as e:
        raise QloraError(f"the adapter in {adapter} cannot be merged: {e!s:.200}") from None
    return merged.requires_grad_(False).eval()


def _check_kind(adapter: Path) -> None:
    """Told before a model is loaded."""
    from peft import PeftConfig

    try:
        config = PeftConfig.from_pretrained(models.check_adapter(adapter), local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise QloraError(f"the adapter_config.json in {adapter} cannot be read: {e!s:.200}") from None
    if config.is_prompt_learning:
        raise UsageError(f"the adapter in {adapter} is of virtual tokens, which are no weights to merge", "Give a LoRA adapter")


def merge(
    adapter: Path,
    out: Path,
    onto: Onto | None = None,
    model: str | None = None,
    quantization: Quantization | None = None,
    dtype: str = "auto",
    force: bool = False,
    check: str | None = None,
    windows: int = 16,
    context: int = 256,
) -> Merged:
    """Write the merged model to the folder `out`, whole or not at all.

    Args:
        onto: None is `dequantized` for an adapter of a quantized base, else `original`.
        model, quantization: where no record says them.
        dtype: of the weights that are written; `auto` is that of the base's files. 16 bits round the product.
        force: replace a folder that holds a checkpoint.
        check: a data set's name, or a file: the loss of each way to deploy the adapter on it. Of a text that is registered
            the validation split, of another the beginning; of a task or chats the responses of the validation split.
        windows, context: for `check`: how many windows or examples, of (at most) so many tokens.
    """
    out = Path(out)
    _put_back(out)
    _check_out(out, Path(adapter), force)
    _check_kind(adapter)
    if check:
        from qlora_lib.task_data import check_data

        check_data(check, "text")
    base = base_of(adapter, model, quantization)
    onto = onto or ("dequantized" if base.quantized else "original")
    if onto == "dequantized" and not base.quantized:
        raise UsageError("this adapter was trained on a base that is not quantized: there is nothing to dequantize", "Give --onto original")
    written = _file_dtype(base) if dtype == "auto" else DTYPES[dtype]
    out.parent.mkdir(parents=True, exist_ok=True)
    part = part_of(out)
    try:
        made = merged_model(base, adapter, onto).to(written)
        made.config.dtype = written
        made.config._name_or_path = ""  # else the folder of this machine's cache
        try:
            made.save_pretrained(part)
        except Exception as e:  # safetensors has an error of its own for a full disk
            raise QloraError(f"the merged model cannot be written to {out}: {e!s:.200}", "Free some space there, or give another --out") from None
        del made
        for pattern in TOKENIZER_FILES:
            for file in base.asset.path.glob(pattern):
                shutil.copyfile(file, part / file.name)
        result = Merged(
            out=str(out), model=base.asset.name, revision=base.asset.revision, adapter=str(adapter),
            adapter_sha256=sha256_of(Path(adapter) / "adapter_model.safetensors"), trained_on=base.format, onto=onto,
            dtype=NAMES[written], bytes=sum(f.stat().st_size for f in part.glob("*.safetensors")),
            **(_check(base, adapter, onto, part, check, windows, context) if check else {}),
        )  # fmt: skip
        write_atomic(part / "README.md", model_card(base, result))
        _put(part, out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return result


def _file_dtype(base: Base) -> torch.dtype:
    config = json.loads((base.asset.path / "config.json").read_text(encoding="utf-8"))
    stored = getattr(torch, str(config.get("dtype") or config.get("torch_dtype")), None)
    return stored if stored in NAMES else torch.float32


def _check_out(out: Path, adapter: Path, force: bool) -> None:
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; a folder was expected", "Give another --out")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not force:
        raise UsageError(f"the folder {out} is not empty", "Give another --out, or --force to replace it")
    if not (out / "config.json").is_file() or out.resolve() in (adapter.resolve(), *adapter.resolve().parents):
        raise UsageError(f"the folder {out} holds something else than a checkpoint, and is not replaced", "Give another --out")


def _put(part: Path, out: Path) -> None:
    """Rename the finished folder into its place; what was there goes last."""
    old = part_of(_old(out))
    if out.exists():
        os.replace(out, old)
    os.replace(part, out)
    shutil.rmtree(old, ignore_errors=True)


def _old(out: Path) -> Path:
    return out.with_name(f"{out.name}.old")


def _put_back(out: Path) -> None:
    """Where a process was killed between the two renamings, what was there before is there again."""
    for old in abandoned(_old(out)):
        if not out.exists():
            os.replace(old, out)


# --- what each way of deploying costs --------------------------------------------------------------


def _check(base: Base, adapter: Path, onto: Onto, written: Path, data: str, windows: int, context: int) -> dict:
    """The loss of the base, of the adapter as trained, and of each merged form; the written one as it is in its files."""
    loss_of, shown, rows, protocol = *_loss_on(data, models.load_tokenizer(base.asset.path), windows, context), [], ""

    def score(what: str, model) -> None:
        nonlocal protocol
        print(f"loss of: {what}", file=sys.stderr, flush=True)
        loss, protocol = loss_of(model)
        rows.append(Way(what, loss, math.exp(loss)))

    adapters = Adapters(base.load())
    adapters.add("trained", adapter)
    with adapters.using(None):
        score(f"base ({base.format}), no adapter", adapters.model)
    score(f"base ({base.format}) + adapter, as trained", adapters.model)
    del adapters
    on = hardware.device()
    for way in ("dequantized", "original") if base.quantized else ("original",):
        if way == onto:
            stored = models.load_base(written, Quantization(), _file_dtype_of(written), on)
            score(f"merged onto {way}, as written ({NAMES[stored.dtype]})", stored)
            del stored
        else:
            score(f"merged onto {way} (fp32)", merged_model(base, adapter, way).to(on))
    if base.quantized:
        score(f"merged onto {onto}, quantized again ({base.format})", base.load(written))
    return {"check": rows, "check_data": shown, "check_protocol": protocol}


def _loss_on(data: str, tokenizer, windows: int, context: int) -> tuple[Callable[[object], tuple[float, str]], str]:
    """(of a model: its loss in nats a token, and the protocol; the data in words)."""
    from qlora_lib.tasks.load import is_task, load_task

    progress = sys.stderr.isatty()
    if is_task(data):
        from qlora_lib.metrics.tasks import score_task

        examples = load_task(data).splits["validation"][:windows]
        e = Evaluation(context=context, stride=context, samples=0)

        def of_responses(model) -> tuple[float, str]:
            scores = score_task(model, tokenizer, "chat", examples, e, progress)
            means, tokens = scores.each["response_perplexity"], scores.weights
            return sum(mean * n for mean, n in zip(means, tokens)) / sum(tokens), f"{len(examples)} examples, {scores.protocol}"

        return of_responses, f"{Path(data).name}, validation split"
    from qlora_lib.data import file_tokens, prepare
    from qlora_lib.metrics.perplexity import perplexity
    from qlora_lib.texts import is_registered

    registered = is_registered(data)
    tokens = prepare(data, "text", context, tokenizer).tokens["validation"] if registered else file_tokens(Path(data), "text", tokenizer)

    def of_text(model) -> tuple[float, str]:
        result = perplexity(model, tokens[: context * windows], context, context, progress=progress)
        return math.log(result["perplexity"]), result["protocol"]

    return of_text, f"{data}, validation split" if registered else Path(data).name


def _file_dtype_of(folder: Path) -> torch.dtype:
    return getattr(torch, json.loads((folder / "config.json").read_text(encoding="utf-8"))["dtype"])


def model_card(base: Base, merged: Merged) -> str:
    """README.md of the merged folder; names no place on this machine."""
    asset, record = base.asset, base.record
    weights = {
        "dequantized": f"the base's weights as its {merged.trained_on} codes stand for them, which is what the adapter was trained on",
        "original": "the base's original weights"
        + ("" if merged.trained_on == "none" else f"; the adapter was trained on {merged.trained_on} ones, so this is not exactly the trained model"),
    }[merged.onto]
    lines = [
        f"# {asset.name} with a merged adapter",
        "",
        f"- Base: {asset.name}" + (f", revision `{asset.revision}`" if asset.revision else "") + (f", licence {asset.license}" if asset.license else ""),
        *([f"- About the base: {asset.note}"] if asset.note else []),
        f"- Adapter: SHA-256 `{merged.adapter_sha256}`"
        + (f"; arm `{record.arm}` of profile `{record.profile}`, trained on {record.data.name}" if record else ""),
        f"- Merged onto: {weights}.",
        f"- Weights: {merged.dtype}, no quantization; `AutoModelForCausalLM.from_pretrained` loads this folder.",
    ]
    if merged.check:
        lines += ["", f"Loss on {merged.check_data} ({merged.check_protocol}):", "", "| | nats a token | perplexity |", "|---|---|---|"]
        lines += [f"| {w.what} | {w.loss:.5f} | {w.perplexity:.3f} |" for w in merged.check]
    return "\n".join(lines) + "\n"
