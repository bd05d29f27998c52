"""What a harvest must hold, by transformers alone, and a reader of it that is not ours."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from contrans_dist.engine.capture import capture_ids, deviation
from contrans_dist.engine.capture.batches import Position
from contrans_dist.models import LanguageModel
from tests.tiny import CONTEXT

if TYPE_CHECKING:
    import pandas as pd


def by_transformers(folder: Path, prompts: list[str]) -> tuple[np.ndarray, list[list[int]]]:
    """Rows `[texts, blocks, d]` of each text run alone, by transformers' own hidden states and, for the last
    block, a hook; and the token ids, of a long text its BOS and its end."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    last: list[torch.Tensor] = []
    model.model.layers[-1].register_forward_hook(lambda _m, _a, out: last.append(out))
    rows, ids = [], []
    for prompt in prompts:
        tokens = tokenizer(prompt)["input_ids"]
        if len(tokens) > CONTEXT:
            tokens = tokens[:1] + tokens[-(CONTEXT - 1) :]
        with torch.no_grad():
            states = model(torch.tensor([tokens]), output_hidden_states=True).hidden_states
        below = [state[0, -1] for state in states[1:-1]]
        rows.append(torch.stack([*below, last[-1][0, -1]]).numpy())
        ids.append(tokens)
    return np.stack(rows), ids


def block_states(lm: LanguageModel, text: list[int]) -> dict[int, np.ndarray]:
    """What each block returns for one text, `[tokens, d]`: transformers' own hidden states, and for the last
    block, whose entry there is normed already, a plain hook."""
    seen: dict[str, torch.Tensor] = {}
    handle = lm.blocks[-1].register_forward_hook(
        lambda module, args, output: seen.update(last=output[0] if isinstance(output, tuple) else output)
    )
    with torch.no_grad():
        output = lm.model(
            input_ids=torch.tensor([text]), attention_mask=torch.ones(1, len(text)), output_hidden_states=True
        )
    handle.remove()
    states = {k: output.hidden_states[k + 1][0].numpy() for k in range(lm.n_blocks - 1)}
    return {**states, lm.n_blocks - 1: seen["last"][0].numpy()}


def read_all(out: Path) -> "pd.DataFrame":
    import pandas as pd  # a machine on which the gpu tests run may have none

    frames = [pd.read_parquet(path) for path in sorted(out.glob("shard-*.parquet"))]
    return pd.concat(frames, ignore_index=True)


def block_rows(frame: "pd.DataFrame") -> np.ndarray:
    """`[texts, blocks, d]` of a frame's block columns."""
    names = [name for name in frame.columns if name.startswith("block_")]
    return np.stack([np.stack(frame[name].tolist()) for name in names], axis=1)


def continued(tokenizer, prompt: list[int], new: list[int]) -> str:
    """What follows a prompt: both decoded together, less what they have in common with the prompt alone."""
    both, before = (tokenizer.decode(ids, skip_special_tokens=True) for ids in (prompt + new, prompt))
    same = 0
    while same < min(len(both), len(before)) and both[same] == before[same]:
        same += 1
    return both[same:]


def canary(
    lm: LanguageModel,
    ids: list[list[int]],
    reference: Mapping[int, np.ndarray],
    position: Position = "last",
) -> float:
    """Worst `deviation` between captured rows and those of the same texts run again, each alone.

    Args:
        lm: The model.
        ids: Token ids of each text.
        reference: The captured rows, `{block: float32 [n_texts, d]}`.
        position: The position that they were taken from.
    """
    blocks = sorted(reference)
    alone = capture_ids(lm, ids, blocks, position, batch_tokens=1, share_prefixes=False)
    return deviation(alone, reference)
