"""Small files as PyTorch writes them, and what they hold; needs torch, writes beside itself."""

import pathlib

import ml_dtypes
import numpy as np
import torch

HERE = pathlib.Path(__file__).parent


class Tower(torch.nn.Module):
    """Half-precision matrices, a convolution without bias, buffers, and a module used twice."""

    def __init__(self):
        super().__init__()
        self.input_resolution = 8
        self.conv1 = torch.nn.Conv2d(3, 4, 2, bias=False).half()
        self.class_embedding = torch.nn.Parameter(torch.randn(4))
        self.blocks = torch.nn.Sequential(torch.nn.Linear(4, 4).half(), torch.nn.LayerNorm(4))
        self.again = self.blocks[1]
        self.norm = torch.nn.BatchNorm1d(4)

    def forward(self, x):
        return self.again(self.blocks(self.conv1(x).mean((2, 3))).float() + self.class_embedding)


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.visual = Tower()
        self.logit_scale = torch.nn.Parameter(torch.tensor(2.5))
        self.register_buffer("context_length", torch.tensor(77))
        self.sizes = [1, 2]
        self.names = {"a": 1}
        self.scale = 0.5
        self.mean = (0.5, 0.5)

    def forward(self, x):
        x = self.visual(x) * self.logit_scale.exp() * self.scale + self.mean[0]
        return x[:, : len(self.sizes)] + self.names["a"] + self.context_length


def array(tensor):
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16).astype(np.float32)
    return tensor.detach().numpy().copy()


def main():
    torch.manual_seed(0)
    model = Model()
    kept = {f"script/{name}": array(value) for name, value in model.state_dict().items()}
    torch.jit.script(model).save(HERE / "torchscript.pt")

    base = torch.arange(24.0).reshape(4, 6)
    numbers = "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool"
    state = {name: torch.arange(-2, 3).to(getattr(torch, name)) for name in numbers.split()}
    state |= {
        "scalar": torch.tensor(1.5),
        "empty": torch.zeros(0, 3),
        "whole": base,
        "transposed": base.T,
        "window": base[1:3, 1::2],
        "repeated": torch.arange(3.0).expand(2, 3),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    kept |= {f"state/{name}": array(value) for name, value in state.items()}
    torch.save(state, HERE / "torch_state.pt")

    wrapped = {f"module._orig_mod.{k}": v for k, v in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters())
    sum(p.float().sum() for p in model.parameters()).backward()
    optimizer.step()
    checkpoint = {
        "epoch": 3,
        "name": "run",
        "state_dict": {name: value.clone() for name, value in wrapped.items()},
        "optimizer": optimizer.state_dict(),
        "scaler": torch.amp.GradScaler("cpu").state_dict(),
        "global_step": 120,
        "samples_seen": 10**10,
        "state_dict_ema": {name: value + 1 for name, value in wrapped.items()},
        "best": None,
    }
    kept |= {f"checkpoint/{name}": array(v) for name, v in model.state_dict().items()}
    torch.save(checkpoint, HERE / "torch_checkpoint.pt")
    np.savez(HERE / "torch_files.npz", **kept)


if __name__ == "__main__":
    main()
