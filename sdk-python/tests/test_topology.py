"""The example of a whole system: what its README says is so."""

import pathlib
import subprocess
import sys

EXAMPLE = pathlib.Path(__file__).parents[2] / "examples" / "topology" / "run.py"
# The example ends by itself long before.
PATIENCE = 240


def test_each_part_may_be_killed():
    """Servers, balancer, services and front are killed in turn: the system goes on, and no request fails."""
    ran = subprocess.run(
        [sys.executable, EXAMPLE, "--quick"], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    for part in ("server_1", "server_2", "balancer", "service_1a", "service_2b", "front"):
        assert any(line.startswith(part) and "killed" in line for line in ran.stdout.splitlines()), ran.stdout
