"""One training step of configs/flickr8k.py against the same model and step in PyTorch.

    python benchmarks/flickr8k_step.py --data.root PATH      (needs torch beside clip_jax)

Both see the same batches of real captions and random pixels, on the same cores, in turn, in one
run: forward, backward, clipping by norm and AdamW. Prints the medians and, as the last line,
the ratio of our pairs per second to PyTorch's.
"""

import json
import statistics
import sys
import time

from clip_jax.cli.process import settle_simulated_devices, use_huge_pages

ROUNDS = 7


def torch_step(config):
    """A PyTorch module of the same shape (fused attention and AdamW), and its step."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    torch.manual_seed(0)
    width, heads, layers = 192, 3, 6

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x, causal):
            batch, length, _ = x.shape
            qkv = self.qkv(self.norms[0](x)).reshape(batch, length, 3, heads, -1)
            mixed = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4), is_causal=causal)
            x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
            return x + self.down(F.gelu(self.up(self.norms[1](x))))

    class Clip(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch = nn.Conv2d(3, width, 16, 16, bias=False)
            self.cls = nn.Parameter(0.02 * torch.randn(1, 1, width))
            self.places = nn.Parameter(0.02 * torch.randn(1, 37, width))
            self.pre, self.post, self.final = (nn.LayerNorm(width) for _ in range(3))
            self.words = nn.Embedding(49408, width)
            self.text_places = nn.Parameter(0.01 * torch.randn(1, 32, width))
            self.image = nn.ModuleList(Block() for _ in range(layers))
            self.text = nn.ModuleList(Block() for _ in range(layers))
            self.heads = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(2))
            self.scale = nn.Parameter(torch.tensor(2.6593))

        def forward(self, images, tokens):
            x = self.patch(images).flatten(2).transpose(1, 2)
            x = torch.cat([self.cls.expand(len(x), 1, width), x], 1) + self.places
            x = self.pre(x)
            for block in self.image:
                x = block(x, False)
            y = self.words(tokens) + self.text_places
            for block in self.text:
                y = block(y, True)
            rows = torch.arange(len(y))
            image = F.normalize(self.heads[0](self.post(x[:, 0])), dim=-1)
            text = F.normalize(self.heads[1](self.final(y[rows, tokens.argmax(1)])), dim=-1)
            logits = self.scale.exp() * image @ text.T
            return (F.cross_entropy(logits, rows) + F.cross_entropy(logits.T, rows)) / 2

    model = Clip()
    optimizer = torch.optim.AdamW(
        model.parameters(), 1e-3, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2, fused=True
    )

    def step(images, tokens):
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
        optimizer.zero_grad(set_to_none=True)
        loss = model(pixels, torch.from_numpy(tokens).long())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step, sum(p.numel() for p in model.parameters())


def our_step(config):
    """The step that train.py runs, on the mesh of this machine."""
    import jax

    from clip_jax import tree
    from clip_jax.sharding.mesh import build_mesh
    from clip_jax.sharding.place import batch_parts, place_batch
    from clip_jax.train.assemble import assemble

    mesh = build_mesh(config.mesh)
    parts = assemble(
        model=config.model,
        loss=config.loss,
        optim=config.optim,
        recipe=config.recipe,
        rules=config.rules,
        mesh=mesh,
        seed=0,
        steps=config.steps,
    )
    state = parts.init()

    def step(images, tokens):
        nonlocal state
        batch = {"images": images, "tokens": tokens}
        if config.packing:
            batch = config.packing(batch, batch_parts(config.rules, mesh))
        state, metrics = parts.step(state, place_batch(batch, parts.batch_sharding))
        return float(jax.device_get(metrics["loss"]))

    return step, tree.count(state.params)


def main(argv: list[str]) -> None:
    """Time both in turn."""
    import numpy as np

    from clip_jax.config import load_config, override

    config = override(load_config("configs/flickr8k.py"), argv, prog="flickr8k_step.py")
    source = config.data.open("train")
    captions = [source[i].texts[i % 5] for i in range(config.batch)]
    tokens = config.tokenizer(captions)
    shape = (config.batch, config.recipe.size, config.recipe.size, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    (ours, our_count), (theirs, their_count) = our_step(config), torch_step(config)
    print(f"parameters: {our_count:,} ours, {their_count:,} PyTorch's")
    seconds = {"clip_jax": [], "PyTorch": []}
    for number in range(-2, ROUNDS):  # Two rounds to compile and to warm up.
        for name, step in (("clip_jax", ours), ("PyTorch", theirs)):
            start = time.perf_counter()
            step(images, tokens)
            if number >= 0:
                seconds[name].append(time.perf_counter() - start)
    rates = {name: config.batch / statistics.median(times) for name, times in seconds.items()}
    for name, rate in rates.items():
        print(f"{name}: {rate:.0f} pairs/s (median of {ROUNDS})")
    ratio = rates["clip_jax"] / rates["PyTorch"]
    print(json.dumps({"name": "flickr8k_step", "ratio": round(ratio, 3), "better": "higher"}))


if __name__ == "__main__":
    use_huge_pages()
    settle_simulated_devices()
    main(sys.argv[1:])
