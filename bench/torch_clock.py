"""Train PyTorch's nn.LSTM with a config's settings on its data for a number of seconds, then measure its loss on val.

    python -m bench.torch_clock CONFIG DATA SECONDS OPTIMIZER RATE PRECISION

Prints a line of JSON. The model follows PyTorch's documentation: an embedding as wide as the layers or the vocabulary,
whichever is smaller; nn.LSTM; a linear layer; for bfloat16, autocast. OPTIMIZER adam is fused; muon is
torch.optim.Muon for the LSTM's matrices, with the config's weight decay, and Adam for the rest. Batches, window,
dropouts, clipping and the cosine schedule come from the config; the schedule follows elapsed time, since the number of
steps is not known in advance.
"""

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.manifest import Manifest, read_manifest
from pipeline.shards import read_tokens
from trainers.config import ModelConfig, RunConfig

Carry = tuple[torch.Tensor, torch.Tensor]


class Model(nn.Module):
    """Embedding, nn.LSTM and a linear layer."""

    def __init__(self, vocab: int, config: ModelConfig):
        super().__init__()
        width = min(config.units, vocab)
        self.embed = nn.Embedding(vocab, width)
        self.lstm = nn.LSTM(width, config.units, config.layers, batch_first=True, dropout=config.dropout)
        self.dropout = nn.Dropout(config.output_dropout)
        self.dense = nn.Linear(config.units, vocab)

    def forward(self, ids_BxT: torch.Tensor, carry: Carry) -> tuple[torch.Tensor, Carry]:
        y_BxTxH, carry = self.lstm(self.embed(ids_BxT), carry)
        return self.dense(self.dropout(y_BxTxH)), carry

    def initial_carry(self, lanes: int) -> Carry:
        shape = (self.lstm.num_layers, lanes, self.lstm.hidden_size)
        return torch.zeros(shape), torch.zeros(shape)


def lanes_of(data: Path, manifest: Manifest, split: str, lanes: int) -> torch.Tensor:
    """Return a split as ids_BxN, one contiguous stretch per lane, without the tokens that do not fill all lanes."""
    shards = manifest.split(split)
    length = shards.tokens // lanes
    ids = read_tokens(data, shards, manifest.dtype, 0, lanes * length)
    return torch.from_numpy(ids.astype("int64")).reshape(lanes, length)


def optimizers(model: Model, name: str, rate: float, weight_decay: float) -> list[torch.optim.Optimizer]:
    """Return the optimizers of all parameters."""
    if name == "adam":
        return [torch.optim.Adam(model.parameters(), rate, fused=True)]
    inner = [p for p in model.lstm.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if all(p is not matrix for matrix in inner)]
    muon = torch.optim.Muon(inner, rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.Adam(others, rate, fused=True)]


def train(
    model: Model, ids_BxN: torch.Tensor, config: RunConfig, seconds: float, name: str, rate: float, rounded: bool
) -> int:
    """Train for `seconds` and return the number of characters read. rounded: multiply in bfloat16."""
    chosen, window, seen = optimizers(model, name, rate, config.train.weight_decay), config.train.window, 0
    begin, start, carry = 0, time.perf_counter(), model.initial_carry(len(ids_BxN))
    while (share := (time.perf_counter() - start) / seconds) < 1:
        if begin + window >= ids_BxN.shape[1]:
            begin, carry = 0, model.initial_carry(len(ids_BxN))
        decay = config.train.decay
        for optimizer in chosen:
            for group in optimizer.param_groups:
                group["lr"] = rate * (decay + (1 - decay) * (1 + math.cos(math.pi * share)) / 2)
            optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=rounded):
            logits, (h, c) = model(ids_BxN[:, begin : begin + window], carry)
        targets_BxT = ids_BxN[:, begin + 1 : begin + window + 1]
        nn.functional.cross_entropy(logits.float().flatten(0, 1), targets_BxT.flatten()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.train.clip)
        for optimizer in chosen:
            optimizer.step()
        carry, begin, seen = (h.detach().float(), c.detach().float()), begin + window, seen + targets_BxT.numel()
    return seen


@torch.no_grad()
def nats(model: Model, ids_BxN: torch.Tensor, window: int) -> float:
    """Return the mean loss over all targets in the lanes, carrying state between windows."""
    model.eval()
    carry, total = model.initial_carry(len(ids_BxN)), 0.0
    inputs_BxM, targets_BxM = ids_BxN[:, :-1], ids_BxN[:, 1:]
    for ids_BxT, targets_BxT in zip(inputs_BxM.split(window, 1), targets_BxM.split(window, 1), strict=True):
        logits, carry = model(ids_BxT, carry)
        total += nn.functional.cross_entropy(logits.flatten(0, 1), targets_BxT.flatten(), reduction="sum").item()
    return total / targets_BxM.numel()


def main(config_path: Path, data: Path, seconds: float, name: str, rate: float, precision: str) -> dict[str, Any]:
    config, manifest = RunConfig.read(config_path), read_manifest(data)
    torch.manual_seed(config.train.seed)
    model = Model(manifest.vocab.size, config.model)
    ids = {split: lanes_of(data, manifest, split, config.train.lanes) for split in ("train", "val")}
    start = time.perf_counter()
    seen = train(model, ids["train"], config, seconds, name, rate, rounded=precision == "bfloat16")
    took = time.perf_counter() - start
    parameters = sum(p.numel() for p in model.parameters())
    val = nats(model, ids["val"], config.train.window)
    return {"val_nats": val, "seen": seen, "training_seconds": took, "parameters": parameters}


if __name__ == "__main__":
    config, data, seconds, name, rate, precision = sys.argv[1:]
    print(json.dumps(main(Path(config), Path(data), float(seconds), name, float(rate), precision)))
