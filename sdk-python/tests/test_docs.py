"""The documentation says what is so: its examples run, and its tables are complete."""

import ast
import doctest
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ringpost
from ringpost import testing
from ringpost._errors import BY_CODE
from ringpost._options import ClientOptions

README = Path(__file__).parents[1] / "README.md"
TEXT = README.read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def title(example):
    return next(line.strip() for line in example.splitlines() if "def " in line)


@pytest.mark.parametrize("example", EXAMPLES, ids=title)
def test_examples_of_the_readme(server, example):
    """Every example runs as it stands, against a server at the port that it names."""
    assert len(EXAMPLES) >= 6
    program = example.replace("8888", str(server.port))
    ended = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""


def test_the_first_example_prints_what_it_says(server):
    """What the readme says that its first example prints, it prints."""
    program = EXAMPLES[0].replace("8888", str(server.port))
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60).stdout
    assert printed == "{'value': 3}\n"
    assert f"It prints `{printed.strip()}`" in TEXT


def test_doctests():
    """The examples in docstrings run."""
    results = doctest.testmod(testing)
    assert results.attempted >= 4
    assert results.failed == 0


def test_tables_are_complete():
    """Every option of a client, and every exception with its codes, stands in the readme."""
    options = inspect.signature(ringpost.Client).parameters
    for option in options:
        assert f"`{option}`" in TEXT, option
        if option not in ("host", "port"):
            assert option in ClientOptions.__annotations__
    assert ClientOptions.__annotations__.keys() == options.keys() - {"host", "port"}
    for code, kind in BY_CODE.items():
        row = next(line for line in TEXT.splitlines() if line.startswith(f"| `{kind.__name__}"))
        assert f"`{code}`" in row


def test_everything_public_is_documented():
    """Every public class, function, method and property has a docstring."""
    missing = []
    for name in ringpost.__all__:
        value = getattr(ringpost, name)
        if not inspect.isclass(value):
            continue
        if not value.__doc__:
            missing.append(name)
        for key, member in vars(value).items():
            target = member.fget if isinstance(member, property) else member
            if not key.startswith("_") and callable(target) and not target.__doc__:
                missing.append(f"{name}.{key}")
    assert missing == []


def test_examples_are_python():
    """Examples that are not run for lack of context are Python all the same."""
    for example in re.findall(r"^```python notest\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL):
        ast.parse(f"async def context():\n{'    '.join(['', *example.splitlines(keepends=True)])}")
