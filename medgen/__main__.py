"""`python -m medgen`."""

from medgen.cli.main import main

main()
