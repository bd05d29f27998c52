"""The day of chat templates."""

from datetime import date

CHAT_DATE = date(2024, 7, 26)
"""What day it is for a chat template that asks, unless another is set: the day Llama's own fall back to."""
