"""Speed of the CUDA kernels as shares of a device-to-device copy, measured in the same run.

    python benchmarks/gpu.py [--numel 268435456] [--json FILE]

Speed is the bytes that a kernel has to move (float32 or codes, each once) over its time, taken with
CUDA events around a row of calls. Below ours stands the same quantizer in torch's own operations,
with a byte per code, and in Triton where that is installed.
"""

import argparse
import importlib.util
import json
import statistics

import torch
from gpu_found import require_gpu

from decentral_kernels import Quantizer, fold_key
from kernels import torch_levels

KEY, WEIGHT = fold_key(1), 1e-3
_CALLS, _ROUNDS = 10, 7
_VECTORS = 24  # of float32 that fit into what is alive at once, much of it torch's
FAMILIES = {
    "NUQSGD": ("l2", "exponential"),
    "QSGD": ("l2", "uniform"),
    "QSGDinf": ("max", "uniform"),
}


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--numel", type=int, default=1 << 28, help="coordinates, at most")
    parser.add_argument("--json")
    args = parser.parse_args(argv)
    if args.numel < 1 << 14:
        parser.error(f"--numel must be at least {1 << 14}, got {args.numel}")
    return args


def fitting(numel, free_nbytes):
    """Return numel, halved until all vectors fit into the free memory; a multiple of 2^14."""
    while numel * 4 * _VECTORS > free_nbytes and numel > 1 << 14:
        numel //= 2
    return numel >> 14 << 14


def moved(q, numel, messages=1, result=0, source_nbytes=4):
    """Return the bytes that must be moved: vectors of float32 read and written, codes, scales."""
    codes = q.codes_nbytes(numel) + 4 * q.num_blocks(numel)
    return numel * (source_nbytes + result) + messages * codes


def seconds(function):
    """Return the median time of a call, of rows of calls without a pause between them."""
    function()  # compiles
    times = []
    for _ in range(_ROUNDS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(_CALLS):
            function()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3 / _CALLS)
    return statistics.median(times)


def row(name, nbytes, time, copy_speed):
    speed = nbytes / time
    return {"what": name, "ms": 1e3 * time, "GB/s": speed / 1e9, "share": speed / copy_speed}


def table(rows):
    lines = ["| kernel | ms | GB/s | share of the copy |", "|---|---|---|---|"]
    cells = "| {what} | {ms:.3f} | {GB/s:.0f} | {share:.2f} |"
    return "\n".join([*lines, *(cells.format_map(r) for r in rows)])


def buffers(q, numel):
    scales = torch.empty(q.num_blocks(numel), device="cuda")
    return scales, torch.empty(q.codes_nbytes(numel), dtype=torch.uint8, device="cuda")


def ours(name, q, x, out):
    """Yield (name, bytes, function) for what a quantizer does."""
    from decentral_kernels import cuda

    numel, stream = len(x), torch.cuda.current_stream().cuda_stream
    scales, codes = buffers(q, numel)
    width = x.element_size()

    def encode():
        cuda.start_encode(x, KEY, q, scales, codes, stream)

    def adds(count):
        messages = [(scales, codes, WEIGHT)] * count
        return lambda: cuda.accumulate_all(messages, q, out, stream)

    yield f"{name}: encode", moved(q, numel, source_nbytes=width), encode
    yield f"{name}: decode", moved(q, numel), lambda: cuda.decode(scales, codes, q, out, stream)
    yield f"{name}: add", moved(q, numel, result=4), adds(1)
    yield f"{name}: add 3 messages", moved(q, numel, 3, result=4), adds(3)


def quantizers():
    for bits in (4, 2, 8, 3, 5, 6, 7):
        # A kernel takes seconds to compile: of the unusual widths one family is enough.
        for family, kind in list(FAMILIES.items())[: 3 if bits in (4, 2, 8) else 1]:
            yield f"{family}, {bits} bits", Quantizer(bits, 8192, *kind)
    for block_size in (64, 512, 1024, 100, 16384):
        q = Quantizer(4, block_size, *FAMILIES["NUQSGD"])
        yield f"NUQSGD, 4 bits, blocks of {block_size}", q


def others(x, out):
    """Yield the same of NUQSGD with 4 bits, as others write it."""
    q = Quantizer(4, 8192, *FAMILIES["NUQSGD"])
    whole = len(x) // q.block_size * q.block_size
    compress, add = torch_levels(x[:whole], out[:whole], q.block_size, exponential=True)
    yield "torch, a byte per code: encode", moved(q, whole), compress
    yield "torch, a byte per code: add", moved(q, whole, result=4), add
    if importlib.util.find_spec("triton") is None:
        print("Triton is not installed: no rows for it")
        return
    import gpu_triton

    scales, codes = buffers(q, whole)
    same = gpu_triton.agrees(x[:whole], KEY, q)
    print(f"Triton's codes are the same as ours for {same:.4%} of the bytes")
    yield (
        "Triton: encode",
        moved(q, whole),
        lambda: gpu_triton.encode(x[:whole], KEY, scales, codes),
    )


def main():
    args = parse()
    require_gpu()
    numel = fitting(args.numel, torch.cuda.mem_get_info()[0])
    x = torch.randn(numel, device="cuda")
    out = torch.zeros_like(x)
    time = seconds(lambda: out.copy_(x))
    copy_speed = 8 * numel / time
    rows = [row("copy, device to device", 8 * numel, time, copy_speed)]
    print(f"{torch.cuda.get_device_name()}, {numel} coordinates\n", flush=True)
    todo = [pair for name, q in quantizers() for pair in ours(name, q, x, out)]
    q = Quantizer(4, 8192, *FAMILIES["NUQSGD"])
    for kind in (torch.bfloat16, torch.float16):
        todo += list(ours(f"NUQSGD, 4 bits, {kind}", q, x.to(kind), out))[:1]
    for name, nbytes, function in [*todo, *others(x, out)]:
        rows.append(row(name, nbytes, seconds(function), copy_speed))
    print(table(rows), flush=True)
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"device": torch.cuda.get_device_name(), "numel": numel, "rows": rows}, file)


if __name__ == "__main__":
    main()
