"""What every command does around its work: process settings, and errors as one message."""

import argparse
import os
import platform
import sys
import warnings
from collections.abc import Callable

HUGE_PAGES = "glibc.malloc.hugetlb=1"


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
