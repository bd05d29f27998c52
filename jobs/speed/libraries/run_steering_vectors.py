"""steering-vectors: `record_activations` around one forward pass a text, as its own extraction does."""

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from steering_vectors import record_activations
from transformers import AutoModelForCausalLM

folder, given, out, device = sys.argv[1:]
ids = json.loads(Path(given).read_text())
model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32).to(device).eval()
n = model.config.num_hidden_layers


def run(part):
    rows = []
    for text in part:
        with record_activations(model, layer_type="decoder_block") as recorded, torch.no_grad():
            model(torch.tensor([text], device=device))
        rows.append(torch.stack([recorded[k][-1].squeeze(0)[-1].cpu() for k in range(n)]))
    return torch.stack(rows, dim=1)


run(ids[:8])
seconds = []
for _ in range(2):
    started = time.perf_counter()
    found = run(ids)
    seconds.append(time.perf_counter() - started)
np.savez(
    out,
    seconds=min(seconds),
    version=version("steering-vectors"),
    how="record_activations, one text at a time",
    **{str(k): found[k].float().numpy() for k in range(n)},
)
