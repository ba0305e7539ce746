"""CI goes on with what did not pass, and knows what it was at."""

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def test_what_passed_is_left_out_of_the_next_try_and_the_rest_is_noted(tmp_path: Path) -> None:
    log, done = tmp_path / "log", tmp_path / "done"
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTEST_", "NAS_TESTS_"))
    }

    def noted() -> list[str]:
        log.unlink(missing_ok=True)
        words = ["tests/test_seeds.py", "-n", "2", "-q", "-p", "no:cacheprovider"]
        ran = subprocess.run(
            [sys.executable, "-m", "pytest", *words],
            cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=120,
            env=environment | {"NAS_TESTS_LOG": str(log), "NAS_TESTS_DONE": str(done)},
        )  # fmt: skip
        assert ran.returncode == 0, ran.stdout
        return log.read_text().splitlines()

    first = noted()
    begun = [line.removeprefix("begun ") for line in first if line.startswith("begun ")]
    assert len(begun) >= 2 and {f"ended {name}" for name in begun} <= set(first)
    done.write_text("\n".join(begun[1:]))
    assert noted() == [f"begun {begun[0]}", f"ended {begun[0]}"]
