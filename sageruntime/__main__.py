"""``python -m sageruntime``: the command line."""

from sageruntime.cli import main

main()
