"""SSIM of a 182x218x182 volume: medgen beside MONAI, scikit-image and, with --all, torchmetrics.

Each contender runs alone in a fresh process, so that its peak memory is its own; processor time, one thread, best of the repeats.
Usage: python benchmarks/ssim.py [--all] [--repeats 2]
"""

import argparse
import json
import resource
import subprocess
import sys
import time

SHAPE = (1, 1, 182, 218, 182)
TARGETS = "targets: at least 15 x faster than MONAI, not slower than scikit-image, at most 0.4 of MONAI's memory, equal to 1e-4"


def _medgen():
    from medgen.metrics.pixel import ssim

    return lambda x, y: float(ssim(x, y, data_range=1.0))


def _monai():
    from monai.metrics.regression import SSIMMetric

    metric = SSIMMetric(spatial_dims=3, data_range=1.0, kernel_type="gaussian", win_size=11, kernel_sigma=1.5)
    return lambda x, y: float(metric(x, y).mean())


def _skimage():
    from skimage.metrics import structural_similarity

    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    return lambda x, y: float(structural_similarity(x[0, 0].numpy(), y[0, 0].numpy(), **settings))


def _torchmetrics():
    from torchmetrics.functional.image import structural_similarity_index_measure as measure

    return lambda x, y: float(measure(x, y, data_range=1.0, sigma=1.5))


CONTENDERS = {"medgen": _medgen, "monai": _monai, "skimage": _skimage, "torchmetrics": _torchmetrics}


def alone(name: str, repeats: int) -> dict:
    """Seconds, mebibytes over the start, and the value, of one contender in this process."""
    import torch

    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    draw = torch.Generator().manual_seed(0)
    x = torch.rand(SHAPE, generator=draw)
    y = (0.8 * x).add_(torch.rand(SHAPE, generator=draw), alpha=0.2)
    score = CONTENDERS[name]()
    score(x[..., :24, :24, :24].contiguous(), y[..., :24, :24, :24].contiguous())
    before, seconds = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
    for _ in range(repeats):
        start = time.process_time()
        value = score(x, y)
        seconds.append(time.process_time() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": min(seconds), "mib": (peak - before) / 1024, "value": value}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true", help="also torchmetrics (some 20 s and 3 GB)")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--only", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(alone(options.only, options.repeats)))
        return
    names = [n for n in CONTENDERS if options.all or n != "torchmetrics"]
    command = [sys.executable, __file__, "--repeats", str(options.repeats), "--only"]
    rows = {n: json.loads(subprocess.run([*command, n], capture_output=True, text=True, check=True).stdout.splitlines()[-1]) for n in names}
    ours = rows["medgen"]
    for name, row in rows.items():
        print(
            f"ssim 182x218x182  {name:12s} {row['seconds']:7.2f} s  {row['mib']:6.0f} MiB  value {row['value']:.6f}"
            f"  time / medgen {row['seconds'] / ours['seconds']:6.2f}  medgen memory / its {ours['mib'] / max(row['mib'], 1):.2f}"
        )
    print(TARGETS)


if __name__ == "__main__":
    main()
