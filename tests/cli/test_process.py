import pathlib

import jax
import pytest

from clip_jax.cli.process import CACHE_BYTES, keep_compiled


@pytest.fixture
def settings(monkeypatch):
    """What is set of jax, on a machine with an accelerator."""
    made = {}
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    monkeypatch.setattr(jax.config, "update", made.__setitem__)
    return made


def test_compiled_programs_are_kept_in_the_user_s_cache_folder(settings, tmp_path, monkeypatch):
    keep_compiled({"XDG_CACHE_HOME": str(tmp_path / "xdg")})
    folder = pathlib.Path(settings["jax_compilation_cache_dir"])
    assert folder == tmp_path / "xdg" / "clip_jax" / "compiled" and folder.is_dir()
    assert settings["jax_compilation_cache_max_size"] == CACHE_BYTES
    monkeypatch.setenv("HOME", str(tmp_path))
    keep_compiled({"XDG_CACHE_HOME": ""})
    folder = pathlib.Path(settings["jax_compilation_cache_dir"])
    assert folder == tmp_path / ".cache" / "clip_jax" / "compiled"


@pytest.mark.parametrize("given", ["", "somewhere"])
def test_jax_s_own_variable_is_left_to_jax(settings, tmp_path, given):
    keep_compiled({"XDG_CACHE_HOME": str(tmp_path), "JAX_COMPILATION_CACHE_DIR": given})
    assert settings == {} and not list(tmp_path.iterdir())


def test_on_cpu_nothing_is_kept_unasked(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    keep_compiled({"XDG_CACHE_HOME": str(tmp_path)})
    assert settings == {} and not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_no_reason_to_stop(settings, tmp_path):
    (tmp_path / "file").touch()
    keep_compiled({"XDG_CACHE_HOME": str(tmp_path / "file")})
    assert settings == {}
