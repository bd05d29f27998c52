"""What is taken in several places where nothing else is said."""

from datetime import date

BATCH_TOKENS = 4096
"""Tokens of one forward pass, padding and interventions included."""
CHAT_DATE = date(2024, 7, 26)
"""What day it is for a chat template that asks: the day Llama's own fall back to."""
