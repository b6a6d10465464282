"""20 steps, a checkpoint, and 20 more from it are 40 steps, bit for bit, whatever the state."""

import optimizer_cases as cases
import pytest
from optimizer_cases import on_ranks
from resuming_cases import STEPS, Run, assert_equal, leaves

import decentral

SIZE, SAVED_AT = 3, 20

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
