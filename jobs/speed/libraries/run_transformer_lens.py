"""TransformerLens: its bridge around the model, `run_with_cache` of the residual stream, batches of 16."""

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, given, out, device = sys.argv[1:]
ids = json.loads(Path(given).read_text())
hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(folder)
tokenizer.pad_token = tokenizer.unk_token
model = TransformerBridge.boot_transformers(folder, hf_model=hf, tokenizer=tokenizer, device=device)
n = hf.config.num_hidden_layers
wanted = [f"blocks.{k}.hook_resid_post" for k in range(n)]


def run(part):
    width = max(map(len, part))
    tokens = torch.tensor([t + [0] * (width - len(t)) for t in part], device=device)
    last = torch.tensor([len(t) - 1 for t in part])
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens, names_filter=wanted)
    pick = torch.arange(len(part))
    return torch.stack([cache[f"blocks.{k}.hook_resid_post"][pick, last].cpu() for k in range(n)])


run(ids[:16])
seconds = []
for _ in range(2):
    started = time.perf_counter()
    rows = torch.cat([run(ids[i : i + 16]) for i in range(0, len(ids), 16)], dim=1)
    seconds.append(time.perf_counter() - started)
np.savez(
    out,
    seconds=min(seconds),
    version=version("transformer-lens"),
    how="run_with_cache, batches of 16",
    **{str(k): rows[k].float().numpy() for k in range(n)},
)
