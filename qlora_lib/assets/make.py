"""Model folders that are made here: a GGUF file as safetensors, and a tiny random LLaMA."""

import contextlib
import io
import string
import sys
from pathlib import Path

from qlora_lib.assets.checks import count_parameters
from qlora_lib.errors import QloraError, no_room, out_of_memory
from qlora_lib.progress import say

# Part of the recipe of a cache entry: raise it when what is made changes.
VERSION = 1
PROBE = string.printable.strip() + " The first line.\n\nThe second, with 3.14 and isn't."


def is_gguf(path: Path) -> bool:
    with open(path, "rb") as f:
        return f.read(4) == b"GGUF"


def convert_gguf(gguf: Path, into: Path, progress: bool) -> None:
    """Write `gguf` as an fp32 transformers folder: the values it dequantises to, its tokenizer, its
    chat template. Reading takes most of the time, about 25 s for 135 M parameters."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if progress:
        say(f"converting {gguf.name} to safetensors, once (half a minute for 135 M parameters)")
    try:
        with transformers_bars(progress):
            model = AutoModelForCausalLM.from_pretrained(
                gguf.parent, gguf_file=gguf.name, dtype=torch.float32
            )
            # The weights are plain fp32 now; what says otherwise would forbid to save them.
            model.hf_quantizer = None
            del model.config.quantization_config
            model.save_pretrained(into)
            parameters = model.num_parameters()
            del model
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
            tokenizer.save_pretrained(into)
            check_tokenizer(tokenizer, AutoTokenizer.from_pretrained(into), gguf.name)
        if count_parameters(into) != parameters:
            raise QloraError(f"{gguf.name}: the saved weights are not those that were read")
    except QloraError:
        raise
    except Exception as e:  # whatever transformers or gguf stumble over in a foreign file
        if no_room(e, into) or out_of_memory(e):  # not the file's fault
            raise
        reason = (str(e).splitlines() or [""])[0]
        raise QloraError(
            f"{gguf.name} cannot be converted ({type(e).__name__}: {reason})",
            "Pass a GGUF of an architecture that transformers reads, or a transformers folder",
        ) from e


def check_tokenizer(read, saved, what: str) -> None:
    """The saved tokenizer gives the ids of the one read from the file, and text survives it."""
    ids = saved(PROBE).input_ids
    text = saved.decode(ids, skip_special_tokens=True)
    if ids != read(PROBE).input_ids or text.strip() != PROBE:
        raise QloraError(f"the tokenizer in {what} does not give back the text that it was given")
    if saved.chat_template:
        message = [{"role": "user", "content": "Is it there?"}]
        if "Is it there?" not in saved.apply_chat_template(message, tokenize=False):
            raise QloraError(f"the chat template in {what} drops the user's message")


@contextlib.contextmanager
def transformers_bars(progress: bool):
    """transformers' own progress bars: only where a person watches a terminal.

    The bar of its GGUF reader obeys no setting, so what it writes is dropped.
    """
    from transformers.utils import logging

    if progress and sys.stderr.isatty():
        yield
        return
    was = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        if was:
            logging.enable_progress_bar()


CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def make_tiny_random(into: Path, seed: int) -> None:
    """A LLaMA of 2 layers, hidden size 64 and seeded weights; one token a byte."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<|unk|>", "<|eos|>", "<|pad|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(special + alphabet)}
    byte_level = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token=special[0]))
    byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    byte_level.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level, unk_token=special[0], eos_token=special[1],
        pad_token=special[2], clean_up_tokenization_spaces=False,
    )  # fmt: skip
    tokenizer.chat_template = CHAT_TEMPLATE
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048,
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]), transformers_bars(progress=False):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).to(torch.float32).save_pretrained(into)
    tokenizer.save_pretrained(into)
