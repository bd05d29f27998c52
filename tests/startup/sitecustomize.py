"""Python reads this as it starts, in each process that the tests start.

Looking through torch's modules for garbage takes a fifth of the start of an actor, of which there are
hundreds.
"""

import gc

gc.set_threshold(50_000, 50, 50)
