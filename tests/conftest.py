"""What holds for every test: common ground, a limit of time, nothing left behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import ground, leftovers, limit
from tools.daemons import Daemon

# Here and not in a fixture: the processes that xdist starts are to have it as well.
ground.of_this_process()

NEEDS = {"root": "needs root", "netns": "needs root and /dev/net/tun"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--quick",
        action="store_true",
        help="leave out what needs root, hosts as network namespaces above all",
    )
    parser.addoption(
        "--engine",
        choices=["native", "python"],
        help="what works on packets in the core's tests and in daemons; by default the "
        "native one, where it was built",
    )
    parser.addoption(
        "--cores",
        type=int,
        help="how many processes of a daemon carry packets, where it is no relay",
    )


def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    root = os.geteuid() == 0 and not config.getoption("quick")
    met = {"root": root, "netns": root and Path("/dev/net/tun").exists()}
    for item in items:
        for marker, reason in NEEDS.items():
            if item.get_closest_marker(marker) and not met[marker]:
                item.add_marker(pytest.mark.skip(reason=reason))


def pytest_unconfigure(config: pytest.Config) -> None:
    """Say at the very end what was left out: that all passed is only half of it."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    reports = reporter.stats.get("skipped", ()) if reporter else ()
    count = sum(
        report.longrepr[2].endswith(tuple(NEEDS.values())) for report in reports
    )
    if count:
        reporter.write_line(
            f"Left out: {count} tests, which need root, most of them for hosts as "
            "network namespaces; all tests: sudo tools/test"
        )


@pytest.fixture(autouse=True, scope="session")
def own_ground(
    tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> None:
    """An environment that nobody else has a part in."""
    ground.of_its_tests(tmp_path_factory.mktemp("tmp"))
    if engine := pytestconfig.getoption("engine"):
        os.environ["ALPHA_TRIO_ENGINE"] = engine
    Daemon.cores = pytestconfig.getoption("cores") or 1
    leftovers.adopt_orphans()


@pytest.fixture(autouse=True, scope="module")
def nothing_left_by_the_module(
    own_ground: None, request: pytest.FixtureRequest
) -> Iterator[None]:
    yield from watched(request)


@pytest.fixture(autouse=True)
def nothing_left_by_the_test(request: pytest.FixtureRequest) -> Iterator[None]:
    yield from watched(request)


def watched(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail at the end if there is more than in the beginning."""
    hosts = request.node.get_closest_marker("netns") is not None
    before = leftovers.present(hosts=hosts)
    yield
    left = leftovers.since(before, hosts=hosts)
    words = [leftovers.described(each) for each in left]
    for each in left:
        leftovers.remove(each)
    if left:
        pytest.fail(f"{request.node.nodeid} left behind: {', '.join(words)}")


def pytest_timeout_set_timer(item, settings):
    limit.begin(item, settings.timeout)
    return True


def pytest_timeout_cancel_timer():
    limit.end()
    return True


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item):
    return (yield from limit.judged(item))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item):
    return (yield from limit.judged(item))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item):
    return (yield from limit.closed(item))
