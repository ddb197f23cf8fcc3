"""Programs and functions that are not here are found before anything is called."""

import pytest

from workflow_composer.config.strategy import StrategyConfig
from workflow_composer.errors import WorkflowFileError
from workflow_composer.workflows.definition.loading import load_workflow
from workflow_composer.workflows.programs.presence import refuse_missing

MODULE = """
from functools import partial
from collections import OrderedDict as kept
def there(x): return x
class Made: pass
made = partial(there, 1)
if True:
    def under_a_condition(x): return x
"""


@pytest.fixture
def load(tmp_path):
    config = StrategyConfig(
        profile_name="mine", models={"small": {"backend": "embedded", "path": "small"}}, task_routing={"*": "small"}
    )
    (tmp_path / "mine.py").write_text(MODULE)
    (tmp_path / "open.py").write_text("from mine import *\n")
    (tmp_path / "lazy.py").write_text("def __getattr__(name): return print\n")
    (tmp_path / "broken.py").write_text("def f(:\n")
    (tmp_path / "run.sh").write_text("#!/bin/sh\n")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("from mine import there\n")

    def loaded(step):
        path = tmp_path / "flow.yaml"
        path.write_text(f'workflow: f\ninputs: {{t: text}}\nsteps:\n  a: {step}\noutput: {{a: "{{{{ a }}}}"}}\n')
        return load_workflow(path, config=config)

    return loaded


@pytest.mark.parametrize(
    "step",
    [
        "{python: 'mine:there'}",
        "{python: 'mine:Made'}",
        "{python: 'mine:made'}",
        "{python: 'mine:kept'}",
        "{python: 'mine:under_a_condition'}",
        "{python: 'open:there'}",
        "{python: 'lazy:whatever'}",
        "{python: 'broken:f'}",
        "{python: 'package:there'}",
        "{python: 'math:sqrt'}",
        "{python: 'sys:getsizeof'}",
        "{python: 'os.path:join'}",
        "{python: 'json:dumps'}",
        "{command: [python, -c, pass]}",
        "{command: [sh, -c, pass]}",
        "{command: [run.sh]}",
        "{command: [./made.sh], files: {made.sh: '{{ t }}'}}",
        "{command: [made.sh], files: {made.sh: '{{ t }}'}}",
    ],
)
def test_what_is_here_passes(load, step):
    flow = load(step)
    assert refuse_missing(flow) is flow


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ("{python: 'nowhere:f'}", r"flow\.yaml:4: steps\.a: there is no module 'nowhere' here; write nowhere\.py"),
        ("{python: 'package.nowhere:f'}", r"steps\.a: there is no module 'package\.nowhere' here"),
        ("{python: 'mine:ther'}", r"steps\.a: mine\.py has no function 'ther'; did you mean 'there'"),
        ("{command: [no-such-program, x]}", r"steps\.a: there is no program 'no-such-program' here; install it"),
        ("{command: [./gone.sh]}", r"steps\.a: there is no program"),
        ("{prompt: x, accept: {python: 'mine:chek'}}", r"steps\.a\.accept: mine\.py has no function 'chek'"),
        ("{prompt: x, accept: {command: [gone.sh]}}", r"steps\.a\.accept: there is no program 'gone\.sh'"),
        ("{for_each: 'v in [1]', steps: {b: {python: 'mine:no'}}}", r"steps\.a\.b: mine\.py has no function 'no'"),
    ],
)
def test_what_is_not_here_is_refused_by_line_and_name(load, step, said):
    with pytest.raises(WorkflowFileError, match=said):
        refuse_missing(load(step))
