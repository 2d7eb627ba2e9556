"""`python -m dinounet` is `dinounet`."""

from dinounet.cli.main import run

run()
