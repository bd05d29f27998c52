"""repeng: its own `batched_get_hiddens`, with its default batch of 32 texts."""

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from repeng.extract import batched_get_hiddens
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, given, out, device = sys.argv[1:]
ids = json.loads(Path(given).read_text())
texts = [" ".join(map(str, t)) for t in ids]
model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32).to(device).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
tokenizer.pad_token = tokenizer.unk_token
n = model.config.num_hidden_layers
# It numbers hidden states with the embeddings as 0; the last one is normed, so it is not compared.
layers = list(range(n))


def run(part):
    return batched_get_hiddens(model, tokenizer, part, layers, 32)


run(texts[:8])
seconds = []
for _ in range(2):
    started = time.perf_counter()
    found = run(texts)
    seconds.append(time.perf_counter() - started)
np.savez(
    out,
    seconds=min(seconds),
    version=version("repeng"),
    how="batched_get_hiddens, its batch of 32",
    **{str(k): np.asarray(found[k], np.float32) for k in range(n - 1)},
)
