"""averaged() and stats(): the model that is evaluated, and the figures that are reported."""

import math

import optimizer_cases as cases
import pytest
import torch
from optimizer_cases import close, distributed, equal, mlp, mlp_with_batch_norm, on_ranks

SIZES = (1, 2, 3, 4)
PAIRS = cases.accepted_pairs()


def parted(comm, name="d-psgd", steps=3, **options):
    """Return model and optimizer after a few steps, with other parameters and buffers per rank."""
    model = mlp_with_batch_norm()
    opt = distributed(model, comm, cases.algorithm(name), **options)
    cases.train(opt, model, steps)
    with torch.no_grad():
        for _ in range(comm.rank):  # BatchNorm counts its batches: rank r has r more
            model(cases.shard(comm.rank, comm.size)[0])
    return model, opt


def state(model):
    return [t.clone() for t in model.state_dict().values()]


@pytest.mark.parametrize("cap", (25.0, cases.TINY_MB))
@pytest.mark.parametrize("size", SIZES)
def test_inside_is_the_mean_and_outside_one_s_own(size, cap):
    def rank(comm):
        model, opt = parted(comm, bucket_cap_mb=cap)
        before = state(model)
        with opt.averaged():
            inside = state(model)
        return before, inside, state(model)

    results = on_ranks(size, rank)
    own = [before for before, _, _ in results]
    names = list(mlp_with_batch_norm().state_dict())
    assert size == 1 or all(not torch.equal(a, b) for a, b in zip(own[0], own[1], strict=True))
    for before, inside, after in results:
        equal(after, before)
        equal(inside, results[0][1])
        for k, name in enumerate(names):
            each = torch.stack([tensors[k] for tensors in own])
            if name.endswith("num_batches_tracked"):
                assert inside[k] == each[0] == 3 and inside[k].dtype == torch.int64
            elif name.endswith("running_var"):  # that of all ranks' data together
                means = torch.stack([tensors[names.index("1.running_mean")] for tensors in own])
                close(inside[k], each.mean(0) + means.var(0, unbiased=False))
            else:
                close(inside[k], each.mean(0))


def test_all_reduce_s_ranks_differ_in_buffers_alone():
    def rank(comm):
        model, opt = parted(comm, "allreduce")
        parameters, buffers = cases.parameters(model), [b.clone() for b in model.buffers()]
        with opt.averaged():
            return parameters, cases.parameters(model), buffers, model[1].running_mean.clone()

    results = on_ranks(3, rank)
    means = torch.stack([buffers[0] for _, _, buffers, _ in results])
    for own, inside, _, running_mean in results:
        close(inside, own)  # the mean of equal numbers, up to the rounding of a division by 3
        close(running_mean, means.mean(0))
    assert (means[0] - means[1]).abs().max() > 1e-3


def test_one_s_own_comes_back_after_an_exception():
    """Also if what ran inside wrote to the model."""

    def rank(comm):
        model, opt = parted(comm)
        before = state(model)
        with pytest.raises(KeyError), opt.averaged():
            with torch.no_grad():
                model[0].weight.fill_(7.0)
            raise KeyError
        return before, state(model)

    for before, after in on_ranks(3, rank):
        equal(after, before)


@pytest.mark.parametrize("name, compressed", PAIRS)
def test_looking_does_not_disturb_training(name, compressed):
    """The exchange under way and the algorithm's state are as they were."""

    def run(look):
        def rank(comm):
            model = mlp()
            opt = distributed(model, comm, cases.algorithm(name, compressed))
            for step in range(4):
                cases.train(opt, model, steps=1, first=step)
                if look:
                    with opt.averaged():
                        pass
            return cases.parameters(model)

        return on_ranks(3, rank)

    equal(run(True), run(False))


@pytest.mark.parametrize("cap", (25.0, cases.TINY_MB))
@pytest.mark.parametrize("size", SIZES)
def test_consensus_distance(size, cap):
    """sqrt(mean over ranks ||x_i - mean||^2), of parameters and not of buffers."""

    def rank(comm):
        model, opt = parted(comm, bucket_cap_mb=cap)
        at_first = opt.stats()["consensus_distance"]
        with opt.averaged():
            pass
        flat = torch.cat([p.double().flatten() for p in cases.parameters(model)])
        return flat, at_first, opt.stats()["consensus_distance"]

    results = on_ranks(size, rank)
    X = torch.stack([flat for flat, _, _ in results])
    expected = math.sqrt((X - X.mean(0)).square().sum(1).mean())
    assert size == 1 or expected > 0.01
    for _, at_first, distance in results:
        assert at_first == 0
        assert distance == pytest.approx(expected, rel=1e-4, abs=1e-9)


BLOCK, BITS = 8, 4  # of cases.compressor(), and the compressors' default
NUMELS = {25.0: [53], cases.TINY_MB: [3, 15, 5, 30]}  # of mlp()'s buckets


BODIES = {
    "none": lambda n: 4 * n,
    "terngrad": lambda n: 4 * math.ceil(n / BLOCK) + math.ceil(n * 2 / 8),
    "natural": lambda n: math.ceil(n * 9 / 8),
    "ef-signsgd": lambda n: 8 * math.ceil(n / BLOCK) + math.ceil(n / 8),
    "intsgd": lambda n: 4 + n,
    "heuristic-intsgd": lambda n: 4 + n,
}


def payload_nbytes(numel, compressed):
    """Header, then float32, or a scale per block and the codes: by the format, not by the code."""
    if compressed in BODIES:
        return 32 + BODIES[compressed](numel)
    return 32 + 4 * math.ceil(numel / BLOCK) + math.ceil(numel * BITS / 8)


def sent_by(name, compressed, numel, size, step):
    """Return the bytes that one rank sends for one bucket in one step."""
    if cases.is_added(name, compressed):
        exact = compressed == "none" or (compressed == "intsgd" and step == 1)
        maximum = 2 * (size - 1) * 4 // size if compressed == "heuristic-intsgd" else 0
        # int8, and one more that says whether this rank's gradient was finite
        return 2 * (size - 1) * (4 * numel if exact else numel + 1) // size + maximum
    if name in ("allreduce", "cocod-sgd"):
        return (size - 1) * payload_nbytes(numel, compressed)
    neighbors = min(2, size - 1)  # on the ring
    return neighbors * payload_nbytes(travels(name, numel), compressed)


def travels(name, numel):
    """Return how many coordinates a message holds: push-sum's has its weight, too."""
    return numel + (name == "sgp")


@pytest.mark.parametrize("cap", NUMELS)
@pytest.mark.parametrize("size", (2, 3, 5))
@pytest.mark.parametrize("name, compressed", PAIRS)
def test_bytes_sent_is_exactly_what_the_steps_sent(name, compressed, size, cap):
    steps = 3

    def rank(comm):
        model = mlp()
        how = cases.algorithm(name, compressed)
        opt = distributed(model, comm, how, bucket_cap_mb=cap)
        fresh = opt.stats()
        cases.train(opt, model, steps)
        return fresh, opt.stats()

    expected = sum(
        sent_by(name, compressed, numel, size, step)
        for numel in NUMELS[cap]
        for step in range(1, steps + 1)
    )
    messages = sum(payload_nbytes(travels(name, numel), compressed) for numel in NUMELS[cap])
    if cases.is_added(name, compressed):
        messages = 53 * (4 if compressed == "none" else 1)
    for fresh, after in on_ranks(size, rank):
        assert fresh["bytes_sent"] == 0 == fresh["steps"]
        assert after["bytes_sent"] == expected
        assert after["steps"] == steps
        assert after["parameters"] == 53
        assert after["bits_per_parameter"] == pytest.approx(8 * messages / 53)
        assert after["bytes_sent_startup"] == fresh["bytes_sent_startup"]
        assert after["bytes_sent_averaging"] == 0


@pytest.mark.parametrize("name, compressed", PAIRS)
def test_start_up_and_averaging_are_reported_apart(name, compressed):
    size = 3

    def rank(comm):
        model = mlp_with_batch_norm()
        opt = distributed(model, comm, cases.algorithm(name, compressed))
        cases.train(opt, model, steps=2)
        seen = [opt.stats()]
        with opt.averaged():
            seen.append(opt.stats())
            with opt.averaged():  # what is sent inside is not the outer one's too
                pass
        seen.append(opt.stats())
        return seen, comm.bytes_sent

    model = mlp_with_batch_norm()
    broadcast = sum(t.nbytes for t in model.state_dict().values())
    parameters = sum(p.numel() for p in model.parameters())
    # then the distance, BatchNorm's statistics, and the spread of its means: float32
    floating = [parameters, 1, 10, 5]
    averaging = sum(2 * (size - 1) * 4 * numel // size for numel in floating)
    for r, (seen, total) in enumerate(on_ranks(size, rank)):
        assert len({s["bytes_sent"] for s in seen}) == 1 and seen[0]["bytes_sent"] > 0
        assert [s["bytes_sent_startup"] for s in seen] == [broadcast if r == 0 else 0] * 3
        counters = 8 if r == 0 else 0  # num_batches_tracked, from rank 0
        expected = averaging + counters
        assert [s["bytes_sent_averaging"] for s in seen] == [0, expected, 2 * expected]
        assert total == sum(v for k, v in seen[-1].items() if k.startswith("bytes_sent"))


SECONDS = ("communication_s", "waited_s", "hidden")  # of stats(); no two runs have the same


def counts(stats):
    return {key: value for key, value in stats.items() if key not in SECONDS}


def test_two_optimizers_on_one_communicator_count_apart():
    """As a generator and a discriminator have them: each reports what itself has sent."""
    one, other = ("allreduce", "nuqsgd"), ("ecd-psgd", "qsgd")

    def run(*pairs):
        def rank(comm):
            both = []
            for pair in pairs:
                model = mlp_with_batch_norm()
                both.append((model, distributed(model, comm, cases.algorithm(*pair))))
            for step in range(3):
                for model, opt in both:
                    cases.train(opt, model, steps=1, first=step)
            for _, opt in both:
                with opt.averaged():
                    pass
            return [counts(opt.stats()) for _, opt in both], comm.bytes_sent

        return on_ranks(3, rank)

    for (together, total), ([first], _), ([second], _) in zip(
        run(one, other), run(one), run(other), strict=True
    ):
        assert together == [first, second]
        assert total == sum(v for s in together for k, v in s.items() if k.startswith("bytes_"))


def test_stats_has_no_other_figures():
    def rank(comm):
        return set(distributed(mlp(), comm).stats())

    assert on_ranks(1, rank)[0] == {
        "steps",
        "skipped",
        "parameters",
        "bytes_sent",
        "bytes_sent_startup",
        "bytes_sent_averaging",
        "bytes_sent_recovery",
        "bits_per_parameter",
        "consensus_distance",
        *SECONDS,
        "exchange",  # of AllReduce
    }
