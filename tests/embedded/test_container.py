"""The choice between a process and a container; no engine is needed."""

from pathlib import Path

import pytest

from proxy.embedded import container
from proxy.embedded.process import Child, Launch, ServerFailed


def launch(directory: Path, image: str) -> Launch:
    return Launch(arguments=("true",), directory=directory, log=directory / "log", image=image)


def test_an_image_makes_a_container_and_a_program_a_process(tmp_path: Path) -> None:
    """The launch alone decides."""
    assert type(container.child_for("a", launch(tmp_path, ""))) is Child
    assert type(container.child_for("a", launch(tmp_path, "image"))) is container.Container


@pytest.mark.skipif(container.engine_answers(), reason="a container engine answers here")
def test_without_an_engine_a_container_is_an_error_that_names_the_image(tmp_path: Path) -> None:
    """What was to be started stands in the error, and nothing runs."""
    child = container.child_for("a", launch(tmp_path, "valkey/valkey:9"))
    with pytest.raises(ServerFailed, match="cannot start valkey/valkey:9"):
        child.start()
    assert not child.running
    assert child.log_tail() == ""
