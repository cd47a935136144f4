"""Files of weights against PyTorch itself, in both directions."""

import collections

import ml_dtypes
import pytest

torch = pytest.importorskip("torch", reason="make parity installs it")

from clip_jax.pretrained.arrays import open_weights, write_safetensors, write_torch

# TorchScript is deprecated, but OpenAI's files are made of it.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::torch.jit.TracerWarning"
)
DTYPES = [
    "float64", "float32", "float16", "bfloat16",
    "int64", "int32", "int16", "int8", "uint8", "bool",
]  # fmt: skip


def to_numpy(tensor):
    tensor = tensor.detach().resolve_neg()
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def assert_same(found, state):
    assert list(found.arrays) == list(state)
    for name, stored in found.arrays.items():
        wanted = to_numpy(state[name])
        array = stored.read()
        assert stored.shape == array.shape == wanted.shape, name
        assert stored.dtype == array.dtype == wanted.dtype, name
        assert array.tobytes() == wanted.tobytes(), name


def views():
    """Tensors that share storages in all the ways that views can."""
    torch.manual_seed(0)
    base = torch.randn(4, 6, 5)
    state = {name: (10 * torch.randn(3, 4)).to(getattr(torch, name)) for name in DTYPES}
    state |= {
        "base": base,
        "permuted": base.permute(2, 0, 1),
        "window": base[1:3, 2:5, ::2],
        "diagonal": base[:, :4, 0].diagonal(),
        "expanded": base[:1, :, :1].expand(7, 6, 3),
        "strided": base.as_strided((3, 3), (7, 2), 5),
        "unfolded": base.flatten().unfold(0, 10, 3),
        "scalar": base[1, 2, 3],
        "empty": base[:0],
        "empty_inside": torch.zeros(3, 0, 2),
        "one": torch.ones(1, 1, 1),
        "parameter": torch.nn.Parameter(base[0]),
        "arange": torch.arange(77).expand((1, -1)),
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    }
    return state


@pytest.mark.parametrize("container", [dict, collections.OrderedDict])
def test_what_torch_saves_is_read(tmp_path, container):
    state = container(views())
    torch.save(state, tmp_path / "model.pt")
    assert_same(open_weights(tmp_path / "model.pt"), state)


def test_without_checksums_and_with_another_alignment(tmp_path):
    state = {"a": torch.arange(5.0), "b": torch.ones(3)}
    sums = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state, tmp_path / "model.pt")
    finally:
        torch.serialization.set_crc32_options(sums)
    assert_same(open_weights(tmp_path / "model.pt"), state)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_other_protocols_of_pickle(tmp_path, protocol):
    state = {"a": torch.arange(5.0), "b": torch.ones(3, dtype=torch.bfloat16)}
    torch.save(collections.OrderedDict(state), tmp_path / "model.pt", pickle_protocol=protocol)
    assert_same(open_weights(tmp_path / "model.pt"), state)


@pytest.mark.parametrize("mmap", [False, True])
def test_torch_reads_what_is_written(tmp_path, mmap):
    state = views()
    write_torch(tmp_path / "model.pt", {name: to_numpy(value) for name, value in state.items()})
    found = torch.load(tmp_path / "model.pt", weights_only=True, mmap=mmap)
    assert list(found) == list(state)
    for name, value in state.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape, name
        assert found[name].is_contiguous() and torch.equal(found[name], value.detach()), name
        assert not found[name].requires_grad


def test_an_old_file_is_refused_and_its_advice_works(tmp_path):
    old, new = tmp_path / "old.pt", tmp_path / "new.pt"
    state = {"a": torch.arange(5.0)}
    torch.save(state, old, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"as torch\.save wrote before PyTorch 1\.6"):
        open_weights(old)
    torch.save(torch.load(old, weights_only=True), new)
    assert_same(open_weights(new), state)


def test_safetensors_of_torch(tmp_path):
    from safetensors.torch import load_file, save_file

    state = {name: value.contiguous().clone() for name, value in views().items()}
    save_file(state, tmp_path / "theirs")
    found = open_weights(tmp_path / "theirs")
    assert set(found.arrays) == set(state)
    arrays = {name: found.arrays[name].read() for name in state}
    write_safetensors(tmp_path / "ours", arrays)
    back = load_file(tmp_path / "ours")
    for name, value in state.items():
        assert back[name].dtype == value.dtype and torch.equal(back[name], value), name


def test_a_whole_module_is_refused(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"asks for torch\.nn\.modules\.linear\.Linear: refused"):
        open_weights(tmp_path / "model.pt")


class Block(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.attn = torch.nn.MultiheadAttention(width, 2)
        self.ln = torch.nn.LayerNorm(width)
        self.mlp = torch.nn.Sequential(
            collections.OrderedDict(up=torch.nn.Linear(width, 8), down=torch.nn.Linear(8, width))
        )

    def forward(self, x):
        x = x + self.attn(x, x, x, need_weights=False)[0]
        return x + self.mlp(self.ln(x))


class Model(torch.nn.Module):
    """As OpenAI's: half-precision matrices, sizes as buffers, towers of towers."""

    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList([Block(4) for _ in range(3)])
        self.conv = torch.nn.Conv2d(3, 4, 2, bias=False)
        self.bn = torch.nn.BatchNorm2d(4)
        self.positional_embedding = torch.nn.Parameter(torch.randn(4))
        self.register_buffer("input_resolution", torch.tensor(8))
        self.vocab_size = 49408

    def forward(self, x):
        x = self.bn(self.conv(x)).flatten(2).permute(2, 0, 1) + self.positional_embedding
        for block in self.blocks:
            x = block(x)
        return x.mean(0)


@pytest.mark.parametrize("how", ["script", "trace"])
@pytest.mark.parametrize("half", [False, True])
def test_torchscript_names_are_those_of_its_state_dict(tmp_path, how, half):
    torch.manual_seed(0)
    model = Model().eval()
    if how == "script":
        script = torch.jit.script(model)
    else:
        script = torch.jit.trace(model, torch.randn(2, 3, 8, 8))
    if half:
        script = script.half()
    script.save(tmp_path / "model.pt")
    found = open_weights(tmp_path / "model.pt")
    assert found.kind == "torchscript"
    state = torch.jit.load(tmp_path / "model.pt").state_dict()
    assert set(state) == set(found.arrays) == set(model.state_dict())
    assert_same(found, {name: state[name] for name in found.arrays})
    assert found.arrays["input_resolution"].read() == 8


def test_frozen_torchscript_has_no_names_left(tmp_path):
    script = torch.jit.freeze(torch.jit.script(Model().eval()))
    script.save(tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"holds an object of .*Model without tensors"):
        open_weights(tmp_path / "model.pt")


def test_torch_and_we_refuse_the_same_attack(tmp_path):
    class Attack:
        def __reduce__(self):
            return eval, (f"open({str(tmp_path / 'ran')!r}, 'w')",)

    torch.save({"state_dict": {"w": torch.ones(2)}, "optimizer": Attack()}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"asks for __builtin__\.eval: refused"):
        open_weights(tmp_path / "model.pt")
    with pytest.raises(Exception, match="eval"):
        torch.load(tmp_path / "model.pt", weights_only=True)
    assert not (tmp_path / "ran").exists()


def test_a_real_training_checkpoint(tmp_path):
    model = torch.nn.DataParallel(Block(4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    checkpoint = {
        "epoch": 1,
        "state_dict": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": torch.amp.GradScaler("cpu").state_dict(),
        "scheduler": schedule.state_dict(),
    }
    torch.save(checkpoint, tmp_path / "model.pt")
    found = open_weights(tmp_path / "model.pt")
    assert_same(found, model.module.state_dict())
    assert found.extras == {"epoch": 1}


@pytest.mark.parametrize("name", ["model.pt", "model.bin", "model.safetensors"])
def test_open_clip_loads_what_is_written(tmp_path, name):
    from tests.parity import peers

    state = {key: value.detach() for key, value in views().items()}
    write = write_safetensors if name.endswith(".safetensors") else write_torch
    write(tmp_path / name, {key: to_numpy(value) for key, value in state.items()})
    found = peers.open_clip().factory.load_state_dict(tmp_path / name)
    assert set(found) == set(state)
    assert all(torch.equal(found[key], state[key]) for key in state)
