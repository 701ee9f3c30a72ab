"""Whatever happened, and wherever the projector died, the rows are those of a rebuild."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import structlog.testing

from projections.base import CannotApplyError, ProjectorRunningError, ReadModels
from projections.models import MODELS
from projections.projector import rebuild
from tests.projections.asking import catch_up, dump
from tests.projections.story import Story


@pytest.mark.parametrize("seed", range(4))
def test_any_lives_followed_in_any_steps_equal_a_rebuild(tmp_path: Path, seed: int) -> None:
    story = Story(tmp_path / "events.db", seed)
    models = ReadModels(tmp_path / "models", MODELS)
    for _ in story.wander(300):
        if story.random.random() < 0.1:
            catch_up(models, story.log, story.random.randint(1, 40))
        if story.random.random() < 0.02:
            models.close()
            models = ReadModels(tmp_path / "models", MODELS)
    catch_up(models, story.log)
    followed = dump(models)
    assert len(followed["history"]) == len(story.log.read(0, 100_000))
    models.rebuild(list(models.models), story.log, 37)
    assert dump(models) == followed
    models.close()
    fresh = ReadModels(tmp_path / "fresh", MODELS)
    catch_up(fresh, story.log)
    assert dump(fresh) == followed
    fresh.close()
    story.close()


_FOLLOW = """
import sys
from pathlib import Path
from engine.event_log import open_log
from projections.base import ReadModels
from projections.models import MODELS
log = open_log("sqlite://" + sys.argv[1])
models = ReadModels(Path(sys.argv[2]), MODELS)
print("open", flush=True)
while True:
    for name in models.models:
        models.advance([name], log.read(models.position(name), 3))
"""


def test_killed_at_any_moment_nothing_is_twice_or_missing(tmp_path: Path, story: Story) -> None:
    for _ in story.wander(300):
        pass
    directory = tmp_path / "models"
    for delay in (0.0, 0.02, 0.08):
        process = subprocess.Popen(
            [sys.executable, "-c", _FOLLOW, str(tmp_path / "events.db"), str(directory)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        try:
            assert process.stdout is not None
            process.stdout.readline()
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(delay)
        finally:
            process.send_signal(signal.SIGKILL)
            process.communicate()
    models = ReadModels(directory, MODELS)
    catch_up(models, story.log)
    followed = dump(models)
    models.rebuild(list(models.models), story.log, 100)
    assert dump(models) == followed
    models.close()


def test_one_model_is_rebuilt_alone(story: Story, models: ReadModels) -> None:
    story.settle(story.create())
    catch_up(models, story.log)
    before = dump(models)
    with models.datastore.transaction(commit=True) as c:
        c.execute("UPDATE instances SET name = 'spoilt'")
    assert dump(models) != before
    models.rebuild(["instances"], story.log, 100)
    assert dump(models) == before


def test_a_rebuild_that_fails_leaves_the_old_rows(story: Story, models: ReadModels) -> None:
    story.settle(story.create())
    catch_up(models, story.log)
    before = dump(models)
    story.spoil()
    with pytest.raises(CannotApplyError, match=r"instances cannot take event instance\.PortDeleted"):
        models.rebuild(list(models.models)[2:], story.log, 100)
    assert dump(models) == before


def test_a_model_of_an_older_revision_is_made_anew(tmp_path: Path, story: Story) -> None:
    story.settle(story.create())
    older = [msgspec.structs.replace(model, revision=0) for model in MODELS]
    models = ReadModels(tmp_path / "models", older)
    catch_up(models, story.log)
    before = dump(models)
    models.close()
    models = ReadModels(tmp_path / "models", MODELS)
    assert models.position("instances") == 0
    catch_up(models, story.log)
    assert dump(models) == before
    models.close()


def test_only_one_process_writes(models: ReadModels, story: Story) -> None:
    with pytest.raises(ProjectorRunningError, match=str(os.getpid())):
        rebuild(story.log, models.path.parent)


def test_rebuilding_while_no_projector_runs(tmp_path: Path, story: Story) -> None:
    story.settle(story.create())
    rebuild(story.log, tmp_path / "models")
    models = ReadModels(tmp_path / "models", MODELS)
    assert models.position("history") == story.log.end()
    models.close()


def test_a_model_that_cannot_take_an_event_keeps_what_came_before(story: Story, models: ReadModels) -> None:
    story.settle(story.create())
    good = story.log.end()
    bad = story.spoil()
    story.create()
    stopped = models.advance(list(models.models), story.log.read(0, 1000))
    assert {name: error.position for name, error in stopped.items()} == {"instances": bad}
    assert models.position("instances") == good
    assert models.position("commands") == story.log.end()


def test_quiet_when_all_is_well(story: Story, models: ReadModels) -> None:
    with structlog.testing.capture_logs() as logs:
        story.settle(story.create())
        catch_up(models, story.log)
    assert logs == []
