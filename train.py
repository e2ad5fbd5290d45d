"""Train a model: `python train.py --help`."""

from medgen.cli.train import main

if __name__ == "__main__":
    main()
