"""Put the fast path into a model, and take it out again: only `forward`s are replaced.

How it works: the parameters, the modules and their names stay as PEFT and transformers made them. `q_proj`'s new
forward computes k and v as well and keeps them for the two calls that follow on the same input, so no attention
class has to be rewritten. Whatever the functions of layers.py do not cover (several adapters at once, a merged or
disabled one, DoRA, an input of another dtype than the adapter's) runs the old forward.
"""

from functools import partial
from types import MethodType

import torch

from qlora_lib.fast.layers import GatedProjection, Group, Linear, Projections, RmsNorm
from qlora_lib.fast.loss import linear_cross_entropy

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


def plain(model):
    """The transformers model inside a PEFT model, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def install(model) -> list[str]:
    """Replace forwards in place; what was replaced, one word a kind, or nothing for a model that is not known."""
    base = plain(model)
    if getattr(base.config, "model_type", None) not in FAMILIES:
        return []
    _replace(base, _causal_lm)
    done = ["loss"]
    for module in base.modules():
        if hasattr(module, "variance_epsilon") and type(module).__name__.endswith("RMSNorm"):
            _replace(module, _rms_norm)
    done.append("norms")
    adapted = False
    for layer in base.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for members in ((attention.q_proj, attention.k_proj, attention.v_proj), (attention.o_proj,)):
            adapted |= _group(members)
        if _has_adapter(mlp.gate_proj, mlp.up_proj, mlp.down_proj) and base.config.hidden_act == "silu":
            _replace(mlp, _mlp)
            adapted = True
    return [*done, "adapters"] if adapted else done


def uninstall(model) -> None:
    """The forwards of before."""
    for module in plain(model).modules():
        if "before_fast" in module.__dict__:
            del module.__dict__["before_fast"], module.__dict__["forward"]


def _replace(module, forward, *given) -> None:
    if "before_fast" not in module.__dict__:
        object.__setattr__(module, "before_fast", module.forward)
        # A bound method, as every forward is: accelerate takes it apart when it wraps the outermost module.
        bound = partial(forward, module, *given) if given else MethodType(forward, module)
        object.__setattr__(module, "forward", bound)


CHANGES_LOGITS = ("no_repeat_ngram_size", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "sequence_bias", "min_length")


def fast_decoder(model):
    """The compiled decoder for this model, or None: where it does not apply, where numba is not installed, or where
    the model's own settings change logits before a token is chosen (a penalty of repetitions, forbidden words)."""
    config = getattr(model, "generation_config", None)
    penalty = getattr(config, "repetition_penalty", None)
    if penalty not in (None, 1.0) or any(getattr(config, key, None) for key in CHANGES_LOGITS):
        return None
    try:
        from qlora_lib.fast.decoder import Decoder
    except ImportError:
        return None
    return Decoder.of(model)


# --- the new forwards -----------------------------------------------------------------------------


def _causal_lm(model, *args, labels=None, num_items_in_batch=None, **kwargs):
    """With labels the loss alone, and no logits; without, as before. In fp16 as before too: a gradient that is made
    before the loss is scaled up would lose its small values there."""
    head = model.get_output_embeddings()
    if labels is None or torch.float16 in (head.weight.dtype, _autocast(head.weight.device.type)):
        return model.before_fast(*args, labels=labels, num_items_in_batch=num_items_in_batch, **kwargs)
    from transformers.modeling_outputs import CausalLMOutputWithPast

    for key in ("logits_to_keep", "output_hidden_states", "output_attentions", "return_dict"):
        kwargs.pop(key, None)
    hidden = model.model(*args, **kwargs).last_hidden_state  # [B, T, H]
    loss = linear_cross_entropy(hidden, head.weight.to(hidden.dtype), labels, num_items_in_batch)
    return CausalLMOutputWithPast(loss=loss)


def _autocast(device: str) -> torch.dtype | None:
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def _rms_norm(module, x):
    return RmsNorm.apply(x, module.weight, module.variance_epsilon)


def _mlp(mlp, x):
    wide, down = _ready((mlp.gate_proj, mlp.up_proj), x), _ready((mlp.down_proj,), x)
    if wide is None or down is None:
        return mlp.before_fast(x)
    gate, up = _project(*wide, x.flatten(0, -2))
    group, (a, b) = down
    dropped = group.draw(gate) if mlp.training else None
    return GatedProjection.apply(group, dropped, gate, up, a, b).view_as(x)


def _group(members) -> bool:
    """Let the first of the members compute all of them."""
    if not _has_adapter(*members):
        return False
    kept: dict = {}
    for place, member in enumerate(members):
        _replace(member, _member, members, place, kept)
    return True


def _member(module, members, place, kept, x, *args, **kwargs):
    """The output of one member; the others' of the same input are kept until they are asked for."""
    if kept.get("input") is not x:
        kept.clear()
        ready = None if args or kwargs else _ready(members, x)
        if ready is None:
            return module.before_fast(x, *args, **kwargs)
        outputs = _project(*ready, x.flatten(0, -2))
        kept["input"] = x
        kept |= {i: y.view(*x.shape[:-1], -1) for i, y in enumerate(outputs)}
    output = kept.pop(place)
    if len(kept) == 1:  # all have been asked for
        kept.clear()
    return output


def _project(group: Group, adapters, x):
    dropped = group.draw(x) if group.linears[0].base.training else None
    return Projections.apply(group, dropped, x, *adapters)


# --- what the functions cover ----------------------------------------------------------------------


def _has_adapter(*members) -> bool:
    return all(hasattr(member, "lora_A") for member in members)


def _ready(members, x: torch.Tensor):
    """(group, every A and then every B) when each member has one plain adapter of x's dtype switched on; else None."""
    linears, a, b, dropouts = [], [], [], set()
    for member in members:
        active = [] if member.disable_adapters or member.merged else list(member.active_adapters)
        if len(active) != 1 or active[0] not in member.lora_A or active[0] in member.lora_variant:
            return None
        name = active[0]
        down, up = member.lora_A[name].weight, member.lora_B[name].weight
        if down.dtype != x.dtype or torch.is_autocast_enabled(x.device.type) or up.dtype != x.dtype:
            return None
        if member.lora_B[name].bias is not None:
            return None
        base = member.get_base_layer()
        if base.weight.requires_grad or not (base.weight.is_floating_point() or hasattr(base.weight, "quant_state")):
            return None
        linears.append(Linear(base, len(down), member.scaling[name]))
        a.append(down)
        b.append(up)
        dropouts.add(getattr(member.lora_dropout[name], "p", 0.0))
    if len(dropouts) != 1:
        return None
    return Group(tuple(linears), dropouts.pop()), (*a, *b)
