"""20 steps, a checkpoint, and 20 more from it are 40 steps, bit for bit, whatever the state."""

import optimizer_cases as cases
import pytest
import torch
from optimizer_cases import distributed, mlp_with_batch_norm, on_ranks

import decentral

SIZE, STEPS, SAVED_AT = 3, 40, 20


class Run:
    """Training on one rank, with momentum and a schedule."""

    def __init__(self, comm, name, compressed, largest=None, **options):
        """With `largest` the script itself cuts parameters to that, after each step."""
        self.model, self.largest = mlp_with_batch_norm(), largest
        inner = torch.optim.SGD(self.model.parameters(), 0.05, momentum=0.9)
        how = cases.algorithm(name, compressed)
        self.opt = distributed(self.model, comm, how, inner, **options)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.opt, 0.05, total_steps=STEPS)
        self.parts = {"model": self.model, "opt": self.opt, "schedule": self.schedule}

    def state(self):
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load(self, state):
        for name, part in self.parts.items():
            part.load_state_dict(state[name])

    def train(self, first, last):
        for step in range(first, last):
            cases.train(self.opt, self.model, 1, step)
            self.schedule.step()
            if self.largest is not None:
                with torch.no_grad():
                    for p in self.model.parameters():
                        p.clamp_(-self.largest, self.largest)


def leaves(value, path=""):
    """Yield (path, value) of everything in nested dictionaries and lists."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{path}/{key}")
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from leaves(item, f"{path}/{i}")
    else:
        yield path, value


def assert_equal(actual, expected):
    actual, expected = dict(leaves(actual)), dict(leaves(expected))
    assert actual.keys() == expected.keys()
    for path, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(actual[path], value), path
        else:
            assert actual[path] == value, path


OPTIONS = {
    "each step": {},
    "local steps": {"local_steps": 3},
    "parameters cut by the script": {"largest": 0.4},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize(("name", "compressed"), cases.accepted_pairs())
def test_resumed_equals_unbroken(name, compressed, options, tmp_path):
    def unbroken(comm):
        run = Run(comm, name, compressed, **options)
        run.train(0, STEPS)
        return run.state()

    def until_saved(comm):
        run = Run(comm, name, compressed, **options)
        run.train(0, SAVED_AT)
        decentral.Checkpoints(tmp_path, comm).save(SAVED_AT, run.state())
        run.train(SAVED_AT, SAVED_AT + 3)  # is lost

    def resumed(comm):
        found = decentral.Checkpoints(tmp_path, comm).load()
        run = Run(comm, name, compressed, **options)
        run.load(found.state)
        run.train(found.step, STEPS)
        return run.state()

    whole = on_ranks(SIZE, unbroken)
    on_ranks(SIZE, until_saved)
    for actual, expected in zip(on_ranks(SIZE, resumed), whole, strict=True):
        assert_equal(actual, expected)
        assert any(path.startswith("/opt/decentral") for path, _ in leaves(expected))


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize(
    ("name", "compressed"), [("allreduce", "ef-signsgd"), ("ecd-psgd", "qsgd")]
)
def test_adopting_on_another_number_of_ranks(name, compressed, size, tmp_path):
    def save(comm):
        run = Run(comm, name, compressed)
        run.train(0, SAVED_AT)
        decentral.Checkpoints(tmp_path, comm).save(SAVED_AT, run.state())

    def go_on(comm):
        found = decentral.Checkpoints(tmp_path, comm).load()
        run = Run(comm, name, compressed)
        state = found.of(comm.rank % SIZE)
        run.model.load_state_dict(state["model"])  # its own, which adopt() makes rank 0's
        run.opt.adopt(state["opt"])
        run.schedule.load_state_dict(state["schedule"])
        begun = cases.parameters(run.model), run.opt.stats()["steps"]
        momentum = next(iter(run.opt.optimizer.state.values()))["momentum_buffer"].clone()
        run.train(SAVED_AT, STEPS)
        return begun, momentum, cases.parameters(run.model), run.opt.stats()["steps"]

    on_ranks(SIZE, save)
    results = on_ranks(size, go_on)
    for (parameters, steps), momentum, after, end in results:
        cases.equal(parameters, results[0][0][0])
        assert (steps, end) == (SAVED_AT, STEPS)
        assert momentum.any() and all(p.isfinite().all() for p in after)
        if name == "allreduce":
            cases.equal(after, results[0][2])
