"""Memory of a rank, beyond parameters, gradients and activations: decentral's beside DDP's.

    python benchmarks/memory.py [--ranks 4] [--million 40]

Every row is two runs of its own, mpirun's or DDP's over gloo, with a model of so many and of twice
so many parameters: the peak of a rank's resident memory after a few steps of plain SGD, less that
of the same steps alone. What grows with the model is in bytes per parameter (a gradient, or a copy
of the parameters, is 4), what does not, libraries above all, in MB. The largest rank's counts. The
allocator is told to give large arrays back, so that no row has what another freed.
"""

import argparse
import os
import resource
import subprocess
import sys

import torch

ROWS = {
    "alone": (),
    "DDP": ("ddp",),
    "DDP, gradient_as_bucket_view": ("ddp-views",),
    "allreduce none": ("allreduce", "none"),
    "allreduce nuqsgd, all-gather": ("allreduce", "nuqsgd", "all-gather"),
    "allreduce nuqsgd, reduce-scatter": ("allreduce", "nuqsgd", "reduce-scatter"),
    "allreduce ef-signsgd": ("allreduce", "ef-signsgd", "reduce-scatter"),
    "allreduce intsgd": ("allreduce", "intsgd"),
    "d-psgd, ring": ("d-psgd", "none"),
    "ecd-psgd nuqsgd, ring": ("ecd-psgd", "nuqsgd"),
}


def model_of(million):
    width = 2048
    layers = max(1, round(million * 1e6 / width**2))
    return torch.nn.Sequential(*[torch.nn.Linear(width, width, bias=False) for _ in range(layers)])


def wrapped(model, optimizer, how):
    """Return (model, optimizer) as a rank of this row trains them."""
    if not how:
        return model, optimizer
    if how[0].startswith("ddp"):
        torch.distributed.init_process_group("gloo")
        views = how[0] == "ddp-views"
        ddp = torch.nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=views)
        return ddp, optimizer
    import decentral

    options = {"exchange": how[2]} if len(how) > 2 else {}
    compressor = decentral.compressors.from_name(how[1])
    algorithm = decentral.algorithms.from_name(how[0], compressor=compressor, **options)
    return model, decentral.DistributedOptimizer(optimizer, model, algorithm)


def train(million, how):
    torch.set_num_threads(1)
    model = model_of(million)
    model, optimizer = wrapped(model, torch.optim.SGD(model.parameters(), 1e-3), how)
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.randn(4, 2048)).square().mean().backward()
        optimizer.step()
    print("peak", 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, flush=True)


def peak(row, ranks, million):
    """Return the largest peak of a row's ranks, bytes."""
    command = [sys.executable, __file__, "--million", str(million), "--row", row]
    how = ROWS[row]
    if not how:
        jobs = [(command, {})]
    elif how[0].startswith("ddp"):
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29400", "WORLD_SIZE": str(ranks)}
        jobs = [(command, common | {"RANK": str(r)}) for r in range(ranks)]
    else:
        jobs = [(["mpirun", "-n", str(ranks), *command], {})]
    usual = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000"}
    running = [
        subprocess.Popen(c, env=usual | e, stdout=subprocess.PIPE, text=True) for c, e in jobs
    ]
    said = [p.communicate(timeout=300)[0] for p in running]
    return max(int(line.split()[1]) for s in said for line in s.splitlines() if "peak" in line)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--million", type=float, default=40, help="parameters")
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        train(args.million, ROWS[args.row])
        return
    sizes = (args.million, 2 * args.million)
    counts = [sum(p.numel() for p in model_of(m).parameters()) for m in sizes]
    print(
        f"{args.ranks} ranks, {counts[0] / 1e6:.1f} and {counts[1] / 1e6:.1f} million parameters\n"
    )
    print("| | bytes per parameter | MB besides |\n|---|---|---|")
    alone = [peak("alone", args.ranks, m) for m in sizes]
    for row in list(ROWS)[1:]:
        more = [peak(row, args.ranks, m) - base for m, base in zip(sizes, alone, strict=True)]
        slope = (more[1] - more[0]) / (counts[1] - counts[0])
        print(f"| {row} | {slope:.1f} | {(more[0] - slope * counts[0]) / 1e6:.0f} |", flush=True)


if __name__ == "__main__":
    main()
