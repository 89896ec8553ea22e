"""What holds for every test of every folder, doctests of the sources included."""

import signal

import pytest

# Helpers assert as tests do, so a failed assertion there shows its values, too.
pytest.register_assert_rewrite("tests.support")

# A shell starts a background job with SIGINT ignored, and nohup ignores SIGHUP. Tests send both to
# themselves and expect what a terminal's job would do.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


class FailuresAtOnce:
    """Names each failure when it happens: an interrupted run has no summary."""

    def __init__(self, terminal) -> None:
        self.terminal = terminal

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            reason = (crash.message if crash else str(report.longrepr)).partition("\n")[0]
            # Dots stand before it.
            self.terminal.write_line(f"\nFAILED {report.nodeid} ({report.when}): {reason}")


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    # A worker of xdist reports to the process that started it.
    if terminal is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(FailuresAtOnce(terminal))
