"""How much of an all-reduce the computation hides at best, where both take as long: on paper.

    python benchmarks/overlap_on_paper.py

Layers whose computing and communicating are in proportion to their size, backward twice forward
(the first layer's, which needs no gradient of its input, once). "wait" sends a layer's gradient
when it is there and lets the next forward pass begin with all means; "overtake" lets every layer
wait for its own alone, and the layer that is needed first take the wire from all others at once,
which is the best that can be (Peng et al., SOSP 2019, come near it).
"""

LAYERS = {
    "network/mlp.py": [785 * 2100, 2101 * 2100, 2101 * 2100, 2101 * 10],
    "8 equal layers": [1] * 8,
    "32 equal layers": [1] * 32,
}
_TICKS, _STEPS = 50_000, 6  # a step's computing, or communicating, in ticks


def hidden(sizes, overtake):
    """Return the share of the communication that adds nothing to a step."""
    backward = [sizes[0], *(2 * s for s in sizes[1:])]
    unit = _TICKS / (sum(sizes) + sum(backward))
    parts = [(False, i, s * unit) for i, s in enumerate(sizes)]
    parts += [(True, i, backward[i] * unit) for i in reversed(range(len(sizes)))]
    wire = [s * _TICKS / sum(sizes) for s in sizes]
    left, ends, ticks = [0.0] * len(sizes), [], 0  # what of each layer is still to be sent
    for _ in range(_STEPS):
        for is_backward, i, length in parts:
            done = 0.0
            while done < length:
                waits = left[i] if overtake else sum(left)
                done += is_backward or waits <= 0
                ticks += 1
                waiting = [j for j, rest in enumerate(left) if rest > 0]
                if waiting:
                    j = waiting[0] if overtake else waiting[-1]
                    left[j] = max(0.0, left[j] - 1)
            if is_backward:
                left[i] = wire[i]
        ends.append(ticks)
    return 2 - (ends[-1] - ends[-2]) / _TICKS


if __name__ == "__main__":
    print("| | wait | overtake |\n|---|---|---|")
    for name, sizes in LAYERS.items():
        print(f"| {name} | {hidden(sizes, False):.2f} | {hidden(sizes, True):.2f} |")
