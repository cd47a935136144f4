import jax
import jax.numpy as jnp
import pytest

from clip_jax.train.profile import Profile, parse_profile, profiled
from clip_jax.train.state import State


@jax.jit
def step(state, batch):
    return State(state.step + 1, None, None), {"loss": jnp.float32(0)}


def at(number):
    return State(jnp.int32(number), None, None)


class Recorder:
    """In the profiler's place: what it is told, and which steps run meanwhile."""

    def __init__(self, patch):
        self.events, self.on = [], False
        patch.setattr(jax.profiler, "start_trace", self.start)
        patch.setattr(jax.profiler, "stop_trace", self.stop)

    def start(self, folder):
        assert not self.on
        self.on, self.folder = True, folder

    def stop(self):
        assert self.on
        self.on = False

    def step(self, state, batch):
        if self.on:
            self.events.append(int(state.step) + 1)
        return step(state, batch)


@pytest.fixture
def recorder(monkeypatch):
    return Recorder(monkeypatch)


def run(recorder, profile, folder, start=0):
    """Lines said in a run of eight steps."""
    said = []
    with profiled(recorder.step, profile, start=start, folder=folder, say=said.append) as call:
        state = at(start)
        for _ in range(8):
            state, _ = call(state, {})
            assert not said or not recorder.on
    return said


@pytest.mark.parametrize(("start", "text"), [(0, "3:5"), (0, "1:1"), (6, "7:14"), (2, "4:4")])
def test_just_these_steps_are_recorded(recorder, tmp_path, start, text):
    profile = parse_profile(text)
    (said,) = run(recorder, profile, tmp_path, start)
    assert recorder.events == list(range(profile.first, profile.last + 1))
    assert not recorder.on and recorder.folder == tmp_path
    assert said.startswith(f"trace of steps {profile.first} to {profile.last}: {tmp_path} ")
    assert f"xprof --logdir {tmp_path}" in said


@pytest.mark.parametrize("fail", [2, 4, 7])
def test_a_run_that_ends_early_ends_its_trace(recorder, tmp_path, fail):
    said = []
    with (
        pytest.raises(KeyboardInterrupt),
        profiled(
            recorder.step, parse_profile("3:5"), start=0, folder=tmp_path, say=said.append
        ) as call,
    ):
        state = at(0)
        for _ in range(fail - 1):
            state, _ = call(state, {})
        raise KeyboardInterrupt
    seen = [number for number in (3, 4, 5) if number < fail]
    assert recorder.events == seen and not recorder.on
    assert [line.split(":")[0] for line in said] == [f"trace of steps 3 to {n}" for n in seen[-1:]]


def test_without_a_range_nothing_is_recorded(recorder, tmp_path):
    assert run(recorder, None, tmp_path) == [] and recorder.events == []


@pytest.mark.parametrize("text", ["13:10", "x", "10", "0:3", "1:2:3", "-1:3", "3:", "", "1.0:2"])
def test_what_is_no_range_is_refused(text):
    with pytest.raises(ValueError, match=rf"--profile '{text}': .* such as 10:13"):
        parse_profile(text)


@pytest.mark.parametrize("text", ["5:6", "9:11", "1:20", "12:13"])
def test_steps_outside_of_the_run_are_refused(text):
    Profile(first=6, last=10).check(5, 10)
    with pytest.raises(ValueError, match=f"--profile {text}: this start trains steps 6 to 10"):
        parse_profile(text).check(5, 10)


def test_a_stage_has_its_part_of_the_steps():
    steps = Profile(first=3, last=6)
    parts = [steps.within(*stage) for stage in ((0, 2), (0, 3), (3, 5), (2, 9), (6, 9))]
    assert list(map(str, parts)) == ["None", "3:3", "4:5", "3:6", "None"]
