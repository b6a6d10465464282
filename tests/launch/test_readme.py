"""README's Python runs as it stands, and its relative links lead somewhere."""

import re

from launching import ROOT, mpirun

README = (ROOT / "README.md").read_text()


def test_python_blocks_run(tmp_path):
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    assert blocks
    for i, block in enumerate(blocks):
        script = tmp_path / f"block{i}.py"
        script.write_text(block)
        job = mpirun(2, script)
        assert job.status == 0, job.output
        (loss,) = re.findall(r"loss of the averaged model ([0-9.]+),", job.output)
        assert float(loss) < 0.5  # a guess has 1.1


def test_the_snippet_about_predicting_runs():
    text = (ROOT / "docs" / "predict.md").read_text()
    (block,) = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    scope = {}
    exec(block, scope)
    assert scope["step"].total > scope["step"].compute == 0.2


def test_links_and_commands_exist():
    links = re.findall(r"\]\((?!http)([^)#]+)", README)
    assert links
    for link in links:
        assert (ROOT / link).exists(), link
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w[\w-]*)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_every_promise_of_reliability_names_tests_that_there_are():
    text = (ROOT / "docs" / "reliability.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 10
    for row in rows:
        named = re.findall(r"(tests/[\w/]+\.py)(?:::(\w+))?", row)
        assert named, row
        for path, function in named:
            assert f"def {function}" in (ROOT / path).read_text(), (path, function)
