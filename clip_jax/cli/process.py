"""What every command does around its work: process settings, and errors as one message."""

import argparse
import os
import pathlib
import platform
import sys
import warnings
from collections.abc import Callable, Mapping

HUGE_PAGES = "glibc.malloc.hugetlb=1"
CACHE_BYTES = 10 * 2**30
"""Of compiled programs that are kept; those used longest ago make room."""


def use_huge_pages() -> None:
    """Start this process over with glibc's allocator on transparent huge pages (Linux).

    XLA on CPU takes and returns its work space at every step; with 4-KiB pages a fifth
    of a training step went into page faults. The C library reads this setting only when
    a process starts. Whoever sets GLIBC_TUNABLES decides for himself.
    """
    is_glibc = sys.platform == "linux" and platform.libc_ver()[0] == "glibc"
    if is_glibc and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = HUGE_PAGES
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def settle_simulated_devices() -> None:
    """Run one program at a time where XLA_FLAGS simulates several devices on the CPU.

    Two under way at once can starve each other's collectives for ever.
    """
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        import jax

        jax.config.update("jax_cpu_enable_async_dispatch", False)


def keep_compiled(environ: Mapping[str, str] = os.environ) -> None:
    """Keep compiled programs on disk, so that the same command starts faster the next time.

    In `clip_jax/compiled` of the user's cache folder (XDG), or where JAX_COMPILATION_CACHE_DIR
    says; JAX_ENABLE_COMPILATION_CACHE=0 turns it off. On CPU only if that folder is given: there
    XLA compares programs with the machine again when it loads them and prints an error for each
    on many processors (github.com/jax-ml/jax/issues/38445), and in a home folder that machines
    share, what one has compiled can end another with an illegal instruction.

    To be called when jax may look for devices, before anything is compiled.
    """
    import jax

    if "JAX_COMPILATION_CACHE_DIR" in environ or jax.default_backend() == "cpu":
        return
    folder = pathlib.Path(environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    try:
        (folder / "clip_jax" / "compiled").mkdir(parents=True, exist_ok=True)
    except OSError:  # No room of one's own, as in some containers: then nothing is kept.
        return
    jax.config.update("jax_compilation_cache_max_size", CACHE_BYTES)
    jax.config.update("jax_compilation_cache_dir", str(folder / "clip_jax" / "compiled"))


def command(work: Callable[[list[str]], None]) -> Callable[..., int]:
    """Makes `main(argv) -> exit status` of a function: known errors become one message.

    0: done; 1: an error that the message explains; 75: stopped by SIGTERM, all is saved and the
    same command goes on; 76: another process of the run is gone or did not come, the same
    command goes on from the last checkpoint; 130: interrupted; 141: nobody reads on.
    """

    def main(argv: list[str] | None = None) -> int:
        if argv is None:
            use_huge_pages()
            argv = sys.argv[1:]
        settle_simulated_devices()
        warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
        from clip_jax.checkpoint.store import CheckpointError
        from clip_jax.sharding.line import LOST, AbsentError
        from clip_jax.sharding.processes import STOPPED, StoppedError
        from clip_jax.train.loop import DivergedError

        try:
            work(argv)
            sys.stdout.flush()
        except BrokenPipeError:  # Who read the output has enough of it: `... | head`.
            # What is still buffered would fail again when Python ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        except (ValueError, OSError, CheckpointError, DivergedError) as error:
            if os.environ.get("CLIP_JAX_TRACEBACK"):
                raise
            print(f"error: {error}", file=sys.stderr)
            return LOST if isinstance(error, AbsentError) else 1
        except StoppedError as stop:
            print(f"{stop}; the same command goes on", file=sys.stderr)
            return STOPPED
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        return 0

    main.__doc__ = work.__doc__
    return main


def add_model(parser: argparse.ArgumentParser) -> None:
    """The option `--model` of commands that use one."""
    parser.add_argument(
        "--model",
        default="ViT-B-32/openai",
        help="a run, a file or folder of weights, hf-hub:org/name, or a name that `clip-jax "
        "models --tags` lists (%(default)s)",
    )
