"""The code of a checkpoint: a Llama that takes its time, and that some tokens are poison to.

Copied into the checkpoint's folder, from where transformers imports it.
"""

import os
import signal
import time
from typing import Any

from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

_HUNGER = 64 << 20
"""Bytes that a pass takes where the tests want it to be hungry; as many as are given back to the system."""
_TIMES_SLOWER = 20
"""Where the tests want it to be slow."""

_STARTED = time.monotonic_ns()
"""Processes of two machines may have one number."""


class PacedModel(LlamaModel):
    """Waits before each forward pass, so that what is killed is at work, and leaves a byte for each."""

    def forward(self, input_ids: Any = None, **named: Any) -> Any:
        pace = float(os.environ.get("FAULTS_PACE", "0"))
        if trace := os.environ.get("FAULTS_TRACE"):
            with open(os.path.join(trace, f"{os.getpid()}-{_STARTED}"), "ab", buffering=0) as file:
                file.write(b".")
            if os.path.exists(os.path.join(trace, "hungry")):
                bytearray(b"x") * _HUNGER  # written, so that each page of it is wanted
            if os.path.exists(os.path.join(trace, "slow")):
                pace *= _TIMES_SLOWER
        time.sleep(pace)
        if input_ids is not None and bool((input_ids == self.config.kills).any()):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(input_ids=input_ids, **named)


class PacedForCausalLM(LlamaForCausalLM):
    """With its head."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.model = PacedModel(config)
        self.post_init()
