"""Several adapters on one base: each is as if it were alone, the base as if there were none."""

import gc
import hashlib
import json
import os

import psutil
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PromptTuningConfig, get_peft_model

from qlora_lib import models
from qlora_lib.adapters import Adapters
from qlora_lib.config import Lora
from qlora_lib.errors import QloraError, UsageError
from qlora_lib.fast.decoder import Decoder
from qlora_lib.fast.decoders import greedy
from qlora_lib.fast.install import install, installed, uninstall

one_thread = tiny.one_thread
FORMATS = ["fp32", "nf4dq"]
LORAS = {  # of different ranks, layers and scalings
    "one": Lora(rank=4, alpha=8),
    "two": Lora(rank=8, alpha=8, target_modules=["q_proj", "v_proj"]),
    "three": Lora(rank=3, alpha=12, use_rslora=True),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """{name: folder of an adapter that changes the outputs}."""
    made = {}
    for seed, (name, lora) in enumerate(LORAS.items()):
        model = models.attach_lora(tiny.base(), lora, seed)
        torch.manual_seed(seed)
        with torch.no_grad():
            for key, p in model.named_parameters():
                if "lora_B" in key:
                    p.normal_(0, 0.2)
        made[name] = tmp_path_factory.mktemp(name)
        models.save_adapter(model, made[name])
    return made


def several(form, folders) -> Adapters:
    adapters = Adapters(tiny.base(tiny.FORMATS[form]))
    for name, folder in folders.items():
        adapters.add(name, folder)
    return adapters


def alone(form, folder=None):
    base = tiny.base(tiny.FORMATS[form])
    return base if folder is None else models.load_adapter(base, folder).eval()


@torch.no_grad()
def logits(model, ids, fast=False):
    if not fast:
        return model(input_ids=ids).logits
    with installed(model):
        return model(input_ids=ids).logits


def base_hash(model) -> str:
    """Of all tensors that are not an adapter's, quantization state included."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if "lora_" not in name:
            found.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


@pytest.mark.parametrize("form", FORMATS)
def test_a_hundred_switches_change_nothing_and_cost_nothing(form, folders):
    ids = tiny.ids(2, 24)
    expected = {name: [logits(alone(form, folder), ids, fast) for fast in (False, True)] for name, folder in folders.items()}
    expected[None] = [logits(alone(form), ids, fast) for fast in (False, True)]
    assert len({tuple(e[0].flatten()[:50].tolist()) for e in expected.values()}) == 4  # four different models
    adapters = several(form, folders)
    decoder = Decoder.of(adapters.model)
    prompt = tiny.ids(1, 12)
    written = {}
    for name, folder in [*folders.items(), (None, None)]:
        own = Decoder.of(alone(form, folder))
        written[name] = greedy(own, own.start(prompt, 20), 8) if own else None
    before = base_hash(adapters.model)
    order = [*folders, None]

    def once(step: int) -> None:
        name = order[step * 7 % 4]
        adapters.use(name)
        for fast in (False, True):
            assert torch.equal(logits(adapters.model, ids, fast), expected[name][fast]), (step, name, fast)
        if decoder:  # the same decoder goes along
            assert greedy(decoder, decoder.start(prompt, 20), 8) == written[name]

    def held() -> tuple[int, int, int]:
        gc.collect()
        tensors = [o for o in gc.get_objects() if isinstance(o, torch.Tensor)]
        return len(tensors), sum(t.untyped_storage().nbytes() for t in tensors), psutil.Process(os.getpid()).memory_info().rss

    for step in range(8):  # every adapter twice: what is made once is there
        once(step)
    tensors, tensor_bytes, resident = held()
    for step in range(100):
        once(step)
    after = held()
    assert after[:2] == (tensors, tensor_bytes)
    assert after[2] - resident < 4 * 2**20  # one copy of an adapter and base each time would be 40 MiB or more
    assert base_hash(adapters.model) == before == base_hash(several(form, folders).model)


@settings(max_examples=15)
@given(st.lists(st.sampled_from(["one", "two", "three", "off", "add", "remove"]), max_size=12))
def test_any_order_of_steps(folders, steps):
    """What is active and what is there is what a plain list of names says, and outputs follow."""
    ids = tiny.ids(1, 8)
    adapters, names, active = Adapters(tiny.base()), [], None
    for step in steps:
        missing = [n for n in folders if n not in names]
        if step == "add" and missing:
            adapters.add(missing[0], folders[missing[0]])
            active = active if names else missing[0]
            names.append(missing[0])
        elif step == "remove" and names:
            gone = names.pop(0)
            adapters.remove(gone)
            active = None if active == gone else active
        elif step == "off":
            adapters.off()
            active = None
        elif step in names:
            adapters.use(step)
            active = step
        elif step in folders:
            with pytest.raises(UsageError, match=f"no adapter '{step}'"):
                adapters.use(step)
        assert adapters.names == names and adapters.active == active
    assert torch.equal(logits(adapters.model, ids), logits(alone("fp32", folders.get(active)), ids))
    assert not any(p.requires_grad for n, p in adapters.model.named_parameters() if "lora_" in n)


def test_using_puts_back_what_was(folders):
    adapters = several("fp32", folders)
    assert adapters.active == "one"
    with pytest.raises(ZeroDivisionError), adapters.using("two"):
        assert adapters.active == "two"
        raise ZeroDivisionError
    assert adapters.active == "one"
    with adapters.using(None) as model:
        assert torch.equal(logits(model, tiny.ids(1, 8)), logits(alone("fp32"), tiny.ids(1, 8)))
    adapters.off()
    with adapters.using("three"):
        pass
    assert adapters.active is None


def test_a_model_that_has_an_adapter_already(folders):
    adapters = Adapters(models.load_adapter(tiny.base(), folders["one"]))
    adapters.add("two", folders["two"])
    assert (adapters.names, adapters.active) == (["default", "two"], "default")
    adapters.use("two")
    assert torch.equal(logits(adapters.model, tiny.ids(1, 8)), logits(alone("fp32", folders["two"]), tiny.ids(1, 8)))


def test_forwards_that_stay_installed_follow_a_switch(folders):
    ids = tiny.ids(1, 16)
    adapters = several("nf4dq", folders)
    assert "adapters" in install(adapters.model)
    for name in ("one", "three", None, "two", "one"):
        adapters.use(name)
        assert torch.equal(logits(adapters.model, ids), logits(alone("nf4dq", folders.get(name)), ids, fast=True)), name
    adapters.remove("one")
    adapters.add("one", folders["three"])  # the same name, maybe the same place in memory
    adapters.use("one")
    assert torch.equal(logits(adapters.model, ids), logits(alone("nf4dq", folders["three"]), ids, fast=True))
    uninstall(adapters.model)


@pytest.mark.skipif(Decoder.of(tiny.base()) is None, reason="no kernel for this processor")
class TestDecoder:
    prompt = tiny.ids(1, 12)

    def text(self, decoder) -> list[int]:
        return greedy(decoder, decoder.start(self.prompt, 24), 12)

    def test_it_sees_weights_that_were_written_to(self, folders):
        model = alone("fp32", folders["one"])
        decoder, ids = Decoder.of(model), self.prompt
        first = decoder.start(ids, 20).copy()
        with torch.no_grad():
            model.base_model.model.model.layers[0].self_attn.q_proj.lora_B["default"].weight.mul_(-3)
        short = ids[:, :4]
        assert not (decoder.start(ids, 20) == first).all()
        assert (decoder.start(short, 20) == Decoder.of(model).start(short, 20)).all()

    def test_it_sees_an_adapter_that_took_anothers_name(self, folders):
        adapters = several("nf4dq", folders)
        decoder = Decoder.of(adapters.model)
        for name in ("two", "three"):
            adapters.remove("one")
            adapters.add("one", folders[name])
            adapters.use("one")
            assert self.text(decoder) == self.text(Decoder.of(alone("nf4dq", folders[name])))

    def test_a_text_ends_with_the_weights_it_began_with(self, folders):
        adapters = several("fp32", folders)
        decoder = Decoder.of(adapters.model)
        whole = self.text(decoder)
        row = decoder.start(self.prompt, 24)
        adapters.use("three")
        assert greedy(decoder, row, 12) == whole
        assert self.text(decoder) != whole

    def test_an_adapter_it_does_not_know_is_told(self, folders, tmp_path):
        config = {"use_dora": True}
        settings_file = folders["one"] / "adapter_config.json"
        dora = get_peft_model(tiny.base(), _lora_config(json.loads(settings_file.read_text()) | config))
        dora.save_pretrained(tmp_path, save_embedding_layers=False)
        adapters = several("fp32", folders)
        decoder = Decoder.of(adapters.model)
        adapters.add("dora", tmp_path)
        adapters.use("dora")
        with pytest.raises(QloraError, match="does not know the adapter that is active"):
            decoder.start(self.prompt, 20)
        assert Decoder.of(adapters.model) is None
        adapters.use("one")
        assert self.text(decoder) == self.text(Decoder.of(alone("fp32", folders["one"])))


def _lora_config(values: dict):
    from peft import LoraConfig

    return LoraConfig(**{k: values[k] for k in ("task_type", "r", "lora_alpha", "target_modules", "use_dora")})


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("damage", ["other rank", "virtual tokens", "empty", "nothing there"])
def test_an_adapter_that_fails_leaves_all_as_it_was(folders, tmp_path, first, damage):
    adapters = Adapters(tiny.base()) if first else several("fp32", folders)
    expected = logits(adapters.model, tiny.ids(1, 8))
    names, kinds = adapters.names, [type(m) for m in adapters.model.modules()]
    folder = tmp_path / "adapter"
    if damage == "virtual tokens":
        get_peft_model(tiny.base(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)).save_pretrained(folder)
    elif damage != "nothing there":
        models.save_adapter(models.attach_lora(tiny.base(), Lora(rank=4), 0), folder)
        config = json.loads((folder / "adapter_config.json").read_text())
        if damage == "other rank":
            (folder / "adapter_config.json").write_text(json.dumps(config | {"r": 8}))
        else:
            (folder / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(QloraError) as e:
        adapters.add("bad", folder)
    assert "\n" not in str(e.value)
    assert adapters.names == names and adapters.active == (None if first else "one")
    assert torch.equal(logits(adapters.model, tiny.ids(1, 8)), expected)
    if first:
        assert [type(m) for m in adapters.model.modules()] == kinds
    adapters.add("good", folders["two"])
    adapters.use("good")
    assert torch.equal(logits(adapters.model, tiny.ids(1, 8)), logits(alone("fp32", folders["two"]), tiny.ids(1, 8)))


def test_names(folders):
    adapters = several("fp32", folders)
    for name, said in [("one", "already"), ("a.b", "cannot name"), ("", "cannot name")]:
        with pytest.raises(UsageError, match=said):
            adapters.add(name, folders["one"])
    with pytest.raises(UsageError, match="no adapter 'on'.*Did you mean 'one'"):
        adapters.remove("on")
    with pytest.raises(UsageError, match="Add one first"):
        Adapters(tiny.base()).use("one")
