"""Put the fast path into a model, and take it out again: only `forward`s are replaced.

How it works: the parameters, the modules and their names stay as PEFT and transformers made them. `q_proj`'s new
forward computes k and v as well and keeps them for the two calls that follow on the same input; attention itself is
transformers' own around another rotation. Whatever the functions of layers.py do not cover (several adapters at once, a merged or
disabled one, DoRA, an input of another dtype than the adapter's without autocast) runs the old forward.
"""

from contextlib import contextmanager
from functools import partial
from types import MethodType

import torch

from qlora_lib.fast.elementwise import RmsNorm, Rotary
from qlora_lib.fast.layers import GatedProjection, Group, Linear, Projections
from qlora_lib.fast.loss import linear_cross_entropy

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


def plain(model):
    """The transformers model inside a PEFT model, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def install(model) -> list[str]:
    """Replace forwards in place; what was replaced, one word a kind, or nothing for a model that is not known."""
    base = plain(model)
    if getattr(getattr(base, "config", None), "model_type", None) not in FAMILIES:
        return []
    _replace(base, _causal_lm)
    done = ["loss", "norms", "rotations"]
    for module in base.modules():
        if hasattr(module, "variance_epsilon") and type(module).__name__.endswith("RMSNorm"):
            _replace(module, _rms_norm)
    adapted = False
    for layer in base.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        _replace(attention, _attention)
        for modules in ((attention.q_proj, attention.k_proj, attention.v_proj), (attention.o_proj,)):
            if _has_adapter(*modules):
                members, kept = Members(modules), {}
                for place, module in enumerate(modules):
                    _replace(module, _member, members, place, kept)
                adapted = True
        if _has_adapter(mlp.gate_proj, mlp.up_proj, mlp.down_proj) and base.config.hidden_act == "silu":
            _replace(mlp, _mlp, Members((mlp.gate_proj, mlp.up_proj)), Members((mlp.down_proj,)))
            adapted = True
    return [*done, "adapters"] if adapted else done


def uninstall(model) -> None:
    """The forwards of before."""
    for module in plain(model).modules():
        if "before_fast" in module.__dict__:
            del module.__dict__["before_fast"], module.__dict__["forward"]


@contextmanager
def installed(model):
    """The fast forwards inside a `with`; those of before afterwards."""
    if "before_fast" in plain(model).__dict__ or not install(model):
        yield
        return
    try:
        yield
    finally:
        uninstall(model)


def _replace(module, forward, *given) -> None:
    if "before_fast" not in module.__dict__:
        object.__setattr__(module, "before_fast", module.forward)
        # A bound method, as every forward is: accelerate takes it apart when it wraps the outermost module.
        bound = partial(forward, module, *given) if given else MethodType(forward, module)
        object.__setattr__(module, "forward", bound)


# --- the new forwards -----------------------------------------------------------------------------


def _causal_lm(model, *args, labels=None, num_items_in_batch=None, **kwargs):
    """With labels the loss alone, and no logits; without, as before. In fp16 as before too: a gradient that is made
    before the loss is scaled up would lose its small values there."""
    head = model.get_output_embeddings()
    if labels is None or torch.float16 in (head.weight.dtype, _autocast(head.weight.device.type)):
        return model.before_fast(*args, labels=labels, num_items_in_batch=num_items_in_batch, **kwargs)
    from transformers.modeling_outputs import CausalLMOutputWithPast

    for key in ("logits_to_keep", "output_hidden_states", "output_attentions", "return_dict", "use_cache"):
        kwargs.pop(key, None)
    hidden = model.model(*args, use_cache=False, **kwargs).last_hidden_state  # [B, T, H]
    loss = linear_cross_entropy(hidden, head.weight.to(hidden.dtype), labels, num_items_in_batch)
    return CausalLMOutputWithPast(loss=loss)


def _autocast(device: str) -> torch.dtype | None:
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def _rms_norm(module, x):
    return RmsNorm.apply(x, module.weight, module.variance_epsilon)


def _attention(module, hidden_states, position_embeddings=None, attention_mask=None, past_key_values=None, **kwargs):
    """transformers' own, with the rotation of elementwise.py; with a cache, or another kernel than `sdpa`, as before."""
    if past_key_values is not None or position_embeddings is None or module.config._attn_implementation != "sdpa":
        return module.before_fast(
            hidden_states, position_embeddings=position_embeddings, attention_mask=attention_mask,
            past_key_values=past_key_values, **kwargs,
        )  # fmt: skip
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    shape = (*hidden_states.shape[:-1], -1, module.head_dim)
    q, k, v = (project(hidden_states).view(shape) for project in (module.q_proj, module.k_proj, module.v_proj))
    if hasattr(module, "q_norm"):
        q, k = module.q_norm(q), module.k_norm(k)
    q, k = (Rotary.apply(x, *position_embeddings).transpose(1, 2) for x in (q, k))
    dropout = module.attention_dropout if module.training else 0.0
    mixed, weights = sdpa_attention_forward(
        module, q, k, v.transpose(1, 2), attention_mask, dropout=dropout, scaling=module.scaling, **kwargs
    )
    return module.o_proj(mixed.reshape(*shape[:-2], -1).contiguous()), weights


def _mlp(mlp, wide: "Members", down: "Members", x):
    outer, inner = wide.ready(x), down.ready(x)
    if outer is None or inner is None:
        return mlp.before_fast(x)
    gate, up = _project(*outer, x.flatten(0, -2))
    group, adapters = inner
    dropped = group.draw(gate) if mlp.training else None
    return GatedProjection.apply(group, dropped, gate, up, *adapters).view(*x.shape[:-1], -1)


def _member(module, members: "Members", place: int, kept: dict, x, *args, **kwargs):
    """The output of one member; the others' of the same input are kept until they are asked for."""
    if kept.get("input") is not x:
        kept.clear()
        ready = None if args or kwargs else members.ready(x)
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
    x = x.to(adapters[0].dtype)
    dropped = group.draw(x) if group.linears[0].base.training else None
    return Projections.apply(group, dropped, x, *adapters)


# --- what the functions cover ----------------------------------------------------------------------


def _has_adapter(*members) -> bool:
    return all(hasattr(member, "lora_A") for member in members)


class Members:
    """PEFT modules that read one input, and what layers.py needs of them, for as long as nothing about them changes."""

    def __init__(self, modules):
        self.modules = modules
        self.name: str | None = None  # of the one active adapter
        self.group: Group | None = None
        self.adapters: tuple[torch.Tensor, ...] = ()  # every A, then every B

    def ready(self, x: torch.Tensor) -> tuple[Group, tuple[torch.Tensor, ...]] | None:
        """(group, every A and then every B in the dtype of the products) when each member has one plain adapter on.

        None otherwise, and where x and the adapters differ in dtype; under autocast they may, as in `torch.nn.Linear`.
        """
        if not self._still():
            self._look()
        if self.group is None:
            return None
        wanted = _autocast(x.device.type)
        if wanted is not None:
            return self.group, tuple(p.to(wanted) for p in self.adapters)
        return (self.group, self.adapters) if self.adapters[0].dtype == x.dtype else None

    def _still(self) -> bool:
        if self.group is None:
            return False
        n, name = len(self.modules), self.name
        for i, (module, linear) in enumerate(zip(self.modules, self.group.linears)):
            if module.disable_adapters or module.merged or module.active_adapters != [name]:
                return False
            a, b = module.lora_A, module.lora_B
            if name not in a or a[name].weight is not self.adapters[i] or b[name].weight is not self.adapters[n + i]:
                return False
            if module.scaling[name] != linear.scaling or getattr(module.lora_dropout[name], "p", 0.0) != self.group.dropout:
                return False
            if module.base_layer is not linear.base or linear.base.weight.requires_grad:
                return False
        return True

    def _look(self) -> None:
        self.group = None
        linears, a, b, dropouts = [], [], [], set()
        for module in self.modules:
            active = [] if module.disable_adapters or module.merged else list(module.active_adapters)
            if len(active) != 1 or active[0] not in module.lora_A or active[0] in module.lora_variant:
                return
            self.name = active[0]
            down, up = module.lora_A[self.name], module.lora_B[self.name]
            base = module.base_layer
            if down.weight.dtype != up.weight.dtype or up.bias is not None or base.weight.requires_grad:
                return
            if not (base.weight.is_floating_point() or hasattr(base.weight, "quant_state")):
                return
            linears.append(Linear(base, len(down.weight), module.scaling[self.name]))
            a.append(down.weight)
            b.append(up.weight)
            dropouts.add(getattr(module.lora_dropout[self.name], "p", 0.0))
        if len(dropouts) == 1:
            self.group, self.adapters = Group(tuple(linears), dropouts.pop()), (*a, *b)
