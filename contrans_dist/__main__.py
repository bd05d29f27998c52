"""`python -m contrans_dist` is `contrans`."""

from contrans_dist.cli import main

main()
