"""Train one model: `deepspeed scripts/pretrain.py --config RUN.yaml [--run-dir DIR] [--a.b=c ...]`."""

import sys

from train.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
